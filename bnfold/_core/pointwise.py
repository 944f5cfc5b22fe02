"""The laws of operators that compute each element from one element: Relu, Abs, Clip.

See `laws` for what a law is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Edit, Law, Maps, Way, not_carried


@dataclass(frozen=True)
class Homogeneous(Law):
    """Relu, LeakyRelu, PRelu, Abs: ``f(s·x) = s·f(x)`` element by element for every s > 0.

    Exact with no shift, whatever the axis. ``even`` (Abs): forward for s < 0 too, as |s|.
    """

    even: bool = False

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``s·f(x) = f(s·x)`` for s > 0 and t = 0."""
        self._check(map_)
        return [Way({0: map_})]

    def forward(self, maps: Maps) -> list[Way]:
        """``f(s·x) = s·f(x)`` for s > 0 and t = 0; ``|s·x| = |s|·|x|``."""
        map_ = maps[0]
        if self.even and isinstance(map_, AffineMap) and map_.keeps_origin:
            return [Way({0: AffineMap.of(np.abs(map_.scale), 0.0, map_.axis)})]
        self._check(map_)
        return [Way({0: map_})]

    @property
    def may_lose_a_map(self) -> bool:
        """Abs takes the scale −1 to 1."""
        return self.even

    def _check(self, map_: Map) -> None:
        if not bool((map_.scale > 0).all()):
            raise not_carried("a scale is not positive")
        if not map_.keeps_origin:
            raise not_carried("the shift does not pass")


@dataclass(frozen=True)
class Clipped(Law):
    """Clip, Relu6: ``A(clip(x, lo, hi)) = clip(A(x), A(lo), A(hi))`` for one s > 0 everywhere.

    The bounds move with the map. An absent bound (None) stays absent.
    """

    min: float | None
    max: float | None
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Bounds ``s·lo + t`` and ``s·hi + t``."""
        scale, shift = self._numbers(map_)
        return [Way({0: map_}, self._edit(lambda bound: scale * bound + shift))]

    def forward(self, maps: Maps) -> list[Way]:
        """Bounds ``(lo − t) / s`` and ``(hi − t) / s``."""
        scale, shift = self._numbers(maps[0])
        return [Way({0: maps[0]}, self._edit(lambda bound: (bound - shift) / scale))]

    def _numbers(self, map_: Map) -> tuple[float, float]:
        if not isinstance(map_, AffineMap) or map_.axis is not None:
            raise not_carried("its bounds are the same for all channels, the map is not")
        if map_.scale[0] <= 0:
            raise not_carried("the scale is not positive")
        if not self.movable:
            raise not_carried("its bounds cannot be changed")
        return float(map_.scale[0]), float(map_.shift[0])

    def _edit(self, moved: _Moved) -> Edit:
        bounds = {"min": self.min, "max": self.max}
        return Edit({name: moved(b) for name, b in bounds.items() if b is not None})


class _Moved(Protocol):
    def __call__(self, bound: float, /) -> float: ...
