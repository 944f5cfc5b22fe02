"""Weights stored as integers behind a DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._core.parameters import Quantized
from bnfold._core.reasons import Reason
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope, label


@dataclass(frozen=True)
class Dequantized:
    """A weight as its operator sees it, and the scale that may change.

    ``position`` is the position of the DequantizeLinear in its graph's nodes, ``zero`` its zero
    point.
    """

    weight: Constant
    quantized: Quantized
    scale: Constant
    zero: Constant | None
    position: int


def dequantized(constants: Constants, scope: Scope, name: str) -> Dequantized | Reason | None:
    """The output of a DequantizeLinear of constants, or why it cannot change.

    The output is ``(q − z)·s``, with s and z per tensor or per position of an axis (ONNX
    DequantizeLinear). None if another operator writes the name. Multiplying s multiplies every
    weight of its channel exactly, and the integers q stay. Blocked scales, and weights that other
    nodes read too, cannot change.
    """
    position = scope.producers.get(name)
    node = scope.nodes[position] if position is not None else None
    if position is None or node is None or node.op_type != "DequantizeLinear":
        return None
    if node.domain not in ("", "ai.onnx"):
        return None
    where = label(node)
    parts = [constants.find(scope, source) if source else None for source in node.input]
    for part in parts:
        if isinstance(part, Reason):
            return Reason("quantized-weight", where, f"{name} is dequantized at run time")
    stored, scale, *rest = (part for part in parts if isinstance(part, Constant))
    zero = rest[0] if rest else None
    protected = next((p.protected for p in (stored, scale, *rest) if p.protected), None)
    if protected is not None:
        message = f"{protected} is a parameter that a caller may override"
        return Reason("overridable-weight", protected, message)
    readers = scope.readers.get(name, ())
    if len(readers) != 1 or name in scope.captures or name in scope.outputs:
        return Reason("quantized-weight", where, f"{name} is also read by someone else")
    axis = _axis(node, scope.opset, stored.shape, scale, zero)
    if isinstance(axis, Reason):
        return axis
    weight = Constant(
        name, stored.shape, scale.data_type, lambda: _values(stored, scale, zero, axis)
    )
    return Dequantized(weight, Quantized(scale, axis, scope.opset >= 13), scale, zero, position)


def _axis(
    node: NodeProto, opset: int, shape: tuple[int, ...], scale: Constant, zero: Constant | None
) -> int | Reason | None:
    """The axis of the stored integers along which scale and zero point lie; None for one number.

    One number is for the whole tensor, if its shape is ``[]`` or ``[1]``. The attribute ``axis``
    then means nothing: its default of 1 may lie outside the axes of a bias. From opset 13 several
    numbers are one for each position of ``axis``. For anything else the result is a reason: blocks,
    and shapes that ONNX does not allow.
    """
    where = label(node)
    reason = Reason("quantized-weight", where, f"the scale of {where} is not one per channel")
    shapes = [scale.shape] if zero is None else [scale.shape, zero.shape]
    if attributes.depends_on_call(node) or attributes.integer(node, "block_size", 0):
        return reason
    if attributes.integer(node, "output_dtype", 0) not in (0, scale.data_type):
        return Reason("quantized-weight", where, f"{where} puts out another type than its scale's")
    if not scale.is_float:
        return reason
    if all(known in ((), (1,)) for known in shapes):
        return None
    axis, rank = attributes.integer(node, "axis", 1), len(shape)
    if opset < 13 or not -rank <= axis < rank or any(known != (shape[axis],) for known in shapes):
        return reason
    return axis % rank


def _values(
    stored: Constant, scale: Constant, zero: Constant | None, axis: int | None
) -> NDArray[np.floating]:
    along = tuple(-1 if k == axis else 1 for k in range(len(stored.shape)))

    def laid(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return values.astype(np.float64).reshape(along if axis is not None else ())

    whole = stored.load().astype(np.float64)
    if zero is not None:
        whole = whole - laid(zero.load())
    return np.asarray((whole * laid(scale.load())).astype(scale.dtype))


def spread_zero(
    node: NodeProto, size: int, axis: int, zero: NDArray[np.generic] | None
) -> NDArray[np.generic] | None:
    """Make a DequantizeLinear of one scale one with a scale for each position of an axis.

    Gives the zero points that it then needs; None if it has no zero point.
    """
    for attribute in [a for a in node.attribute if a.name == "axis"]:
        node.attribute.remove(attribute)
    node.attribute.add(name="axis", type=2, i=axis)
    return None if zero is None else np.full((size,), zero.reshape(-1)[0])
