"""What an output needs, what depends on the inputs, and what of a difference a sum passes on.

A difference is one number for each channel, drawn at random where it depends on the data: what
cancels cancels for such numbers, too. 0 is a channel that is the same. Where the channels are not
known any more it is `Seen.SOMEWHERE`, and `Seen.UNSURE` where nothing may be left of it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope
from bnfold._relation.expressions import Double, Expression, Linear, along, vector
from bnfold._relation.table import Table
from bnfold._run.nodes import reads

CANCELS = 1e-5
"""What is left of a sum is nothing if it is a smaller part of what is added up."""
_MANY = 1 << 22
"""So many weights are read at a time; larger differences are only known to be somewhere."""


class Seen(enum.Enum):
    """What is known of a difference besides its channels."""

    SOMEWHERE = enum.auto()
    UNSURE = enum.auto()


Effect = Double | Seen | None


def needed(scope: Scope, results: Collection[str]) -> list[NodeProto]:
    """The nodes of a graph that some of its tensors depend on, in order."""
    wanted, found = set(results), list[NodeProto]()
    for node in reversed(scope.nodes):
        if not wanted.isdisjoint(filter(None, node.output[:])):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def varies(table: Table, base: int) -> bool:
    """Whether a base depends on an input of the model, as far as the first file tells.

    ``x − x`` does not, and neither does what is made of it alone.
    """
    made = {
        b: known.inputs
        for each in table.operators.values()
        for known in each
        for b in known.outputs
    }
    for sums in table.sums.values():
        made.update({known.base: [known.expression] for known in sums})
    waiting, seen = [base], {base}
    while waiting:
        current = waiting.pop()
        given = [value for value in made.get(current, ()) if value is not None]
        if not given:  # An input, or random numbers.
            return True
        fresh = {t.base for value in given for t in value.terms if np.any(t.scale)} - seen
        seen |= fresh
        waiting += fresh
    return False


def kept(values: Double | NDArray[np.bool_]) -> Effect:
    """A difference with these numbers; None if all are 0."""
    made = np.asarray(values, np.float64)
    return made if made.any() else None


def of_sum(value: Expression, found: Mapping[int, Effect], rank: int | None) -> Effect:
    """What a sum makes of the differences of its bases."""
    total, size, is_somewhere = np.zeros(()), np.zeros(()), False
    for term in value.terms:
        effect = found.get(term.base)
        if effect is None or not np.any(term.scale):
            continue
        if term.linear is not None:
            effect = _of_linear(term.linear, effect, rank)
        if effect is Seen.UNSURE:
            return effect
        if effect is Seen.SOMEWHERE:
            if not np.all(term.scale):
                return Seen.UNSURE
            is_somewhere = True
        elif effect is not None:
            part = term.scale * effect
            try:
                total, size = total + part, size + np.abs(part)
            except ValueError:
                return Seen.UNSURE
    if is_somewhere:
        return Seen.SOMEWHERE
    return kept(np.where(np.abs(total) > CANCELS * size, total, 0.0))


def weight_of(place: Sequence[int]) -> float:
    """A number that stands for a place of a window: that of a sum is the product of both's."""
    bases = (0.7548, 0.5698, 0.8191, 0.6711)
    return float(np.prod([base**at for base, at in zip(bases, place, strict=False)]))


def live_places(linear: Linear, pads: Sequence[int] = ()) -> NDArray[np.bool_]:
    """By place whether it is known to read data anywhere, and not padding alone.

    ``pads`` are those that the data have themselves, before and behind each axis of positions.

    Output position p of a window reads ``s·p + place``, the last one has ``s·p <= size + extent``.
    Position p of a transposed one reads ``i`` with ``s·i + d·k - pad = p``.
    """
    if not (linear.is_padded or any(pads)):
        return np.ones(len(linear.places), np.bool_)
    count = len(linear.places[0])
    if any(pads):
        if linear.kind[0] != "window" or len(pads) != 2 * count:
            return np.zeros(len(linear.places), np.bool_)
        linear = _ahead_of_pads(linear, pads)
    sizes = linear.sizes if linear.sizes is not None else (None,) * count
    if len(sizes) != count or linear.kind[0] not in ("window", "same", "transposed"):
        return np.zeros(len(linear.places), np.bool_)
    return np.asarray(
        [
            all(_is_live(linear, axis, at, size) for axis, (at, size) in enumerate(pairs))
            for pairs in (tuple(zip(place, sizes, strict=True)) for place in linear.places)
        ]
    )


