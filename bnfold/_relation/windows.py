"""Laws of operators that look at many numbers at once: windows, reductions, resizing.

They pass what is the same for all numbers that they look at. See `pointwise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold._relation import pointwise
from bnfold._relation.call import Call, Pair, full_rank, is_off
from bnfold._relation.expressions import ONE, ZERO, Double
from bnfold._relation.relations import Related


def _spatial(call: Call) -> list[int] | None:
    rank = call.rank()
    return None if rank is None or rank < 3 else list(range(2, rank))


def largest_of_window(call: Call) -> list[Pair] | None:
    """MaxPool: ``max(s·x + t) = s·max(x) + t`` for s > 0, both the same in a window.

    The padding is −∞, and never the largest. The second output, where it was, stays the same.
    """
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None or not np.all(one.scale > 0):
        return None
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    return [(one.scale, one.shift), (ONE, ZERO)][: len(call.node.output)]


def mean_of_window(call: Call) -> Pair | None:
    """AveragePool: linear; a shift passes where no zeros of the padding count.

    Where they do, a window that ``ceil_mode`` lets reach beyond the data may count places there.
    A window whose places stand apart may read padding alone: a mean of nothing, which no t moves.
    """
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None:
        return None
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    given = call.given
    plain = not any(given.get("pads", ())) and given.get("auto_pad", b"NOTSET") != b"SAME"
    plain = plain and not given.get("auto_pad", b"").startswith(b"SAME")
    spread = any(step != 1 for step in given.get("dilations", ()))
    if one.shift.any() and spread and not plain:
        return None
    plain = plain and not given.get("ceil_mode", 0)
    if one.shift.any() and given.get("count_include_pad", 0) and not plain:
        return None
    return one.scale, one.shift


def _reduced(call: Call) -> tuple[Related, list[int], int] | None:
    """The relation of what is reduced, the axes that go, and the rank; None if it varies there."""
    rank = call.rank()
    axes = call.integers(1, "axes")
    if rank is None or axes is None:
        return None
    if not axes:
        if call.given.get("noop_with_empty_axes", 0):
            return None
        axes = list(range(rank))
    axes = sorted({axis % rank for axis in axes})  # One that is named twice goes once.
    one = call.first
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    return one, axes, rank


def _kept(call: Call, values: Double, axes: Sequence[int], rank: int) -> Double:
    """Numbers of a tensor without the axes that a reduction takes away."""
    if values.ndim == 0 or call.given.get("keepdims", 1) == 1:
        return values
    return np.squeeze(full_rank(values, rank), axis=tuple(axes))


def mean(call: Call) -> Pair | None:
    """ReduceMean: linear, and a mean of t is t; of one s and t over any axes.

    ONNX does not say what a mean of no numbers is. onnxruntime has 0, which no t moves.
    """
    empty = call.side.shapes.may_be_empty(call.scope, call.node.input[0])
    return None if empty and call.first.shift.any() else _over_axes(call)


def _over_axes(call: Call) -> Pair | None:
    found = _reduced(call)
    if found is None:
        return pointwise.uniform(call)
    one, axes, rank = found
    return _kept(call, one.scale, axes, rank), _kept(call, one.shift, axes, rank)


def total(call: Call) -> Pair | None:
    """ReduceSum: ``Σ (s·x + t) = s·Σ x + n·t``, of n numbers."""
    found = _reduced(call)
    if found is None:
        return None
    one, axes, rank = found
    scale = _kept(call, one.scale, axes, rank)
    if not one.shift.any():
        return scale, ZERO
    shape = call.side.shapes.shape(call.scope, call.node.input[0])
    sizes = [shape[axis] for axis in axes] if shape is not None else [None]
    counts = [size for size in sizes if size is not None]
    if len(counts) < len(sizes):
        return None
    return scale, math.prod(counts) * _kept(call, one.shift, axes, rank)


def largest(call: Call) -> Pair | None:
    """ReduceMax, ReduceMin: as `largest_of_window`. The largest of no numbers is −∞."""
    return _over_axes(call) if np.all(call.first.scale > 0) else None


def of_positions(call: Call) -> Pair | None:
    """GlobalMaxPool, GlobalAveragePool: all positions of a channel are one window."""
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None:
        return None
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    is_linear = call.node.op_type == "GlobalAveragePool"
    return (one.scale, one.shift) if is_linear or np.all(one.scale > 0) else None


def place_of_largest(call: Call) -> Pair | None:
    """ArgMax, ArgMin: the place stays for s > 0, s and t the same along the axis."""
    one, rank = call.first, call.rank()
    if rank is None or not np.all(one.scale > 0):
        return None
    axes = [call.given.get("axis", 0) % rank]
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    return ONE, ZERO


def resized(call: Call) -> Pair | None:
    """Resize, Upsample: each number is a weighted mean of others, with weights of sum 1.

    An axis stays as it is if its scale is 1. Its size may be the same for another scale, too, and
    each of its numbers a mean. Cropping puts a number of its own where it leaves the data.
    """
    rank, one = call.rank(), call.first
    if call.given.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return None
    before, after = (call.sizes(n) for n in (call.node.input[0], call.node.output[0]))
    if rank is None or before is None or after is None or len(before) != len(after):
        return None
    same = [a == b and a is not None for a, b in zip(before, after, strict=True)]
    factors = _factors(call, rank)
    if factors is not None:
        same = [each and factor == 1 for each, factor in zip(same, factors, strict=True)]
    elif not _has_sizes(call):
        same = [False] * rank
    axes = [axis for axis in range(rank) if not same[axis]]
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    return one.scale, one.shift


def _factors(call: Call, rank: int) -> list[float] | None:
    """The scales of a Resize or Upsample, one for each axis; None if they are not known."""
    given = call.given.get("scales")
    names = call.node.input
    place = 2 if call.node.op_type == "Resize" and call.scope.opset > 10 else 1
    if given is None and place < len(names) and names[place]:
        found = call.side.constant(call.scope, names[place])
        given = None if found is None else found.load().reshape(-1)
    if given is None or len(given) == 0:
        return None
    axes = [axis % rank for axis in call.given.get("axes", range(rank))]
    if len(axes) != len(given):
        return None
    factors = dict(zip(axes, map(float, given), strict=True))
    return [factors.get(axis, 1.0) for axis in range(rank)]


def _has_sizes(call: Call) -> bool:
    """Whether a Resize is told the sizes that it puts out, and keeps to them."""
    policy = call.given.get("keep_aspect_ratio_policy", b"stretch")
    return len(call.node.input) > 3 and bool(call.node.input[3]) and policy == b"stretch"


def centred(call: Call) -> Pair | None:
    """InstanceNormalization: the mean over the positions takes each channel's shift away."""
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None or not np.all(one.scale == 1) or not call.others_agree():
        return None
    return (ONE, ZERO) if is_off(one.shift, rank, axes) else None
