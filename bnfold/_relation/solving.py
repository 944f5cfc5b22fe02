"""How two sums of linear operators on the same bases are related, row by row.

A row of the second file is ``r`` times the row of the first one, or the two are no rows of one
function. ``r`` comes from the largest weights of the row; then every weight has to agree.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnfold._relation.expressions import (
    ZERO,
    Double,
    Expression,
    Incomparable,
    Term,
    along,
)
from bnfold._relation.relations import Related, most, settled
from bnfold._relation.rows import (
    Reader,
    blocks,
    filled,
    is_moved,
    keys_of,
    kinds_of,
    layout_of,
    parts_of,
)
from bnfold._system.records import record

_LARGEST = 9
"""``r`` is the median of so many ratios."""


@record(frozen=True, eq=False)
class Difference:
    """Rows that are not related, and the worst weight of the first of them.

    Attributes:
        channels: the rows.
        of: how many rows there are.
        wanted: what the weight should be.
        found: what it is.
        units: how far apart the two are, in units in the last place.
        allowed: how far rounding explains.
        otherwise: how the sums are related apart from that.
        name: the tensor of the weights.
    """

    channels: Sequence[int]
    of: int
    wanted: float
    found: float
    units: float
    allowed: float
    otherwise: Related
    name: str = ""

    def __str__(self) -> str:
        where = f" of {self.name}" if self.name else ""
        return (
            f"output channel {self.channels[0]}{where}: {self.found:.9g} instead of "
            f"{self.wanted:.9g}, {self.units:,.0f} units in the last place; "
            f"{len(self.channels)} of {self.of} channels differ"
        )


def solve(
    first: Expression, second: Expression, rank: int | None, rows: Sequence[int] | None = None
) -> Related | Difference:
    """How two closed expressions are related; only some of their ``rows`` if they are given.

    Raises `Incomparable` where their forms differ.
    """
    if first.axis is None and second.axis is None:
        return _solve_each(first, second)
    axis = {each.axis for each in (first, second) if each.axis is not None}
    if len(axis) > 1:
        raise Incomparable("their channels lie along other axes")
    return _solve_rows(first, second, axis.pop(), rank, rows)


def _solve_rows(
    first: Expression,
    second: Expression,
    axis: int,
    rank: int | None,
    wanted: Sequence[int] | None,
) -> Related | Difference:
    linears = [t.linear for e in (first, second) for t in e.terms if t.linear is not None]
    counts = {linear.rows for linear in linears}
    if len(counts) > 1:
        raise Incomparable("they have other numbers of channels")
    rows = counts.pop()
    sides = [
        parts_of(each, axis, rank, rows, len(linears[0].places[0])) for each in (first, second)
    ]
    if any(len(kinds) > 1 for kinds in kinds_of(sides).values()):
        raise Incomparable("their windows lie otherwise")
    layouts = {key: layout_of([p for s in sides for p in s.get(key, ())]) for key in keys_of(sides)}
    scale, distance = np.ones(rows), 0.0
    bad: list[int] = []
    worst, unit = None, max(linear.unit for linear in linears)
    reader = Reader()
    for block in blocks(rows, sum(each.width for each in layouts.values()), wanted):
        (one, off), (other, away) = (filled(s, layouts, block, reader) for s in sides)
        ratio, diff, over = compared(one, off, other, away)
        wrong = over.any(axis=1)
        is_wrong = bool(wrong.any())
        scale[block] = np.where(over.mean(axis=1) > 0.5, 1.0, ratio) if is_wrong else ratio
        scale[block[(np.abs(one) <= off).all(axis=1) & ~wrong]] = 0.0
        if is_wrong and worst is None:
            row = int(np.argmax(wrong))
            relative = np.where(over[row], diff[row], 0)
            place = int(np.argmax(relative))
            found, meant = float(other[row, place]), float(ratio[row] * one[row, place])
            size = max(abs(found), abs(meant)) * unit
            worst = meant, found, float(diff[row, place]) / size if size else np.inf
        bad += block[wrong].tolist()
        if diff.any():
            agreed = ~over & (away + off > 0)
            part = np.divide(diff, away + off, out=np.zeros_like(diff), where=agreed)
            distance = max(distance, float(part.max(initial=0)))
    error = np.zeros(rows)
    for side in sides:
        errors = [part[2] for parts in side.values() for part in parts]
        error += functools.reduce(np.maximum, errors)
    error = error[:1] if (error == error[0]).all() else error
    related = settled(first, second, along(scale, axis, rank), along(error, axis, rank), unit)
    vague = float(error.max())
    if worst is None and not distance:
        return related
    if worst is None:
        return replace(related, distance=max(related.distance, distance * vague / unit))
    name = next((p[0].name for ps in sides[1].values() for p in ps if p[0].name), "")
    total = rows if wanted is None else len(wanted)
    slacks = [part[0].slack for side in sides for parts in side.values() for part in parts]
    vague += max((float(np.max(slack)) for slack in slacks if slack is not None), default=0.0)
    return Difference(bad, total, *worst, vague / unit, related, name)


def compared(
    one: Double, off: Double, other: Double, away: Double
) -> tuple[Double, Double, NDArray[np.bool_]]:
    """By row the ratio, and by weight how far the two are apart and whether that is too far.

    ``off`` and ``away`` are how far rounding explains a difference. A ratio is 1 where that will
    do; else that of the largest weights, or that of the weight which rounding moves least.
    """
    ratio = np.ones(len(one))
    diff = np.abs(other - one)
    near = diff <= away + off
    if near.all():
        return ratio, diff, ~near
    over = ~(near | _is_same(one, other))  # What is no number is no rounding.
    for ratios in (_ratios, _exact_ratios):
        wrong = np.flatnonzero(over.any(axis=1))
        if not len(wrong):
            break
        a, b = one[wrong], other[wrong]
        found = ratios(a, b, off[wrong] + away[wrong])
        far = np.abs(b - found[:, None] * a)
        beyond = ~(far <= away[wrong] + np.abs(found)[:, None] * off[wrong])
        beyond &= ~_is_same(found[:, None] * a, b)
        if ratios is _exact_ratios:  # The first ratio tells more of a row that is wrong.
            right = ~beyond.any(axis=1)
            wrong, found, far, beyond = wrong[right], found[right], far[right], beyond[right]
        ratio[wrong], diff[wrong], over[wrong] = found, far, beyond
    return ratio, diff, over


def _is_same(one: Double, other: Double) -> NDArray[np.bool_]:
    """Where both have the same infinity, or no number: what they make of data is the same."""
    same: NDArray[np.bool_] = np.isinf(one) & (one == other)
    return same | (np.isnan(one) & np.isnan(other))


def _exact_ratios(one: Double, other: Double, slack: Double) -> Double:
    """By row the ratio of the weight that rounding moves least, relative to its size."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(one != 0, slack / np.abs(one), np.inf)
    at = np.argmin(relative, axis=1)[:, None]
    below, above = (np.take_along_axis(each, at, axis=1)[:, 0] for each in (one, other))
    return np.where(below != 0, above / np.where(below == 0, 1.0, below), 1.0)


