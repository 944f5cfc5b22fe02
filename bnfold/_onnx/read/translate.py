"""Translate one ONNX node into the record of what it is: the only reading of single operators."""

from __future__ import annotations

from onnx import NodeProto

from bnfold._core.operators.record import UNKNOWN, Operator, Unfixed
from bnfold._core.reasons import Reason
from bnfold._onnx.read import affine, attributes, crossed, linear, rearranged
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.scopes import label, type_of

ROWS: dict[str, OnnxRow] = {**affine.ROWS, **crossed.ROWS, **linear.ROWS, **rearranged.ROWS}


def translate(context: Context, node: NodeProto) -> Operator:
    """The record of a node. A row stands under the operator's type, and its domain where that is
    not the default one; of all others, and of calls of functions, nothing is known.
    """
    kind = type_of(node)
    row = ROWS.get(kind)
    called = kind in context.scope.functions
    if row is None or called or not node.input or not node.output:
        return UNKNOWN
    if attributes.depends_on_call(node):
        if node.op_type != "BatchNormalization":
            return UNKNOWN
        message = f"an attribute of {label(node)} is set by the call"
        return Unfixed(reason=Reason("function-parameter", label(node), message))
    return row.translate(context, node)
