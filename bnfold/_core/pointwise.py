"""The laws of operators that compute each element from one element: Relu, Clip, HardSigmoid.

See `laws` for what a law is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Edit, Form, Law, Maps, Way, not_carried
from bnfold._core.reasons import Reason, Refusal

# Largest offset of a HardSigmoid, and what a few operations in float64 may lose.
_CANCELLING = 3.0
_LOST = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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

    def backward(self, output: int, map_: Map) -> list[Way]:
        """The map of the output is that of the input."""
        return [Way({0: map_})]

    def forward(self, maps: Maps) -> list[Way]:
        """The map of the input is that of the output, where that is of the wide type."""
        if not (self.widens or self.exact):
            raise not_carried(f"it rounds to {self.narrow}")
        return [Way({0: maps[0]})]


@dataclass(frozen=True)
class Closed(Law):
    """Tanh, Sigmoid: no map passes."""

    kind: str

    def backward(self, output: int, map_: Map) -> list[Way]:
        """None."""
        raise not_carried(f"no map passes its {self.kind}")

    def forward(self, maps: Maps) -> list[Way]:
        """None."""
        raise not_carried(f"no map passes its {self.kind}")


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class HardSigmoid(Law):
    """HardSigmoid: ``f(x) = max(0, min(1, α·x + β))`` takes in one s and t everywhere, of any sign.

    ``f(s·x + t)`` is that of ``α·s`` and ``α·t + β``. Where f is not flat, with ``|β| ≤ m`` and
    ``|α·x| ≤ m`` for ``m = max(|β|, |1 − β|)``, rounding α, β, their product with x and the sum, to
    units u (2⁻²⁴ in float32, 2⁻¹¹ in float16), costs at most ``(1 + 3m)·u``: 2.5u of a hard-swish.
    A large β cancels what is summed, and is refused: at most 10u are lost, whatever the map.
    """

    alpha: float
    beta: float
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way]:
        """None: it is flat at 0 and 1."""
        raise not_carried("no map of what it puts out is one of what it reads")

    def forward(self, maps: Maps) -> list[Way]:
        """Nothing comes out."""
        return [Way({0: IDENTITY}, self.taking(maps[0]))]

    def taking(self, map_: Map, form: Form | None = None) -> Edit:
        """The numbers that take a map in.

        Raises `Refusal` where they are fixed, where the map is not uniform, or where ``m > 3``.
        """
        if not isinstance(map_, AffineMap) or map_.axis is not None:
            raise not_carried("its numbers are the same for all channels, the map is not")
        if not self.movable:
            raise not_carried("its numbers are fixed")
        scale, shift = float(map_.scale[0]), float(map_.shift[0])
        edit = Edit({"alpha": self.alpha * scale, "beta": self.alpha * shift + self.beta}, form)
        if max(abs(edit.values["beta"]), abs(1 - edit.values["beta"])) > _CANCELLING:
            message = "a sum in it would cancel more than rounding allows"
            raise not_carried(message, numbers=True)
        return edit

    @property
    def may_lose_a_map(self) -> bool:
        """It takes it in."""
        return True


@dataclass(frozen=True)
class Clipped(Law):
    """Clip, Relu6: ``A(clip(x, lo, hi)) = clip(A(x), A(lo), A(hi))`` for one s > 0 everywhere.

    The bounds move with the map. An absent bound (None) stays absent. With both and lo < hi it is
    also ``(hi − lo)·f(x) + lo``, f being the HardSigmoid of ``α = 1/(hi − lo)`` and ``β = −α·lo``,
    which takes a map in, of any s. ``form`` is set where it may become one: if its law is not
    movable, then one of just the numbers that this has.
    """

    min: float | None
    max: float | None
    movable: bool = True
    form: Form | None = None

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Bounds ``s·lo + t`` and ``s·hi + t``."""
        scale, shift = self._numbers(map_)
        return [Way({0: map_}, self._edit(lambda bound: scale * bound + shift))]

    def forward(self, maps: Maps) -> list[Way]:
        """Bounds ``(lo − t) / s`` and ``(hi − t) / s``; or HardSigmoid, then ``A(hi − lo, lo)``."""
        ways, refusals = [], []
        for way in (self._moved, self._turned):
            try:
                ways.append(way(maps[0]))
            except Refusal as refusal:
                refusals.append(refusal)
        if not ways:
            raise Refusal(refusals[0].reason, any(refusal.numbers for refusal in refusals))
        return ways

    @property
    def may_lose_a_map(self) -> bool:
        """As a HardSigmoid it puts out the same whatever it takes in."""
        return self.form is not None

    @property
    def may_gain_a_way(self) -> bool:
        """As a HardSigmoid it takes in maps of some numbers."""
        return self.form is not None

    def _moved(self, map_: Map) -> Way:
        scale, shift = self._numbers(map_)
        return Way({0: map_}, self._edit(lambda bound: (bound - shift) / scale))

    def _turned(self, map_: Map) -> Way:
        low, high, form = self.min, self.max, self.form
        if (
            form is None
            or not self.movable
            or low is None
            or high is None
            or not 0 < high - low < math.inf
        ):
            raise not_carried("it is no HardSigmoid")
        size = high - low
        edit = HardSigmoid(1 / size, -low / size).taking(map_, form)
        law = form.law
        if isinstance(law, HardSigmoid) and not law.movable:
            if not _alike((law.alpha, law.beta), edit.values.values()):
                message = "it is no HardSigmoid of the numbers that there are"
                raise not_carried(message, numbers=True)
            edit = Edit({}, form)
        return Way({0: AffineMap.of(size, low, None)}, edit)

    def _numbers(self, map_: Map) -> tuple[float, float]:
        return _uniform(map_, "bounds are", self.movable)

    def _edit(self, moved: _Moved) -> Edit:
        bounds = {"min": self.min, "max": self.max}
        return Edit({name: moved(b) for name, b in bounds.items() if b is not None})


