"""Operators that maps cross. What matters of such an operator is what its law knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core.laws import Law, Mixed, Spot
from bnfold._core.operators.record import UNKNOWN, Operator
from bnfold._core.view import OPAQUE, Crossing, Opaque
from bnfold._core.windows import Window
from bnfold._system.records import record

# The largest number of places along an axis that a law looks at one by one.
MANY = 1 << 22


@record(frozen=True, kw_only=True)
class Crossed(Operator):
    """An operator that maps cross by a law; ``numbers`` and ``dtype`` are as in `view.Crossing`."""

    law: Law
    numbers: Mapping[str, Spot] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None

    @property
    def role(self) -> Crossing:
        """Its law, and the inputs that the law numbers."""
        return Crossing(self.law, self.data, self.dtype, self.numbers)

    def closed(self) -> Operator:
        """Nothing is known of it any more."""
        return UNKNOWN


@record(frozen=True, kw_only=True)
class Activation(Operator):
    """An elementwise operator that is not linear: Relu, Clip, Sigmoid.

    ``kind`` is what the framework calls it. ``law`` is None where no map crosses it.
    """

    kind: str
    law: Law | None = None
    numbers: Mapping[str, Spot] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None

    @property
    def role(self) -> Crossing | Opaque:
        """Its law, if it has one."""
        if self.law is None:
            return OPAQUE
        return Crossing(self.law, self.data, self.dtype, self.numbers)

    def closed(self) -> Operator:
        """It is not linear still."""
        return replace(self, law=None)


@record(frozen=True, kw_only=True)
class Pooling(Operator):
    """The mean or the maximum over windows along the last axes.

    ``kept`` is the number of axes ahead of them. ``windows`` is None where these are not known.
    ``padded``: some may see padding, which, if ``counted``, counts as zeros of a mean. ``ceils`` is
    what the framework writes where windows may hang over the end, else "". ``divides``: by a number
    of its own, not by that of its elements. ``full``: every window holds an element of what is
    read, for certain.
    """

    mean: bool
    kept: int
    windows: tuple[Window, ...] | None
    padded: bool
    counted: bool = False
    ceils: str = ""
    divides: bool = False
    full: bool = True
    dtype: np.dtype[Any] | None = None

    @property
    def role(self) -> Crossing | Opaque:
        """A mixture of elements along the last axes, whose weights add up to 1.

        Not where padding is counted and not every window sees as much of it, nor where a mean has a
        divisor of its own. No law holds of a window that sees nothing.
        """
        if not self.full:
            return OPAQUE
        uneven = self.counted and (self.padded or bool(self.ceils))
        weight = None if self.divides or uneven else 1.0
        law = Mixed({axis: axis for axis in range(self.kept)}, weight, positive=not self.mean)
        return Crossing(law, self.data, self.dtype)

    def closed(self) -> Operator:
        """Nothing is known of it any more."""
        return UNKNOWN


def kept_axes(rank: int, gone: Iterable[int], keepdims: bool) -> dict[int, int]:
    """Where the axes that a reduction leaves alone come out."""
    without = set(gone)
    kept = [axis for axis in range(rank) if axis not in without]
    return {axis: axis if keepdims else place for place, axis in enumerate(kept)}


def parts(sizes: Sequence[int]) -> tuple[NDArray[np.intp], ...]:
    """The places of parts of an axis that lie one after the other."""
    ends = np.cumsum(sizes)
    return tuple(np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True))
