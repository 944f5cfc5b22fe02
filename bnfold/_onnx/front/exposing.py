"""Takes the normalization that a model begins with out of it, so that its caller does it.

The operators that read an input first, one after the other, and are scales and shifts by constants
are one map ``y = s·x + t``, which is ``(x − m) / d`` with ``d = 1/s`` and ``m = −t/s``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from bnfold._core.preprocessing import Preprocessing
from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.front.permuting import drop_unread
from bnfold._onnx.front.prepending import reread
from bnfold._onnx.read.attributes import integer, number
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope, label, opset_of, read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._system.records import record

Double = NDArray[np.float64]
_LAYOUTS = {
    (2, 1): "",
    (3, 0): "chw:chw",
    (3, 1): "ncw:ncw",
    (3, 2): "hwc:hwc",
    (4, 1): "",
    (4, 3): "nhwc:nhwc",
    (5, 1): "",
    (5, 4): "ndhwc:ndhwc",
}
"""How preprocessing names the axis of channels, by rank and axis."""
_BROADCASTING = 7


@record(frozen=True)
class Exposed:
    """The normalization of an input that the model does no longer.

    ``values`` are what its caller has to do. ``operators`` have gone, by type.
    """

    name: str
    values: Preprocessing
    operators: tuple[str, ...]


@record
class _Map:
    """``scale·x + shift``: numbers, or arrays along one axis of the input."""

    scale: Double
    shift: Double
    axis: int | None = None


def expose(model: ModelProto, base_dir: Path | None) -> list[Exposed]:
    """Take out the normalization of every input that has one, in place.

    Raises `UsageError` where none has.
    """
    scopes = read_scopes(model)
    scope = scopes[0]
    if opset_of(model.opset_import) < _BROADCASTING:
        raise UsageError(f"the model is of an opset below {_BROADCASTING}: convert it first")
    constants = Constants(base_dir, infer(model, scopes))
    stored = scope.initializers.keys() | scope.sparse.keys()
    found, why = [], []
    for value in model.graph.input:
        if value.name in stored or value.type.tensor_type.elem_type not in tensors.FLOATS:
            continue
        map_, gone, last, told = _leading(scope, constants, value)
        values = _values(map_, len(value.type.tensor_type.shape.dim))
        if not gone or values is None:
            why.append(f"{value.name}: {told}")
            continue
        found.append((Exposed(value.name, values, _types(scope, gone)), gone, last))
    if not found:
        reasons = "; ".join(why) or "it has no input of floats"
        raise UsageError(f"the model begins with no normalization to take out ({reasons})")
    read = {name for _, gone, _ in found for p in gone for name in scope.nodes[p].input}
    reread(model.graph, {last: one.name for one, _, last in found})
    for position in sorted((p for _, gone, _ in found for p in gone), reverse=True):
        del model.graph.node[position]
    drop_unread(model, read)
    return [one for one, _, _ in found]


def _types(scope: Scope, gone: list[int]) -> tuple[str, ...]:
    return tuple(scope.nodes[position].op_type for position in gone)


def _leading(
    scope: Scope, constants: Constants, value: ValueInfoProto
) -> tuple[_Map, list[int], str, str]:
    """The map that an input goes through first, its operators, and the tensor behind them.

    The last text says what reads that tensor.
    """
    name = value.name
    rank = len(value.type.tensor_type.shape.dim)
    found, gone = _Map(np.ones(()), np.zeros(())), list[int]()
    while True:
        if name in scope.outputs or name in scope.captures:
            return found, gone, name, "it is read elsewhere, too"
        readers = scope.readers.get(name, [])
        if len(readers) != 1:
            return found, gone, name, f"{len(readers)} operators read it"
        node = scope.nodes[readers[0]]
        step = _step(scope, constants, node, name, rank)
        told = f"{label(node)} reads it"
        if step is None or any(each in scope.outputs for each in node.output):
            return found, gone, name, told
        if not _are_alike(found, step, value):
            return found, gone, name, told
        scale = step.scale * found.scale
        shift = step.scale * found.shift + step.shift
        if not np.all(np.isfinite(scale)) or np.any(scale == 0) or not np.all(np.isfinite(shift)):
            return found, gone, name, told
        found = _Map(scale, shift, step.axis if found.axis is None else found.axis)
        gone.append(readers[0])
        name = node.output[0]


def _are_alike(found: _Map, step: _Map, value: ValueInfoProto) -> bool:
    """Whether two maps vary along one axis of an input at most, and have a number for each place
    there: more numbers than places would make another shape of it.
    """
    axes = {axis for axis in (found.axis, step.axis) if axis is not None}
    sizes = {each.size for map_ in (found, step) for each in (map_.scale, map_.shift)} - {1}
    for axis in axes:
        sizes |= {value.type.tensor_type.shape.dim[axis].dim_value} - {0}
    return len(axes) <= 1 and len(sizes) <= 1


def _step(scope: Scope, constants: Constants, node: NodeProto, name: str, rank: int) -> _Map | None:
    """The map that one operator is; None where it is none."""
    kind = scope.kind(node)
    if kind == "BatchNormalization":
        return _norm(scope, constants, node, rank)
    if kind not in ("Add", "Div", "Mul", "Sub"):
        return None
    place = 1 - list(node.input).index(name)
    held = _numbers(scope, constants, node.input[place])
    if held is None or held.ndim > rank:
        return None
    axes = [axis + rank - held.ndim for axis, size in enumerate(held.shape) if size != 1]
    if len(axes) > 1:
        return None
    numbers, axis = held.reshape(-1 if axes else ()), axes[0] if axes else None
    one, zero = np.ones(()), np.zeros(())
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "Mul":
            return _Map(numbers, zero, axis)
        if kind == "Add":
            return _Map(one, numbers, axis)
        if kind == "Sub":
            return _Map(one, -numbers, axis) if place == 1 else _Map(-one, numbers, axis)
        return _Map(1.0 / numbers, zero, axis) if place == 1 else None


def _norm(scope: Scope, constants: Constants, node: NodeProto, rank: int) -> _Map | None:
    if rank < 2 or integer(node, "training_mode", 0) or any(node.output[1:]):
        return None
    held = [_numbers(scope, constants, name) for name in node.input[1:5]]
    if any(each is None or each.ndim != 1 for each in held):
        return None
    if len({each.size for each in held if each is not None}) > 1:
        return None
    gamma, beta, mean, variance = (np.asarray(each) for each in held)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + number(node, "epsilon", 1e-5))
    return _Map(scale, beta - mean * scale, 1)


def _numbers(scope: Scope, constants: Constants, name: str) -> Double | None:
    found: Any = constants.find(scope, name)
    if not isinstance(found, Constant) or not found.is_float or found.protected:
        return None
    values: Double = np.asarray(found.load()).astype(np.float64)
    return values


def _values(found: _Map, rank: int) -> Preprocessing | None:
    """The map as a mean and a deviation; None for an axis that has no name."""
    layout = "" if found.axis is None else _LAYOUTS.get((rank, found.axis))
    if layout is None:
        return None
    means, stds = np.broadcast_arrays(-found.shift / found.scale + 0.0, 1.0 / found.scale)
    return Preprocessing(mean=means.tolist(), std=stds.tolist(), layout=layout)
