"""Linear operators of ATen.

conv2d is Conv, and conv_transpose2d ConvTranspose, in any number of axes; ``linear(x, W, b)`` is
``x·Wᵀ + b``; ``addmm(c, a, b)`` is ``β·c + α·a·b``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold._aten.call import Call, Made
from bnfold._aten.pointwise import times
from bnfold._aten.writer import Like

_PRODUCTS = {
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
    "bmm": ("self", "mat2"),
    "matmul": ("self", "other"),
    "mm": ("self", "mat2"),
    "mv": ("self", "vec"),
}


def linear(call: Call) -> Made:
    """linear: ``x·Wᵀ + b``."""
    data, weight = call.value("input"), call.value("weight")
    if data is None or weight is None or not call.like.is_real:
        return None
    held = call.like_of(weight)
    if held.rank != 2 or not call.like_of(data).rank:
        return None
    turned = call.made(weight, Like(held.kind, held.sizes[::-1]), np.transpose)
    if turned is None:
        like = Like(held.kind, held.sizes[::-1])
        turned = call.write("Transpose", [weight], like, perm=[1, 0])
    made = call.write("MatMul", [data, turned])
    if call.given.get("bias") is None:
        return made
    bias = call.value("bias")
    return None if bias is None else call.write("Add", [made, bias])


def product(call: Call) -> Made:
    """matmul, mm, bmm, mv; with a term that is added addmm, baddbmm, addmv."""
    values = [call.value(name) for name in _PRODUCTS[call.kind]]
    one, other = (value or "" for value in values)
    if not one or not other or not call.like.is_real:
        return None
    made = call.write("MatMul", [one, other])
    if "self" in _PRODUCTS[call.kind]:
        return made
    added = call.value("self")
    scaled = times(call, made, call.given.get("alpha", 1))
    term = None if added is None else times(call, added, call.given.get("beta", 1))
    if scaled is None or term is None or call.given.get("beta", 1) == 0:
        return None
    return call.write("Add", [scaled, term])


def convolution(call: Call) -> Made:
    """conv1d … conv3d, conv_transpose1d … conv_transpose3d, convolution."""
    data, weight = call.value("input"), call.value("weight")
    if data is None or weight is None or not call.like.is_real:
        return None
    spatial = call.like_of(weight).rank - 2
    turned = call.given.get("transposed", "transpose" in call.kind)
    if spatial < 1 or type(turned) is not bool:
        return None
    windows = _windows(call, spatial, turned, weight)
    if windows is None:
        return None
    inputs = [data, weight]
    if call.given.get("bias") is not None:
        bias = call.value("bias")
        if bias is None:
            return None
        inputs.append(bias)
    if (made := _by_channel(call, inputs, windows)) is not None:
        return made
    op = "ConvTranspose" if turned else "Conv"
    given = call.like_of(data)
    if given.rank == spatial + 2:
        return call.write(op, inputs, **windows)
    if given.rank != spatial + 1:
        return None
    batch = call.reshaped(data, (1, *given.sizes))  # One sample, without an axis for the batch.
    if batch is None or None in call.like.sizes:
        return None
    like = Like(call.like.kind, (1, *call.like.sizes))
    made = call.write(op, [batch, *inputs[1:]], like, **windows)
    return call.reshaped(made, call.like.sizes)


def _by_channel(call: Call, inputs: list[str], windows: dict[str, Any]) -> Made:
    """A convolution with one weight for each channel: it multiplies and adds. None for others."""
    data, weight = inputs[0], call.like_of(inputs[1])
    spatial = weight.rank - 2
    channels = windows["group"]
    plain = weight.sizes == (channels, *(1,) * (spatial + 1)) and set(windows["strides"]) == {1}
    plain = plain and not any(windows["pads"]) and call.like_of(data).rank == spatial + 2
    if not plain or any(windows.get("output_padding", ())):
        return None
    sizes = (channels, *(1,) * spatial)
    made = data
    for op, value in zip(("Mul", "Add"), inputs[1:], strict=False):
        held = call.made(value, Like(call.like.kind, sizes), lambda each: each.reshape(sizes))
        if held is None:
            return None
        made = call.write(op, [made, held])
    return made


def _windows(call: Call, spatial: int, turned: bool, weight: str) -> dict[str, Any] | None:
    """The attributes of ONNX; None where a number is not known."""
    steps = call.each("stride", spatial, 1)
    spread = call.each("dilation", spatial, 1)
    group = call.whole("groups")
    kernel = call.like_of(weight).sizes[2:]
    if steps is None or spread is None or group is None:
        return None
    given = call.given.get("padding")
    if given == "same":
        # In all d·(k − 1); of an odd number the end gets one more than the beginning.
        totals = [
            d * (k - 1) if isinstance(k, int) else -1 for d, k in zip(spread, kernel, strict=True)
        ]
        if any(total < 0 for total in totals):
            return None
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    else:
        each = [0] * spatial if given == "valid" else call.each("padding", spatial, 0)
        if each is None:
            return None
        pads = each * 2
    found = {"strides": steps, "dilations": spread, "pads": pads, "group": group[0]}
    if turned:
        more = call.each("output_padding", spatial, 0)
        if more is None:
            return None
        return {**found, "output_padding": more}
    return found


RULES: dict[str, Callable[[Call], Made]] = {
    **dict.fromkeys(_PRODUCTS, product),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "convolution": convolution,
    "linear": linear,
}
"""By the name of the operator."""
