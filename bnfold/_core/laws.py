"""The laws by which affine maps cross other operators; each says what it asks for in its text.

A law knows an operator ``f`` by what matters here: axes, sizes, where parts go. ``backward`` turns
a map of an output into maps of the inputs, ``A∘f = f∘(A₁, A₂, …)``; ``forward`` turns maps of
inputs into maps of the outputs, ``f∘(A₁, A₂, …) = A∘f``. An input or output that a way does not
name keeps its values. Either raises a `Refusal` where it does not hold; a law does not know the
name of its operator, so the reason has no place yet. Where it is the numbers of a map that decide,
and not its axis, its signs or where it has shifts, the refusal says so (`Refusal.numbers`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core import index_maps
from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import IndexMap, Map
from bnfold._core.limits import Limits
from bnfold._core.reasons import Reason, Refusal
from bnfold._system.records import record

Maps = Mapping[int, Map]
Numbers = float | NDArray[np.float64]
"""A number of an operator, or several in a shape that broadcasts to its data."""
Spot = int | str | tuple[str, int]
"""Where an operator keeps a number: at an input (its number), in an attribute (its name), or in the
list in an attribute (its name, and the place in the list)."""
# What a law says where padding, which has no channels, keeps a shift from passing.
PADDING = Reason("zero-padding", "", "zero padding would see the shift")
# What a sum says whose terms cannot be counted.
UNCOUNTED = Reason("not-carried", "", "how many elements it adds up is not known")
# What a mean says that may be one of no elements.
OF_NOTHING = Reason(
    "not-carried", "", "it may be a mean of no elements, which ONNX does not define"
)


def not_carried(message: str, numbers: bool = False) -> Refusal:
    """A law does not hold for this map: why, in words, and whether that depends on its numbers."""
    return Refusal(Reason("not-carried", "", message), numbers)


def not_known(message: str) -> Refusal:
    """A law cannot tell whether it holds for this map: a rank or a size is missing."""
    return Refusal(Reason("unknown-shape", "", message))


@record(frozen=True)
class Edit:
    """New numbers for an operator on the way, each named as the law's own field: a Clip's ``min``
    and ``max``, a Pad's ``value``. ``form`` is set where it becomes an operator of another type,
    whose numbers they are.
    """

    values: Mapping[str, Numbers]
    form: Form | None = None

    def after(self, earlier: Edit | None) -> Edit:
        """The same of an operator that an earlier edit has changed: it keeps the type it has by
        then.
        """
        return self if self.form or earlier is None else replace(self, form=earlier.form)

    def fits(self, dtype: np.dtype[Any] | None) -> bool:
        """Whether a dtype can store all of them, up to its rounding (None: any finite number)."""
        numbers = np.abs(np.concatenate([np.ravel(n) for n in (*self.values.values(), [0.0])]))
        if dtype is None:
            return bool(np.isfinite(numbers).all())
        limits = Limits.of(dtype)
        return bool(
            ((numbers <= limits.largest) & ((numbers == 0) | (numbers >= limits.tiny))).all()
        )


@record(frozen=True)
class Form:
    """What an operator may become: one of the type ``op`` of its framework, which obeys ``law``.

    It keeps no input but its data, which ``law`` counts as before; or all of them and all else, if
    it ``keeps`` them. ``order`` has for each of its inputs the number of the data there; empty: the
    data are where they were. ``numbers`` says where it has each number that an edit names, as in
    `view.Crossing`; ``dtype`` is the type that they have.
    """

    op: str
    law: Law
    numbers: Mapping[str, Spot] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None
    order: tuple[int, ...] = ()
    keeps: bool = False


@record(frozen=True)
class Way:
    """One way across: the maps on the other side, by input or output number, and an edit if any."""

    maps: Maps
    edit: Edit | None = None


@record(frozen=True)
class Law(ABC):
    """How maps cross one operator.

    All that is asked of a law is here; one with numbers of its own holds them in fields that its
    edits name, and needs no more than that.
    """

    @abstractmethod
    def backward(self, output: int, map_: Map) -> list[Way]:
        """Ways to move a map of one output to the inputs, the first to be tried first.

        Raises `Refusal` where there is none.
        """

    @abstractmethod
    def forward(self, maps: Maps) -> list[Way]:
        """Ways to move maps of inputs to the outputs, the first to be tried first.

        Raises `Refusal` where there is none.
        """

    def with_numbers(self, edit: Edit) -> Law:
        """The law of the operator once it has the type and the numbers of an edit."""
        return replace(self if edit.form is None else edit.form.law, **edit.values)

    @property
    def takes_single_places(self) -> bool:
        """Whether each output holds single elements of the input, so that several such operators
        that read one tensor may each ask for another map of their own part.
        """
        return False

    @property
    def may_lose_a_map(self) -> bool:
        """Whether a map of the input may come out as none: Abs takes the scale −1 to 1, a Slice
        leaves out the channels that a map changes.
        """
        return False

    @property
    def may_gain_a_way(self) -> bool:
        """Whether there may be one more way for a map with other numbers: a Clip becomes the
        HardSigmoid that takes in these and not those.
        """
        return False


@record(frozen=True)
class Mixed(Law):
    """Operators that put out, at each place, a fixed mixture of the elements along some axes.

    Pools, reductions, Resize and Pad: a map must not vary along the axes that are mixed. ``axes``
    takes the others from input to output: the mean of [N, H, W, C] over axes 1 and 2 takes axis 3
    to axis 1 (None: nothing is known but that the map may be uniform). A scale passes, for a
    maximum (``positive``) where s ≥ 0. ``weight`` is what the weights of the mixture add up to, so
    a shift comes out as ``weight·t``: 1 for a mean, a maximum or an interpolation, n for a sum of
    n; None where they add up to different numbers at different places, and no shift passes:
    ``uneven`` says why, zero padding that is counted. ``narrow``: the sum could overflow its type
    where a scale below 1 comes behind it and not ahead of it any more.
    """

    axes: Mapping[int, int] | None
    weight: float | None
    positive: bool = False
    narrow: bool = False
    uneven: Reason = PADDING

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``t / weight`` goes in; every axis of the map must be one that is kept."""
        back = None if self.axes is None else {out: own for own, out in self.axes.items()}
        factor = None if self.weight is None else 1.0 / self.weight
        return [Way({0: self._moved(map_, back, factor)})]

    def forward(self, maps: Maps) -> list[Way]:
        """``weight·t`` comes out."""
        if self.narrow:
            check_range(maps[0])
        return [Way({0: self._moved(maps[0], self.axes, self.weight)})]

    def _moved(self, map_: Map, axes: Mapping[int, int] | None, factor: float | None) -> AffineMap:
        map_ = along_one_axis(map_)
        axis = None
        if map_.axis is not None:
            if axes is None:
                raise not_known("the shape of its input is not known")
            if map_.axis not in axes:
                raise not_carried(f"it mixes the elements along axis {map_.axis}")
            axis = axes[map_.axis]
        if self.positive and bool((map_.scale < 0).any()):
            raise not_carried("a scale is negative")
        if map_.keeps_origin:
            return AffineMap.of(map_.scale, 0.0, axis)
        if factor is None:
            raise Refusal(self.uneven)
        return AffineMap.of(map_.scale, map_.shift * factor, axis)


