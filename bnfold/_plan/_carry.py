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
from numpy.typing import NDArray

from bnfold._affine import IDENTITY, AffineMap
from bnfold._limits import Limits
from bnfold._plan import _layout
from bnfold._plan._layout import Map, Steps, Wide

Maps = Mapping[int, Map]
# What a law says where padding, which has no channels, keeps a shift from passing.
PADDING = "zero padding would see the shift"


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
    places (zero padding that is counted), and no shift passes. ``narrow``: the sum could overflow
    its type where a scale below 1 comes behind it and not ahead of it any more.
    """

    axes: Mapping[int, int] | None
    weight: float | None
    positive: bool = False
    narrow: bool = False

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
            return PADDING
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

    steps: Steps | None

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Each input element gets the scale and shift of the place it comes out at."""
        moved = self._moved(map_, None if self.steps is None else _layout.inverse(self.steps))
        return moved if isinstance(moved, str) else [Way({0: moved})]

    def forward(self, maps: Maps) -> Way | str:
        """Each output element gets the scale and shift of the place it comes from."""
        moved = self._moved(maps[0], self.steps)
        return moved if isinstance(moved, str) else Way({0: moved})

    def _moved(self, map_: Map, steps: Steps | None) -> Map | str:
        if isinstance(map_, AffineMap) and map_.axis is None:
            return map_
        if steps is None:
            return "the sizes it is rearranged by are not known"
        moved = _layout.moved(map_, steps)
        return (
            moved if moved is not None else "where its channels go cannot be told from known sizes"
        )


