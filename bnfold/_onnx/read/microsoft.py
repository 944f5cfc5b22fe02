"""Linear operators of onnxruntime's own domain, as its optimizer writes them into files.

They are those of ONNX with more in them: an activation, a sum, transposed operands, a factor.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from bnfold._core.affine import LAST
from bnfold._core.bounded import Clipped, Thresholded
from bnfold._core.broadcast import Shape
from bnfold._core.operators.affine import Norm
from bnfold._core.operators.linear import Convolution, Product
from bnfold._core.operators.matrices import matmul, turning
from bnfold._core.operators.quantized import IntegerProduct
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
from bnfold._core.pointwise import Closed, Homogeneous
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Crossing
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant
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
    last two. A vector is not transposed, and ahead of a vector A is not either, whatever
    ``transA`` says: nothing is said of that, nor of a B whose rank is not known. With
    ``transBatchA`` or ``transBatchB`` both operands have the same rank, of 3 or more.
    """
    weight = one_factor(context, node)
    plain = [not attributes.integer(node, f"trans{k}", 0) for k in ("A", "B", "BatchA", "BatchB")]
    if weight is None:
        return product_of_two(context, node, as_stored=all(plain))
    if weight.value is None:
        return UNKNOWN
    other = context.shape(node.input[1 - weight.position])
    second = other if weight.position == 0 else weight.value.shape
    if not plain[0] and (second is None or len(second) < 2):
        return UNKNOWN
    if not all(plain[2:]):
        rank = len(weight.value.shape)
        if rank < 3 or other is None or len(other) != rank:
            return UNKNOWN
    turned = tuple(turning(not plain[k], not plain[2 + k]) for k in (0, 1))
    alpha = attributes.number(node, "alpha", 1.0)
    found = matmul(label(node), weight, other, None, turned=(turned[0], turned[1]), alpha=alpha)
    return replace(found, merges=False)


def _integer_product(context: Context, node: NodeProto) -> Operator:
    """``(A − za)·(B − zb)·sa·sb + b`` of integers A and B, where b is a vector and may be missing
    (MatMulIntegerToFloat). Where the scale of B is no constant, that of A is one for all.
    """
    lone = context.constant(node, 3) is None and context.constant(node, 2) is not None
    return _integers_times_scale(context, node, 2 if lone else 3, 6, lone=lone)


def _rounding_product(context: Context, node: NodeProto) -> Operator:
    """The same of floats that it rounds to A itself, by a scale and a zero point that follow from
    them (DynamicQuantizeMatMul).
    """
    where = label(node)
    message = f"{where} rounds it to integers, and no map passes that exactly"
    rounded = Reason("quantizer-between", where, message)
    return _integers_times_scale(context, node, 2, 4, rounded)


def _integer_gemm(context: Context, node: NodeProto) -> Operator:
    """``α·sa·sb·((A' − za)·(B' − zb) + C)``, C of integers (QGemm); or the same rounded to
    integers, by a scale of its own.

    Its zero points and scales of B have one shape, so that one scale stays one.
    """
    if has(node, 7):
        return UNKNOWN
    scale, sizes = _float_scale(context, node, 4), list[int | None]()
    for axis, (number, flag) in enumerate(((0, "transA"), (3, "transB"))):
        shape = context.shape(node.input[number])
        turned = bool(attributes.integer(node, flag, 0))
        sizes.append(shape[axis ^ turned] if shape is not None and len(shape) == 2 else None)
    one = scale.shape in ((), (1,))
    if not one and scale.shape != (sizes[1],):
        raise Refusal(unusual(scale))
    return IntegerProduct(
        label=label(node),
        scale=Operand(4, scale),
        bias=None,
        axis=None if one else 1,
        shape=tuple(sizes),
    )


def _integers_times_scale(
    context: Context,
    node: NodeProto,
    at: int,
    bias_at: int,
    rounded: Reason | None = None,
    lone: bool = False,
) -> Operator:
    """The record of a product with the scale of B at one input, and the bias at another. ``lone``:
    it is the scale of A, which stays one.

    Runtimes have one scale for each column of a matrix B alone: of batches of matrices they take
    the numbers of another column. One scale for all of a matrix may become several.
    """
    scale = _float_scale(context, node, at)
    left, right = (context.shape(name) for name in node.input[:2])
    bias = context.operand(node, bias_at)
    if lone or right is None or len(right) != 2 or right[1] is None:
        if scale.shape not in ((), (1,)):
            raise Refusal(unusual(scale))
        place = bias if has(node, bias_at) else None
        shape = None
        if left is not None and right is not None and min(len(left), len(right)) > 1:
            shape = (None,) * max(len(left), len(right))
        return IntegerProduct(
            label=label(node),
            scale=Operand(at, scale),
            bias=place,
            axis=None,
            shape=shape,
            rounded=rounded,
        )
    size = right[1]
    if scale.shape not in ((), (1,), (size,)):
        raise Refusal(unusual(scale))
    if scale.shape != (size,):
        one = scale
        scale = Constant(
            one.name, (size,), one.data_type, lambda: np.broadcast_to(one.load(), (size,)).copy()
        )
    return IntegerProduct(
        label=label(node),
        scale=Operand(at, scale),
        bias=bias.shaped((size,)),
        axis=LAST if left is None else len(left) - 1,
        shape=None if left is None else (*left[:-1], size),
        rounded=rounded,
    )


def _float_scale(context: Context, node: NodeProto, at: int) -> Constant:
    """The constant scale at an input. Raises `Refusal` where there is none."""
    scale = context.parameter(node, at)
    if scale is None:
        raise Refusal.of("dynamic-weight", label(node), f"{label(node)} has no scale")
    return scale


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
    "com.microsoft::DynamicQuantizeMatMul": Row(_rounding_product, unweighted),
    "com.microsoft::EmbedLayerNormalization": Row(_embedding_norm, unweighted),
    "com.microsoft::FusedConv": Row(_fused_conv, unweighted),
    "com.microsoft::FusedGemm": Row(_fused_gemm, unweighted),
    "com.microsoft::FusedMatMul": Row(_fused_matmul, unweighted),
    "com.microsoft::MatMulIntegerToFloat": Row(_integer_product, unweighted),
    "com.microsoft::NhwcConv": Row(_nhwc_conv, unweighted),
    "com.microsoft::NhwcFusedConv": Row(_nhwc_fused_conv, unweighted),
    "com.microsoft::QGemm": Row(_integer_gemm, unweighted),
    "com.microsoft::TransposeMatMul": Row(_fused_matmul, unweighted),
}
