"""Linear operators of onnxruntime's own domain, as its optimizer writes them into files.

They are those of ONNX with more in them: an activation, a sum, transposed operands, a factor.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from bnfold._core.broadcast import Shape
from bnfold._core.operators.affine import Norm
from bnfold._core.operators.linear import Convolution, Product
from bnfold._core.operators.matrices import matmul, turning
from bnfold._core.operators.record import (
    UNKNOWN,
    Operand,
    Operator,
    Row,
    Unfixed,
    Unweighted,
    unusual,
    unweighted,
)
from bnfold._core.pointwise import Clipped, Closed, Homogeneous, Thresholded
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Crossing
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow, has
from bnfold._onnx.read.crossed import product_of_two
from bnfold._onnx.read.linear import convolution, gemm_of, one_factor
from bnfold._onnx.read.scopes import label

_BLOCKED = """
    AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample
"""
_PARAMETERS = "activation_params"
_SINGLE = np.dtype(np.float32)


def _fused_conv(context: Context, node: NodeProto) -> Operator:
    """``f(Conv(X, W, B) + Z)``: Z and the activation f may be missing (FusedConv)."""
    return _with_activation(context, node, convolution(context, node))


def _nhwc_fused_conv(context: Context, node: NodeProto) -> Operator:
    """The same with channels on the last axis of X, Z and Y, and W as in a Conv (NhwcFusedConv)."""
    return _with_activation(context, node, convolution(context, node, channels_last=True))


def _nhwc_conv(context: Context, node: NodeProto) -> Operator:
    """A Conv with channels on the last axis of X and Y, and W as in a Conv (NhwcConv)."""
    record = convolution(context, node, channels_last=True)
    return replace(record, merges=False) if isinstance(record, Convolution) else record


def _with_activation(context: Context, node: NodeProto, record: Operator) -> Operator:
    if not isinstance(record, Convolution):
        return record
    beside = 3 if has(node, 3) else None
    shape = context.shape(node.input[3]) if beside else None
    known = record.output
    if shape is not None and (
        len(shape) != len(known) or shape[record.axis] not in (None, record.outputs)
    ):
        return UNKNOWN
    activation = _listed_activation(node)
    return replace(record, activation=activation, beside=beside, merges=False)


def _listed_activation(node: NodeProto) -> Crossing | None:
    """The activation whose numbers are in the list ``activation_params``; None for none.

    LeakyRelu has its slope there, Clip its bounds.
    """
    if not attributes.has(node, "activation"):
        return None
    kind = attributes.text(node, "activation", "")
    given = attributes.numbers(node, _PARAMETERS) or []
    if kind == "Relu" or (kind == "LeakyRelu" and len(given) == 1):
        return Crossing(Homogeneous())
    if kind == "Clip" and len(given) == 2 and all(map(math.isfinite, given)):
        places = {"min": (_PARAMETERS, 0), "max": (_PARAMETERS, 1)}
        return Crossing(Clipped(given[0], given[1]), dtype=_SINGLE, numbers=places)
    return Crossing(Closed(kind))


def _fused_gemm(context: Context, node: NodeProto) -> Operator:
    """``f(α·A'·B' + β·C)`` (FusedGemm); the numbers of f are ``activation_alpha`` and so on."""
    record = gemm_of(context, node)
    if not isinstance(record, Product):
        return record
    kind = attributes.text(node, "activation", "")
    law: Crossing | None = Crossing(Closed(kind))
    if kind in ("Relu", "LeakyRelu"):
        law = Crossing(Homogeneous())
    elif kind == "ThresholdedRelu":
        alpha = attributes.number(node, "activation_alpha", 1.0)
        spots = {"threshold": "activation_alpha"}
        law = Crossing(Thresholded(alpha, 0.0, fixed=True), dtype=_SINGLE, numbers=spots)
    elif not kind:
        law = None
    return replace(record, activation=law, merges=False)


def _fused_matmul(context: Context, node: NodeProto) -> Operator:
    """``α·A'·B'`` (FusedMatMul; TransposeMatMul is its older name).

    ``transBatchA`` takes the first axis of A behind its batch axes, ``transA`` then exchanges the
    last two. A vector is not transposed. With ``transBatchA`` or ``transBatchB`` both operands
    have the same rank, of 3 or more.
    """
    weight = one_factor(context, node)
    plain = [not attributes.integer(node, f"trans{k}", 0) for k in ("A", "B", "BatchA", "BatchB")]
    if weight is None:
        return product_of_two(context, node, as_stored=all(plain))
    if weight.value is None:
        return UNKNOWN
    other = context.shape(node.input[1 - weight.position])
    if not all(plain[2:]):
        rank = len(weight.value.shape)
        if rank < 3 or other is None or len(other) != rank:
            return UNKNOWN
    turned = tuple(turning(not plain[k], not plain[2 + k]) for k in (0, 1))
    alpha = attributes.number(node, "alpha", 1.0)
    found = matmul(label(node), weight, other, None, turned=(turned[0], turned[1]), alpha=alpha)
    return replace(found, merges=False)


def _embedding_norm(context: Context, node: NodeProto) -> Operator:
    """EmbedLayerNormalization: γ and β are along the last axis of its first output, which has three
    axes.
    """
    gamma = context.parameter(node, 5)
    if gamma is None or not node.output[0]:
        return UNKNOWN
    if len(gamma.shape) != 1:
        raise Refusal(unusual(gamma))
    beta = context.operand(node, 6).shaped(gamma.shape)
    shape = (None, None, gamma.shape[0])
    return Norm(label=label(node), like=shape, gamma=Operand(5, gamma), beta=beta, start=2)


def _blocked(context: Context, node: NodeProto) -> Operator:
    """What stands in onnxruntime's blocked layout: channels in blocks, as many as one processor
    takes at once, and weights ordered and padded to that. No weight of it is read.

    A Conv of one input channel in each of its groups, and of a single tap, is a map that
    onnxruntime has turned into one.
    """
    where = label(node)
    shape: Shape = (None,) * 4
    if node.op_type == "ReorderOutput":
        last = bool(attributes.integer(node, "channels_last", 0))
        count = attributes.integer(node, "channels", 0)
        shape = (None, None, None, count) if last else (None, count, None, None)
    message = f"{where} is in the blocked layout in which onnxruntime has saved the file"
    reason = Reason("blocked-layout", where, message)
    kernel = context.shape(node.input[1]) if node.op_type == "Conv" else None
    groups = attributes.integer(node, "group", 1)
    plain = not attributes.has(node, "activation") and not has(node, 3)
    if kernel is not None and kernel == (groups, 1, 1, 1) and groups > 1 and plain:
        return Unfixed(reason=reason, like=shape)
    return Unweighted(reason=reason, ahead=True, like=shape)


ROWS: dict[str, OnnxRow] = {
    **{f"com.microsoft.nchwc::{kind}": Row(_blocked) for kind in _BLOCKED.split()},
    "com.microsoft::EmbedLayerNormalization": Row(_embedding_norm, unweighted),
    "com.microsoft::FusedConv": Row(_fused_conv, unweighted),
    "com.microsoft::FusedGemm": Row(_fused_gemm, unweighted),
    "com.microsoft::FusedMatMul": Row(_fused_matmul, unweighted),
    "com.microsoft::NhwcConv": Row(_nhwc_conv, unweighted),
    "com.microsoft::NhwcFusedConv": Row(_nhwc_fused_conv, unweighted),
    "com.microsoft::TransposeMatMul": Row(_fused_matmul, unweighted),
}