@dataclass(frozen=True)
class Concatenated:
    """Concat along ``axis`` of inputs of ``sizes``: a map along it splits; a part without a map is
    ``A(1, 0)``. A map along another axis passes backward to all inputs, forward from all at once.
    """

    axis: int
    sizes: tuple[int | None, ...]

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Every input gets its part."""
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        if map_.axis != self.axis:
            return [Way(dict.fromkeys(range(len(self.sizes)), map_))]
        if sum(size or 0 for size in self.sizes) != map_.scale.size or None in self.sizes:
            return "the sizes of its inputs are not known"
        ends = np.cumsum([size or 0 for size in self.sizes])[:-1]
        parts = zip(np.split(map_.scale, ends), np.split(map_.shift, ends), strict=True)
        return [Way({n: AffineMap.of(s, t, self.axis) for n, (s, t) in enumerate(parts)})]

    def forward(self, maps: Maps) -> Way | str:
        """The parts side by side."""
        given = [maps.get(number, IDENTITY) for number in range(len(self.sizes))]
        parts = [map_ for map_ in given if isinstance(map_, AffineMap)]
        if len(parts) < len(given):
            return "a map varies along several axes"
        first = parts[0]
        if all(_same(first, other) for other in parts) and first.axis != self.axis:
            return Way({0: first})
        if any(part.axis not in (None, self.axis) for part in parts):
            return "its inputs do not all carry the same map"
        if None in self.sizes:
            return "the sizes of its inputs are not known"
        scales, shifts = (
            np.concatenate(
                [
                    np.broadcast_to(vector, (size or 0,))
                    for vector, size in zip(vectors, self.sizes, strict=True)
                ]
            )
            for vectors in ([p.scale for p in parts], [p.shift for p in parts])
        )
        return Way({0: AffineMap.of(scales, shifts, self.axis)})


@dataclass(frozen=True)
class Picked:
    """Split, Slice, Gather along ``axis``: output j holds the elements ``places[j]`` of the input.

    ``gone``: it holds one, and has no axis for it.
    """

    axis: int
    size: int
    places: tuple[NDArray[np.intp], ...]
    gone: bool = False

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """Elements that the output holds get its map, others none. Those picked twice must agree.

        Where there is one output only, a map that does not vary along the axis may also become one
        of the whole input, whose other elements nobody sees.
        """
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        own = map_.axis if not self.gone or map_.axis is None else self._before(map_.axis)
        whole = [Way({0: AffineMap.of(map_.scale, map_.shift, own)})]
        if own is not None and own != self.axis:
            return whole if len(self.places) == 1 else "its other outputs would change"
        places = self.places[output]
        scale, shift = np.ones(self.size), np.zeros(self.size)
        scale[places], shift[places] = map_.scale, map_.shift
        if not (
            np.array_equal(scale[places], np.broadcast_to(map_.scale, places.shape))
            and np.array_equal(shift[places], np.broadcast_to(map_.shift, places.shape))
        ):
            return "it picks a channel twice, with different maps"
        part = [Way({0: AffineMap.of(scale, shift, self.axis)})]
        return [*whole, *part] if own is None and len(self.places) == 1 else part

    def forward(self, maps: Maps) -> Way | str:
        """Every output gets the scales and shifts of the elements it holds."""
        map_ = maps[0]
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        if map_.axis != self.axis:
            axis = map_.axis
            if self.gone and axis is not None:
                axis -= axis > self.axis
            moved = AffineMap.of(map_.scale, map_.shift, axis)
            return Way(dict.fromkeys(range(len(self.places)), moved))
        return Way(
            {
                n: AffineMap.of(
                    map_.scale[places], map_.shift[places], None if self.gone else self.axis
                )
                for n, places in enumerate(self.places)
            }
        )

    def _before(self, axis: int) -> int:
        """The axis of the input that an axis of the output was."""
        return axis + (axis >= self.axis)


@dataclass(frozen=True)
class Aligned:
    """How tensors broadcast: the shapes of the inputs and of the output, aligned from the right.

    A shape that is None is not known, not even its rank.
    """

    shapes: tuple[tuple[int | None, ...] | None, ...]
    output: tuple[int | None, ...] | None

    def onto(self, number: int, map_: Map) -> AffineMap | str:
        """A map of an input as one of the output."""
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        shape = self.shapes[number]
        if map_.axis is None:
            return map_
        if shape is None or self.output is None:
            return "the ranks of its inputs are not known"
        return AffineMap.of(map_.scale, map_.shift, map_.axis + len(self.output) - len(shape))

    def back(self, number: int, map_: Map) -> AffineMap | str:
        """A map of the output as one of an input, which must have a place for every channel."""
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        if map_.axis is None:
            return map_
        shape = self.shapes[number]
        if shape is None or self.output is None:
            return "the ranks of its inputs are not known"
        axis = map_.axis - len(self.output) + len(shape)
        if axis < 0 or shape[axis] != map_.scale.size:
            return f"an input has no place of its own for each channel along axis {map_.axis}"
        return AffineMap.of(map_.scale, map_.shift, axis)

    def whole(self, number: int) -> bool:
        """Whether each element of an input meets one element of the output alone."""
        return (
            self.shapes[number] is not None
            and self.shapes[number] == self.output
            and (None not in (self.output or ()))
        )


@dataclass(frozen=True)
class Summed:
    """Add and Sub of two branches: ``s·(a ± b) + t = (s·a + t) ± s·b``, so backward a scale goes
    into both and a shift into either. Forward a shift passes freely, a scale if both carry it.
    """

    signs: tuple[int, ...]
    aligned: Aligned

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """The scale to every input, the shift to one of them (negated behind a minus)."""
        ways = []
        problem = ""
        for taker, sign in enumerate(self.signs):
            maps: dict[int, Map] = {}
            for number in range(len(self.signs)):
                part = _part(map_, sign if number == taker else 0)
                found = self.aligned.back(number, part)
                if isinstance(found, str):
                    problem = found
                    break
                if not found.is_identity:
                    maps[number] = found
            else:
                ways.append(Way(maps))
            if map_.keeps_origin:
                break
        return ways or problem

    def forward(self, maps: Maps) -> Way | str:
        """One scale for all, and the sum of the shifts."""
        found = [self.aligned.onto(n, maps.get(n, IDENTITY)) for n in range(len(self.signs))]
        parts = [part for part in found if isinstance(part, AffineMap)]
        if len(parts) < len(found):
            return next(part for part in found if isinstance(part, str))
        total = AffineMap.of(parts[0].scale, parts[0].shift * self.signs[0], parts[0].axis)
        for part, sign in zip(parts[1:], self.signs[1:], strict=True):
            if not _same(_part(total, 0), _part(part, 0)):
                return "its inputs do not carry the same scale"
            shift = AffineMap.of(1.0, part.shift * sign, part.axis)
            joined = total.then(shift)
            if joined is None:
                return "the shifts of its inputs vary along different axes"
            total = joined
        return Way({0: total})


@dataclass(frozen=True)
class Gated:
    """Mul of two branches, or Div: a scale passes through either factor, no shift.

    ``quotient``: only through the dividend.
    """

    aligned: Aligned
    quotient: bool = False

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """``s·(a·b) = (s·a)·b``, into an input that has a place for each channel."""
        if not map_.keeps_origin:
            return "the shift does not pass"
        found = [self.aligned.back(n, map_) for n in range(1 if self.quotient else 2)]
        ways = [Way({n: part}) for n, part in enumerate(found) if isinstance(part, AffineMap)]
        return ways or next(part for part in found if isinstance(part, str))

    def forward(self, maps: Maps) -> Way | str:
        """``(s·a)·(r·b) = s·r·(a·b)``."""
        total = IDENTITY
        for number, map_ in maps.items():
            if not map_.keeps_origin:
                return "the shift does not pass"
            if self.quotient and number == 1:
                return "the scale does not pass through a divisor"
            found = self.aligned.onto(number, map_)
            if isinstance(found, str):
                return found
            joined = total.then(found)
            if joined is None:
                return "the scales of its inputs vary along different axes"
            total = joined
        return Way({0: total})


@dataclass(frozen=True)
class Multiplied:
    """MatMul of two activations: a uniform scale passes through either one, a scale along the rows
    of the first or the columns of the second with them; no shift. ``narrow``: as for `Mixed`.
    """

    ranks: tuple[int, int] | None
    narrow: bool = False

    def backward(self, output: int, map_: Map) -> list[Way] | str:
        """``s·(A·B) = (s·A)·B = A·(s·B)``."""
        if not map_.keeps_origin:
            return "the shift does not pass"
        if not isinstance(map_, AffineMap):
            return "the map varies along several axes"
        if map_.axis is None:
            return [Way({0: map_}), Way({1: map_})]
        if self.ranks is None or min(self.ranks) < 2:
            return "the ranks of its inputs are not known to be 2 or more"
        rank = max(self.ranks)
        for number, place in ((0, 2), (1, 1)):
            if map_.axis == rank - place:
                own = AffineMap.of(map_.scale, 0.0, self.ranks[number] - place)
                return [Way({number: own})]
        return f"the map varies along the batch axis {map_.axis}"

    def forward(self, maps: Maps) -> Way | str:
        """``(s·A)·(r·B) = s·r·(A·B)``."""
        total = IDENTITY
        for number, map_ in maps.items():
            if self.narrow and bool((np.abs(map_.scale) < 1).any()):
                return "without the scale ahead of it its sums could overflow"
            if not map_.keeps_origin:
                return "the shift does not pass"
            if not isinstance(map_, AffineMap):
                return "the map varies along several axes"
            if map_.axis is not None:
                if self.ranks is None or min(self.ranks) < 2:
                    return "the ranks of its inputs are not known to be 2 or more"
                place = 2 - number
                if map_.axis != self.ranks[number] - place:
                    return f"the product sums over axis {map_.axis}, or it is a batch axis"
                map_ = AffineMap.of(map_.scale, 0.0, max(self.ranks) - place)
            joined = total.then(map_)
            if joined is None:
                return "the scales of its inputs vary along different axes"
            total = joined
        return Way({0: total})


class _Moved(Protocol):
    def __call__(self, bound: float, /) -> float: ...


def _part(map_: Map, shifts: int) -> Map:
    """The scale of a map with a multiple of its shift."""
    if isinstance(map_, Wide):
        return Wide(map_.scale, map_.shift * shifts)
    return AffineMap.of(map_.scale, map_.shift * shifts, map_.axis)


def _same(one: Map, other: Map) -> bool:
    if isinstance(one, Wide) or isinstance(other, Wide) or one.axis != other.axis:
        return False
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.shift, other.shift)