@dataclass(frozen=True)
class Thresholded(Law):
    """ThresholdedRelu, threshold: x where x > θ, else a value v. ``A(f(x; θ, v)) = f(A(x); A(θ),
    A(v))`` for one s > 0 everywhere: then x > θ where A(x) > A(θ).

    θ moves with the map, and v does. ``fixed``: v cannot move, so A has to leave it as it is, as
    every scale does a v of 0.
    """

    threshold: float
    value: float
    fixed: bool = False
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Threshold ``s·θ + t`` and value ``s·v + t``."""
        scale, shift = self._numbers(map_)
        return [Way({0: map_}, self._edit(lambda number: scale * number + shift))]

    def forward(self, maps: Maps) -> list[Way]:
        """Threshold ``(θ − t) / s`` and value ``(v − t) / s``."""
        scale, shift = self._numbers(maps[0])
        return [Way({0: maps[0]}, self._edit(lambda number: (number - shift) / scale))]

    def _numbers(self, map_: Map) -> tuple[float, float]:
        return _uniform(map_, "threshold is", self.movable)

    def _edit(self, moved: _Moved) -> Edit:
        numbers = {"threshold": moved(self.threshold)}
        if not self.fixed:
            return Edit({**numbers, "value": moved(self.value)})
        if moved(self.value) != self.value:
            raise not_carried("the shift does not pass", numbers=True)
        return Edit(numbers)


def _uniform(map_: Map, numbers: str, movable: bool) -> tuple[float, float]:
    """Scale and shift of a map that keeps order and is the same for all channels, as the numbers of
    an operator are that move with it.
    """
    if not isinstance(map_, AffineMap) or map_.axis is not None:
        raise not_carried(f"its {numbers} the same for all channels, the map is not")
    if map_.scale[0] <= 0:
        raise not_carried("the scale is not positive")
    if not movable:
        raise not_carried(f"its {numbers.split()[0]} cannot be changed")
    return float(map_.scale[0]), float(map_.shift[0])


def _alike(one: Iterable[float], other: Iterable[float]) -> bool:
    """Whether numbers are the same, up to what a few operations in float64 lose."""
    return all(math.isclose(a, b, rel_tol=_LOST) for a, b in zip(one, other, strict=True))


class _Moved(Protocol):
    def __call__(self, bound: float, /) -> float: ...
