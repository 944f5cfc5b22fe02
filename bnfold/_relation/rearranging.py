"""Laws of operators that move numbers: each number takes its s and t along. See `pointwise`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnfold._relation.call import Call, Pair, full_rank, is_off
from bnfold._relation.expressions import Double
from bnfold._relation.relations import Related


def expanded(call: Call) -> Pair | None:
    """Expand: a number takes s and t to each of its places. Last axes stay last."""
    return (call.first.scale, call.first.shift) if call.others_agree() else None


def transposed(call: Call) -> Pair | None:
    rank = call.rank()
    if rank is None:
        return None
    order = call.given.get("perm", list(range(rank))[::-1])
    one = call.first
    return (_turned(one.scale, rank, order), _turned(one.shift, rank, order))


def _turned(values: Double, rank: int, order: Sequence[int]) -> Double:
    return values if values.ndim == 0 else np.transpose(full_rank(values, rank), order)


def rearranged(call: Call) -> Pair | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Expand of equal sizes: row-major order stays."""
    before, after = (call.sizes(n) for n in (call.node.input[0], call.node.output[0]))
    made = [_reshaped(each, before, after) for each in (call.first.scale, call.first.shift)]
    return None if made[0] is None or made[1] is None else (made[0], made[1])


def _reshaped(
    values: Double, before: tuple[Any, ...] | None, after: tuple[Any, ...] | None
) -> Double | None:
    """Numbers of a tensor where its axes are put together or taken apart, in row-major order.

    The order of the last axes is their own, whatever stands ahead of them: runs of last axes with
    one product hold the same numbers. Leading axes of equal sizes are one axis each. The numbers
    must not vary along what is left between the two.
    """
    if values.size == 1:
        return values.reshape(())
    if before is None or after is None:
        return None
    full = full_rank(values, len(before))
    begin = _equal(before, after)
    old, new = list(before[begin:]), list(after[begin:])
    own = list(full.shape[begin:])
    wide: list[int] = []
    made: list[int] = []
    while run := _last_run(old, new):
        some = own[-run[0] :] if run[0] else []
        sizes, targets = old[len(old) - run[0] :], new[len(new) - run[1] :]
        varies = any(size > 1 for size in some)
        if run == (1, 1):
            sizes = targets = some  # One axis as it is, whatever its size.
        wide = [*(sizes if varies else some), *wide]
        made = [*(targets if varies else [1] * run[1]), *made]
        del old[len(old) - run[0] :], own[len(own) - run[0] :], new[len(new) - run[1] :]
    if any(size > 1 for size in own):
        return None
    head = full.shape[:begin]
    full = np.broadcast_to(full, (*head, *own, *wide))
    return full.reshape(*head, *(1,) * len(new), *made)


def _equal(before: Sequence[Any], after: Sequence[Any]) -> int:
    """How many sizes at the beginning are known to be equal."""
    pairs = zip(before, after, strict=False)
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1] and pair[0] is not None, pairs)
    return sum(1 for _ in equal)


def _last_run(old: Sequence[Any], new: Sequence[Any]) -> tuple[int, int] | None:
    """How many last axes on both sides have one product; None if none are known to."""
    if old and new and old[-1] == new[-1] and old[-1] is not None:
        return 1, 1
    counts, products = [0, 0], [1, 1]
    for side in (0, 1):
        axes = (old, new)[side]
        if axes and isinstance(axes[-1], int):
            counts[side], products[side] = 1, axes[-1]
    while products[0] != products[1]:
        side = 0 if products[0] < products[1] else 1
        axes = (old, new)[side]
        if counts[side] == len(axes) or not isinstance(axes[-1 - counts[side]], int):
            return None
        products[side] *= axes[-1 - counts[side]]
        counts[side] += 1
    return (counts[0], counts[1]) if any(counts) else None


def joined(call: Call) -> Pair | None:
    """Concat: each part keeps its own numbers."""
    rank = call.rank()
    if rank is None:
        return None
    axis = call.given.get("axis", 1) % rank
    scales: list[Double] = []
    shifts: list[Double] = []
    for name, one in zip(call.node.input, call.inputs, strict=True):
        sizes = call.sizes(name)
        size = None if sizes is None else sizes[axis]
        if not isinstance(size, int):
            return None
        related = Related() if one is None else one
        for values, kept in ((related.scale, scales), (related.shift, shifts)):
            full = full_rank(values, rank)
            kept.append(np.repeat(full, size, axis) if full.shape[axis] == 1 else full)
    return _put_together(scales, axis), _put_together(shifts, axis)


def _put_together(parts: Sequence[Double], axis: int) -> Double:
    rank = parts[0].ndim
    shape = [max(part.shape[k] for part in parts) for k in range(rank)]
    wide = [np.broadcast_to(p, (*shape[:axis], p.shape[axis], *shape[axis + 1 :])) for p in parts]
    return np.concatenate(wide, axis)


def split(call: Call) -> list[Pair] | None:
    """Split: each part has the numbers of its range."""
    rank, one = call.rank(), call.first
    if rank is None:
        return None
    axis = call.given.get("axis", 0) % rank
    found: list[Pair] = []
    start = 0
    for name in call.node.output:
        sizes = call.sizes(name) if name else None
        size = None if sizes is None else sizes[axis]
        if not isinstance(size, int):
            return None
        part = slice(start, start + size)
        found.append((_part(one.scale, rank, axis, part), _part(one.shift, rank, axis, part)))
        start += size
    return found


def _part(values: Double, rank: int, axis: int, part: Any) -> Double:
    full = full_rank(values, rank)
    if full.shape[axis] == 1:
        return values
    return full[(slice(None),) * axis + (part,)]


def sliced(call: Call) -> Pair | None:
    """Slice: numbers that vary along a cut axis are cut alike."""
    rank, one = call.rank(), call.first
    found = [call.integers(k, name) for k, name in ((1, "starts"), (2, "ends"), (3, "axes"))]
    steps = call.integers(4, "steps")
    starts, ends, axes = found
    if rank is None or starts is None or ends is None or axes is None or steps is None:
        return None
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    scale, shift = one.scale, one.shift
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            if not (is_off(scale, rank, [axis % rank]) and is_off(shift, rank, [axis % rank])):
                return None
            continue
        part = slice(start, end, step)
        scale, shift = (_part(each, rank, axis % rank, part) for each in (scale, shift))
    return scale, shift


def picked(call: Call) -> Pair | None:
    """Gather: numbers that do not vary along the axis, or those at constant indices."""
    rank, one = call.rank(), call.first
    indices = call.side.constant(call.scope, call.node.input[1])
    if rank is None or not call.others_agree():
        return None
    if one.scale.size == 1 and one.shift.size == 1:
        return one.scale.reshape(()), one.shift.reshape(())
    if indices is None or len(indices.shape) > 1:
        return None
    axis, at = call.given.get("axis", 0) % rank, indices.load()
    made = []
    for values in (one.scale, one.shift):
        full = full_rank(values, rank)
        chosen = np.zeros_like(at) if full.shape[axis] == 1 else at
        made.append(np.take(full, chosen, axis))
    return made[0], made[1]
