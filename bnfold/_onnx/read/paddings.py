"""Where convolutions and pools see padding, which has no channel and so no shift."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from bnfold._core.reasons import Reason
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import label


def conv(context: Context, node: NodeProto, weight: Sequence[int]) -> Reason | None:
    """Why a shift ahead of a Conv is not exact: some output sees zero padding."""
    if is_padded(context, node, tuple(weight[2:])):
        return _zeros(node)
    return None


def conv_transpose(node: NodeProto, weight: Sequence[int]) -> Reason | None:
    """Why a shift ahead of a ConvTranspose is not exact.

    Each output sums the inputs that its kernel places hit. All outputs sum the whole kernel only
    where that is one place and every output is hit: kernel 1 and stride 1, nothing padded or cut.
    """
    rank = len(weight) - 2
    strides = attributes.integers(node, "strides") or [1] * rank
    pads = attributes.integers(node, "pads") or [0] * (2 * rank)
    more = attributes.integers(node, "output_padding") or [0] * rank
    single = all(k == 1 for k in weight[2:]) and all(s == 1 for s in strides)
    plain = attributes.text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    if single and plain and not any((*pads, *more)) and not attributes.has(node, "output_shape"):
        return None
    where = label(node)
    message = (
        f"{where}: its outputs sum different parts of the kernel, zero padding would see the shift"
    )
    return Reason("zero-padding", where, message)


def is_padded(context: Context, node: NodeProto, kernel: tuple[int, ...]) -> bool:
    """Whether some output of a Conv or pool may see padding; auto_pad by its rules (ONNX Conv)."""
    rank = len(kernel)
    mode = attributes.text(node, "auto_pad", "NOTSET") or "NOTSET"
    if mode == "VALID":
        return False
    if mode == "NOTSET":
        return any(attributes.integers(node, "pads") or [0] * (2 * rank))
    strides = attributes.integers(node, "strides") or [1] * rank
    dilations = attributes.integers(node, "dilations") or [1] * rank
    shape = context.shape(node.input[0])
    sizes = shape[2:] if shape is not None else (None,) * rank
    if len(sizes) != rank:
        return True
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        extent = (k - 1) * dilation + 1
        if extent == 1:
            continue
        if size is None:
            return True
        outputs = -(-size // stride)
        if (outputs - 1) * stride + extent > size:
            return True
    return False


def _zeros(node: NodeProto) -> Reason:
    where = label(node)
    return Reason("zero-padding", where, f"{where}: zero padding would see the shift")
