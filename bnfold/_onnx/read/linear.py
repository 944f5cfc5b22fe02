"""Linear and recurrent operators of ONNX, each translated into its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold._core.broadcast import Shape
from bnfold._core.operators.linear import Convolution
from bnfold._core.operators.matrices import gemm, matmul
from bnfold._core.operators.record import (
    UNKNOWN,
    Operand,
    Operator,
    Row,
    Unweighted,
    unmerged,
    unusual,
    unweighted,
)
from bnfold._core.operators.recurrent import Recurrent
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.windows import Window
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.crossed import product_of_two
from bnfold._onnx.read.rounded import integer_gemm, integer_product
from bnfold._onnx.read.scopes import label
from bnfold._onnx.read.windows import windows
from bnfold._onnx.tensors import FLOATS


def convolution(context: Context, node: NodeProto, channels_last: bool = False) -> Operator:
    """Conv and ConvTranspose, with channels on axis 1 or on the last. Where its weight is not
    constant, but its shape known, a Conv may still take a shift in.
    """
    if len(node.input) < 2 or not node.input[1]:
        return UNKNOWN
    transposed = node.op_type == "ConvTranspose"
    weight, bias = context.weight(node, 1), context.weight(node, 2)
    kernel = weight.value.shape if weight.value is not None else context.shape(node.input[1])
    group = attributes.integer(node, "group", 1)
    if kernel is None or len(kernel) < 3 or None in kernel[: 1 + transposed]:
        raise Refusal(_why_not(weight))
    assert kernel[0] is not None
    if group < 1 or kernel[0] % group:
        return UNKNOWN
    taps = [size for size in kernel[2:] if size is not None]
    element = context.type(node.input[1])
    return Convolution(
        label=label(node),
        weight=weight,
        bias=bias,
        kernel=kernel,
        groups=group,
        windows=_windows(context, node, taps, 1 if channels_last else 2)
        if len(taps) == len(kernel) - 2
        else None,
        transposed=transposed,
        axis=len(kernel) - 1 if channels_last else 1,
        dtype=np.dtype(helper.tensor_dtype_to_np_dtype(element)) if element in FLOATS else None,
    )


def _windows(
    context: Context, node: NodeProto, taps: Sequence[int], first: int
) -> tuple[Window, ...] | None:
    """The windows of a Conv, or those of the one that a ConvTranspose is the transpose of, if it
    puts out what such a Conv reads and no more.
    """
    if node.op_type == "ConvTranspose" and (
        any(attributes.integers(node, "output_padding") or ())
        or attributes.has(node, "output_shape")
        or attributes.text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    ):
        return None
    return windows(context, node, taps, first)


def gemm_of(context: Context, node: NodeProto) -> Operator:
    """``Y = α·A'·B' + β·C`` with B or A constant; C is absent, constant, or ignored (β = 0).

    Below opset 7 C broadcasts only where ``broadcast`` says so, and without that there is no place
    for one number for each column.
    """
    whole = context.opset < 7 and not attributes.integer(node, "broadcast", 0)
    if (whole and node.op_type == "Gemm") or len(node.input) < 2:
        return UNKNOWN
    left, right = context.weight(node, 0), context.weight(node, 1)
    if left.value is not None and right.value is not None:
        return UNKNOWN
    beta = attributes.number(node, "beta", 1.0)
    turned = [bool(attributes.integer(node, name, 0)) for name in ("transA", "transB")]
    weight = left if left.value is not None else right
    found = gemm(
        label(node),
        weight,
        context.weight(node, 2) if beta != 0.0 else Operand(2),
        (turned[0], turned[1]),
        attributes.number(node, "alpha", 1.0),
        beta,
    )
    kernel = integer_product(context, node, weight)
    if kernel is not None:
        raise Refusal(kernel)
    kernel = integer_gemm(context, node, weight)
    if kernel is None or found.bias is None:
        return found
    if found.bias.quantized is not None:
        return replace(found, bias=Operand(2, missing=kernel))
    absent = found.bias.value is None and found.bias.missing is None
    return replace(found, bias=None, add_blocked=kernel) if absent else found


def _matmul(context: Context, node: NodeProto) -> Operator:
    """MatMul with one constant operand, or of two that are computed at run time."""
    weight = one_factor(context, node)
    if weight is None:
        return product_of_two(context, node)
    if weight.value is None:
        return UNKNOWN
    kernel = integer_product(context, node, weight)
    if kernel is not None:
        raise Refusal(kernel)
    old = Reason("unsupported-opset", label(node), "an Add would need opset 7 or later")
    other = context.shape(node.input[1 - weight.position])
    found = matmul(label(node), weight, other, old if context.opset < 7 else None)
    if _fits_gemm(context, node, weight, other):
        return replace(found, bias=Operand(2), becomes="Gemm")
    return found


def _fits_gemm(context: Context, node: NodeProto, weight: Operand, other: Shape | None) -> bool:
    """Whether a MatMul may become the Gemm that has a place for its bias.

    Law: ``A·B + c`` is ``Gemm(A, B, c)`` with its defaults, where A and B are matrices of a type
    that Gemm has. Runtimes lose nothing by it: onnxruntime makes the same Gemm itself, ahead of its
    other fusions. Not of integers behind a DequantizeLinear, which it fuses with MatMul alone.
    """
    assert weight.value is not None
    matrices = len(weight.value.shape) == 2 and other is not None and len(other) == 2
    since = 13 if context.type(node.input[weight.position]) == TensorProto.BFLOAT16 else 7
    return matrices and context.opset >= since and weight.quantized is None


def one_factor(context: Context, node: NodeProto) -> Operand | None:
    """The constant factor of a product; None of two that are computed at run time. It has no value
    where both are constant, or where one is that cannot be changed.

    Raises `Refusal` where a caller may set it.
    """
    left, right = context.weight(node, 0), context.weight(node, 1)
    if (left.value is None) == (right.value is None):
        if left.value is not None:
            return Operand(0)
        for reason in (right.missing, left.missing):
            if reason is not None and reason.code != "dynamic-weight":
                raise Refusal(reason)
        return Operand(0) if any(context.constant(node, k) is not None for k in (0, 1)) else None
    return right if right.value is not None else left


def _recurrent(context: Context, node: NodeProto) -> Operator:
    """LSTM, GRU and RNN: ``W [directions, gates·hidden, inputs]``, and ``B [directions,
    2·gates·hidden]``, which is that of W and then that of R. ``layout`` turns the first two axes of
    X; its last is that of the inputs.
    """
    if context.opset < 7 or len(node.input) < 3:
        return UNKNOWN
    weight = context.weight(node, 1)
    if weight.value is not None and not _enters_gates(node, weight.value.shape):
        weight = replace(weight, value=None, missing=unusual(weight.value))
    return Recurrent(
        label=label(node), weights=(weight,), biases=(context.weight(node, 3),), others=1
    )


def _enters_gates(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a W has a shape that fits its operator's directions and gates."""
    gates, hidden = _GATES[node.op_type], attributes.integer(node, "hidden_size", 0)
    both = attributes.text(node, "direction", "forward") == "bidirectional"
    if len(shape) != 3 or shape[0] != 1 + both or shape[1] % gates:
        return False
    return hidden in (0, shape[1] // gates)


def _why_not(weight: Operand) -> Reason:
    """Why an operator cannot have a weight."""
    if weight.missing is not None:
        return weight.missing
    assert weight.value is not None
    return unusual(weight.value)


def unmerged_product(reason: Reason) -> Operator:
    """A product of what is computed at run time is no linear function of either factor."""
    return Unweighted(reason=reason, merges=reason.code != "dynamic-weight")


_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
ROWS: dict[str, OnnxRow] = {
    "Conv": Row(convolution, unmerged),
    "ConvTranspose": Row(convolution, unweighted),
    "Gemm": Row(gemm_of, unmerged_product),
    "MatMul": Row(_matmul, unmerged_product),
    **{kind: Row(_recurrent) for kind in _GATES},
}