def _ahead_of_pads(linear: Linear, pads: Sequence[int]) -> Linear:
    """The same windows on the data ahead of a Pad."""
    count = len(linear.places[0])
    before, total = pads[:count], [a + b for a, b in zip(pads[:count], pads[count:], strict=True)]
    places = tuple(
        tuple(at - pad for at, pad in zip(place, before, strict=True)) for place in linear.places
    )
    extents = tuple(e + pad for e, pad in zip(linear.kind[2], total, strict=True))
    sizes = linear.sizes
    if sizes is not None and len(sizes) == count:
        sizes = tuple(
            None if size is None else size - pad for size, pad in zip(sizes, total, strict=True)
        )
    kind = (*linear.kind[:2], extents)
    return replace(linear, kind=kind, places=places, sizes=sizes)


def _is_live(linear: Linear, axis: int, place: int, size: int | None) -> bool:
    kind = linear.kind
    if kind[0] == "same":  # The one in the middle reads data, whatever their size.
        held = sorted({each[axis] for each in linear.places})
        middle = (len(held) - 1) // 2 if kind[1] == "SAME_UPPER" else len(held) // 2
        return place == held[middle]
    if kind[0] == "window":
        step, extent = kind[1][axis], kind[2][axis]
        if size is None:
            return bool(0 <= place < -extent)
        return any(0 <= p + place < size for p in range(0, size + extent + 1, step))
    fixed = dict(kind[2:])
    spatial = len(linear.places[0])
    if fixed["output_shape"] or fixed["auto_pad"] not in (b"NOTSET", b"VALID"):
        return False
    step, spread = fixed["strides"][axis], fixed["dilations"][axis]
    before, behind = fixed["pads"][axis], fixed["pads"][axis + spatial]
    reach = (kind[1][axis] - 1) * spread
    if size is None:
        return bool(before <= place * spread <= reach - behind)
    last = (size - 1) * step + reach + fixed["output_padding"][axis] - before - behind
    return any(0 <= i * step + place * spread - before <= last for i in range(size))


def _of_linear(linear: Linear, effect: Double | Seen, rank: int | None) -> Effect:
    """What comes of a difference behind a linear operator, row by row."""
    if linear.of_shift or effect is Seen.UNSURE:
        return None if linear.of_shift else effect
    channels, places = linear.group * linear.columns, live_places(linear)
    heavy = np.where(places, [weight_of(place) for place in linear.places], 0.0)
    data = None
    if not isinstance(effect, Seen):
        data = vector(effect, linear.data_axis, linear.data_rank, channels)
        ends = linear.data_axis == linear.axis == -1
        if data is None and ends and effect.shape[-1] in (1, channels) and effect.size < _MANY:
            return _of_positions(linear, effect)
    used = np.zeros(channels, np.bool_)
    total, size = np.zeros(linear.rows), np.zeros(linear.rows)
    each = linear.rows // linear.group
    step = max(_MANY // max(linear.columns * len(linear.places), 1), 1)
    for start in range(0, linear.rows, step):
        stop = min(start + step, linear.rows)
        weights = linear.rows_from(start, stop).astype(np.float64) @ heavy
        at = (np.arange(start, stop) // each)[:, None] * linear.columns
        at = at + np.arange(linear.columns)
        if linear.gain is not None:
            weights = weights * np.broadcast_to(linear.gain, (channels,))[at]
        used[at[weights != 0]] = True
        if data is not None:
            addends = weights * data[at]
            total[start:stop] = addends.sum(axis=1)
            size[start:stop] = np.abs(addends).sum(axis=1)
    if data is None:
        return Seen.SOMEWHERE if used.all() else Seen.UNSURE
    rows = np.where(np.abs(total) > CANCELS * size, total, 0.0)
    if linear.axis == 1 and rank is None:
        rank = linear.data_rank
    return kept(along(rows, linear.axis, rank))


def _of_positions(linear: Linear, effect: Double) -> Effect:
    """The same where positions differ otherwise, of a product along the last axis."""
    weights = linear.load().astype(np.float64)[:, :, 0]
    if linear.gain is not None:
        weights = weights * linear.gain
    wide = np.broadcast_to(effect, (*effect.shape[:-1], linear.columns))
    total, size = wide @ weights.T, np.abs(wide) @ np.abs(weights).T
    return kept(np.where(np.abs(total) > CANCELS * size, total, 0.0))
