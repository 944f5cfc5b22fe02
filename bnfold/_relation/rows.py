"""The weights of a sum of linear operators, row by row, and how far rounding explains them.

They are read in parts, and compared in smaller ones: a model may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold._relation.expressions import Double, Expression, Incomparable, Linear, vector
from bnfold._relation.relations import least, most
from bnfold._system.records import record

_BLOCK = 1 << 16
"""So many weights are compared at a time: they fit into a processor's cache."""
_READ = 1 << 22
"""So many weights of an operator are read at a time."""
_SPARSE = 8
"""Of rows so far apart each is read for itself."""
Key = tuple[int, bool, Any]
Part = tuple[Linear, Double, Double]


def kinds_of(sides: Sequence[dict[Key, list[Part]]]) -> dict[int, set[frozenset[Any]]]:
    """By base the kinds of operators that read it; of both sides, if they are other ones."""
    if len(sides) == 2 and sides[0].keys() == sides[1].keys():
        sides = sides[:1]
    found: dict[int, set[frozenset[Any]]] = {}
    for side in sides:
        for base in {key[0] for key in side if not key[1]}:
            kinds = frozenset(key[2] for key in side if key[0] == base and not key[1])
            found.setdefault(base, set()).add(kinds)
    return found


def keys_of(sides: Sequence[dict[Key, list[Part]]]) -> list[Key]:
    return list(dict.fromkeys(key for side in sides for key in side))


def parts_of(
    expression: Expression, axis: int, rank: int | None, rows: int, length: int
) -> dict[Key, list[Part]]:
    """The linear operators of an expression by what they read, with a factor for each row."""
    found: dict[Key, list[Part]] = {}
    for term in expression.terms:
        linear = term.linear or _itself(axis, rows, length)
        factor = vector(term.scale, axis, rank, rows)
        error = vector(np.asarray(term.error), axis, rank, rows)
        if factor is None or error is None:
            raise Incomparable("a scale lies along other axes than the channels")
        key = term.base, linear.of_shift, linear.kind
        found.setdefault(key, []).append((linear, factor, error + linear.error))
    return found


def _itself(axis: int, rows: int, length: int) -> Linear:
    """The operator that puts out what it reads."""
    kind = ("window", (1,) * length, (-1,) * length) if axis == 1 else ("product", axis, axis)
    load = lambda: np.ones((rows, 1, 1))  # noqa: E731
    return Linear(kind, axis, axis, load, rows, 1, rows, ((0,) * length,))


@record(frozen=True)
class Layout:
    columns: int
    places: dict[tuple[int, ...], int]
    is_dense: bool

    @property
    def width(self) -> int:
        return self.columns * len(self.places)


def layout_of(parts: Sequence[Part]) -> Layout:
    """Where each weight of several operators stands in a common row."""
    places = {place: 0 for linear, _, _ in parts for place in linear.places}
    if len(places) > 1:
        places = {place: number for number, place in enumerate(sorted(places))}
    if len({(p[0].group, p[0].columns) for p in parts}) == 1:
        return Layout(parts[0][0].columns, places, False)
    channels = {p[0].group * p[0].columns for p in parts}
    if len(channels) > 1:
        raise Incomparable("they read other numbers of channels")
    return Layout(channels.pop(), places, True)


