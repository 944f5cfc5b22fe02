"""The laws by which affine maps cross other operators; each says what it asks for in its text.

A law knows an operator ``f`` by what matters here: axes, sizes, where parts go. ``backward`` turns
a map of an output into maps of the inputs, ``A∘f = f∘(A₁, A₂, …)``; ``forward`` turns maps of
inputs into maps of the outputs, ``f∘(A₁, A₂, …) = A∘f``. An input or output that a way does not
name keeps its values. Either gives why it does not hold, in words, where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bnfold._core import index_maps
from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import IndexMap, Map
from bnfold._core.limits import Limits

Maps = Mapping[int, Map]
# What a law says where padding, which has no channels, keeps a shift from passing.
PADDING = "zero padding would see the shift"
# What a sum says whose terms cannot be counted.
UNCOUNTED = "how many elements it adds up is not known"


@dataclass(frozen=True)
class Edit:
    """New numbers for an operator on the way: a Clip's ``min`` and ``max``, a Pad's ``value``."""

    values: Mapping[str, float]

    def fits(self, dtype: np.dtype[Any] | None) -> bool:
        """Whether a dtype can store all of them, up to its rounding (None: any finite number)."""
        numbers = np.abs(list(self.values.values()))
        if dtype is None:
            return bool(np.isfinite(numbers).all())
        limits = Limits.of(dtype)
        return bool(
            ((numbers <= limits.largest) & ((numbers == 0) | (numbers >= limits.tiny))).all()
        )


@dataclass(frozen=True)
class Way:
    """One way across: the maps on the other side, by input or output number, and an edit if any."""

    maps: Maps
    edit: Edit | None = None


class Law(Protocol):
    """How maps cross one operator."""

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Ways to move a map of one output to the inputs, the first to be tried first."""
        ...

    def forward(self, maps: Maps) -> Way | str:
        """The way to move maps of inputs to the outputs."""
        ...


@dataclass(frozen=True)
class Homogeneous:
    """Relu, LeakyRelu, PRelu, Abs: ``f(s·x) = s·f(x)`` element by element for every s > 0.

    Exact with no shift, whatever the axis. ``even`` (Abs): forward for s < 0 too, as |s|.
    """

    even: bool = False

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """``s·f(x) = f(s·x)`` for s > 0 and t = 0."""
        problem = self._problem(map_)
        return problem or [Way({0: map_})]

    def forward(self, maps: Maps) -> Way | str:
        """``f(s·x) = s·f(x)`` for s > 0 and t = 0; ``|s·x| = |s|·|x|``."""
        map_ = maps[0]
        if self.even and isinstance(map_, AffineMap) and map_.keeps_origin:
            return Way({0: AffineMap.of(np.abs(map_.scale), 0.0, map_.axis)})
        return self._problem(map_) or Way({0: map_})

    def _problem(self, map_: Map) -> str:
        if not bool((map_.scale > 0).all()):
            return "a scale is not positive"
        return "" if map_.keeps_origin else "the shift does not pass"


