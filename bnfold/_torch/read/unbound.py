"""The law of unbind and select, which take single places of an axis that goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Law, Maps, Way, along_one_axis, not_carried


@dataclass(frozen=True)
class Unbound(Law):
    """Output j is what the input holds at ``places[j]`` of ``axis``, of ``size``; the axis goes.

    A uniform map of one output is a map of its place along the axis. A map along another axis
    changes the whole input, so there must be one output only.
    """

    axis: int
    size: int | None
    places: tuple[int, ...]

    def backward(self, output: int, map_: Map) -> list[Way]:
        """The place that the output holds gets its map, others none."""
        map_ = along_one_axis(map_)
        if len(self.places) == 1:
            axis = None if map_.axis is None else map_.axis + (map_.axis >= self.axis)
            return [Way({0: _along(map_, axis)})]
        if map_.axis is not None:
            raise not_carried("its other outputs would change")
        if self.size is None:
            raise not_carried("the size of its input is not known")
        scale, shift = np.ones(self.size), np.zeros(self.size)
        scale[self.places[output]], shift[self.places[output]] = map_.scale[0], map_.shift[0]
        return [Way({0: AffineMap.of(scale, shift, self.axis)})]

    def forward(self, maps: Maps) -> Way:
        """Every output gets the scale and shift of its place."""
        map_ = along_one_axis(maps[0])
        if map_.axis == self.axis:
            parts = [AffineMap.of(map_.scale[p], map_.shift[p], None) for p in self.places]
            return Way(dict(enumerate(parts)))
        axis = None if map_.axis is None else map_.axis - (map_.axis > self.axis)
        return Way(dict.fromkeys(range(len(self.places)), _along(map_, axis)))


def _along(map_: AffineMap, axis: int | None) -> AffineMap:
    return AffineMap.of(map_.scale, map_.shift, axis)
