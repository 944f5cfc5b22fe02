"""Operators of ONNX that multiply integers which are rounded at run time, each as its record."""

from __future__ import annotations

from onnx import NodeProto

from bnfold._core.operators.quantized import Dequantization
from bnfold._core.operators.record import UNKNOWN, Operator, Row
from bnfold._core.reasons import Reason
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.quantized import is_weight
from bnfold._onnx.read.scopes import Scope, label


def _dequantize(context: Context, node: NodeProto) -> Operator:
    """A DequantizeLinear of an activation, with one scale, or one for each position of its axis."""
    if len(node.input) < 2 or is_weight(context.constants, context.scope, node):
        return UNKNOWN
    scale = context.operand(node, 1)
    shape = context.shape(node.input[0])
    blocks = attributes.integer(node, "block_size", 0) or attributes.depends_on_call(node)
    if scale.value is None or blocks or len(scale.value.shape) > 1:
        return UNKNOWN
    axis = None
    if scale.value.shape not in ((), (1,)):
        axis = attributes.integer(node, "axis", 1)
        if shape is None or context.opset < 13 or not -len(shape) <= axis < len(shape):
            return UNKNOWN
        axis %= len(shape)
        if shape[axis] not in (None, *scale.value.shape):
            return UNKNOWN
    return Dequantization(
        label=label(node),
        like=shape,
        scale=scale,
        axis=axis,
        rounded=_rounded(context.scope, node),
    )


def _rounded(scope: Scope, node: NodeProto) -> Reason:
    """Who rounds the integers that a DequantizeLinear reads, and why maps do not pass that."""
    where, name = label(node), node.input[0]
    writer = scope.producers.get(name)
    if writer is None:
        message = f"{where} reads {name}, integers from outside: its scale takes in one number > 0"
        return Reason("quantizer-between", where, message)
    quantizer = scope.nodes[writer]
    source = scope.producers.get(quantizer.input[0]) if quantizer.input else None
    what = "what it computes"
    if quantizer.op_type == "QuantizeLinear":
        what = f"what {label(scope.nodes[source])} puts out" if source is not None else "its input"
    message = f"{label(quantizer)} rounds {what} to integers, and no map passes that exactly"
    return Reason("quantizer-between", label(quantizer), message)


ROWS: dict[str, OnnxRow] = {"DequantizeLinear": Row(_dequantize)}
