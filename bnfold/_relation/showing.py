"""What of two files that differ in one place is another number there, for some input.

Weights for channels that are the same for every input make no difference that a bias could not make
up for, and those that read padding alone make none at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold._relation import effects
from bnfold._relation.bounds import Bounds, by_channel
from bnfold._relation.call import Call
from bnfold._relation.expressions import (
    Double,
    Expression,
    Incomparable,
    along,
    of_base,
    vector,
)
from bnfold._relation.liveness import Effect, Seen, kept, live_places, weight_of
from bnfold._relation.problems import OUTPUT, SURE, Showing
from bnfold._relation.relations import Related
from bnfold._relation.rows import Key, Part, Reader, blocks, filled, layout_of, parts_of
from bnfold._relation.solving import Difference, compared
from bnfold._relation.table import Known, Sum

_SEED = 20261127
_NOTHING = 1e-6
"""A constant that is scaled and shifted to so small a part of itself is the same."""


def by_rows(known: Sum, value: Expression, worst: Difference) -> Showing:
    """What differs of a sum whose weights do."""
    return lambda bounds: {known.base: of_rows(bounds, known, value, worst)}


def by_map(base: int, found: Related) -> Showing:
    """What differs of a base that is scaled or shifted."""
    return lambda bounds: {base: of_map(bounds, of_base(base), found)}


def by_output(value: Expression, found: Related) -> Showing:
    """What differs of an output that is scaled or shifted."""
    return lambda bounds: {OUTPUT: of_map(bounds, value, found)}


def by_operator(known: Known, relations: Sequence[Related | None]) -> Showing:
    """What differs behind an operator whose data are scaled or shifted."""

    def showing(bounds: Bounds) -> dict[int, Effect]:
        given = [
            of_map(bounds, value, one) if value is not None and one is not None else None
            for value, one in zip(known.inputs, relations, strict=True)
        ]
        if all(effect is None for effect in given):
            return {}
        found = effects.of_operator(bounds, known, given, True)
        return dict(zip(known.outputs, found, strict=False))

    return showing


def of_map(bounds: Bounds, value: Expression, found: Related) -> Effect:
    """What differs of a map of a base that is scaled or shifted once more."""
    if found.is_identity:
        return None
    data = bounds.of(value, None)
    scale, shift = found.scale - 1, found.shift
    fixed = np.where(data.is_one, data.low, 0.0)
    made = scale * np.where(data.is_one, fixed, 0.8137) + shift
    size = np.abs(scale) * np.where(data.is_one, np.abs(fixed), 1.0) + np.abs(shift)
    return kept(np.where(np.abs(made) > _NOTHING * size, made, 0.0))


def of_rows(bounds: Bounds, known: Sum, value: Expression, worst: Difference) -> Effect:
    """By row what differs of a sum, of the weights that make a difference.

    Whether it does is seen of these alone. What the walk behind it takes for right has the factors
    that it has found of all weights.
    """
    first, rank = known.expression, known.rank
    linears = [t.linear for e in (first, value) for t in e.terms if t.linear is not None]
    if not linears:
        return _of_scales(bounds, first, value, worst)
    axis, rows, length = linears[0].axis, linears[0].rows, len(linears[0].places[0])
    meant = vector(worst.otherwise.scale, axis, rank, rows)
    if meant is None:
        return Seen.UNSURE
    found, reader, unit = np.zeros(rows), Reader(), max(each.unit for each in linears)
    try:
        sides = [parts_of(each, axis, rank, rows, length) for each in (first, value)]
        joint = {key: [p for s in sides for p in s.get(key, ())] for s in sides for key in s}
        layouts = {key: layout_of(parts) for key, parts in joint.items()}
        drawn = {key: _drawn(bounds, key, parts) for key, parts in joint.items()}
        for block in blocks(rows, sum(each.width for each in layouts.values()), worst.channels):
            (one, off), (other, away) = (filled(s, layouts, block, reader) for s in sides)
            parts = []
            for key, layout in layouts.items():
                group = len(drawn[key]) // layout.columns
                columns = (block * group // rows)[:, None] * layout.columns
                own = drawn[key][columns + np.arange(layout.columns)]
                parts.append(own.reshape(len(block), -1))
            numbers = np.concatenate(parts, axis=1)
            one, other = (np.where(numbers != 0, each, 0.0) for each in (one, other))
            ratio, far, over = compared(one, off, other, away)
            size = np.maximum(np.abs(other), np.abs(ratio[:, None] * one)) * unit
            sure = (over & (far >= SURE * (1 + worst.allowed) * size)).any(axis=1)
            apart = ((other - meant[block][:, None] * one) * numbers).sum(axis=1)
            found[block] = np.where(sure, apart, 0.0)
        return kept(along(found, axis, rank))
    except Incomparable:
        return Seen.UNSURE


def _drawn(bounds: Bounds, key: Key, parts: Sequence[Part]) -> Double:
    """By channel and place of a layout a drawn number; 0 where a weight makes no difference."""
    linear, places = parts[0][0], layout_of(parts).places
    channels, shows = linear.group * linear.columns, np.zeros(len(places))
    pads = _pads(bounds, key[0])
    for own, _, _ in parts:
        lives = np.zeros(len(own.places)) if pads is None else live_places(own, pads)
        for place, is_live in zip(own.places, lives, strict=True):
            if is_live:
                shows[places[place]] = weight_of(place)
    if key[1]:  # It reads 1 in every channel.
        return np.broadcast_to(shows, (channels, len(shows)))
    numbers = np.random.default_rng([_SEED, key[0]]).uniform(0.5, 1.5, channels)
    is_one = bounds.of(of_base(key[0]), None).is_one.astype(np.float64)
    fixed = by_channel(linear, channels, is_one, np.min)
    numbers = np.where(fixed != 0, 0.0, numbers)
    return np.asarray(numbers[:, None] * shows)


def _pads(bounds: Bounds, base: int) -> Sequence[int] | None:
    """What a Pad puts around the positions of a base; () without one, None where not known.

    Between the two a number stays where it is.
    """
    made = bounds.made.get(base)
    while made is not None:
        values = made.inputs if isinstance(made, Known) else [made.expression]
        if isinstance(made, Known) and made.kind == "Pad":
            side, scope, node = made.place or (None, None, None)
            if side is None or scope is None or node is None:
                return None
            pads = Call(side, scope, node, [], "Pad").integers(1, "pads")
            if not made.numbers or pads is None or len(pads) < 6:
                return () if not made.numbers and pads is not None else None
            half = len(pads) // 2
            return [*pads[2:half], *pads[half + 2 :]]
        if isinstance(made, Known) and made.kind not in effects.POINTWISE:
            return ()
        term = values[0].map if values and values[0] is not None else None
        made = bounds.made.get(term.base) if term is not None else None
    return ()


def _of_scales(bounds: Bounds, first: Expression, value: Expression, worst: Difference) -> Effect:
    """What differs of a sum without linear operators, number by number."""
    total = np.zeros(())
    for sign, each in ((-1.0, first), (1.0, value)):
        for term in each.terms:
            numbers = np.random.default_rng([_SEED, term.base]).uniform(0.5, 1.5)
            is_one = bounds.of(of_base(term.base), None).is_one
            total = total + np.where(is_one, 0.0, sign * numbers * term.scale)
    if total.size != worst.of:  # Its numbers do not lie as those of the difference do.
        return kept(total) if total.all() else Seen.UNSURE
    marked = np.zeros(total.size)
    marked[list(worst.channels)] = total.reshape(-1)[list(worst.channels)]
    return kept(marked.reshape(total.shape))