@record(frozen=True)
class Padded(Law):
    """Pad with a constant: a scale passes where the constant is 0, a uniform map where the constant
    moves along. A map along an axis that is padded does not pass: its padding has no channel.
    """

    value: float
    padded: frozenset[int] | None
    movable: bool = True

    def backward(self, output: int, map_: Map) -> list[Way]:
        """``A(pad(x, v)) = pad(A(x), A(v))``."""
        if self._pads_nothing:
            return [Way({0: map_})]
        scale, shift = self._numbers(map_)
        return [Way({0: map_}, self._edit(scale * self.value + shift))]

    def forward(self, maps: Maps) -> list[Way]:
        """``pad(A(x), v) = A(pad(x, (v − t) / s))``, s ≠ 0 where v ≠ 0 or t ≠ 0."""
        map_ = maps[0]
        if self._pads_nothing:
            return [Way({0: map_})]
        scale, shift = self._numbers(map_)
        if self.value == shift:
            return [Way({0: map_}, self._edit(0.0))]
        if scale == 0:
            raise not_carried("the scale is 0", numbers=True)
        return [Way({0: map_}, self._edit((self.value - shift) / scale))]

    @property
    def _pads_nothing(self) -> bool:
        return self.padded is not None and not self.padded

    def _numbers(self, map_: Map) -> tuple[float, float]:
        """Scale and shift that the constant sees: those of a uniform map, or any one's where the
        constant is 0 and stays so.
        """
        map_ = along_one_axis(map_)
        if map_.axis is None:
            still = self.value == 0 and map_.keeps_origin
            if not (self.movable or still):
                raise not_carried("its value cannot be changed")
        elif self.padded is None:
            raise not_known("the axes that it pads are not known")
        elif map_.axis in self.padded:
            raise not_carried(f"it pads along axis {map_.axis}")
        elif not map_.keeps_origin:
            raise Refusal(PADDING)
        elif self.value != 0:
            raise not_carried("its padding would see the scale")
        return float(map_.scale[0]), float(map_.shift[0])

    def _edit(self, value: float) -> Edit | None:
        return None if value == self.value else Edit({"value": value})


@record(frozen=True)
class Rearranged(Law):
    """Transpose, Reshape, Flatten, Squeeze, Unsqueeze, DepthToSpace: every element keeps its value,
    and the index map, made of known sizes alone, says where it goes. Any map passes: Flatten of
    [N, C, 2, 3] makes of C scales along axis 1 as many times six, each six times in a row.
    """

    steps: IndexMap | None

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Each input element gets the scale and shift of the place it comes out at."""
        back = None if self.steps is None else index_maps.inverse(self.steps)
        return [Way({0: self._moved(map_, back)})]

    def forward(self, maps: Maps) -> list[Way]:
        """Each output element gets the scale and shift of the place it comes from."""
        return [Way({0: self._moved(maps[0], self.steps)})]

    def _moved(self, map_: Map, steps: IndexMap | None) -> Map:
        if isinstance(map_, AffineMap) and map_.axis is None:
            return map_
        if steps is None:
            raise not_known("the sizes it is rearranged by are not known")
        moved = index_maps.moved(map_, steps)
        if moved is None:
            raise not_known("where its channels go cannot be told from known sizes")
        return moved


def check_range(map_: Map, sums: str = "sum") -> None:
    """Raise `Refusal` where sums in a narrow type may need the scale of a map ahead of them."""
    if bool((np.abs(map_.scale) < 1).any()):
        raise not_carried(f"without the scale ahead of it its {sums} could overflow")


def along_one_axis(map_: Map, which: str = "the map") -> AffineMap:
    """A map that varies along one axis, or none. Raises `Refusal` where it varies along several."""
    if not isinstance(map_, AffineMap):
        raise not_carried(f"{which} varies along several axes")
    return map_
