"""What a tensor is: a sum of linear operators on tensors that both files have, and a shift.

The numbers of a tensor are ``Σ scale·L(base) + shift``. A *base* is a tensor that an operator which
is not affine puts out, or an input of the model; both files share its number. Arrays of scales and
shifts line up with the last axes of the tensor, as NumPy broadcasts them.

Every expression knows how far rounding explains a difference: a stored number is off by one unit
roundoff, and so is each operation of float arithmetic that a tool may have folded with. Scales
count it relative to themselves. A shift counts it relative to its *mass*, the sum of the sizes of
what was added up to it: where numbers cancel, the rounding of each stays (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._system.records import record

Array = NDArray[Any]
Double = NDArray[np.float64]
ONE = np.ones(())
ZERO = np.zeros(())


class Incomparable(Exception):
    """Two expressions are not of one form. The message says why."""


@record(frozen=True, eq=False)
class Linear:
    """A linear operator with constant weights.

    Attributes:
        kind: what has to be the same for the weights of two operators to mean the same.
        axis: the axis of its output along which its rows lie: 1, −1 or −2.
        data_axis: the axis of its data that it adds up.
        load: reads its weights, ``[rows, columns of a group, places]``.
        part: reads those of the rows from one to another; None where they are read all together.
        rows: how many numbers it puts out at one position.
        columns: how many channels of its data a row reads.
        group: in how many groups its channels fall.
        places: where each weight reads, relative to where it writes.
        gain: a factor for each channel of its data.
        error: by how much rounding explains a difference of weights, relative to them.
        slack: as much more for each channel of its data, for the error of ``gain``.
        unit: the distance of 1 to the next number of the type of its weights.
        is_padded: whether it may read zeros where there are no data.
        of_shift: what it reads is 1 everywhere but in the padding. Its weights are sums, and
            ``mass`` reads the sums of their sizes.
        name: the tensor of its weights.
        sizes: those of the axes of its data that its places lie along; None where not known.
    """

    kind: tuple[Any, ...]
    axis: int
    data_axis: int
    load: Callable[[], Array]
    rows: int
    columns: int
    group: int
    places: tuple[tuple[int, ...], ...]
    gain: Double | None = None
    error: float = 0.0
    slack: Double | None = None
    unit: float = 0.0
    is_padded: bool = False
    of_shift: bool = False
    mass: Callable[[], Array] | None = None
    part: Callable[[int, int], Array] | None = None
    name: str = ""
    sizes: tuple[int | None, ...] | None = None

    @property
    def data_rank(self) -> int | None:
        """The number of axes of its data; None where that may be any."""
        return len(self.places[0]) + 2 if self.data_axis == 1 and self.places else None

    def rows_from(self, start: int, stop: int) -> Array:
        """The weights of some rows."""
        return self.load()[start:stop] if self.part is None else self.part(start, stop)


@record(frozen=True, eq=False)
class Term:
    """``scale · linear(base)``, or ``scale · base`` without a linear operator.

    ``error`` is one number or lies along the axes of ``scale``: where numbers cancel in one channel
    the others are known as well as before.
    """

    base: int
    scale: Double = field(default_factory=lambda: ONE)
    error: Double | float = 0.0
    linear: Linear | None = None


@record(frozen=True, eq=False)
class Expression:
    """``Σ terms + shift``; see the module.

    ``mass`` and ``error`` are of the shift. ``unit`` is the largest of those of all numbers that
    went into it. ``origins`` are the bases whose relation to the first file is not the identity and
    is part of this one. ``is_wide`` tells that some terms may have fewer numbers than the tensor:
    these are broadcast, and an operator on the sum is none on them.
    """

    terms: tuple[Term, ...]
    shift: Double = field(default_factory=lambda: ZERO)
    mass: Double = field(default_factory=lambda: ZERO)
    error: float = 0.0
    unit: float = 0.0
    origins: frozenset[int] = frozenset()
    is_wide: bool = False

    @property
    def map(self) -> Term | None:
        """The only term if it has no linear operator: the tensor is a map of a base."""
        if len(self.terms) == 1 and self.terms[0].linear is None:
            return self.terms[0]
        return None

    @property
    def is_base(self) -> bool:
        """Whether the tensor is a base as it is, with one scale and one shift."""
        term, shift = self.map, self.shift
        if term is None:
            return False
        if term.scale is ONE and shift is ZERO:
            return True
        return term.scale.size == shift.size == 1 and bool(term.scale == 1 and shift == 0)

    @property
    def axis(self) -> int | None:
        """The axis of the rows of its linear operators, or None without any."""
        return next((term.linear.axis for term in self.terms if term.linear is not None), None)

    def scaled(self, by: Double, error: Double | float, unit: float) -> Expression:
        """The expression times a constant whose use costs some rounding.

        ``error`` is one number or lies along the axes of ``by``.
        """
        terms = tuple(Term(t.base, t.scale * by, t.error + error, t.linear) for t in self.terms)
        slips = np.asarray(self.error + error)
        slip, mass = float(np.max(slips)), self.mass * np.abs(by)
        if slips.size > 1 and slip:  # One number for all channels; the mass of others counts less.
            mass = mass * (slips / slip)
        unit = max(self.unit, unit)
        shift = self.shift * by
        return Expression(terms, shift, mass, slip, unit, self.origins, self.is_wide)

    def shifted(self, by: Double, error: float, unit: float) -> Expression:
        """The expression and a constant."""
        return Expression(
            self.terms,
            self.shift + by,
            self.mass + np.abs(by),
            self.error + error,
            max(self.unit, unit),
            self.origins,
            self.is_wide,
        )

    def plus(self, other: Expression, sign: float = 1.0) -> Expression:
        """The sum of two expressions, or their difference."""
        if sign != 1.0:
            other = other.scaled(np.asarray(sign), 0.0, 0.0)
        terms: dict[int, Term] = {}
        rest: list[Term] = []
        for term in (*self.terms, *other.terms):
            if term.linear is not None:
                rest.append(term)
            elif term.base in terms:
                held = terms[term.base]
                scale, size = held.scale + term.scale, np.abs(held.scale) + np.abs(term.scale)
                # Where the two cancel, what is left is off by more of its own size.
                lost = np.divide(size, np.abs(scale), out=np.ones_like(size), where=scale != 0)
                error = np.maximum(held.error, term.error) + max(self.unit, other.unit) / 2
                terms[term.base] = Term(term.base, scale, error * lost)
            else:
                terms[term.base] = term
        return Expression(
            (*terms.values(), *rest),
            self.shift + other.shift,
            self.mass + other.mass,
            max(self.error, other.error) + max(self.unit, other.unit) / 2,
            max(self.unit, other.unit),
            self.origins | other.origins,
            self.is_wide or other.is_wide,
        )


def is_uneven(error: Double | float) -> bool:
    """Whether some channels are known much less well than others, of those that are not exact."""
    known = np.asarray(error)
    some = known[known > 0]
    return bool(some.size and some.max() > 16 * some.min())


def of_base(base: int) -> Expression:
    """A base itself."""
    return Expression((Term(base),))


def along(values: Double, axis: int, rank: int | None) -> Double:
    """A vector along an axis, 1, −1 or −2, of a tensor. A tensor of one axis is one channel.

    Raises `Incomparable` along axis 1 of a tensor whose rank is not known.
    """
    if values.size == 1:
        return values.reshape(())
    axes = behind(axis, rank)
    if axes is None:
        raise Incomparable("the rank of a tensor is not known")
    return values.reshape((-1, *(1,) * axes))


def vector(values: Double, axis: int, rank: int | None, size: int) -> Double | None:
    """Numbers of a tensor as one for each position of an axis; None if they vary elsewhere."""
    if values.size == 1:
        return np.full(size, values.reshape(()))
    return values.reshape(-1) if lies_along(values, axis, rank) and values.size == size else None


def lies_along(values: Double, axis: int, rank: int | None) -> bool:
    """Whether numbers of a tensor vary along no other axis than this one."""
    axes = behind(axis, rank)
    if values.size == 1:
        return True
    return axes is not None and values.ndim > axes and values.shape[-1 - axes] == values.size


def behind(axis: int, rank: int | None) -> int | None:
    """How many axes follow an axis, 1, −1 or −2; None if that is not known."""
    if axis < 0:
        return -1 - axis
    return None if rank is None or rank < 2 else rank - 2