def _ratios(one: Double, other: Double, _: Double) -> Double:
    """By row the median of the ratios of the largest weights; 1 for rows without any."""
    size = np.abs(one)
    count = min(_LARGEST, one.shape[1])
    at = np.argpartition(-size, count - 1, axis=1)[:, :count]
    below, above = (np.take_along_axis(each, at, axis=1) for each in (one, other))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(below != 0, above / np.where(below == 0, 1.0, below), np.nan)
    empty = np.isnan(found).all(axis=1)
    found[empty] = 1.0
    found.sort(
        axis=1
    )  # NaN comes last. NumPy's own median of the others imports its masked arrays.
    last = (~np.isnan(found)).sum(axis=1, keepdims=True) - 1
    middle = [np.take_along_axis(found, at, axis=1)[:, 0] for at in (last // 2, (last + 1) // 2)]
    return np.asarray((middle[0] + middle[1]) / 2)


def _solve_each(first: Expression, second: Expression) -> Related | Difference:
    """As `solve`, number by number: both are sums of maps of bases."""
    bases = sorted({term.base for each in (first, second) for term in each.terms})
    (one, off), (other, away) = (_stacked(each, bases) for each in (first, second))
    shape = np.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    one, off, other, away = (
        np.broadcast_to(each, (*shape, len(bases))).reshape(-1, len(bases))
        for each in (one, off, other, away)
    )
    near = (
        np.minimum(slack, most(each.unit) * np.abs(value))
        for each, value, slack in ((first, one, off), (second, other, away))
    )
    ratio, diff, over = compared(one, next(near), other, next(near))
    unit = max(first.unit, second.unit) or float(np.finfo(np.float32).eps)
    wrong = over.any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        place = int(np.argmax(np.where(over[row], diff[row], 0)))
        found, meant = float(other[row, place]), float(ratio[row] * one[row, place])
        size = max(abs(found), abs(meant)) * unit
        units = float(diff[row, place]) / size if size else np.inf
        channels = [int(each) for each in np.flatnonzero(wrong)]
        is_vague = diff[row, place] <= off[row, place] + away[row, place]
        allowed = units if is_vague else units / 8
        return Difference(channels, ratio.size, meant, found, units, allowed, Related())
    error = np.zeros(shape)
    for each in (first, second):
        error = error + functools.reduce(np.maximum, [t.error for t in each.terms], np.zeros(()))
    ratio = np.where((np.abs(one) <= off).all(axis=1), 0.0, ratio)
    return settled(first, second, ratio.reshape(shape), error, unit)


def constant_rows(value: Expression, rank: int | None) -> Double:
    """Where a sum does not depend on its bases, but for rounding: 1 there, else 0.

    It has the axes of the tensor. A number there is the shift alone.
    """
    axis = value.axis
    if axis is None:
        bases = sorted(term.base for term in value.terms)
        scales, slack = _stacked(value, bases)
        return np.asarray((np.abs(scales) <= slack).all(axis=-1), np.float64)
    linears = [term.linear for term in value.terms if term.linear is not None]
    rows = linears[0].rows
    parts = parts_of(value, axis, rank, rows, len(linears[0].places[0]))
    found, reader = np.zeros(rows), Reader()
    left = np.flatnonzero(~is_moved(parts, rows)).tolist()
    if not left:
        return along(found, axis, rank)
    layouts = {key: layout_of(part) for key, part in parts.items()}
    for block in blocks(rows, sum(each.width for each in layouts.values()), left):
        values, slack = filled(parts, layouts, block, reader)
        found[block] = (np.abs(values) <= slack).all(axis=1)
    return along(found, axis, rank)


def _stacked(expression: Expression, bases: Sequence[int]) -> tuple[Double, Double]:
    """The scales of all bases, in a new last axis, and how far rounding explains a difference."""
    held = {term.base: term for term in expression.terms}
    scales = [held.get(base, Term(base, ZERO)).scale for base in bases]
    errors = [held.get(base, Term(base)).error for base in bases]
    arrays = np.broadcast_arrays(*scales, *errors)
    values, relative = (np.stack(part, -1) for part in (arrays[: len(bases)], arrays[len(bases) :]))
    slack = np.abs(values) * relative
    return values, np.where(np.isfinite(slack), slack, 0.0)
