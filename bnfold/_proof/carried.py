"""What is said of a tensor that maps were carried past, and what has to be seen of it.

Its old values are ``F(z)`` and its new ones ``G(z)``, for numbers z that nobody else names. Who
reads it is checked for every z; who writes it, that there is such a z for whatever it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold._onnx.write.applied import Factor, Related
from bnfold._proof.rows import Double, Line

# How near a number, as a part of it, data are drawn: at some operators what they put out leaps
# there, and rounding must not decide on which side.
_NEAREST, _FARTHEST = 1e-5, 1e-1


@dataclass(frozen=True)
class Claim:
    """``old`` of the old values is the same as ``new`` of the new ones, except where ``apart``."""

    old: Line
    new: Line
    apart: NDArray[np.bool_]


def laid_out(steps: Iterable[Factor], rank: int) -> Line:
    """Steps at the tensor's rank, one after the other."""
    line = Line.identity(rank)
    for step in steps:
        scale, shift = step.scale, step.shift
        if step.axis is not None:
            shape = tuple(-1 if k == step.axis else 1 for k in range(rank))
            scale, shift = scale.reshape(shape), shift.reshape(shape)
        elif scale.size == 1:
            scale, shift = scale.reshape((1,) * rank), shift.reshape((1,) * rank)
        known = ~np.isnan(scale)
        line.times(np.where(known, scale, 1.0))
        line.plus(shift)
        line.unknown = line.unknown | ~known
    return line


def claims(related: Related | None, rank: int) -> list[Claim]:
    """What has to hold of a tensor for some z: ``G(F⁻¹(old)) = new``, or where F is constant that
    old is that constant and, where G is constant too, that new is its constant.
    """
    same, nowhere = Line.identity(rank), np.zeros((1,) * rank, np.bool_)
    if related is None:
        return [Claim(same, same, nowhere)]
    old, new = laid_out(related.old, rank), laid_out(related.new, rank)
    if not related.new:
        return [Claim(same, old, old.unknown)]
    if not related.old:
        return [Claim(new, same, nowhere)]
    lost, ends = old.unknown | (old.scale == 0), new.scale == 0
    through = _undone(old, ~lost)
    through.then(new)
    return [
        Claim(through, same, lost),
        Claim(same, _constant(old.shift), old.unknown | ~lost),
        Claim(_constant(new.shift), same, ~(lost & ends)),
    ]


def _undone(line: Line, where: NDArray[np.bool_]) -> Line:
    scale, shift = (np.broadcast_to(part, where.shape) for part in (line.scale, line.shift))
    back = Line.identity(where.ndim)
    back.plus(np.where(where, -shift, 0.0))
    back.times(1.0 / np.where(where, scale, 1.0))
    return back


def _constant(value: NDArray[np.float64]) -> Line:
    line = Line.identity(value.ndim)
    line.times(np.zeros_like(value))
    line.plus(value)
    return line


def placed(
    line: Line,
    values: Double,
    numbers: Sequence[float],
    near: bool,
    generator: np.random.Generator,
) -> Double:
    """Values that a line takes to numbers, and to none so near one of those given that rounding
    could put it on the other side; with ``near`` only to some about them.
    """
    read = np.broadcast_to(values * line.scale + line.shift, values.shape)
    if near:
        about = generator.choice(np.asarray(numbers), values.shape)
        decades = generator.uniform(math.log10(_NEAREST), math.log10(_FARTHEST), values.shape)
        off = generator.choice([-1.0, 1.0], values.shape) * 10.0**decades
        read = about + off * np.where(about == 0, 1.0, np.abs(about))
    for number in numbers:
        least = _NEAREST * abs(number)
        read = np.where(np.abs(read - number) < least, number + least, read)
    free = line.unknown | (line.scale == 0)
    return np.where(free, values, (read - line.shift) / np.where(line.scale == 0, 1.0, line.scale))
