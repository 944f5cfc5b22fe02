"""Compares the weights of two models after both are folded in float64.

In bfloat16 an output says little about a fold. The rounding of each weight moves it by up to 0.4 %,
and an error of 1 % in one channel is lost in that. Weights say more. Both models are widened to
float64 and folded, so that both have the same operators. Then their weights may differ only by
roundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from bnfold._judge.difference import distance, magnitude
from bnfold._judge.widening import widened
from bnfold._run.noise import Array
from bnfold._torch.module.copying import copied
from bnfold._torch.module.fold import Example, prepare_module
from bnfold._torch.program.fold import PlannedProgram
from bnfold._torch.read.export import export

Folded = nn.Module | ExportedProgram
FEW = (torch.bfloat16, torch.float16)
"""The types of few digits."""
# In units of the type's spacing at 1. A scale is computed in the type from var + ε, the reciprocal
# of its root, and γ: it is off by 1.25 at most. A number that it multiplies is off by 0.5 more.
_SCALE, _ROUNDED = 1.25, 0.5
# Numbers scaled by little more than a power of 2 are rounded alike in the type.
_ALIKE = 0.3
# Channels are off by about the same, to both sides: none by much more, and not all to one side.
_OUTSTANDING, _ONE_SIDED = 5.0, 0.75
# For a bias, relative to the largest number of its tensor, because its terms may cancel.
_BIAS = 4.0
# How far an output may move when a model is folded in float64, relative to its largest value.
_EXACT = 1e-9


def state(model: Folded) -> Mapping[str, Tensor]:
    """The parameters and buffers of a model by name, those that are not saved, too."""
    if isinstance(model, ExportedProgram):
        found = (*model.state_dict.items(), *model.constants.items())
        return {name: value for name, value in found if isinstance(value, Tensor)}
    buffers = model.named_buffers(remove_duplicate=False)
    return dict((*model.named_parameters(remove_duplicate=False), *buffers))


def narrow_type(*models: Folded) -> torch.dtype | None:
    """The type of few digits that one of some models holds numbers in, or None."""
    kinds = {tensor.dtype for model in models for tensor in state(model).values()}
    return next((each for each in FEW if each in kinds), None)


def same_in_float64(wanted: Array, found: Array) -> bool:
    """Whether an output is what it was before a model was folded in float64."""
    return distance(wanted, found) <= _EXACT * magnitude(wanted)


def folded_module(module: nn.Module, example: Example) -> nn.Module:
    """A module in float64, folded. ``example`` is widened.

    Raises:
        UsageError: it cannot be copied, exported or folded.
    """
    wide = nn.Module.double(copied(module))
    return prepare_module(wide, example).apply(inplace=True)


def folded_program(model: Folded, example: Example, wide: Example) -> ExportedProgram:
    """A program in float64, folded; a module is exported first. ``wide`` is the widened example.

    Raises:
        UsageError: it cannot be exported in float64.
    """
    if not isinstance(model, ExportedProgram):
        model = export(model, example.args, example.kwargs, None)
    return PlannedProgram(widened(model, wide)).apply()


class NormalForm(NamedTuple):
    """What a folded model runs, and on which weights.

    Attributes:
        weights: the floating parameters and constants with their names, in the order in which
            operators read them first.
        operators: what it runs, line by line. Weights stand there by their number, for the same
            weight may have another name in another model; of other constants, such as indices, it
            is told what they hold.
    """

    weights: Mapping[str, Tensor]
    operators: Sequence[str]

    @classmethod
    def of(cls, model: Folded, example: Example) -> NormalForm:
        """The form of a model that is in float64 and folded.

        Raises:
            UsageError: it cannot be exported.
        """
        program = model
        if not isinstance(program, ExportedProgram):
            program = export(program, example.args, example.kwargs, None)
        held, told = state(program), dict[str, str]()
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        entering = [name for name, spec in specs.items() if not spec.target]
        weights = dict[str, Tensor]()
        for name in _in_order_of_use(program.graph_module):
            target = specs[name].target
            tensor = held.get(target or "")
            if target is None:
                told[name] = f"input {entering.index(name)}"
            elif tensor is None:
                told[name] = target
            elif tensor.is_floating_point():
                told[name] = f"weight {list({**weights, target: tensor}).index(target)}"
                weights[target] = tensor.detach()
            else:
                values = tensor.detach().cpu().contiguous().numpy().tobytes()
                told[name] = f"{tensor.dtype} {tuple(tensor.shape)} {sha256(values).hexdigest()}"
        return cls(weights, _lines(program.graph_module, told))


def unexplained(original: NormalForm, folded: NormalForm, dtype: torch.dtype) -> str | None:
    """What roundings to a type do not explain in the weights of two models, in words.

    Returns "" if roundings explain every difference, and None where the two do not have the same
    weights.
    """
    ours, theirs = list(original.weights.values()), list(folded.weights.values())
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return None
    for name, wanted, made in zip(original.weights, ours, theirs, strict=True):
        problem = unexplained_tensor(wanted.double(), made.double(), dtype)
        if problem:
            return f"{name} {problem}, which roundings to {str(dtype)[6:]} do not explain"
    return ""


def _in_order_of_use(module: GraphModule) -> list[str]:
    """The names of the placeholders that an operator reads, in the order of the first one."""
    found = dict[str, None]()
    for node in module.graph.nodes:
        if node.op != "placeholder":
            found.update((each.name, None) for each in node.all_input_nodes if _is_given(each))
    return list(found)


def _is_given(node: Node) -> bool:
    return node.op == "placeholder"


def _lines(module: GraphModule, told: Mapping[str, str]) -> list[str]:
    names = dict[Node, str]()
    lines = list[str]()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names[node] = told.get(node.name, f"input {len(names)}")
            continue
        part = attrgetter(str(node.target))(module) if node.op == "get_attr" else None
        if isinstance(part, GraphModule):
            names[node] = repr(_lines(part, {}))
            continue
        names[node] = f"%{len(lines)}"
        lines.append(f"{node.op} {node.target} {map_arg(_arguments(node), lambda n: names[n])!r}")
    return lines


def _arguments(node: Node) -> Any:
    """The arguments of an operator, those left out that are what they are without being given."""
    if not isinstance(node.target, OpOverload):
        return node.args, node.kwargs
    known = node.target._schema.arguments
    named = dict(zip((argument.name for argument in known), node.args, strict=False))
    named |= node.kwargs
    usual = {
        argument.name: argument.default_value for argument in known if argument.has_default_value()
    }
    return [
        (name, value)
        for name, value in sorted(named.items())
        if name not in usual or isinstance(value, Node) or value != usual[name]
    ]


def unexplained_tensor(wanted: Tensor, made: Tensor, dtype: torch.dtype) -> str:
    """Where a tensor is further from the wanted one than a few roundings explain, or ""."""
    if wanted.numel() == 0 or torch.equal(wanted, made):
        return ""
    info: Any = torch.finfo(dtype)
    difference = (made - wanted).abs()
    most = (_SCALE + _ROUNDED) * info.eps * wanted.abs() + info.tiny
    if wanted.dim() < 2:
        most = _BIAS * info.eps * wanted.abs().max() + info.tiny
    if not bool((difference <= most).all()):
        return f"is off by {difference.max():.2e}"
    for axis in range(wanted.dim() if wanted.dim() > 1 else 0):
        was, now = (t.movedim(axis, 0).flatten(1) for t in (wanted, made))
        alive = was.abs().amax(1) > 0
        at = _unexplained_scale(was[alive], now[alive], info.eps)
        if at is not None:
            return f"is off by {100 * at[1]:.2g} % in slice {at[0]} of axis {axis}"
    return ""


def _unexplained_scale(was: Tensor, now: Tensor, eps: float) -> tuple[int, float] | None:
    """The row whose scale is further from 1 than roundings explain, and how far it is, or None.

    If each of the n numbers of a row is rounded, the row as a whole is off by less than 1/√n units.
    That is five times what is to be expected. If it is off by more, its scale is wrong.
    """
    if len(was) == 0:
        return None
    was, now = (t / was.abs().amax(1, keepdim=True) for t in (was, now))
    squares = (was * was).sum(1)
    off = ((was * (now - was)).sum(1) / squares) / eps
    rounded = ((was**4).sum(1).sqrt() / squares).clamp(max=_ROUNDED)
    usual = off.abs().median()
    leans = off.median().abs() > _ONE_SIDED
    most = (_OUTSTANDING * usual).clamp(_ALIKE, _SCALE) + rounded
    if not bool(leans) and bool((off.abs() <= most).all()):
        return None
    worst = int((off.abs() - most).argmax())
    return worst, float(off[worst].abs()) * eps
