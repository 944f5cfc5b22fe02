"""How tensors change that maps are carried past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold._affine import AffineMap
from bnfold._plan._layout import Map

_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Relation:
    """How the new values of a tensor relate to the old: by ``maps``, one after the other, ``new``
    comes from ``old``, or, where they have been carried forward past it (``ahead``), ``old`` from
    ``new``. Neighbours that compose are one.
    """

    maps: tuple[Map, ...]
    ahead: bool

    def after(self, map_: Map, ahead: bool) -> Relation | None:
        """The relation once another map passes too; None where it would have to be undone and
        cannot be.
        """
        own: tuple[Map, ...] | None = self.maps
        if self.ahead != ahead:
            own = _undone(self.maps)
        if own is None:
            return None
        maps = (map_, *own) if ahead else (*own, map_)
        return Relation(_composed(maps, self.ahead != ahead), ahead)


def _undone(maps: tuple[Map, ...]) -> tuple[Map, ...] | None:
    """The maps that take others back, None where one cannot be."""
    found = [m.inverse() if isinstance(m, AffineMap) else None for m in reversed(maps)]
    whole = [m for m in found if m is not None]
    return tuple(whole) if len(whole) == len(found) else None


def _composed(maps: tuple[Map, ...], cancelling: bool) -> tuple[Map, ...]:
    """Maps with neighbours composed where one map is the same as two."""
    made: list[Map] = []
    for map_ in maps:
        last = made[-1] if made else None
        if isinstance(last, AffineMap) and isinstance(map_, AffineMap):
            total = last.then(map_)
            if total is not None:
                if cancelling:
                    terms = np.abs(map_.scale * last.shift) + np.abs(map_.shift)
                    total = _cancelled(total, terms)
                made[-1] = total
                continue
        made.append(map_)
    return tuple(made)


def _cancelled(map_: AffineMap, terms: NDArray[np.float64]) -> AffineMap:
    """A map and the inverse of another, composed, without what rounding left of terms that cancel
    and scales that undo each other.
    """
    scale = np.where(np.abs(map_.scale - 1) <= _ROUNDING, 1.0, map_.scale)
    shift = np.where(np.abs(map_.shift) <= _ROUNDING * terms, 0.0, map_.shift)
    return AffineMap.of(scale, shift, map_.axis)
