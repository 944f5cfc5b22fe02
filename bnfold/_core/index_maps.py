"""Where the elements of a tensor go when it is transposed or reshaped.

A map along one axis can become a map along two axes: a Reshape of ``[N, 6, H, W]`` to
``[N, 2, 3, H, W]`` takes a map along axis 1 to one along axes 1 and 2. A second Reshape can bring
it back to one axis, as in a channel shuffle. Between the two it is a `MultiAxisMap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import AffineMap
from bnfold._system.records import record

# The size of an axis: a number, a symbol that stands for the same number everywhere, or unknown.
Size = int | str | None
_LARGEST = 1 << 22


@record(frozen=True, eq=False)
class MultiAxisMap:
    """``y = scale·x + shift``; both have the tensor's rank, and size 1 where they do not vary."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def keeps_origin(self) -> bool:
        """Whether every shift is 0."""
        return bool((self.shift == 0).all())

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return self.keeps_origin and bool((self.scale == 1).all())


Map = AffineMap | MultiAxisMap


@record(frozen=True)
class Permuted:
    """Output axis k is input axis ``order[k]``."""

    order: tuple[int, ...]


@record(frozen=True)
class AxisGroup:
    """Neighbouring axes ``inside`` that become axes ``outside``, elements in the same order."""

    inside: tuple[Size, ...]
    outside: tuple[Size, ...]


@record(frozen=True)
class Regrouped:
    """A Reshape, as groups of axes that do not mix with each other."""

    groups: tuple[AxisGroup, ...]


IndexMap = tuple[Permuted | Regrouped, ...]
# An axis that stays one axis.
_ALONE = AxisGroup((None,), (None,))


def regrouped(inside: Sequence[Size], outside: Sequence[Size]) -> Regrouped:
    """How the axes of a Reshape belong together.

    Elements keep their row-major order. If the leading sizes of both sides have equal products,
    these axes do not mix with the axes behind them. The same holds for trailing sizes.
    ``[N, 6, H, W]`` to ``[N, 2, 3, H, W]`` has the groups N, 6 to (2, 3), H, and W. Only sizes that
    are known to be equal count. The axes that are left in the middle are one group.
    """
    ahead, left = _paired(list(inside), list(outside))
    behind, (rest_in, rest_out) = _paired(left[0][::-1], left[1][::-1])
    middle = [AxisGroup(tuple(rest_in[::-1]), tuple(rest_out[::-1]))] if rest_in or rest_out else []
    back = [AxisGroup(group.inside[::-1], group.outside[::-1]) for group in behind[::-1]]
    return Regrouped((*ahead, *middle, *back))


def depth_to_space(at: int, size: int, block: int, *, blocks_first: bool) -> IndexMap:
    """``[…, C·b², H, W]`` to ``[…, C, H·b, W·b]``; ``size`` is C·b², the channels on axis ``at``.

    Place (i, j) in each block of output channel c comes from input channel ``(i·b + j)·C + c`` with
    ``blocks_first`` (ONNX DepthToSpace, mode DCR), else from ``(c·b + i)·b + j``
    (torch.nn.PixelShuffle).
    """
    rest = size // (block * block)
    split: tuple[Size, ...] = (block, block, rest) if blocks_first else (rest, block, block)
    order = (2, 3, 0, 4, 1) if blocks_first else (0, 3, 1, 4, 2)
    together = AxisGroup((None, block), (None,))
    return (
        Regrouped((*(_ALONE,) * at, AxisGroup((size,), split), _ALONE, _ALONE)),
        Permuted((*range(at), *(at + k for k in order))),
        Regrouped((*(_ALONE,) * (at + 1), together, together)),
    )


def space_to_depth(at: int, size: int, block: int, *, blocks_first: bool) -> IndexMap:
    """``[…, C, H·b, W·b]`` to ``[…, C·b², H, W]``; ``size`` is C. It undoes `depth_to_space`."""
    apart = AxisGroup((None,), (None, block))
    joined: tuple[Size, ...] = (block, block, size) if blocks_first else (size, block, block)
    order = (2, 4, 0, 1, 3) if blocks_first else (0, 2, 4, 1, 3)
    together = AxisGroup(joined, (size * block * block,))
    return (
        Regrouped((*(_ALONE,) * (at + 1), apart, apart)),
        Permuted((*range(at), *(at + k for k in order))),
        Regrouped((*(_ALONE,) * at, together, _ALONE, _ALONE)),
    )


def inverse(steps: IndexMap) -> IndexMap:
    """The steps that undo the given steps, last one first."""
    undone: list[Permuted | Regrouped] = []
    for step in reversed(steps):
        if isinstance(step, Permuted):
            undone.append(Permuted(tuple(int(k) for k in np.argsort(step.order))))
        else:
            undone.append(Regrouped(tuple(AxisGroup(g.outside, g.inside) for g in step.groups)))
    return tuple(undone)


def equal(one: Map, other: Map) -> bool:
    """Whether two maps are the same, bit for bit."""
    if one is other:
        return True
    if isinstance(one, MultiAxisMap) or isinstance(other, MultiAxisMap):
        same = isinstance(one, MultiAxisMap) and isinstance(other, MultiAxisMap)
    else:
        same = one.axis == other.axis
    return (
        same and np.array_equal(one.scale, other.scale) and np.array_equal(one.shift, other.shift)
    )


