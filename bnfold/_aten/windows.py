"""Operators of ATen that look at many numbers at once: pools, reductions, resizing, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from bnfold._aten.call import Call, Made
from bnfold._aten.writer import Like

_RESIZED = {
    f"{prefix}{mode}{suffix}": mode.rstrip("123d")
    for prefix, suffix, modes in (
        ("upsample_", "", ("nearest1d", "nearest2d", "nearest3d")),
        ("_upsample_nearest_exact", "", ("1d", "2d", "3d")),
        ("upsample_", "", ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d")),
        ("_upsample_", "_aa", ("bilinear2d", "bicubic2d")),
    )
    for mode in modes
}


def _is_batch(call: Call, data: str | None) -> bool:
    return data is not None and call.like_of(data).rank == _spatial_of(call) + 2


def _spatial_of(call: Call) -> int:
    """How many axes the window has, by the operator's name."""
    return next(n for n in (1, 2, 3) if f"{n}d" in call.kind)


def pooled(call: Call) -> Made:
    """max_pool, and avg_pool without a divisor of its own, of a batch."""
    data, spatial = call.value("self"), _spatial_of(call)
    kernel = call.each("kernel_size", spatial, 1)
    if data is None or kernel is None or not call.like.is_real or not _is_batch(call, data):
        return None
    steps = kernel if not call.given.get("stride") else call.each("stride", spatial, 1)
    pads, spread = call.each("padding", spatial, 0), call.each("dilation", spatial, 1)
    ceil = call.given.get("ceil_mode", False)
    if steps is None or pads is None or spread is None or type(ceil) is not bool:
        return None
    given: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": steps,
        "pads": pads * 2,
        "ceil_mode": int(ceil),
    }
    if call.kind.startswith("max"):
        if call.used - {0}:  # Where it was: PyTorch and ONNX count in other ways.
            return call.writer.several(
                "MaxPool", [data], call.likes, dilations=spread, places="of a plane", **given
            )
        return call.write("MaxPool", [data], dilations=spread, **given)
    counted = call.given.get("count_include_pad")
    if call.given.get("divisor_override") is not None or type(counted) is not bool:
        return None
    return call.write("AveragePool", [data], count_include_pad=int(counted), **given)


