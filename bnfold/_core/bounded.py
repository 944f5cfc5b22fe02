"""The laws of operators that hold their data at bounds: HardSigmoid, Clip, ThresholdedRelu.

See `laws` for what a law is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Edit, Form, Law, Maps, Numbers, Way, not_carried
from bnfold._core.reasons import Reason, Refusal
from bnfold._system.records import record

# Largest offset of a HardSigmoid, a shift that is large beside data of normed networks, and what a
# few operations in float64 may lose.
_CANCELLING = 3.0
_LARGE = 16.0
_LOST = 8 * float(np.finfo(np.float64).eps)
# What each bound becomes where a negative scale turns the order of numbers round.
_OTHER = {"min": "max", "max": "min"}


@record(frozen=True)
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
        beta = self.alpha * shift + self.beta
        if max(abs(beta), abs(1 - beta)) > _CANCELLING:
            message = "a sum in it would cancel more than rounding allows"
            raise not_carried(message, numbers=True)
        return Edit({"alpha": self.alpha * scale, "beta": beta}, form)

    @property
    def may_lose_a_map(self) -> bool:
        """It takes it in."""
        return True


@record(frozen=True)
class Clipped(Law):
    """Clip, Relu6, Max and Min with a constant: ``A(clip(x, lo, hi)) = clip(A(x), A(lo), A(hi))``
    for s > 0, and ``clip(A(x), A(hi), A(lo))`` for s < 0 where lo ≤ hi.

    Exact element by element. The bounds move with the map; an absent bound (None) stays absent, and
    with neither any map passes. A Clip has one number for each: either the map is uniform, or it
    has s > 0 and no shift, and each bound is 0. A Max or a Min has one bound, which may be of any
    shape that broadcasts to a tensor of the known ``rank``: a map along an axis moves it, too. For
    s < 0 it becomes the second of the two ``turns``, the first being what it is. ``uneven`` says
    why no map along an axis passes.

    With both bounds and lo < hi it is also ``(hi − lo)·f(x) + lo``, f being the HardSigmoid of
    ``α = 1/(hi − lo)`` and ``β = −α·lo``, which takes a map in, of any s. ``form`` is set where it
    may become one: if its law is not movable, then one of just the numbers that this has.
    """

    min: Numbers | None
    max: Numbers | None
    movable: bool = True
    form: Form | None = None
    rank: int | None = None
    turns: tuple[Form, Form] | None = None
    uneven: Reason | None = None

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Bounds ``s·lo + t`` and ``s·hi + t``."""
        scale, shift = self._numbers(map_)
        return [self._way(map_, self._edit(lambda bound: scale * bound + shift))]

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
        """Not for s < 0 where it may become a HardSigmoid: that takes in what is behind it, too."""
        scale, shift = self._numbers(map_)
        if self._bounds and self.form is not None and map_.scale.flat[0] < 0:
            raise not_carried("the scale is not positive")
        if self.min is not None:
            _check_held(self.min, shift, np.greater(self.min, shift))
        if self.max is not None:
            _check_held(self.max, shift, np.less(self.max, shift))
        return self._way(map_, self._edit(lambda bound: (bound - shift) / scale))

    def _turned(self, map_: Map) -> Way:
        low, high, form = self.min, self.max, self.form
        if (
            form is None
            or not self.movable
            or not isinstance(low, float)
            or not isinstance(high, float)
            or not 0 < high - low < math.inf
        ):
            raise not_carried("it is no HardSigmoid")
        size = high - low
        edit = HardSigmoid(1 / size, -low / size).taking(map_, form)
        law = form.law
        if isinstance(law, HardSigmoid) and not law.movable:
            if not _alike((law.alpha, law.beta), map(float, edit.values.values())):
                message = "it is no HardSigmoid of the numbers that there are"
                raise not_carried(message, numbers=True)
            edit = Edit({}, form)
        return Way({0: AffineMap.of(size, low, None)}, edit)

    def _numbers(self, map_: Map) -> tuple[Numbers, Numbers]:
        """Scale and shift as the bounds see them. Raises `Refusal` where no bounds move along."""
        if not self._bounds:
            return 1.0, 0.0
        positive = bool((map_.scale > 0).all())
        uniform = isinstance(map_, AffineMap) and map_.axis is None
        if not uniform:
            if self.uneven is not None:
                raise Refusal(self.uneven)
            still = positive and map_.keeps_origin and not any(map(np.any, self._bounds.values()))
            if self.rank is None and not still:
                raise not_carried("its bounds are the same for all channels, the map is not")
        if not positive and not ((map_.scale < 0).all() and self._may_swap):
            which = "the scale is" if uniform else "scales are"
            raise not_carried(f"{which} not positive")
        if not self.movable:
            raise not_carried("its bounds cannot be changed")
        if not isinstance(map_, AffineMap):
            return map_.scale, map_.shift
        if map_.axis is None or self.rank is None:
            return float(map_.scale[0]), float(map_.shift[0])
        behind = (1,) * (self.rank - 1 - map_.axis)
        return map_.scale.reshape(-1, *behind), map_.shift.reshape(-1, *behind)

    @property
    def _bounds(self) -> dict[str, Numbers]:
        both = {"min": self.min, "max": self.max}
        return {name: bound for name, bound in both.items() if bound is not None}

    @property
    def _may_swap(self) -> bool:
        """Whether a negative scale may turn its bounds round."""
        if self.min is None or self.max is None:
            return self.turns is not None
        return bool(np.all(self.min <= self.max))

    def _way(self, map_: Map, edit: Edit) -> Way:
        """The way of a map, with what it takes each bound to."""
        old, new = self._bounds, edit.values
        if any(np.size(n) > max(np.size(old[name]), map_.scale.size) for name, n in new.items()):
            raise not_carried("its bounds vary along another axis than the map")
        if map_.scale.flat[0] < 0:
            new = {_OTHER[name]: bound for name, bound in new.items()}
        if new.keys() != old.keys() and self.turns is not None:
            turns = self.turns[::-1]
            law = replace(self, min=new.get("min"), max=new.get("max"), turns=turns)
            return Way({0: map_}, Edit(new, replace(turns[0], law=law)))
        changed = any(not np.array_equal(bound, old[name]) for name, bound in new.items())
        return Way({0: map_}, Edit(new) if changed else None)

    def _edit(self, moved: _Moved) -> Edit:
        return Edit({name: _plain(moved(bound)) for name, bound in self._bounds.items()})


