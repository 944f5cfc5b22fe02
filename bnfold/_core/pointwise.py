"""The laws of operators that compute each element from one element: Relu, Cast, QuantizeLinear.

See `laws` for what a law is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Edit, Law, Maps, Way, not_carried
from bnfold._core.limits import Limits
from bnfold._core.reasons import Reason, Refusal
from bnfold._system.records import record


@record(frozen=True)
class Homogeneous(Law):
    """Relu, LeakyRelu, PRelu, Abs: ``f(s·x) = s·f(x)`` element by element for every s > 0.

    Exact with no shift, whatever the axis. ``even`` (Abs): forward for s < 0 too, as |s|.
    ``sloped`` (LeakyRelu, PRelu): what it puts out may be smaller than what it reads, and not 0.
    """

    even: bool = False
    sloped: bool = False

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


@record(frozen=True)
class Converted(Law):
    """Cast between two floating-point types, of which ``wide`` holds every number of ``narrow``;
    ``widens``: what it puts out is the wide one.

    ``A(cast(x)) = cast(A(x))`` up to roundings to narrow, of units u. Where a map goes to the wide
    side, a rounding of x, which cost ``u·|s·x|`` of the result, falls away. Nothing is lost.

    Where it goes to the narrow side, backward, x was stored in narrow, at a cost of ``u·|s·x|``,
    and ``A(x)`` is stored there instead, at a cost of ``u·|A(x)|``. No more is lost, and nothing
    overflows that did not, where ``A(x)`` is rounded to narrow anyway before anything adds to it or
    scales it, and where all of the map goes: the planner sees to it (`_plan.conversions`).
    What x is computed by takes the map in, and its new numbers are rounded to narrow as the old
    ones were. As ``b' = A(x) - s·W·z``, the new bias costs ``u·|b'| ≤ u·|A(x)| + u·|s|·|W|·|z|``:
    what rounding the result and the weights cost before.

    Forward, no map goes to the narrow side: ``s·x`` may be large where ``s·x + t`` is small, and
    whoever kept the map in a wider type has asked for the difference. Only where x comes straight
    from the narrow type (``exact``) nobody has: there is nothing in between.
    """

    narrow: np.dtype[Any]
    wide: np.dtype[Any]
    widens: bool
    exact: bool = False

    @classmethod
    def between(cls, read: np.dtype[Any], written: np.dtype[Any], exact: bool) -> Converted | None:
        """The law between two types; None for float16 and bfloat16: each has numbers that the other
        has not. ``exact``: what is read was cast from the type of the result directly ahead.
        """
        if Limits.of(written).hold(Limits.of(read)):
            return cls(read, written, True)
        if Limits.of(read).hold(Limits.of(written)):
            return cls(written, read, False, exact)
        return None

    def backward(self, output: int, map_: Map) -> list[Way]:
        """The map of the output is that of the input."""
        return [Way({0: map_})]

    def forward(self, maps: Maps) -> list[Way]:
        """The map of the input is that of the output, where that is of the wide type."""
        if not (self.widens or self.exact):
            what = "weights that take in what was computed in a wider type would round more"
            raise not_carried(f"it rounds to {self.narrow}, and {what}")
        return [Way({0: maps[0]})]


@record(frozen=True)
class Closed(Law):
    """Tanh, Sigmoid: no map passes."""

    kind: str

    def backward(self, output: int, map_: Map) -> list[Way]:
        """None."""
        raise not_carried(f"no map passes its {self.kind}")

    def forward(self, maps: Maps) -> list[Way]:
        """None."""
        raise not_carried(f"no map passes its {self.kind}")


@record(frozen=True)
class Quantizing(Law):
    """QuantizeLinear: ``round(x / q) + z`` takes in one s > 0 everywhere, as ``q / s``.

    Exact, as ``s·x / q = x / (q / s)``, up to the rounding of q: a value on the border between two
    integers may fall on its other side. No shift: a zero point is an integer. ``rounded`` says that
    no other map passes.
    """

    scale: float
    rounded: Reason

    def backward(self, output: int, map_: Map) -> list[Way]:
        """None: it rounds."""
        raise Refusal(self.rounded)

    def forward(self, maps: Maps) -> list[Way]:
        """Nothing comes out."""
        map_ = maps[0]
        uniform = isinstance(map_, AffineMap) and map_.axis is None
        if not (uniform and map_.scale[0] > 0 and map_.shift[0] == 0 < self.scale < math.inf):
            raise Refusal(self.rounded)
        return [Way({0: IDENTITY}, Edit({"scale": self.scale / float(map_.scale[0])}))]

    @property
    def may_lose_a_map(self) -> bool:
        """It takes it in."""
        return True
