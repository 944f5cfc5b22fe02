"""How tensors change that maps are carried past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, MultiAxisMap

_ROUNDING = 8 * float(np.finfo(np.float64).eps)
Maps = tuple[Map, ...]


@dataclass(frozen=True)
class Relation:
    """How the old and the new values of a tensor come from the same numbers: each by maps, one
    after the other. Neighbours that compose are one.

    The numbers are the values of one side, which then has no maps, unless maps have passed in both
    directions whose scales are 0 in places. An old scale of NaN, with a shift of 0, says that
    nothing is known of old values there: whatever reads them multiplies them by 0.
    """

    old: Maps = ()
    new: Maps = ()

    def behind(self, map_: Map) -> Relation:
        """The relation once a map has passed backward, which acts ahead of the tensor now."""
        return Relation(self.old, _composed((*self.new, map_), False))._short()

    def ahead(self, map_: Map) -> Relation | None:
        """The relation once a map has passed forward, which no longer acts ahead of the tensor:
        ``map(new') = new``. None where that cannot be solved.
        """
        undone = _undone(self.new)
        if undone is not None:
            return Relation(_composed((map_, *undone, *self.old), bool(undone)))
        back = _undone((map_,))
        if back is not None:
            return Relation(self.old, _composed((*self.new, *back), True))._short()
        return self._solved(map_)

    def _short(self) -> Relation:
        """The same with maps on one side only, if those of the other can be undone."""
        if self.old and self.new:
            old, new = _undone(self.old), _undone(self.new)
            if old is not None:
                return Relation((), _composed((*old, *self.new), True))
            if new is not None:
                return Relation(_composed((*new, *self.old), True))
        return self

    def _solved(self, map_: Map) -> Relation | None:
        """``map(new') = new`` where some scales are 0 on both sides, number by number: ``new'`` by
        undoing the map, or else the numbers by undoing ``new``. Where neither can be, ``new'`` is
        any number, of which the old value tells nothing, unless it is always the same.
        """
        old, new = _single(self.old), _single(self.new)
        if old is None or new is None or not isinstance(map_, AffineMap):
            return None
        axes = {m.axis for m in (old, new, map_)} - {None}
        if len(axes) > 1:
            return None
        s, t, a, b, p, q = np.broadcast_arrays(
            old.scale, old.shift, new.scale, new.shift, map_.scale, map_.shift
        )
        passes, told = p != 0, (a != 0) | (s == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(s == 0, t, s * (q - b) / a + t)
            slope, offset = a / p, (b - q) / p
        scale = np.where(passes | np.isnan(s), s, np.where(told, 0.0, np.nan))
        shift = np.where(passes | np.isnan(s), t, np.where(told, found, 0.0))
        axis = next(iter(axes), None)
        return Relation(
            (AffineMap.of(scale, shift, axis),),
            (AffineMap.of(np.where(passes, slope, 1.0), np.where(passes, offset, 0.0), axis),),
        )._short()


def _single(maps: Maps) -> AffineMap | None:
    """Maps as one along one axis, None where they are more."""
    if len(maps) > 1:
        return None
    (map_,) = maps or (IDENTITY,)
    return map_ if isinstance(map_, AffineMap) else None


def _undone(maps: Maps) -> Maps | None:
    """The maps that take others back, up to the rounding of float64; None where one cannot be."""
    found: list[Map] = []
    for map_ in reversed(maps):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            scale = 1.0 / map_.scale
            shift = -map_.shift * scale
        if not bool(np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None
        if isinstance(map_, AffineMap):
            found.append(AffineMap.of(scale, shift, map_.axis))
        else:
            found.append(MultiAxisMap(scale, shift))
    return tuple(found)


def _composed(maps: Maps, cancelling: bool) -> Maps:
    """Maps with neighbours composed where one map is the same as two."""
    made: list[Map] = []
    for map_ in maps:
        last = made[-1] if made else None
        if isinstance(last, AffineMap) and isinstance(map_, AffineMap):
            total = last.then(map_)
            if total is not None:
                if cancelling or bool(np.isnan(total.scale).any()):
                    terms = np.abs(map_.scale * last.shift) + np.abs(map_.shift)
                    total = _cancelled(total, terms)
                made[-1] = total
                continue
        made.append(map_)
    return tuple(made)


def _cancelled(map_: AffineMap, terms: NDArray[np.float64]) -> AffineMap:
    """A composition without what rounding left of terms that cancel and scales that undo each
    other, and without a shift where nothing is known.
    """
    scale = np.where(np.abs(map_.scale - 1) <= _ROUNDING, 1.0, map_.scale)
    lost = (np.abs(map_.shift) <= _ROUNDING * terms) | np.isnan(scale)
    return AffineMap.of(scale, np.where(lost, 0.0, map_.shift), map_.axis)