@record(frozen=True)
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
        """Threshold ``(θ − t) / s`` and value ``(v − t) / s``, if v is not lost beside t."""
        scale, shift = self._numbers(maps[0])
        _check_held(self.value, shift, np.greater_equal(self.threshold, shift))
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


def _check_held(held: Numbers, shift: Numbers, near: NDArray[np.bool_]) -> None:
    """Raises `Refusal` where a number that ``x + t`` is held at would be lost beside t.

    ``max(x + t, lo)`` becomes ``max(x, lo − t) + t``. Held, it was lo to the last bit, and now is
    ``(lo − t) + t``, rounded to ``u·|t|``. Mostly x is as large as t where it is held, and was
    rounded to as much itself. But where ``lo > t`` an x ``near`` 0 is held, and nothing else may be
    as large. There t may be 3 times as large as lo, as in a `HardSigmoid`, or 16, which is large
    for data of normed networks: at most ``3u`` of lo are lost, or ``16u``.
    """
    if (near & (np.abs(shift) > np.maximum(_CANCELLING * np.abs(held), _LARGE))).any():
        message = "a bound would be lost beside the shift, which cancels more than rounding allows"
        raise not_carried(message, numbers=True)


def _alike(one: Iterable[float], other: Iterable[float]) -> bool:
    """Whether numbers are the same, up to what a few operations in float64 lose."""
    return all(math.isclose(a, b, rel_tol=_LOST) for a, b in zip(one, other, strict=True))


def _plain(bound: Numbers) -> Numbers:
    """A bound as one number where all of it are the same."""
    values = np.asarray(bound, np.float64)
    return (
        float(values.flat[0]) if values.size and bool((values == values.flat[0]).all()) else values
    )


class _Moved(Protocol):
    def __call__(self, bound: Numbers, /) -> Numbers: ...