@dataclass(frozen=True)
class Clipped:
    """Clip, Relu6: ``A(clip(x, lo, hi)) = clip(A(x), A(lo), A(hi))`` for one s > 0 everywhere.

    The bounds move with the map. An absent bound (None) stays absent.
    """

    low: float | None
    high: float | None
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Bounds ``s·lo + t`` and ``s·hi + t``."""
        number = self._numbers(map_)
        if isinstance(number, str):
            return number
        scale, shift = number
        return [Way({0: map_}, self._edit(lambda bound: scale * bound + shift))]

    def forward(self, maps: Maps) -> Way | str:
        """Bounds ``(lo − t) / s`` and ``(hi − t) / s``."""
        number = self._numbers(maps[0])
        if isinstance(number, str):
            return number
        scale, shift = number
        return Way({0: maps[0]}, self._edit(lambda bound: (bound - shift) / scale))

    def _numbers(self, map_: Map) -> tuple[float, float] | str:
        if not isinstance(map_, AffineMap) or map_.axis is not None:
            return "its bounds are the same for all channels, the map is not"
        if map_.scale[0] <= 0:
            return "the scale is not positive"
        if not self.movable:
            return "its bounds cannot be changed"
        return float(map_.scale[0]), float(map_.shift[0])

    def _edit(self, moved: _Moved) -> Edit:
        bounds = {"min": self.low, "max": self.high}
        return Edit({name: moved(b) for name, b in bounds.items() if b is not None})


@dataclass(frozen=True)
class Mixed:
    """Operators that put out, at each place, a fixed mixture of the elements along some axes.

    Pools, reductions, Resize and Pad: a map must not vary along the axes that are mixed.
    ``axes`` takes the others from input to output (None: nothing is known but that the map may be
    uniform); a scale passes, for a maximum (``positive``) where s ≥ 0. ``weight`` is what the
    weights of the mixture add up to, so a shift comes out as ``weight·t``: 1 for a mean, a maximum
    or an interpolation, n for a sum of n; None where they add up to different numbers at different
    places, and no shift passes: ``uneven`` says why, zero padding that is counted. ``narrow``: the
    sum could overflow its type where a scale below 1 comes behind it and not ahead of it any more.
    """

    axes: Mapping[int, int] | None
    weight: float | None
    positive: bool = False
    narrow: bool = False
    uneven: str = PADDING

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """``t / weight`` goes in; every axis of the map must be one that is kept."""
        back = None if self.axes is None else {out: own for own, out in self.axes.items()}
        moved = self._moved(map_, back, None if self.weight is None else 1.0 / self.weight)
        return moved if isinstance(moved, str) else [Way({0: moved})]

    def forward(self, maps: Maps) -> Way | str:
        """``weight·t`` comes out."""
        if self.narrow and bool((np.abs(maps[0].scale) < 1).any()):
            return "without the scale ahead of it its sum could overflow"
        moved = self._moved(maps[0], self.axes, self.weight)
        return moved if isinstance(moved, str) else Way({0: moved})

    def _moved(
        self, map_: Map, axes: Mapping[int, int] | None, factor: float | None
    ) -> AffineMap | str:
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        axis = None
        if map_.axis is not None:
            if axes is None:
                return "the shape of its input is not known"
            if map_.axis not in axes:
                return f"it mixes the elements along axis {map_.axis}"
            axis = axes[map_.axis]
        if self.positive and bool((map_.scale < 0).any()):
            return "a scale is negative"
        if map_.keeps_origin:
            return AffineMap.of(map_.scale, 0.0, axis)
        if factor is None:
            return self.uneven
        return AffineMap.of(map_.scale, map_.shift * factor, axis)


@dataclass(frozen=True)
class Padded:
    """Pad with a constant: a scale passes where the constant is 0, a uniform map where the constant
    moves along. A map along an axis that is padded does not pass: its padding has no channel.
    """

    value: float
    padded: frozenset[int] | None
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """``A(pad(x, v)) = pad(A(x), A(v))``."""
        if self._pads_nothing:
            return [Way({0: map_})]
        problem = self._problem(map_)
        if isinstance(problem, str):
            return problem
        scale, shift = float(map_.scale.flat[0]), float(map_.shift.flat[0])
        return [Way({0: map_}, self._edit(scale * self.value + shift))]

    def forward(self, maps: Maps) -> Way | str:
        """``pad(A(x), v) = A(pad(x, (v − t) / s))``, s ≠ 0 where v ≠ 0 or t ≠ 0."""
        map_ = maps[0]
        if self._pads_nothing:
            return Way({0: map_})
        problem = self._problem(map_)
        if isinstance(problem, str):
            return problem
        scale, shift = float(map_.scale.flat[0]), float(map_.shift.flat[0])
        if self.value == shift:
            return Way({0: map_}, self._edit(0.0))
        return (
            "the scale is 0"
            if scale == 0
            else Way({0: map_}, self._edit((self.value - shift) / scale))
        )

    @property
    def _pads_nothing(self) -> bool:
        return self.padded is not None and not self.padded

    def _problem(self, map_: Map) -> str | None:
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        if map_.axis is None:
            still = self.value == 0 and map_.keeps_origin
            return None if self.movable or still else "its value cannot be changed"
        if self.padded is None:
            return "the axes that it pads are not known"
        if map_.axis in self.padded:
            return f"it pads along axis {map_.axis}"
        if not map_.keeps_origin:
            return PADDING
        return None if self.value == 0 else "its padding would see the scale"

    def _edit(self, value: float) -> Edit | None:
        return None if value == self.value else Edit({"value": value})


@dataclass(frozen=True)
class Rearranged:
    """Transpose, Reshape, Flatten, Squeeze, Unsqueeze, DepthToSpace: every element keeps its value,
    and the index map, made of known sizes alone, says where it goes. Any map passes.
    """

    steps: IndexMap | None

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Each input element gets the scale and shift of the place it comes out at."""
        moved = self._moved(map_, None if self.steps is None else index_maps.inverse(self.steps))
        return moved if isinstance(moved, str) else [Way({0: moved})]

    def forward(self, maps: Maps) -> Way | str:
        """Each output element gets the scale and shift of the place it comes from."""
        moved = self._moved(maps[0], self.steps)
        return moved if isinstance(moved, str) else Way({0: moved})

    def _moved(self, map_: Map, steps: IndexMap | None) -> Map | str:
        if isinstance(map_, AffineMap) and map_.axis is None:
            return map_
        if steps is None:
            return "the sizes it is rearranged by are not known"
        moved = index_maps.moved(map_, steps)
        return (
            moved if moved is not None else "where its channels go cannot be told from known sizes"
        )


class _Moved(Protocol):
    def __call__(self, bound: float, /) -> float: ...
