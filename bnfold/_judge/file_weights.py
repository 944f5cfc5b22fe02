"""Gives a model in float64 the weights of a file.

In a type of few digits the rounding of right weights hides wrong ones in outputs. Two questions
take the place of a comparison of outputs:

- Are the weights of the file those of the model, but for roundings?
- Does the model compute what the file does, if it has the file's weights?

An exporter may have folded norms or not. So both are folded in float64 first. A weight of the file
is looked for by its numbers. If another one is taken for it, the second question tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from bnfold._core.result import Kept
from bnfold._errors import UsageError
from bnfold._judge.float64_model import widened_proto
from bnfold._judge.normal_form import NormalForm, unexplained_tensor
from bnfold._onnx import tensors
from bnfold._onnx.fold import prepare
from bnfold._onnx.read.frozen import freeze
from bnfold._onnx.read.scopes import label
from bnfold._run.nodes import OWN, reads, subgraphs
from bnfold._run.source import Source
from bnfold._torch.module.fold import Example

_FEW = 4
"""Tensors with fewer numbers are alike too easily."""
_SAME = 0.5
"""Which part of the numbers of a weight tells that it is the same weight."""
_ROUNDED = 1e-4
"""How far a number may be off that was folded in float32, and be the same number."""
_WRONG = 1e-3
"""How far a weight may be off before it is wrong, relative to the largest number in the row."""
_ROW = 1e-2
"""How small a row may be, relative to the largest number, before it counts as that large."""
_SAMPLE, _TINY = 256, 1e-300


def take_weights(
    program: ExportedProgram, file: Source, example: Example, dtype: torch.dtype
) -> None:
    """Give a program that is in float64 and folded the weights of a file, in place.

    ``example`` is widened, and ``dtype`` the type whose roundings set weights apart.

    Raises:
        UsageError: the file does not hold a weight of the program, or cannot be folded.
    """
    held = [each.values for each in _constants(file)]
    found = dict[str, Tensor]()
    for name, wanted in NormalForm.of(program, example).weights.items():
        fitting = [each for one in held for each in _as_shaped(one, wanted)]
        fitting.sort(key=lambda each: float((each - wanted).abs().max()) if each.numel() else 0.0)
        right = [each for each in fitting if not unexplained_tensor(wanted, each, dtype)]
        if not right:
            raise UsageError(f"the file holds no weight that is {name} but for roundings")
        found[name] = right[0]
    with torch.no_grad():
        for store in (program.state_dict, program.constants):
            for name in found.keys() & store.keys():
                store[name].copy_(found[name])


def wrong_weight(
    program: ExportedProgram,
    file: Source,
    example: Example,
    given: Iterable[Tensor] = (),
    narrow: Collection[str] = (),
) -> str:
    """What is wrong with a weight of a file that is evidently one of a program, in words, or "".

    The program is in float64 and folded, and ``example`` is widened. A weight is evidently the same
    if half of its numbers are the same, and no other weight of the program is nearer. It is wrong
    if another number is off by more than folding in float32 explains. Where a map in the file does
    not fold, a weight beside it may be one of those ``given``, as they were before the program was
    folded. Nothing is said of weights that are ``narrow``: their type has few digits, and whoever
    folds in it is off by more.

    Raises:
        UsageError: the program or the file cannot be folded, or the file holds no weight of it.
    """
    weights = NormalForm.of(program, example).weights
    constants = [one for one in _constants(file) if one.values.numel() >= _FEW]
    held = [one.values for one in constants]
    before = [one.detach().double().cpu() for one in given]
    free, near = set(range(len(held))), list[tuple[str, int, float]]()
    for name, wanted in weights.items():
        found = []
        for number, one in enumerate(held):
            for each in _as_shaped(one, wanted):
                if _alike(_sampled(wanted), _sampled(each)) >= _SAME / 2:
                    found.append((_off(wanted, each), number, _alike(wanted, each)))
        if found and min(found)[0] <= _WRONG:
            free -= {number for off, number, _ in found if off <= _WRONG}
        else:
            near += [(name, number, off) for off, number, alike in found if alike >= _SAME]
    if weights and not near and len(free) == len(held):
        raise UsageError("the file holds none of them as a constant of its main graph")
    for name, number, off in near:
        if name in narrow:
            continue
        unfolded = before if constants[number].beside_a_map else ()
        if number in free and not any(_is_same(one, held[number]) for one in unfolded):
            return f"{name} is off by {100 * off:.2g} % in the file, which no output shows here"
    return ""


def _is_same(wanted: Tensor, held: Tensor) -> bool:
    return any(_off(wanted, each) <= _WRONG for each in _as_shaped(held, wanted))


def _off(wanted: Tensor, found: Tensor) -> float:
    """The largest difference of two weights, relative to the largest number in its row.

    The terms of a bias may cancel, so its numbers are one row.
    """
    most, apart = wanted.abs(), (found - wanted).abs()
    if wanted.dim() < 2:
        return float(apart.max() / most.max().clamp(min=_TINY))
    rows, off = (each.reshape(len(wanted), -1).amax(1) for each in (most, apart))
    return float((off / rows.clamp(min=max(_TINY, _ROW * float(most.max())))).max())


def _alike(wanted: Tensor, found: Tensor) -> float:
    """Which part of the numbers of two weights are the same but for roundings."""
    most = _ROUNDED * (wanted.abs() + wanted.abs().max() * _ROUNDED)
    return float(((found - wanted).abs() <= most).double().mean())


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)]


class _Held(NamedTuple):
    """A constant of a file, and whether a map that stays could have gone into it."""

    values: Tensor
    beside_a_map: bool


def _constants(file: Source) -> list[_Held]:
    """The float constants of the main graph of a file, which is folded in float64.

    Its initializers are fixed, for both models run with what they are.
    """
    model = widened_proto(file)
    freeze(model)
    planned = prepare(model, file.folder)
    planned.apply()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    beside = _beside_maps(model.graph, stored, planned.plan.kept)
    return [
        _Held(torch.from_numpy(np.array(tensors.read(tensor, file.folder))), name in beside)
        for name, tensor in stored.items()
        if tensor.data_type == onnx.TensorProto.DOUBLE
    ]


def _beside_maps(
    graph: onnx.GraphProto, stored: Mapping[str, onnx.TensorProto], kept: Sequence[Kept]
) -> set[str]:
    """The names of constants that maps could have gone into, had they not been kept.

    A map goes through operators without weights, forwards and backwards, and no further than to an
    operator that reads one. A map within a body or a function may be of any node that has one.
    """
    made_of = {name: {name} for name in stored}
    for node in graph.node:
        if all(name in made_of for name in filter(None, reads(node))):
            sources = set[str]().union(*(made_of[name] for name in filter(None, reads(node))))
            made_of.update(dict.fromkeys(node.output, sources))
    links: dict[str, list[int]] = {}
    for number, node in enumerate(graph.node):
        for name in filter(None, (*reads(node), *node.output)):
            if name not in made_of:
                links.setdefault(name, []).append(number)
    inner = any(each.graph for each in kept)
    labels = {each.node for each in kept}
    first = [
        number
        for number, node in enumerate(graph.node)
        if label(node) in labels or (inner and (node.domain not in OWN or any(subgraphs(node))))
    ]
    if kept and not first:
        return set(stored)
    found, seen, waiting = set[str](), set(first), list(first)
    while waiting:
        number = waiting.pop()
        names = [name for name in (*reads(graph.node[number]), *graph.node[number].output) if name]
        own = set[str]().union(*(made_of.get(name, ()) for name in names))
        found |= own
        if number in first or all(len(stored[name].dims) < 2 for name in own):
            near = {each for name in names for each in links.get(name, ())} - seen
            seen |= near
            waiting += near
    return found


def _as_shaped(held: Tensor, wanted: Tensor) -> Sequence[Tensor]:
    """A constant in the shape of a weight: as it is, turned, or without axes of one."""
    if held.numel() != wanted.numel():
        return []
    if _long(held.shape) == _long(wanted.shape):
        square = held.dim() == 2 and wanted.shape == held.shape == held.T.shape
        return [held.reshape(wanted.shape), *([held.T] if square else [])]
    if held.dim() == 2 and held.T.shape == wanted.shape:
        return [held.T]
    return []


def _long(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
