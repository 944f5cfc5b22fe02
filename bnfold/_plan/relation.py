"""How a tensor changes when maps are carried past it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, MultiAxisMap
from bnfold._system.records import record

_ROUNDING = 8 * float(np.finfo(np.float64).eps)
Maps = tuple[Map, ...]


@record(frozen=True)
class Relation:
    """How the old and the new values of a tensor come from the same numbers u.

    ``old`` are the maps from u to the old values, ``new`` those from u to the new values. Maps act
    one after the other, and neighbours that compose are one map. Mostly one of the two is empty:
    the values of that side are u. Both have maps if maps have passed in both directions and some of
    their scales are 0. An old scale of NaN with a shift of 0 says that the old value there is
    unknown: every reader multiplies it by 0.
    """

    old: Maps = ()
    new: Maps = ()

    def behind(self, map_: Map) -> Relation:
        """The relation after ``map_`` has passed backward: it acts ahead of the tensor now."""
        return Relation(self.old, _composed((*self.new, map_), False))._short()

    def ahead(self, map_: Map) -> Relation | None:
        """The relation after ``map_`` has passed forward: it acts behind the tensor now.

        The new values ``new'`` satisfy ``map(new') = new``. None if that cannot be solved.
        """
        undone = _undone(self.new)
        if undone is not None:
            return Relation(_composed((map_, *undone, *self.old), bool(undone)))
        back = _undone((map_,))
        if back is not None:
            return Relation(self.old, _composed((*self.new, *back), True))._short()
        return self._solved(map_)

    def _short(self) -> Relation:
        """The same relation with maps on one side only, if the maps of one side can be undone."""
        if self.old and self.new:
            old, new = _undone(self.old), _undone(self.new)
            if old is not None:
                return Relation((), _composed((*old, *self.new), True))
            if new is not None:
                return Relation(_composed((*new, *self.old), True))
        return self

    def _solved(self, map_: Map) -> Relation | None:
        """Solve ``map(new') = new`` position by position, where some scales are 0 on both sides.

        If the scale of ``map`` is not 0, undoing ``map`` gives ``new'``. Else ``new'`` may be any
        number. The old value is then constant if its scale is 0, or if the scale of ``new`` is not
        0, so that undoing ``new`` gives u. Else the old value is unknown. The result is None for
        maps along several axes.
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
    """Several maps as one map along one axis; None if that is not possible."""
    if len(maps) > 1:
        return None
    (map_,) = maps or (IDENTITY,)
    return map_ if isinstance(map_, AffineMap) else None


def _undone(maps: Maps) -> Maps | None:
    """The maps that undo the given ones, up to float64 rounding; None if one cannot be undone."""
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
    """The same maps, with neighbours composed if one map can express both."""
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
    """A composition with scales close to 1 set to 1 and shifts close to 0 set to 0.

    Such a difference is what rounding leaves if scales undo each other or terms cancel. A shift
    also becomes 0 if the scale is NaN.
    """
    scale = np.where(np.abs(map_.scale - 1) <= _ROUNDING, 1.0, map_.scale)
    lost = (np.abs(map_.shift) <= _ROUNDING * terms) | np.isnan(scale)
    return AffineMap.of(scale, np.where(lost, 0.0, map_.shift), map_.axis)
