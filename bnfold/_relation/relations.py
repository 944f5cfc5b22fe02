"""How two maps of one base are related: ``second = scale · first + shift``."""

from __future__ import annotations

from dataclasses import field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold._relation.expressions import ONE, ZERO, Double, Expression
from bnfold._system.records import record

_MOST = 2.0**-6
"""No difference of a larger part of a number is laid to rounding."""
_TINY = float(np.finfo(np.float32).tiny)
_SMALLEST = {2.0**-10: 2.0**-25, 2.0**-52: float(np.finfo(np.float64).tiny)}
"""By the unit of a type how far rounding moves its smallest numbers; others have `_TINY`."""


def least(unit: float) -> float:
    """How far rounding moves the smallest numbers of a type with such a unit.

    Those of float16 are 2⁻²⁴ apart, and every engine computes with them: half of that is what
    rounding explains, as it is half a unit of larger numbers. So two neighbours may be one number,
    and 2⁻²³ is not 0. Of float32 and bfloat16 an engine may take all numbers that are not normal
    for 0, and of float64 likewise.
    """
    return _SMALLEST.get(unit, _TINY)


def most(unit: float) -> float:
    """The largest part of a weight that is laid to rounding, by the unit of its type.

    Where a weight is known less well it may be anything: nothing is proved of it.
    """
    return max(_MOST, 8 * unit)


@record(frozen=True, eq=False)
class Related:
    """``second = scale · first + shift``, both along the axes of the tensor.

    Numbers that rounding alone could have moved away from 1 and 0 are 1 and 0. ``error`` is how far
    rounding explains a difference of the scale, relative to it, and ``slip`` of the shift, relative
    to its ``mass``. ``distance`` is the largest difference that rounding explains, in units in the
    last place.
    ``is_settled`` says that no other relation holds as well, as one of constant channels does.
    """

    scale: Double = field(default_factory=lambda: ONE)
    shift: Double = field(default_factory=lambda: ZERO)
    mass: Double = field(default_factory=lambda: ZERO)
    error: Double | float = 0.0
    slip: float = 0.0
    distance: float = 0.0
    is_settled: bool = True

    @cached_property
    def is_identity(self) -> bool:
        """Whether both tensors have the same numbers."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())


def settled(
    first: Expression, second: Expression, scale: Double, error: Double | float, unit: float
) -> Related:
    """The relation of two expressions of which the parts without shift have this scale.

    What rounding explains is left out of it. ``error`` is how far it does, relative to the scale.
    The mass stays where a shift is left out beside a scale: what is left out may be a shift yet, in
    which the other file agrees.
    """
    if not np.any(scale != 1) and _has_one_shift(first, second):
        slip = float(np.max(second.error + first.error))
        return Related(slip=slip)
    same = np.abs(scale - 1) <= np.minimum(error, _MOST)
    factor = _plain(np.where(same, 1.0, scale), 1.0)
    if not np.any(same):
        factor, error = _leveled(factor, error, np.minimum(error, _MOST) * np.abs(factor))
    shift = second.shift - factor * first.shift
    mass = second.mass + np.abs(factor) * first.mass
    slips = second.error + first.error + np.where(same, 0.0, error)
    slip = float(np.max(slips, initial=0.0))
    if slip:  # One number for all channels; the mass of the others counts less.
        mass = mass * (slips / slip)
    floor = least(unit) * (1 + np.abs(factor))
    off = min(slip, _MOST) * mass + floor
    still = np.isfinite(shift) & (np.abs(shift) <= off)
    shift = _plain(np.where(still, 0.0, shift), 0.0)
    shift, mass = _leveled(shift, _plain(np.where(still & same, 0.0, mass), 0.0), off)
    far = float(np.max(np.where(same, np.abs(scale - 1), 0.0), initial=0.0))
    return Related(
        factor,
        shift,
        mass,
        _plain(np.where(same, 0.0, error), 0.0),
        slip,
        far / unit if unit else 0.0,
    )


def _leveled(values: Double, known: Double | float, off: Double) -> tuple[Double, Double]:
    """One number for those along an axis that are the same but for rounding, and how well each is
    known.

    Each row of a layer tells its own, with the rounding of its own weights: ``off`` is how far that
    explains a difference. The one that is known best stands for all.
    """
    if values.size < 2 or not np.isfinite(values).all():
        return values, np.asarray(known)
    level, held, slack = np.broadcast_arrays(values, known, off)
    whole = level.size
    for axis in range(level.ndim):
        at = np.expand_dims(np.argmin(slack, axis), axis)
        best, *rest = (np.take_along_axis(each, at, axis) for each in (level, held, slack))
        if (np.abs(level - best) <= slack + rest[1]).all():
            level, (held, slack) = best, rest
    if level.size == whole:
        return values, np.asarray(known)
    return (level.reshape(()), held.reshape(())) if level.size == 1 else (level, held)


def _has_one_shift(first: Expression, second: Expression) -> bool:
    """Whether two expressions have the same finite shift."""
    one, other = first.shift, second.shift
    return one.shape == other.shape and bool(((one == other) & np.isfinite(one)).all())


def _plain(values: Double, number: float) -> Double:
    """Numbers that are all the same as one of them; ``number`` if there are none."""
    one = np.asarray(values.flat[0] if values.size else number)
    return one if np.all(values == one) else values


_IDENTITY = Related()


def of_maps(first: Expression, second: Expression) -> Related | None:
    """How two maps of one base, or two constants, are related; None where they are not."""
    one, other = first.map, second.map
    unit = max(first.unit, second.unit)
    if one is None or other is None:
        if first.terms or second.terms or first.shift.shape != second.shift.shape:
            return None
        return settled(first, second, ONE, 0.0, unit)
    if one.base != other.base:
        return None
    if first.is_base and second.is_base:
        return _IDENTITY
    dead = np.abs(one.scale) <= least(unit)  # Smaller ones are 0 in some engines.
    if np.any(dead & (np.abs(other.scale) > least(unit))):
        return None
    scale = np.where(dead, 1.0, other.scale / np.where(dead, 1.0, one.scale))
    error = one.error + other.error
    if dead.any() and not dead.all():
        scale = _filled_in(first, second, scale, dead, error)
    related = settled(first, second, scale, error, unit)
    return replace(related, is_settled=related.is_identity or not dead.any())


def _filled_in(
    first: Expression,
    second: Expression,
    scale: Double,
    dead: NDArray[np.bool_],
    error: Double | float,
) -> Double:
    """Scales in which constant channels have that of all others, where they may.

    A constant is any multiple of itself, with the shift that this takes. So it is related as the
    others are, if these are related by two numbers that fit it.
    """
    wide, off = np.broadcast_arrays(scale, dead)
    one = wide[~off][0]
    far, mass, constant, scales, errors = np.broadcast_arrays(
        second.shift - one * first.shift, second.mass + abs(one) * first.mass, dead, scale, error
    )
    slack = 2 * (first.error + second.error + errors) * mass + _TINY
    live = ~constant
    wanted = far[live][0]
    fits = np.abs(far - wanted) <= slack
    near = np.abs(scales - one) <= 2 * errors * np.abs(one)
    if np.all(fits[live]) and np.all(near[live]):
        return np.where(constant & fits, one, scales)
    return scale
