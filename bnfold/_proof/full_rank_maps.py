"""Affine maps at a tensor's full rank, and what has to be equal where maps were carried past it.

A tensor holds ``F(z)`` before the fold and ``G(z)`` after it. Nobody else names the numbers z. Its
readers are checked for every z. Its writer is checked for this: whatever it reads, such a z exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bnfold._onnx.write.applied import Factor, Related

Double = NDArray[np.float64]
# How near to a number data are drawn, relative to it. The output of some operators jumps at such a
# number, and rounding must not decide on which side the data are.
_NEAREST, _FARTHEST = 1e-5, 1e-1


@dataclass
class FullRankMap:
    """``y = scale·x + shift``. Every array broadcasts over the tensor and has its rank.

    A map of three channels on axis 1 of an image has a ``scale`` of shape ``(1, 3, 1, 1)``.

    Attributes:
        scale: the factor S.
        shift: the term T.
        bulk: a bound of the absolute values of the terms that were summed into ``shift``.
        unknown: where x may be any number at all; the rest says nothing there.
        steps: how many operators have rounded on the way.
    """

    scale: Double
    shift: Double
    bulk: Double
    unknown: NDArray[np.bool_]
    steps: int = 0

    @classmethod
    def identity(cls, rank: int) -> FullRankMap:
        """The map ``y = x`` for a tensor of a rank."""
        shape = (1,) * rank
        return cls(np.ones(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.bool_))

    def of(self, values: Double) -> Double:
        """The map of some values. What float64 cannot hold becomes infinite or NaN."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(values * self.scale + self.shift)

    def multiply(self, factor: Double) -> None:
        """Multiply y by a factor, in place."""
        self.unknown = self.unknown & (factor != 0)
        self.scale = self.scale * factor
        self.shift = self.shift * factor
        self.bulk = self.bulk * np.abs(factor)

    def add(self, term: Double) -> None:
        """Add a term to y, in place."""
        self.shift = self.shift + term
        self.bulk = self.bulk + np.abs(term)

    def apply(self, other: FullRankMap) -> None:
        """Apply another map to y, in place."""
        self.multiply(other.scale)
        self.add(other.shift)
        self.unknown = self.unknown | other.unknown

    def leave_out(self, where: NDArray[np.bool_]) -> None:
        """Make the map 0 in some places, in place: they are not compared."""
        self.scale, self.shift, self.bulk = (
            np.where(where, 0.0, part) for part in (self.scale, self.shift, self.bulk)
        )
        self.unknown = self.unknown & ~where

    def copy(self) -> FullRankMap:
        """A map of the same numbers; a change in place leaves this one as it is."""
        return replace(self)


@dataclass(frozen=True)
class Equality:
    """``old`` of a tensor's old values equals ``new`` of its new values, unless ``exempt``."""

    old: FullRankMap
    new: FullRankMap
    exempt: NDArray[np.bool_]


def composed(steps: Iterable[Factor], rank: int) -> FullRankMap:
    """The map that some factors make one after the other, for a tensor of a rank.

    A factor along axis 1 gets the shape ``(1, -1, 1, 1)`` in a tensor of rank 4. One along the last
    axis, −1, needs no rank: arrays are aligned from the right. Where its scale is NaN, nothing is
    known of the values.
    """
    map_ = FullRankMap.identity(rank)
    for step in steps:
        scale, shift = step.scale, step.shift
        if step.axis is not None and step.axis < 0:
            scale, shift = scale.reshape(-1), shift.reshape(-1)
        elif step.axis is not None:
            shape = tuple(-1 if k == step.axis else 1 for k in range(rank))
            scale, shift = scale.reshape(shape), shift.reshape(shape)
        elif scale.size == 1:
            scale, shift = scale.reshape((1,) * rank), shift.reshape((1,) * rank)
        known = ~np.isnan(scale)
        map_.multiply(np.where(known, scale, 1.0))
        map_.add(shift)
        map_.unknown = map_.unknown | ~known
    return map_


def equalities(related: Related | None, rank: int) -> list[Equality]:
    """What has to hold of a tensor, so that some z gives both its old and its new values.

    Where F has an inverse: ``G(F⁻¹(old)) = new``. Where F is constant: old is that constant. Where
    F and G are both constant: new is the constant of G, too. Without ``related``: old = new.
    """
    same, nowhere = FullRankMap.identity(rank), np.zeros((1,) * rank, np.bool_)
    if related is None:
        return [Equality(same, same, nowhere)]
    old, new = composed(related.old, rank), composed(related.new, rank)
    if not related.new:
        return [Equality(same, old, old.unknown)]
    if not related.old:
        return [Equality(new, same, nowhere)]
    lost, ends = old.unknown | (old.scale == 0), new.scale == 0
    through = _undone(old, ~lost)
    through.apply(new)
    return [
        Equality(through, same, lost),
        Equality(same, _constant(old.shift), old.unknown | ~lost),
        Equality(_constant(new.shift), same, ~(lost & ends)),
    ]


def _undone(map_: FullRankMap, where: NDArray[np.bool_]) -> FullRankMap:
    """The inverse of a map in some places, the identity in all others."""
    scale, shift = (np.broadcast_to(part, where.shape) for part in (map_.scale, map_.shift))
    back = FullRankMap.identity(where.ndim)
    back.add(np.where(where, -shift, 0.0))
    back.multiply(1.0 / np.where(where, scale, 1.0))
    return back


def _constant(value: NDArray[np.float64]) -> FullRankMap:
    """The map that gives a value for every x."""
    map_ = FullRankMap.identity(value.ndim)
    map_.multiply(np.zeros_like(value))
    map_.add(value)
    return map_


def values_around(
    map_: FullRankMap,
    values: Double,
    numbers: Sequence[float],
    near: bool,
    generator: np.random.Generator,
) -> Double:
    """The numbers z for a tensor, so that ``map_`` of z stays clear of some numbers.

    No result of the map is so near to one of the ``numbers`` that rounding could put it on the
    other side. With ``near``, all results are about one of them. Where the map does not depend on
    z, z is one of ``values``.
    """
    read = np.broadcast_to(values * map_.scale + map_.shift, values.shape)
    if near:
        about = generator.choice(np.asarray(numbers), values.shape)
        decades = generator.uniform(math.log10(_NEAREST), math.log10(_FARTHEST), values.shape)
        off = generator.choice([-1.0, 1.0], values.shape) * 10.0**decades
        read = about + off * np.where(about == 0, 1.0, np.abs(about))
    for number in numbers:
        least = _NEAREST * abs(number)
        read = np.where(np.abs(read - number) < least, number + least, read)
    free = map_.unknown | (map_.scale == 0)
    return np.where(free, values, (read - map_.shift) / np.where(map_.scale == 0, 1.0, map_.scale))
