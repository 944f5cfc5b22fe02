"""Between which numbers the channels of a value lie, whatever the inputs, as far as one can tell.

This is interval arithmetic (Moore, "Interval Analysis", 1966). A Relu whose data are below 0 in a
channel puts out nothing else there, and no difference ahead of it shows. Bounds are drawn a little
too narrow, as rounding may have moved them: what lies on an edge counts as beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from bnfold._relation import passing
from bnfold._relation.call import Call, is_off
from bnfold._relation.expressions import (
    Array,
    Double,
    Expression,
    Linear,
    Term,
    along,
    behind,
    vector,
)
from bnfold._relation.liveness import live_places
from bnfold._relation.ranges import (
    ANY,
    BY_TYPE,
    COMPARING,
    FROM_TO,
    RISING,
    Range,
    added_up,
    cast,
    compared,
    inverse,
    multiplied,
    range_of,
    reduced,
    times,
    union,
)
from bnfold._relation.relations import Related
from bnfold._relation.side import attributes
from bnfold._relation.table import Known, Sum, Table
from bnfold._system.records import record

_NARROWER = 1e-6
"""Sums are narrower by so much of the sizes of what is added up."""
_MANY = 1 << 22
"""So many weights are read at a time; of larger constants the bounds are one pair."""
_MOVING = "Concat Flatten Gather Reshape Slice Split Squeeze Transpose Unsqueeze"
MOVING = frozenset(_MOVING.split())
"""Operators that move numbers, and change none; see `rearranging`."""
COPYING = frozenset(("DepthToSpace", "Expand", "SpaceToDepth", "Tile"))
"""Operators that leave out no number and change none, and move them in ways of their own."""
_AMONG = frozenset(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"))
_OVERALL = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "Resize", "Upsample", *COPYING))
_BY_SIGN = frozenset(
    (
        *("Div", "LRN", "MatMul", "Pow", "Reciprocal", "ReduceLogSumExp", "ReduceSum"),
        *("ThresholdedRelu",),
    )
)
_WITH_NUMBERS = ("Celu", "Elu", "Selu")
"""Functions whose own α may be another: below 0 no more is told than where they are flat."""


def made_of(table: Table) -> dict[int, Known | Sum]:
    """By base what makes it in the first file."""
    found: dict[int, Known | Sum] = {}
    for held in table.operators.values():
        for known in held:
            for base in known.outputs:
                if known.place is not None:
                    found.setdefault(base, known)
    for sums in table.sums.values():
        found.update({known.base: known for known in sums})
    return found


@record(eq=False)
class Bounds:
    """The bounds of what the first file computes.

    ``made`` tells by base what makes it.
    """

    table: Table
    made: Mapping[int, Known | Sum]
    held: dict[int, Range] = field(default_factory=dict)

    def of(self, value: Expression, rank: int | None) -> Range:
        """The bounds of a tensor of some rank."""
        waiting, seen = [term.base for term in value.terms], set[int]()
        while waiting:
            base = waiting.pop()
            if base in seen or base in self.held:
                continue
            seen.add(base)
            waiting += [term.base for each in _read(self.made.get(base)) for term in each.terms]
        for base in sorted(seen):  # What is read has been made before.
            self.held[base] = self._of_base(base)
        return self._of_sum(value, rank)

    def _of_base(self, base: int) -> Range:
        made, kind = self.made.get(base), self.table.types[base]
        whole = range_of(*BY_TYPE.get(kind, (-np.inf, np.inf)))
        if made is None:
            return whole
        if isinstance(made, Sum):
            return self._of_sum(made.expression, made.rank)
        found = self._of_operator(made, made.outputs.index(base))
        low, high = np.maximum(found.low, whole.low), np.minimum(found.high, whole.high)
        return Range(low, high) if np.all(low <= high) else whole

    def _of_sum(self, value: Expression, rank: int | None) -> Range:
        low = high = value.shift
        under = over = np.abs(value.shift)
        for term in value.terms:
            part = self.held.get(term.base, ANY)
            if term.linear is not None:
                part = self._of_linear(term.linear, part, rank)
            one, other = (times(term.scale, end) for end in part)
            least, most = np.minimum(one, other), np.maximum(one, other)
            try:
                low, high = low + least, high + most
                under, over = under + np.abs(least), over + np.abs(most)
            except ValueError:  # Their axes are not told rightly.
                return ANY
        if not value.terms:
            return Range(low, high)
        with np.errstate(invalid="ignore"):
            low = np.where(np.isinf(low), low, low + _NARROWER * under)
            high = np.where(np.isinf(high), high, high - _NARROWER * over)
        low, high = np.broadcast_arrays(low, high)
        crossed = low > high
        return Range(np.where(crossed, (low + high) / 2, low), np.where(crossed, low, high))

    def _of_linear(self, linear: Linear, data: Range, rank: int | None) -> Range:
        if linear.of_shift:
            data = range_of(0.0, 1.0)
        channels = linear.group * linear.columns
        ends = [vector(e, linear.data_axis, linear.data_rank, channels) for e in data]
        if ends[0] is None or ends[1] is None:
            if linear.axis == linear.data_axis < 0 and linear.gain is None:
                return _by_position(linear, data)
            takes = zip(data, (np.min, np.max), strict=True)
            ends = [by_channel(linear, channels, end, take) for end, take in takes]
        if linear.gain is not None:
            pair = [times(linear.gain, end) for end in ends if end is not None]
            ends = [np.minimum(*pair), np.maximum(*pair)]
        low, high = ends
        assert low is not None
        assert high is not None
        if linear.is_padded:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        lives = live_places(linear)
        if not lives.any():
            return range_of(0.0, 0.0)
        if np.all(np.isinf(low)) and np.all(np.isinf(high)) and not linear.of_shift:
            return ANY
        found = np.empty((2, linear.rows))
        each = linear.rows // linear.group
        step = max(_MANY // max(linear.columns * len(linear.places), 1), 1)
        for start in range(0, linear.rows, step):
            stop = min(start + step, linear.rows)
            weights = linear.rows_from(start, stop)[:, :, lives].astype(np.float64)
            up, down = (np.maximum(sign * weights, 0).sum(axis=2) for sign in (1, -1))
            columns = (np.arange(start, stop) // each)[:, None] * linear.columns
            columns = columns + np.arange(linear.columns)
            least = times(up, low[columns]) - times(down, high[columns])
            most = times(up, high[columns]) - times(down, low[columns])
            found[:, start:stop] = least.sum(axis=1), most.sum(axis=1)
        return Range(*(along(end, linear.axis, rank) for end in found))

    def _of_operator(self, known: Known, number: int) -> Range:
        kind, inputs = known.kind, self.inputs(known)
        data = inputs[0] if inputs else ANY
        if kind == "Clip" and known.numbers:
            return Range(*(np.clip(end, known.numbers[0], known.numbers[1]) for end in data))
        if kind in ("LeakyRelu", "PRelu"):
            return self._leaking(known, inputs)
        if kind in RISING and kind not in _WITH_NUMBERS:
            with np.errstate(all="ignore"):
                return Range(*(np.asarray(RISING[kind](end)) for end in data))
        if kind in FROM_TO:
            return range_of(*FROM_TO[kind])
        if kind in MOVING:
            return self._moved(known, number, inputs) or union(inputs).overall
        if kind in _AMONG and number == 0:
            rank = _rank(known)
            data = data if all(is_of_channels(end, rank) for end in data) else data.overall
            return union([data, range_of(0.0, 0.0)]) if kind == "AveragePool" else data
        if kind in _OVERALL and number == 0:
            return data.overall
        if kind == "Pad":
            filled = [range_of(each, each) for each in known.numbers]
            return union([data, *filled]).overall if filled else ANY
        if kind == "Cast":
            return cast(data, self.table.types[known.outputs[number]])
        if kind in _BY_SIGN and number == 0:
            return _by_sign(known, inputs)
        if kind in ("Max", "Min") and inputs:
            chosen = np.maximum if kind == "Max" else np.minimum
            lows, highs = zip(*inputs, strict=True)
            return Range(reduced(chosen, lows), reduced(chosen, highs))
        if kind == "Mul" and len(inputs) == 2:
            return _product(known, *inputs)
        if kind == "Where" and len(inputs) == 3:
            return union(inputs[1:])
        if kind in COMPARING and len(inputs) == 2:
            return compared(kind, *inputs)
        return ANY

    def _leaking(self, known: Known, inputs: Sequence[Range]) -> Range:
        """LeakyRelu and PRelu: a multiple below 0."""
        data, slope = inputs[0], inputs[-1]
        if known.kind == "LeakyRelu" and known.place is not None:
            alpha = attributes(known.place[2]).get("alpha", 0.01)
            slope = range_of(alpha, alpha)
        below = [times(s, np.minimum(end, 0)) for s in slope for end in data]
        low, high = reduced(np.minimum, below), reduced(np.maximum, below)
        return Range(low + np.maximum(data.low, 0), high + np.maximum(data.high, 0))

    def inputs(self, known: Known) -> list[Range]:
        """The bounds of what an operator reads."""
        assert known.place is not None
        side, scope, node = known.place
        found = []
        for place, value in enumerate(known.inputs):
            name = node.input[place] if place < len(node.input) else ""
            if value is not None:
                found.append(self.of(value, None))
                continue
            stored = side.constant(scope, name) if name else None
            values = None if stored is None else np.asarray(stored.load())
            if values is None or values.dtype.kind not in "fiub" or not values.size:
                found.append(ANY)
                continue
            numbers = values.astype(np.float64)
            own = range_of(numbers, numbers)
            found.append(own if numbers.size < _MANY else own.overall)
        return found

    def _moved(self, known: Known, number: int, inputs: Sequence[Range]) -> Range | None:
        joins = known.kind == "Concat"
        taken = inputs if joins else inputs[:1]
        found = moved(known, [Related(*each) for each in taken])
        return None if found is None or number >= len(found) else Range(*found[number])


def moved(known: Known, given: Sequence[Related | None]) -> list[tuple[Double, Double]] | None:
    """Where an operator that moves numbers puts the scales and shifts of its data; None if unknown.

    To it they are numbers of the data as any others.
    """
    assert known.place is not None
    side, scope, node = known.place
    joins = known.kind == "Concat"
    rest = [None] * (len(node.input) - len(given))
    numbers, inputs = known.numbers, [*given] if joins else [*given, *rest]
    call = Call(side, scope, node, inputs, known.kind, numbers, numbers)
    law = passing.LAWS.get(known.kind)
    try:
        found = None if law is None else law(call)
    except (IndexError, ValueError):  # Indices that the operator itself would refuse.
        return None
    return found if found is None or isinstance(found, list) else [found]


def by_channel(linear: Linear, channels: int, end: Double, take: Callable[..., Double]) -> Double:
    """Of each channel that an operator adds up the least or largest number, wherever it lies."""
    axes = behind(linear.data_axis, linear.data_rank)
    if axes is None or end.ndim <= axes or end.shape[-1 - axes] not in (1, channels):
        return np.full(channels, take(end))
    own = np.moveaxis(end, -1 - axes, 0).reshape(end.shape[-1 - axes], -1)
    return np.broadcast_to(take(own, axis=1), (channels,))


def _by_position(linear: Linear, data: Range) -> Range:
    """A product whose data have other bounds along other axes than the one that it adds up."""
    axis = linear.axis
    if data.low.ndim < -axis or data.high.ndim < -axis or linear.rows * linear.columns > _MANY:
        return ANY
    weights = linear.load().astype(np.float64)[:, :, 0]
    shape = (-1, *(1,) * (-1 - axis))
    up, down = (np.maximum(sign * weights, 0).sum(axis=1).reshape(shape) for sign in (1, -1))
    low, high = np.min(data.low, axis, keepdims=True), np.max(data.high, axis, keepdims=True)
    return Range(times(up, low) - times(down, high), times(up, high) - times(down, low))


def _by_sign(known: Known, inputs: Sequence[Range]) -> Range:
    """Operators of which the sign of their data tells some, and how many numbers are added up."""
    kind, data = known.kind, inputs[0]
    if kind == "ThresholdedRelu":
        return range_of(min([0.0, *known.numbers]), np.inf)
    if kind == "Reciprocal":
        return inverse(data)
    if kind == "Div" and len(inputs) == 2:
        return _product(known, data, inverse(inputs[1]))
    if kind == "MatMul" and len(inputs) == 2:
        return added_up(multiplied(*(each.overall for each in inputs)), _count(known))
    if kind == "Pow" and len(inputs) == 2:
        is_even = np.all(inputs[1].is_one & (inputs[1].low % 2 == 0))
        return range_of(0.0, np.inf) if is_even or np.all(data.low >= 0) else ANY
    if kind == "ReduceSum":
        return added_up(data.overall, _count(known))
    if kind == "ReduceLogSumExp":
        return Range(data.overall.low, np.asarray(np.inf))
    return added_up(union([data.overall, range_of(0.0, 0.0)]), None) if kind == "LRN" else ANY


def _count(known: Known) -> int | None:
    """How many numbers a ReduceSum or a MatMul adds up to one; None where that is not known."""
    assert known.place is not None
    side, scope, node = known.place
    shape, axes = side.shapes.shape(scope, node.input[0]), [-1]
    if known.kind == "ReduceSum":
        told = Call(side, scope, node, [], known.kind).integers(1, "axes")
        axes = told or list(range(len(shape or ())))
        shape = None if told is None else shape
    sizes = None if not shape else [shape[axis] for axis in {axis % len(shape) for axis in axes}]
    known_sizes = [size for size in sizes or () if size is not None]
    return math.prod(known_sizes) if sizes and len(known_sizes) == len(sizes) else None


def _rank(known: Known) -> int | None:
    """The number of axes of what an operator reads."""
    assert known.place is not None
    side, scope, node = known.place
    return side.rank(scope, node.input[0])


def is_of_channels(values: Array, rank: int | None) -> bool:
    """Whether numbers of a tensor are the same at all positions."""
    return values.size == 1 or (rank is not None and is_off(values, rank, range(2, rank)))


def _read(made: Known | Sum | None) -> list[Expression]:
    if isinstance(made, Sum):
        return [made.expression]
    return [] if made is None else [value for value in made.inputs if value is not None]


def _product(known: Known, one: Range, other: Range) -> Range:
    low, high = multiplied(one, other)
    maps = [value.map for value in known.inputs if value is not None]
    if len(maps) == 2 and _is_same(*maps):
        low = np.maximum(low, 0)  # A square.
    return Range(low, high)


def _is_same(one: Term | None, other: Term | None) -> bool:
    if one is None or other is None or one.base != other.base:
        return False
    return bool(np.array_equal(one.scale, other.scale))


def is_flat(known: Known, data: Range) -> NDArray[np.bool_]:
    """Where a function of one number puts out the same for all numbers of its data."""
    ends, kind = list(data), known.kind
    if kind in ("LeakyRelu", "PRelu"):
        kind = "Relu" if _is_flat_below(known) else kind
    with np.errstate(all="ignore"):
        if kind == "Clip" and known.numbers:
            ends = [np.clip(end, known.numbers[0], known.numbers[1]) for end in ends]
        elif kind == "ThresholdedRelu" and known.numbers:
            ends = [np.maximum(end, known.numbers[0]) for end in ends]
        elif kind in RISING:
            ends = [np.asarray(RISING[kind](end)) for end in ends]
    return np.asarray(ends[0] == ends[1])


def _is_flat_below(known: Known) -> bool:
    """Whether a LeakyRelu or PRelu may put out 0 for all numbers below 0."""
    assert known.place is not None
    side, scope, node = known.place
    if known.kind == "LeakyRelu":
        return not attributes(node).get("alpha", 0.01)
    slope = side.constant(scope, node.input[1])
    return slope is None or not np.all(slope.load())


def narrowed(known: Known, inputs: Sequence[Range], place: int) -> NDArray[np.bool_]:
    """Where a Max or Min of several never takes the one at a place."""
    own = inputs[place]
    lost = np.zeros((), np.bool_)
    for number, other in enumerate(inputs):
        if number != place and known.kind == "Max":
            lost = lost | (own.high <= other.low)
        elif number != place:
            lost = lost | (own.low >= other.high)
    return lost
