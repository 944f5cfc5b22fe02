"""What a user wants kept: submodules that go on giving what they give, and tensors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn
from torch.export import ExportedProgram

from bnfold._core.reasons import Reason
from bnfold._errors import UsageError
from bnfold._torch.module.parameters import stored
from bnfold._torch.read.graph import labels_of, operators, paths_of


@dataclass(frozen=True)
class Keep:
    """What may not change: values of the network, by the program's node, and the names of
    parameters and buffers.
    """

    values: Mapping[fx.Node, Reason] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()


def looked_up(program: ExportedProgram, module: nn.Module, names: Sequence[str]) -> Keep:
    """Look up names of submodules, of parameters and buffers, and of tensors as reasons name them.

    A submodule keeps what it gives to the rest of the network, in all of its calls; inside of it
    maps may move. Raises `UsageError` for a name that the network has not, or does not use.
    """
    if not names:
        return Keep()
    nodes = operators(program.graph)
    labels = labels_of(nodes)
    tensors = stored(module)
    modules = dict(module.named_modules(remove_duplicate=False))
    values: dict[fx.Node, Reason] = {}
    for name in names:
        reason = kept_value(name)
        if name in tensors:
            continue
        found = [node for node in nodes if name in (labels[node], node.name)]
        if name in modules and name:
            part = modules[name]
            same = {path for path, other in modules.items() if other is part}
            inside = {node for node in nodes if same & set(paths_of(node))}
            found = [node for node in inside if any(user not in inside for user in node.users)]
            if not inside:
                raise UsageError(
                    f"keep: {name} computes nothing with these inputs, so that nothing is known of "
                    "what it gives: name the module ahead of it"
                )
        if not found:
            known = [*filter(None, modules), *tensors, *labels.values()]
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"keep: {type(module).__name__} has no submodule, parameter, buffer or tensor "
                f"{name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        values.update(dict.fromkeys(found, reason))
    return Keep(values, frozenset(name for name in names if name in tensors))


def kept_value(name: str) -> Reason:
    """Why something does not change whose name was given."""
    return Reason("kept-value", name, f"keep says that {name} does not change")


def refuse_operators(module: nn.Module, names: Sequence[str]) -> None:
    """Raise `UsageError` for names of operators: they are others once branches are one module."""
    known = {*dict(module.named_modules(remove_duplicate=False)), *stored(module)}
    for name in names:
        if name not in known:
            raise UsageError(
                f"keep: {name} names an operator; with merge=True give submodules, parameters or "
                "buffers"
            )
