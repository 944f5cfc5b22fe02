"""Translate one ONNX node into the record of what it is: the only reading of single operators."""

from __future__ import annotations

from onnx import NodeProto

from bnfold._core.operators.record import UNKNOWN, Operator, Unfixed
from bnfold._core.reasons import Reason
from bnfold._onnx.read import affine, attributes, crossed, linear, rearranged
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.scopes import label

ROWS: dict[str, OnnxRow] = {**affine.ROWS, **crossed.ROWS, **linear.ROWS, **rearranged.ROWS}


def translate(context: Context, node: NodeProto) -> Operator:
    """The record of a node; of other domains' operators and calls of functions nothing is known."""
    row = ROWS.get(node.op_type)
    if row is None or node.domain not in ("", "ai.onnx") or not node.input or not node.output:
        return UNKNOWN
    if attributes.depends_on_call(node):
        if node.op_type != "BatchNormalization":
            return UNKNOWN
        message = f"an attribute of {label(node)} is set by the call"
        return Unfixed(reason=Reason("function-parameter", label(node), message))
    return row.translate(context, node)
