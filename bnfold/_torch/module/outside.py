"""Whether the code around some modules does the same once others stand in their place.

Code may ask a module for its class or for an attribute, and go another way by what it is told. No
graph shows that it asked. So the network is traced again with the new modules, and what stands
outside of them is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from bnfold._torch.read.graph import paths_of
from bnfold._torch.read.nodes import kind_of

_SIZES = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
_HELD = (InputKind.PARAMETER, InputKind.BUFFER)


def changed_outside(
    module: nn.Module, paths: Collection[str], before: ExportedProgram, after: ExportedProgram
) -> str | None:
    """The first operator outside of the modules with some paths that is another one afterwards, or
    reads something else; None if there is none.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    replaced = {id(modules[path]) for path in paths}
    names = {name for name, part in modules.items() if id(part) in replaced}
    rows = itertools.zip_longest(_rows(before, names), _rows(after, names), fillvalue=("", ""))
    for (name, one), (other, two) in rows:
        if one != two:
            return name or other
    return None


def _rows(program: ExportedProgram, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """The operators outside of some modules, each by its name and with all that it is told.

    Sizes are left out: the modules themselves may ask for them. So are checks, which compute
    nothing.
    """
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    marks: dict[fx.Node, str] = {}
    inputs = computed = 0
    for node in program.graph.nodes:
        inside = [path for path in paths_of(node) if path in names]
        if node.op == "placeholder":
            spec = specs[node.name]
            marks[node] = f"constant {spec.target}" if spec.kind in _HELD else "constant"
            if spec.kind is InputKind.USER_INPUT:
                inputs += 1
                marks[node] = f"input {inputs}"
        elif node.op == "get_attr":
            marks[node] = str(node.target)
        elif inside:
            marks[node] = inside[-1]
        elif node.op == "call_function" and not _is_of_data(node):
            marks[node] = "size"
        else:
            computed += 1
            marks[node] = str(computed)
            args, kwargs = fx.map_arg((node.args, node.kwargs), marks.__getitem__)
            yield kind_of(node), f"{node.target} {args} {kwargs}"


def _is_of_data(node: fx.Node) -> bool:
    """Whether an operator computes tensors, or a list of them."""
    example = node.meta.get("val")
    return example is not None and not isinstance(example, _SIZES)
