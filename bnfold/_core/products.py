"""The laws of products of branches: gates, quotients, MatMul and Einsum of activations.

See `laws` for what a law is.
"""

from __future__ import annotations

from collections.abc import Sequence

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.joins import Aligned
from bnfold._core.laws import Law, Maps, Way, along_one_axis, check_range, not_carried, not_known
from bnfold._core.reasons import Refusal
from bnfold._system.records import record


@record(frozen=True)
class Gated(Law):
    """Mul of two branches, or Div: a scale passes through either factor, no shift.

    ``quotient``: only through the dividend.
    """

    aligned: Aligned
    quotient: bool = False

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``s·(a·b) = (s·a)·b``, into an input that has a place for each channel."""
        if not map_.keeps_origin:
            raise not_carried("the shift does not pass")
        ways, reasons = [], []
        for number in range(1 if self.quotient else 2):
            try:
                ways.append(Way({number: self.aligned.back(number, map_)}))
            except Refusal as refusal:
                reasons.append(refusal.reason)
        if not ways:
            raise Refusal(reasons[0])
        return ways

    def forward(self, maps: Maps) -> list[Way]:
        """``(s·a)·(r·b) = s·r·(a·b)``."""
        scales: list[AffineMap] = []
        for number, map_ in maps.items():
            if not map_.keeps_origin:
                raise not_carried("the shift does not pass")
            if self.quotient and number == 1:
                raise not_carried("the scale does not pass through a divisor")
            scales.append(self.aligned.onto(number, map_))
        return [_multiplied(scales)]


@record(frozen=True)
class Multiplied(Law):
    """MatMul of two activations: a uniform scale passes through either one, a scale along the rows
    of the first or the columns of the second with them; no shift. In [B, M, K]·[K, N] axis 1 of the
    second is axis 2 of the product. ``narrow``: as for `Mixed`.
    """

    ranks: tuple[int, int] | None
    narrow: bool = False

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``s·(A·B) = (s·A)·B = A·(s·B)``."""
        if not map_.keeps_origin:
            raise not_carried("the shift does not pass")
        map_ = along_one_axis(map_)
        if map_.axis is None:
            return [Way({0: map_}), Way({1: map_})]
        if self.ranks is None or min(self.ranks) < 2:
            raise not_known("the ranks of its inputs are not known to be 2 or more")
        rank = max(self.ranks)
        for number, place in ((0, 2), (1, 1)):
            if map_.axis == rank - place:
                own = AffineMap.of(map_.scale, 0.0, self.ranks[number] - place)
                return [Way({number: own})]
        raise not_carried(f"the map varies along the batch axis {map_.axis}")

    def forward(self, maps: Maps) -> list[Way]:
        """``(s·A)·(r·B) = s·r·(A·B)``."""
        scales: list[AffineMap] = []
        for number, map_ in maps.items():
            if self.narrow:
                check_range(map_, "sums")
            if not map_.keeps_origin:
                raise not_carried("the shift does not pass")
            map_ = along_one_axis(map_)
            if map_.axis is not None:
                if self.ranks is None or min(self.ranks) < 2:
                    raise not_known("the ranks of its inputs are not known to be 2 or more")
                place = 2 - number
                if map_.axis != self.ranks[number] - place:
                    raise not_carried(
                        f"the product sums over axis {map_.axis}, or it is a batch axis"
                    )
                map_ = AffineMap.of(map_.scale, 0.0, max(self.ranks) - place)
            scales.append(map_)
        return [_multiplied(scales)]


@record(frozen=True)
class Contracted(Law):
    """Einsum, which is linear in each of its ``count`` inputs: a scale of one number for all passes
    through any one of them; no shift. ``narrow``: as for `Mixed`.
    """

    count: int
    narrow: bool = False

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``s·f(a, b) = f(s·a, b) = f(a, s·b)``."""
        scale = self._number(map_)
        return [Way({number: scale}) for number in range(self.count)]

    def forward(self, maps: Maps) -> list[Way]:
        """``f(s·a, r·b) = s·r·f(a, b)``."""
        scales = [self._number(map_) for map_ in maps.values()]
        for scale in scales if self.narrow else ():
            check_range(scale, "sums")
        return [_multiplied(scales)]

    def _number(self, map_: Map) -> AffineMap:
        """A scale of one number. Raises `Refusal` for any other map."""
        if not map_.keeps_origin:
            raise not_carried("the shift does not pass")
        map_ = along_one_axis(map_)
        if map_.axis is not None:
            raise not_carried(f"the map varies along axis {map_.axis}")
        return map_


def _multiplied(scales: Sequence[AffineMap]) -> Way:
    """The scales of all factors as that of their product."""
    total = IDENTITY
    for scale in scales:
        joined = total.then(scale)
        if joined is None:
            raise not_carried("the scales of its inputs vary along different axes")
        total = joined
    return Way({0: total})