def blocks(rows: int, width: int, wanted: Sequence[int] | None) -> Iterator[NDArray[np.int64]]:
    step = max(_BLOCK // max(width, 1), 1)
    every = np.arange(rows) if wanted is None else _sorted(np.asarray(wanted, np.int64))
    for start in range(0, len(every), step):
        yield every[start : start + step]


def _sorted(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers in ascending order, each once. Without its indices ``np.unique`` imports NumPy's
    masked arrays, which takes longer than the proof of a small model.
    """
    return np.unique(numbers, return_index=True)[0]


class Filled(NamedTuple):
    values: Double
    allowed: Double


@record(eq=False)
class Reader:
    """Reads rows of operators, some more at a time than are asked for."""

    held: dict[int, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    sums: dict[int, NDArray[Any]] = field(default_factory=dict)

    def rows(self, linear: Linear, block: NDArray[np.int64]) -> Double:
        """Some rows of an operator, in ascending order."""
        first, last = int(block[0]), int(block[-1])
        if linear.part is None:
            if id(linear) not in self.held:
                self.held[id(linear)] = 0, linear.load()
        elif last - first > _SPARSE * len(block):
            found = [linear.rows_from(int(row), int(row) + 1) for row in block]
            return np.concatenate(found).astype(np.float64)
        start, values = self.held.get(id(linear), (0, np.empty((0,))))
        if first < start or last >= start + len(values):
            width = linear.columns * len(linear.places)
            start, stop = first, min(max(last + 1, first + _READ // max(width, 1)), linear.rows)
            values = linear.rows_from(start, stop)
            self.held[id(linear)] = start, values
        if last - first + 1 == len(block):  # A turned weight is copied as it lies in memory.
            return values[first - start : last - start + 1].astype(np.float64)
        return values[block - start].astype(np.float64)

    def masses(self, linear: Linear, block: NDArray[np.int64]) -> Double:
        """The sums of sizes of some rows."""
        assert linear.mass is not None
        if id(linear) not in self.sums:
            self.sums[id(linear)] = linear.mass()
        return self.sums[id(linear)][block].astype(np.float64)


def filled(
    side: dict[Key, list[Part]],
    layouts: dict[Key, Layout],
    block: NDArray[np.int64],
    reader: Reader,
) -> Filled:
    """Some rows of all weights of an expression, and how far rounding explains a difference."""
    values, allowed = [], []
    for key, layout in layouts.items():
        shape = (len(block), layout.columns, len(layout.places))
        parts = side.get(key, ())
        if len(parts) == 1 and not layout.is_dense and len(parts[0][0].places) == shape[2]:
            ((linear, factor, error),) = parts
            at = [layout.places[place] for place in linear.places]
            if len(at) == 1 or at == sorted(at):
                total, slack = _scaled(linear, factor, error, block, reader)
                values.append(total.reshape(len(block), -1))
                allowed.append(slack.reshape(len(block), -1))
                continue
        total, slack = np.zeros(shape), np.zeros(shape)
        for linear, factor, error in parts:
            weights, slips = _scaled(linear, factor, error, block, reader)
            at = [layout.places[place] for place in linear.places]
            if layout.is_dense:
                group = block * linear.group // linear.rows
                columns = group[:, None] * linear.columns + np.arange(linear.columns)
                where = (np.arange(len(block))[:, None, None], columns[:, :, None], at)
                total[where] += weights
                slack[where] += slips
            else:
                total[:, :, at] += weights
                slack[:, :, at] += slips
        values.append(total.reshape(len(block), -1))
        allowed.append(slack.reshape(len(block), -1))
    if len(values) == 1:
        return Filled(values[0], allowed[0])
    return Filled(np.concatenate(values, axis=1), np.concatenate(allowed, axis=1))


def _scaled(
    linear: Linear, factor: Double, error: Double, block: NDArray[np.int64], reader: Reader
) -> tuple[Double, Double]:
    """Some rows of an operator times its factors, and how far rounding explains a difference."""
    weights = reader.rows(linear, block)
    factors, errors = factor[block][:, None, None], error[block][:, None, None]
    if linear.gain is not None:
        factors = factors * _by_column(linear, linear.gain, block)
    if linear.slack is not None:
        errors = errors + _by_column(linear, linear.slack, block)
    if (factors != 1).any():
        weights *= factors
    sizes = np.abs(weights)
    if linear.mass is None:  # The sum of many sizes may be off by more of itself.
        errors = np.minimum(errors, most(linear.unit))
    else:
        sizes = reader.masses(linear, block) * np.abs(factors)
    sizes *= errors
    sizes += least(linear.unit) * np.abs(factors)
    if not np.isfinite(sizes.max(initial=0.0)):
        sizes[~np.isfinite(sizes)] = 0.0
    return weights, sizes


def _by_column(linear: Linear, values: Double, block: NDArray[np.int64]) -> Double:
    """Numbers of the channels that each row reads, [rows, columns, 1]."""
    groups = np.broadcast_to(values, (linear.group * linear.columns,))
    return groups.reshape(linear.group, -1)[block * linear.group // linear.rows][:, :, None]


def is_moved(parts: dict[Key, list[Part]], rows: int) -> NDArray[np.bool_]:
    """By row whether a sum is seen at once to depend on its bases: a weight is no rounding of 0.

    Only weights that nothing is added to tell it so.
    """
    found = np.zeros(rows, np.bool_)
    for held in parts.values():
        (linear, factor, error), *others = held
        plain = linear.mass is None and linear.slack is None and not others
        if not plain or (linear.gain is not None and not np.all(linear.gain)):
            continue
        most = 4 * least(linear.unit)
        step = max(_READ // max(linear.columns * len(linear.places), 1), 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            weights = linear.rows_from(start, stop)
            if not weights.size:
                continue
            size = np.maximum(weights.max(axis=(1, 2)), -weights.min(axis=(1, 2)))
            known = (factor[start:stop] != 0) & (error[start:stop] < 0.5)
            found[start:stop] |= known & (size.astype(np.float64) > most)
    return found
