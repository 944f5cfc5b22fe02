"""Moves the order of an input's channels into the weights of the operators that read it.

An input that comes in another order, ``x'[:, i[k]] = x[:, k]``, gives the same sums where a linear
operator has its weights of input channels in that order, too. Operators ahead of it may pass the
order on: what works number by number, and what works in each channel by itself. Nothing is changed
unless all of it goes: otherwise the order is an operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from bnfold._onnx import tensors
from bnfold._onnx.read.attributes import has, integer, integers, text
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Names, Scope, label, read_scopes, reads
from bnfold._onnx.read.shapes import infer
from bnfold._system.records import record

Array = NDArray[Any]
Order = tuple[int, ...]
"""For each channel of the input, as it comes, the channel of the network that it is."""


@record(frozen=True)
class Moved:
    """The order is in weights: of which operators, and what each constant was before."""

    labels: Sequence[str]
    weights: dict[str, tuple[str, Array]]


@record(frozen=True)
class Stays:
    """The order cannot go into weights."""

    why: str


class _No(Exception):
    """An operator that does not let the order pass."""


@record(frozen=True)
class _Channels:
    """A tensor whose channels, along ``axis`` of ``rank``, come in an order."""

    axis: int
    rank: int
    order: Order


@record(frozen=True)
class _Edit:
    """Input ``number`` of a node has to come in an order along an axis."""

    node: NodeProto
    number: int
    axis: int
    order: Order
    is_weight: bool = False


def moved(
    model: ModelProto,
    names: Sequence[str],
    axis: int,
    rank: int,
    indices: Sequence[int],
    base_dir: Path | None,
    taken: Names,
) -> Moved | Stays:
    """Put the order of channels of some tensors into weights, in place, or say why it stays.

    ``indices`` have for each channel of the network its place among those that come. ``taken`` has
    the names of the model.
    """
    scopes = read_scopes(model)
    walk = _Walk(scopes[0], Constants(base_dir, infer(model, scopes)))
    order = tuple(int(k) for k in np.argsort(indices))
    try:
        walk.run({name: _Channels(axis, rank, order) for name in names})
    except _No as no:
        return Stays(str(no))
    return _carried_out(model, walk, taken)


class _Walk:
    """Goes from operator to operator, and notes which constants would have to change."""

    def __init__(self, scope: Scope, constants: Constants) -> None:
        self.scope = scope
        self.constants = constants
        self.edits: list[_Edit] = []
        self._known: dict[str, _Channels] = {}

    def run(self, start: dict[str, _Channels]) -> None:
        """Follow the order from some tensors. Raises `_No` where it cannot pass."""
        self._known = dict(start)
        for node in self.scope.nodes:
            if any(name in self._known for name in reads(node)):
                self._pass(node)
        for name in self._known:
            if name in self.scope.captures:
                raise _No(f"{self.scope.captures[name][0]} reads it")
            if name in self.scope.outputs:
                raise _No(f"the output {name} shows it")

    def _pass(self, node: NodeProto) -> None:
        rule = _RULES.get(self.scope.kind(node))
        data = self._known.get(node.input[0])
        one = sum(name in self._known for name in node.input) == 1 or rule is _pointwise
        if rule is None or not one or (data is None and rule not in (_pointwise, _product)):
            raise _No(f"{label(node)} reads it, through which it does not pass")
        mark = len(self.edits)
        made = rule(self, node, data)
        if made is None and len(self.edits) == mark:
            raise _No(f"{label(node)} reads it, through which it does not pass")
        if made is not None:
            if any(node.output[1:]):
                raise _No(f"{label(node)} has more than one output")
            self._known[node.output[0]] = made

    def of(self, name: str) -> _Channels | None:
        """The order in which a tensor comes, if it does."""
        return self._known.get(name)

    def constant(self, node: NodeProto, number: int) -> Constant:
        """The constant that an input of a node is. Raises `_No` for anything else."""
        found = self.constants.find(self.scope, node.input[number])
        if not isinstance(found, Constant) or found.protected or found.sparse is not None:
            raise _No(f"{label(node)} reads it with {node.input[number]}, which cannot change")
        return found

    def edit(
        self, node: NodeProto, number: int, axis: int, order: Order, weight: bool = True
    ) -> None:
        """Note that a constant has to come in an order; one of another size there cannot."""
        found = self.constant(node, number)
        if found.shape[axis] != len(order):
            raise _No(f"{label(node)} reads it with {node.input[number]} of another size")
        self.edits.append(_Edit(node, number, axis, order, weight))


def _carried_out(model: ModelProto, walk: _Walk, names: Names) -> Moved:
    """Give operators their constants in the new order, each under a name of its own."""
    made: dict[tuple[str, int, Order], str] = {}
    weights = dict[str, tuple[str, Array]]()
    old = set[str]()
    for edit in walk.edits:
        name = edit.node.input[edit.number]
        key = (name, edit.axis, edit.order)
        if key not in made:
            values = np.asarray(walk.constant(edit.node, edit.number).load())
            fresh = names.fresh(f"{name}/reordered")
            tensor = tensors.make(fresh, np.take(values, edit.order, edit.axis))
            if model.ir_version < 4:
                value = helper.make_tensor_value_info(fresh, tensor.data_type, tensor.dims)
                model.graph.input.append(value)
            model.graph.initializer.append(tensor)
            made[key], weights[fresh] = fresh, (name, values)
        edit.node.input[edit.number] = made[key]
        old.add(name)
    drop_unread(model, old)
    labels = dict.fromkeys(label(edit.node) for edit in walk.edits if edit.is_weight)
    return Moved(tuple(labels), weights)


def drop_unread(model: ModelProto, names: set[str]) -> None:
    """Drop initializers that nothing reads any more, but none that a caller may set: what a model
    takes stays.
    """
    scope, graph = read_scopes(model)[0], model.graph
    uses = scope.uses()
    gone = {name for name in scope.initializers.keys() & names if not uses[name]} - scope.protected
    for field in (graph.initializer, graph.input):
        for number in reversed(range(len(field))):
            if field[number].name in gone:
                del field[number]


def _same(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """What works number by number, and reads one tensor."""
    return data


def _pointwise(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """What works number by number on tensors that broadcast: constants come in the order, too.

    They are aligned at the last axis. One of another rank than the data's may not reach its axis.
    """
    held = [walk.of(name) for name in node.input]
    made = next(each for each in held if each is not None)
    if any(each is not None and each != made for each in held):
        raise _No(f"{label(node)} reads it in two orders")
    for number, each in enumerate(held):
        if each is not None:
            continue
        shape = walk.constant(node, number).shape
        axis = made.axis - made.rank + len(shape)
        if len(shape) > made.rank:
            raise _No(f"{label(node)} makes another rank of it")
        if axis >= 0 and shape[axis] != 1:
            walk.edit(node, number, axis, made.order, weight=False)
    return made


def _norm(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """BatchNormalization: four numbers for each channel, along axis 1."""
    assert data is not None
    if data.axis != 1 or integer(node, "training_mode", 0):
        return None
    for number in range(1, 5):
        walk.edit(node, number, 0, data.order, weight=False)
    return data


def _transpose(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    assert data is not None
    perm = integers(node, "perm") or list(reversed(range(data.rank)))
    return replace(data, axis=perm.index(data.axis))


def _window(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """Pooling: each channel by itself, along axis 1."""
    assert data is not None
    return data if data.axis == 1 else None


def _pad(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """Pad, where no channel is added or cut off. It puts one number around all channels."""
    assert data is not None
    pads = integers(node, "pads")
    axes = list(range(data.rank))
    if len(node.input) > 1 and node.input[1]:
        pads = [int(k) for k in walk.constant(node, 1).load()]
    if len(node.input) > 3 and node.input[3]:
        axes = [int(k) % data.rank for k in walk.constant(node, 3).load()]
    if pads is None or len(pads) != 2 * len(axes):
        return None
    cut = any(pads[n] or pads[n + len(axes)] for n, axis in enumerate(axes) if axis == data.axis)
    return None if cut else data


def _resize(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """Resize and Upsample by constant scales, of which that of the channels is 1.

    A region of interest may turn an axis round, or cut it.
    """
    assert data is not None
    if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    place = 1 if node.op_type == "Upsample" or len(node.input) == 2 else 2
    if has(node, "axes") or len(node.input) != place + 1:
        return None
    scales = np.asarray(walk.constant(node, place).load())
    return data if scales.shape == (data.rank,) and scales[data.axis] == 1 else None


def _quantizer(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """QuantizeLinear and DequantizeLinear with one scale for all channels."""
    sizes = [walk.constant(node, n).shape for n, name in enumerate(node.input) if n and name]
    return data if all(np.prod(shape, dtype=int) == 1 for shape in sizes) else None


def _convolution(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """Conv: ``W[o, i, k…]``. A depthwise one passes the order on, with its own channels in it.

    Its output channel ``i·m + j`` is of input channel i. Other groups mix some channels each.
    """
    assert data is not None
    group, channels = integer(node, "group", 1), len(data.order)
    if data.axis != 1:
        return None
    if group == 1:
        walk.edit(node, 1, 1, data.order)
        return None
    rows = walk.constant(node, 1).shape[0]
    if group != channels or rows % group:
        return None
    each = rows // group
    order = tuple(i * each + j for i in data.order for j in range(each))
    walk.edit(node, 1, 0, order)
    if len(node.input) > 2 and node.input[2]:
        walk.edit(node, 2, 0, order)
    return replace(data, order=order)


def _transposed(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """ConvTranspose: ``W[i, o, k…]``."""
    assert data is not None
    if data.axis == 1 and integer(node, "group", 1) == 1:
        walk.edit(node, 1, 0, data.order)
    return None


def _product(walk: _Walk, node: NodeProto, data: _Channels | None) -> _Channels | None:
    """Gemm and MatMul with a constant: the axis over which they add up, or one that stays."""
    is_gemm = node.op_type == "Gemm"
    if data is None:
        data = walk.of(node.input[1]) if len(node.input) > 1 else None
        if data is None or is_gemm or data.axis != data.rank - 2:
            raise _No(f"{label(node)} reads it, through which it does not pass")
        walk.edit(node, 0, -1, data.order)
        return None
    if is_gemm:
        if not integer(node, "transA", 0) and data.axis == 1:
            walk.edit(node, 1, 1 if integer(node, "transB", 0) else 0, data.order)
        return None
    shape = walk.constant(node, 1).shape
    if data.axis == data.rank - 1:
        walk.edit(node, 1, max(len(shape) - 2, 0), data.order)
        return None
    return data if len(shape) == 2 else None


_Rule = Callable[[_Walk, NodeProto, _Channels | None], _Channels | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        (
            *("Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
            *("HardSwish", "Identity", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Round"),
            *("Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh"),
        ),
        _same,
    ),
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"), _pointwise),
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), _window
    ),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantizer),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _norm,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Pad": _pad,
    "Transpose": _transpose,
}
