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
    """A weight as its operator sees it, and where the scale that may change is kept.

    ``position`` is that of the DequantizeLinear in its graph's nodes, ``zero`` its zero point.
    """

    weight: Constant
    quantized: Quantized
    scale: Constant
    zero: Constant | None
    position: int


def dequantized(constants: Constants, scope: Scope, name: str) -> Dequantized | Reason | None:
    """What a DequantizeLinear of constants puts out: ``(q − z)·s``, with s and z per tensor or per
    position of an axis (ONNX DequantizeLinear). None where a name is something else.

    Multiplying s multiplies every weight of its channel exactly, and the integers stay. Blocked
    scales, and weights that others read too, are left alone.
    """
    position = scope.producers.get(name)
    node = scope.nodes[position] if position is not None else None
    if position is None or node is None or node.op_type != "DequantizeLinear":
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
    if attributes.integer(node, "block_size", 0) or len(scale.shape) > 1 or not scale.is_float:
        return Reason("quantized-weight", where, f"the scale of {where} is not one per channel")
    axis = attributes.integer(node, "axis", 1) if len(scale.shape) == 1 else None
    if axis is not None and scale.shape == (1,) and (not stored.shape or stored.shape[axis] != 1):
        axis = None
    if axis is not None:
        axis += len(stored.shape) if axis < 0 else 0
    weight = Constant(
        name, stored.shape, scale.data_type, lambda: _values(stored, scale, zero, axis)
    )
    return Dequantized(weight, Quantized(scale, axis, scope.opset >= 13), scale, zero, position)


def _values(
    stored: Constant, scale: Constant, zero: Constant | None, axis: int | None
) -> NDArray[np.floating]:
    def along(values: NDArray[np.generic]) -> NDArray[np.generic]:
        if axis is None:
            return values.reshape(())
        return values.reshape(tuple(-1 if k == axis else 1 for k in range(len(stored.shape))))

    whole = stored.load().astype(np.float64)
    if zero is not None:
        whole = whole - along(zero.load()).astype(np.float64)
    return np.asarray((whole * along(scale.load()).astype(np.float64)).astype(scale.dtype))


def spread_zero(
    node: NodeProto, size: int, axis: int, zero: NDArray[np.generic] | None
) -> NDArray[np.generic] | None:
    """Make a DequantizeLinear of one scale one with a scale for each position of an axis; gives the
    zero points that it then needs, if it has one.
    """
    for attribute in [a for a in node.attribute if a.name == "axis"]:
        node.attribute.remove(attribute)
    node.attribute.add(name="axis", type=2, i=axis)
    return None if zero is None else np.full((size,), zero.reshape(-1)[0])