def moved(map_: Map, steps: IndexMap) -> Map | None:
    """The map behind the steps that acts as ``map_`` does ahead of them.

    A map along axis 1 of ``[N, C, H, W]`` is one along axis 3 behind a transpose to
    ``[N, H, W, C]``. None if unknown sizes decide where its channels go.
    """
    rank = _rank_in(steps)
    if isinstance(map_, AffineMap):
        if rank is None or map_.axis is None:
            return map_
        shape = tuple(map_.scale.size if k == map_.axis else 1 for k in range(rank))
        scale, shift = map_.scale.reshape(shape), map_.shift.reshape(shape)
    else:
        scale, shift = map_.scale, map_.shift
    both: NDArray[np.float64] | None = np.stack(np.broadcast_arrays(scale, shift))
    for step in steps:
        if both is None:
            return None
        if isinstance(step, Permuted):
            both = both.transpose(0, *(k + 1 for k in step.order))
        else:
            both = _regroup(both, step)
    if both is None:
        return None
    varying = [k - 1 for k in range(1, both.ndim) if both.shape[k] > 1]
    if len(varying) > 1:
        return MultiAxisMap(both[0], both[1])
    axis = varying[0] if varying else None
    return AffineMap.of(both[0].reshape(-1), both[1].reshape(-1), axis)


def _rank_in(steps: IndexMap) -> int | None:
    if not steps:
        return None
    first = steps[0]
    if isinstance(first, Permuted):
        return len(first.order)
    return sum(len(group.inside) for group in first.groups)


def _paired(
    inside: list[Size], outside: list[Size]
) -> tuple[list[AxisGroup], tuple[list[Size], list[Size]]]:
    """Groups of leading axes with equal products, and the axes of both sides that are left."""
    groups: list[AxisGroup] = []
    while inside and outside:
        if inside[0] is not None and inside[0] == outside[0]:
            groups.append(AxisGroup((inside.pop(0),), (outside.pop(0),)))
            continue
        if inside[0] == 1:
            groups.append(AxisGroup((inside.pop(0),), ()))
            continue
        if outside[0] == 1:
            groups.append(AxisGroup((), (outside.pop(0),)))
            continue
        taken = _equal_products(inside, outside)
        if taken is None:
            break
        groups.append(AxisGroup(tuple(inside[: taken[0]]), tuple(outside[: taken[1]])))
        inside, outside = inside[taken[0] :], outside[taken[1] :]
    while inside and inside[0] == 1:
        groups.append(AxisGroup((inside.pop(0),), ()))
    while outside and outside[0] == 1:
        groups.append(AxisGroup((), (outside.pop(0),)))
    return groups, (inside, outside)


def _equal_products(inside: list[Size], outside: list[Size]) -> tuple[int, int] | None:
    """The smallest numbers of leading axes with equal products on both sides; None if unknown."""
    m, n, left, right = 0, 0, 1, 1
    while m == 0 or n == 0 or left != right:
        if left <= right and m < len(inside):
            size, m = inside[m], m + 1
            if not isinstance(size, int) or size < 1:
                return None
            left *= size
        elif n < len(outside):
            size, n = outside[n], n + 1
            if not isinstance(size, int) or size < 1:
                return None
            right *= size
        else:
            return None
    return m, n


def _regroup(both: NDArray[np.float64], step: Regrouped) -> NDArray[np.float64] | None:
    """Scale and shift, stacked on axis 0, with the axes behind a Reshape.

    None if the sizes that this needs are unknown, or too large.
    """
    at = 1
    for group in step.groups:
        before = both.shape[:at]
        own = both.shape[at : at + len(group.inside)]
        after = both.shape[at + len(group.inside) :]
        if all(size == 1 for size in own):
            both = both.reshape(*before, *(1,) * len(group.outside), *after)
        elif len(group.inside) != 1 or len(group.outside) != 1:
            sizes = _known(group)
            if sizes is None or math.prod(sizes[0]) > _LARGEST:
                return None
            inside, outside = sizes
            if any(n not in (1, size) for n, size in zip(own, inside, strict=True)):
                return None  # What is known of the tensor contradicts itself.
            both = np.broadcast_to(both, (*before, *inside, *after))
            both = _squeezed(both.reshape(*before, *outside, *after), at, len(outside))
        at += len(group.outside)
    return both


def _known(group: AxisGroup) -> tuple[list[int], list[int]] | None:
    inside = [size for size in group.inside if isinstance(size, int)]
    outside = [size for size in group.outside if isinstance(size, int)]
    if len(inside) < len(group.inside) or len(outside) < len(group.outside):
        return None
    return (inside, outside) if math.prod(inside) == math.prod(outside) else None


def _squeezed(both: NDArray[np.float64], start: int, count: int) -> NDArray[np.float64]:
    """``both`` with size 1 on those of ``count`` axes from ``start`` along which nothing varies."""
    for axis in range(start, start + count):
        if both.shape[axis] > 1 and bool((both == both.take([0], axis)).all()):
            both = both.take([0], axis)
    return both
