"""The windows that convolutions and pools of ONNX read, from strides, dilations and pads."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from bnfold._core.windows import Window, see_zeros
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context


def windows(
    context: Context, node: NodeProto, taps: Sequence[int], first: int = 2
) -> tuple[Window, ...] | None:
    """The window along each axis of space; None where the padding depends on an unknown size.

    ``first`` is the first axis of space of what is read.

    ``SAME`` pads so that there are ``⌈n/stride⌉`` outputs. Where the padding is odd, ``SAME_UPPER``
    puts one more at the end, ``SAME_LOWER`` one more at the start. With stride 1, or with a
    kernel of one tap, the padding does not depend on n (ONNX Conv, auto_pad).
    """
    rank = len(taps)
    strides = attributes.integers(node, "strides") or [1] * rank
    dilations = attributes.integers(node, "dilations") or [1] * rank
    pads = attributes.integers(node, "pads") or [0] * (2 * rank)
    mode = attributes.text(node, "auto_pad", "NOTSET") or "NOTSET"
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank or min(pads) < 0:
        return None
    if mode in ("NOTSET", "VALID"):
        kept = pads if mode == "NOTSET" else [0] * (2 * rank)
        ends = zip(kept[:rank], kept[rank:], strict=True)
        return tuple(
            Window.of(k, dilation, stride, end)
            for k, dilation, stride, end in zip(taps, dilations, strides, ends, strict=True)
        )
    shape = context.shape(node.input[0])
    known = shape is not None and len(shape) == rank + 2
    sizes = shape[first : first + rank] if shape is not None and known else (None,) * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    found = []
    for k, dilation, stride, size in zip(taps, dilations, strides, sizes, strict=True):
        extent = (k - 1) * dilation + 1
        if stride == 1 or (size is None and extent == 1):
            total, room = extent - 1, -1
        elif size is None:
            return None
        else:
            room = (-(-size // stride) - 1) * stride - size
            total = max(room + extent, 0)
        small = total // 2
        start = small if mode == "SAME_UPPER" else total - small
        found.append(Window(-start, k, dilation if k > 1 else 1, stride, room))
    return tuple(found)


def are_full(node: NodeProto, found: tuple[Window, ...] | None, ceils: bool) -> bool:
    """Whether every window of a pool surely holds an element of its input.

    With ``ceil_mode`` the last window surely begins inside the input only if no stride is larger
    than its window. ``SAME`` padding is always smaller than the window, so no window sees padding
    alone, unless a dilation lets its taps step over the input.
    """
    if found is None:
        same = attributes.text(node, "auto_pad", "").startswith("SAME_")
        spaced = any(dilation != 1 for dilation in attributes.integers(node, "dilations") or ())
        return same and not ceils and not spaced
    if not see_zeros(found):
        return not (ceils and any(window.stride > window.taps for window in found))
    return not ceils and all(w.dilation == 1 and max(w.pads) < w.taps for w in found)
