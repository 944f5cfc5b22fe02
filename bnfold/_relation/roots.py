"""Tensors that hold the numbers of another one in the same order, or ranges of them.

One rearrangement of another is a rearrangement of the first one's data, and one part of another is
a part of the first one's data.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from bnfold._relation.expressions import Double, Expression, Term, lies_along
from bnfold._relation.table import Part, Ranges, Table


def root_of(table: Table, data: Expression) -> Expression:
    """The data of an operator that moves numbers, ahead of all others that moved them before.

    A scale or shift that varies lies along axes of its own, and stays where it is.
    """
    term = data.map
    root = None if term is None else table.roots.get(term.base)
    return (None if root is None else _of(data, root)) or data


def _of(data: Expression, root: int) -> Expression | None:
    """The same map of another base; None for one that varies along axes."""
    (term,) = data.terms
    if term.scale.size > 1 or data.shift.size > 1 or np.size(term.error) > 1:
        return None
    error = float(np.asarray(term.error).reshape(()))
    moved = Term(root, term.scale.reshape(()), error)
    shift, mass = data.shift.reshape(()), np.asarray(np.max(data.mass))
    return replace(data, terms=(moved,), shift=shift, mass=mass)


def transposed(data: Expression, base: int, order: tuple[int, ...]) -> Expression:
    """The same map of a base that is transposed: ``T·(s·x + t) = T·s · T·x + T·t``."""
    (term,) = data.terms
    scale, shift, mass = (_turned(v, order) for v in (term.scale, data.shift, data.mass))
    error = _turned(np.asarray(term.error), order)
    return replace(
        data, terms=(replace(term, base=base, scale=scale, error=error),), shift=shift, mass=mass
    )


def _turned(values: Double, order: tuple[int, ...]) -> Double:
    if values.size == 1:
        return values.reshape(())
    full = values.reshape((1,) * (len(order) - values.ndim) + values.shape)
    return np.transpose(full, order)


Parts = tuple[Double, Double, Double, Double]
"""Scale, its error, shift and mass of a map: numbers, or vectors along the last axis."""


def along_rows(data: Expression, keeps: bool) -> Parts | None:
    """What a map is along the last axis, if this ``keeps``; otherwise it has to be one number.

    None where scale or shift varies along another axis.
    """
    term = data.map
    if term is None:
        return None
    found = (term.scale, np.asarray(term.error), data.shift, data.mass)
    if not all(values.size == 1 or (keeps and lies_along(values, -1, None)) for values in found):
        return None
    flat = [values.reshape(-1) if values.size > 1 else values.reshape(()) for values in found]
    return flat[0], flat[1], flat[2], flat[3]


def with_parts(data: Expression, base: int, parts: Parts) -> Expression:
    """The same map of another base."""
    return replace(data, terms=(Term(base, *parts[:2]),), shift=parts[2], mass=parts[3])


def note(table: Table, data: Expression, made: Expression) -> None:
    """Note of what a new base is a rearrangement."""
    bases = _moved(data, made)
    if bases is not None:
        root = table.roots.get(bases[0], bases[0])
        if root != bases[1]:
            table.roots.setdefault(bases[1], root)


def _moved(data: Expression, made: Expression) -> tuple[int, int] | None:
    """The bases of two maps with one scale and one shift for all numbers, the same in both."""
    read, written = data.map, made.map
    if read is None or written is None or read.base == written.base:
        return None
    plain = read.scale.size == 1 and written.scale.size == 1
    same = plain and read.scale == written.scale and np.array_equal(data.shift, made.shift)
    return (read.base, written.base) if same and data.shift.size == 1 else None


def note_turn(table: Table, data: Expression, made: Expression, order: tuple[int, ...]) -> None:
    """Note of what a new base is a Transpose."""
    bases = _moved(data, made)
    if bases is not None:
        root, before = table.turns.get(bases[0], (bases[0], tuple(range(len(order)))))
        if len(before) == len(order) and root != bases[1]:
            both = tuple(before[axis] for axis in order)
            table.turns.setdefault(bases[1], (root, both))


def parts_of(table: Table, part: Part, axis: int) -> tuple[Part, ...]:
    """The parts of which one part of a Concat is made along the same axis, or the part itself."""
    _, value = part
    term = value.map if value is not None and value.is_base else None
    chain = None if term is None else table.chains.get(term.base)
    return chain[1] if chain is not None and chain[0] == axis else (part,)


def note_chain(table: Table, made: Expression, axis: int, parts: tuple[Part, ...]) -> None:
    """Note of what a base is a Concat."""
    term = made.map
    if term is not None and made.is_base:
        table.chains.setdefault(term.base, (axis, parts))


def whole_of(table: Table, data: Expression, place: Hashable) -> tuple[Expression, Hashable] | None:
    """The tensor of which a part is taken again, and the ranges of both parts in it."""
    term = data.map
    cut = None if term is None else table.cuts.get(term.base)
    both = None if cut is None else _joined(cut[1], _ranges(place))
    whole = None if cut is None else _of(data, cut[0])
    return None if both is None or whole is None else (whole, ("ranges", both))


def note_cut(table: Table, data: Expression, made: Expression, place: Hashable) -> None:
    """Note of what a new base is a part."""
    bases = _moved(data, made)
    if bases is None:
        return
    root, before = table.cuts.get(bases[0], (bases[0], ()))
    both = _joined(before, _ranges(place))
    if both is None:
        root, both = bases[0], _ranges(place)
    if root != bases[1]:
        table.cuts.setdefault(bases[1], (root, both))


def _ranges(place: Hashable) -> Ranges:
    assert isinstance(place, tuple)
    ranges: Ranges = place[1]
    return ranges


def _joined(before: Ranges, behind: Ranges) -> Ranges | None:
    """The ranges of one part of another; None if one axis is cut twice, and not by numbers.

    The n-th of the numbers ``start + step·k`` is taken at ``start + step·n``.
    """
    made = dict(before)
    for axis, taken in behind:
        held = made.get(axis)
        if held is None:
            made[axis] = taken
            continue
        assert isinstance(held, tuple)
        assert isinstance(taken, tuple)
        if held[0] != "numbers" or taken[0] != "numbers":
            return None
        _, count, start, step = taken
        made[axis] = ("numbers", count, held[2] + start * held[3], step * held[3])
    return tuple(sorted(made.items(), key=lambda pair: pair[0]))