def adaptive(call: Call) -> Made:
    """adaptive_avg_pool, adaptive_max_pool of a batch: windows that follow from the sizes.

    They never pad. Where the sizes come out even they are alike, else they are told by the sizes.
    """
    data, spatial = call.value("self"), _spatial_of(call)
    wanted = call.each("output_size", spatial, 0)
    if data is None or not call.like.is_real or not _is_batch(call, data) or call.used - {0}:
        return None
    if wanted is None or 0 in wanted:
        return None
    kind = "AveragePool" if "avg" in call.kind else "MaxPool"
    if wanted == [1] * spatial:
        return call.write(f"Global{kind}", [data])
    sizes = call.like_of(data).sizes[2:]
    pairs = zip(sizes, wanted, strict=True)
    kernel = [a // b for a, b in pairs if isinstance(a, int) and a >= b and a % b == 0]
    if len(kernel) == spatial:
        return call.write(kind, [data], kernel_shape=kernel, strides=kernel)
    return call.write(kind, [data], told=f"adaptive {wanted}")


def reduced(call: Call) -> Made:
    """mean, sum, amax, amin over axes; without any, over all."""
    data, axes = call.value("self"), call.given.get("dim")
    if data is None or not call.like.is_real or call.like_of(data).kind != call.like.kind:
        return None
    rank = call.like_of(data).rank
    numbers = list(range(rank)) if axes in (None, [], ()) else call.whole("dim")
    keep = call.given.get("keepdim", False)
    if not rank or numbers is None or type(keep) is not bool:
        return None
    op = {"amax": "ReduceMax", "amin": "ReduceMin", "mean": "ReduceMean", "sum": "ReduceSum"}
    held = call.writer.integers(sorted(axis % rank for axis in numbers))
    return call.write(op[call.kind], [data, held], keepdims=int(keep))


def largest(call: Call) -> Made:
    """max, min along one axis, without their places."""
    data, axis = call.value("self"), call.given.get("dim")
    keep = call.given.get("keepdim", False)
    if data is None or type(axis) is not int or type(keep) is not bool or call.used - {0}:
        return None
    rank = call.like_of(data).rank
    if not rank or not call.like.is_real:
        return None
    op = "ReduceMax" if call.kind == "max" else "ReduceMin"
    return call.write(op, [data, call.writer.integers([axis % rank])], keepdims=int(keep))


def place_of_largest(call: Call) -> Made:
    """argmax, argmin along one axis."""
    data, axis = call.value("self"), call.given.get("dim")
    keep = call.given.get("keepdim", False)
    if data is None or type(axis) is not int or type(keep) is not bool:
        return None
    rank = call.like_of(data).rank
    if not rank or not call.like_of(data).is_real:
        return None
    op = "ArgMax" if call.kind == "argmax" else "ArgMin"
    return call.write(op, [data], axis=axis % rank, keepdims=int(keep))


def softmax(call: Call) -> Made:
    """softmax, log_softmax along one axis."""
    data, axis = call.value("self"), call.given.get("dim")
    if data is None or type(axis) is not int or call.given.get("half_to_float"):
        return None
    rank = call.like_of(data).rank
    if not rank or not call.like.is_real or call.like_of(data).kind != call.like.kind:
        return None
    op = "LogSoftmax" if "log" in call.kind else "Softmax"
    return call.write(op, [data], axis=axis % rank)


def resized(call: Call) -> Made:
    """Upsampling of a batch: all that says how is text; every axis of space may be resized."""
    data = call.value("self") or call.value("input")
    if data is None or not call.like.is_real or not _is_batch(call, data):
        return None
    rank = call.like.rank
    told = {
        name: value
        for name, value in call.given.items()
        if name not in ("self", "input", "output_size")
    }
    if any(not _is_told(value) for value in told.values()) or None in call.like.sizes:
        return None
    factors = np.asarray([1.0, 1.0, *(2.0,) * (rank - 2)], np.float32)
    like = Like(int(TensorProto.FLOAT), (rank,))
    scales = call.writer.held("axes", like, lambda: factors)
    said = repr((call.kind, sorted(told.items()), call.like.sizes))
    return call.write("Resize", [data, "", scales], told=said)


def _is_told(value: object) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(each is None or isinstance(each, (int, float, str)) for each in values)


def padded(call: Call) -> Made:
    """pad, constant_pad_nd, reflection_pad, replication_pad.

    Pairs of numbers say how much, the last axis first.
    """
    data, given = call.value("self"), call.whole("pad" if "pad" in call.given else "padding")
    mode, value = call.given.get("mode", "constant"), call.given.get("value")
    for name, other in (("reflection", "reflect"), ("replication", "replicate")):
        mode = other if call.kind.startswith(name) else mode
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if data is None or given is None or len(given) % 2 or mode not in modes:
        return None
    rank = call.like_of(data).rank
    if not call.like.is_real or len(given) > 2 * rank:
        return None
    begins, ends = [0] * rank, [0] * rank
    for place in range(len(given) // 2):
        begins[rank - 1 - place], ends[rank - 1 - place] = given[2 * place : 2 * place + 2]
    inputs = [data, call.writer.integers([*begins, *ends])]
    if mode == "constant" and value is not None:
        if not isinstance(value, (int, float)):
            return None
        inputs.append(call.writer.number(float(value), call.like.kind))
    return call.write("Pad", inputs, mode=modes[mode])


_SPATIAL = ("1d", "2d", "3d")
RULES: dict[str, Callable[[Call], Made]] = {
    **{f"{kind}_pool{n}": pooled for kind in ("avg", "max") for n in _SPATIAL},
    **{f"max_pool{n}_with_indices": pooled for n in _SPATIAL},
    **{f"adaptive_{kind}_pool{n}": adaptive for kind in ("avg", "max") for n in _SPATIAL},
    **{f"_adaptive_avg_pool{n}": adaptive for n in _SPATIAL},
    **dict.fromkeys(("amax", "amin", "mean", "sum"), reduced),
    **dict.fromkeys(("argmax", "argmin"), place_of_largest),
    **dict.fromkeys(("max", "min"), largest),
    **dict.fromkeys(("_log_softmax", "_softmax", "log_softmax", "softmax"), softmax),
    **dict.fromkeys(_RESIZED, resized),
    **{f"{kind}_pad{n}": padded for kind in ("reflection", "replication") for n in _SPATIAL},
    **dict.fromkeys(("constant_pad_nd", "pad"), padded),
}
"""By the name of the operator."""
