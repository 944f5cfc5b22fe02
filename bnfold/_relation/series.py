"""Linear operators in series: one that reads what others put out, as one operator on their data.

``L2(Σ s·L1(x) + t) = Σ (L2·s·L1)(x) + L2(t)``. Where L2 reads zeros around its data, L1 must put
out zeros there as well: it does if it reads one place at a time, and adds no t.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from bnfold._relation.expressions import (
    ZERO,
    Array,
    Double,
    Expression,
    Linear,
    Term,
    vector,
)
from bnfold._relation.linear import Applied, apply
from bnfold._relation.table import Sum, Table

_LARGEST = 1 << 26
"""Products of more weights are not made."""
_DEPTH = 8
"""So many operators in a row become one."""


def expanded(value: Expression, sums: Mapping[int, Sum]) -> Expression | None:
    """An expression in which no linear operator reads a sum of linear operators, where it can be.

    ``sums`` has what bases are. None if there is nothing to expand.
    """
    changed = False
    for _ in range(_DEPTH):
        parts = [_of_term(term, value, sums) for term in value.terms]
        if all(part is None for part in parts):
            break
        changed = True
        total = replace(value, terms=())
        for term, part in zip(value.terms, parts, strict=True):
            total = total.plus(
                replace(value, terms=(term,), shift=ZERO, mass=ZERO, error=0.0)
                if part is None
                else part
            )
        value = total
    return value if changed else None


def that_read(table: Table, bases: frozenset[int]) -> list[tuple[Sum, Expression]]:
    """The sums of the first file that read some bases once they are expanded, in order.

    A sum is expanded when it is first asked for: most files never ask.
    """
    start = min(bases, default=-1)
    if start not in table.followed:
        table.followed.add(start)
        for known in _behind(table.readers, start):
            longer = None
            if known.base not in table.seen:
                table.seen.add(known.base)
                longer = expanded(known.expression, table.definitions)
            if longer is not None:
                read = frozenset(term.base for term in longer.terms)
                table.expanded.setdefault(read, []).append((known, longer))
    return sorted(table.expanded.get(bases, ()), key=lambda pair: pair[0].base)


def _behind(readers: Mapping[int, Collection[Sum]], base: int) -> list[Sum]:
    """The sums that read a base, or read sums that do, as far as `expanded` may see."""
    found: dict[int, Sum] = {}
    level = [base]
    for _ in range(_DEPTH + 1):
        fresh = {s.base: s for each in level for s in readers.get(each, ()) if s.base not in found}
        found |= fresh
        level = list(fresh)
    return list(found.values())


def _of_term(term: Term, value: Expression, sums: Mapping[int, Sum]) -> Expression | None:
    """What a term is in the data of what it reads, or None."""
    inner, linear = sums.get(term.base), term.linear
    if inner is None:
        return None
    held = inner.expression
    if linear is not None and linear.of_shift:
        return _of_image(term, held)
    if linear is None:  # A sum in another one: what it adds up is added up there.
        return _of_sum(term, inner)
    if held.is_wide:
        return None
    pointwise = all(_is_pointwise(each.linear) for each in held.terms)
    if linear.is_padded and not pointwise:
        return None
    middle = linear.group * linear.columns
    made: list[Term] = []
    for each in held.terms:
        factor = vector(each.scale, linear.data_axis, inner.rank, middle)
        if factor is None:
            return None
        error = vector(np.asarray(each.error), linear.data_axis, inner.rank, middle)
        one = None if error is None else _composed(linear, each.linear, factor, error)
        if one is None:
            return None
        made.append(Term(each.base, term.scale, term.error, one))
    shift = Expression((Term(term.base),), held.shift, held.mass, held.error, held.unit)
    moved = apply(Applied("", linear, inner.rank, inner.rank), shift)
    if moved is None:
        return None
    # The shift of what it reads, behind it: its own term is what `made` replaces.
    moved = replace(moved, terms=moved.terms[1:]).scaled(term.scale, term.error, value.unit)
    images = [_of_image(image, held) for image in moved.terms]
    if None in images:
        return None
    rest = [image.terms[0] for image in images if image is not None]
    return replace(moved, terms=(*made, *rest))


def _of_sum(term: Term, inner: Sum) -> Expression | None:
    """What a sum is that is part of another one: its own terms, each times the scale."""
    if inner.own.map is None or np.any(inner.own.map.scale != 1):
        return None  # Channels that depend on nothing stand for themselves.
    held = inner.expression
    return replace(held, origins=frozenset()).scaled(term.scale, term.error, held.unit)


def _of_image(term: Term, held: Expression) -> Expression | None:
    """An image of ones in the place of data that one pointwise window makes of other data.

    It depends on their sizes alone, and these are the same.
    """
    inner = held.terms[0].linear if len(held.terms) == 1 and not held.is_wide else None
    if inner is None or inner.kind[0] != "window" or not _is_pointwise(inner):
        return None
    return Expression((replace(term, base=held.terms[0].base),))


def _is_pointwise(linear: Linear | None) -> bool:
    """Whether an operator reads one place for each that it writes."""
    if linear is None:
        return True
    if linear.kind[0] == "product":
        return True
    if linear.kind[0] != "window" or linear.is_padded:
        return False
    steps, extents = linear.kind[1:3]
    plain = set(steps) == {1} and set(extents) == {-1}
    return plain and not any(any(place) for place in linear.places)


def _composed(outer: Linear, inner: Linear | None, factor: Double, errors: Double) -> Linear | None:
    """``outer · factor · inner`` as one operator, or None where it is none of a known kind.

    ``errors`` are of the factor, channel by channel.
    """
    gain = factor if outer.gain is None else factor * outer.gain
    error = float(np.min(errors))
    more = errors - error
    if inner is None:
        own = outer.slack
        if more.any():
            own = more if own is None else own + more
        return replace(outer, gain=gain, error=outer.error + error, slack=own)
    if inner.axis != outer.data_axis or inner.of_shift:
        return None
    if outer.slack is not None or inner.slack is not None:
        return None
    if inner.rows != outer.group * outer.columns:
        return None
    step: tuple[int, ...] = ()
    if outer.kind[0] == inner.kind[0] == "product":
        if inner.axis != inner.data_axis:
            return None
        kind = outer.kind
    elif outer.kind[0] == inner.kind[0] == "window":
        step = inner.kind[1]
        steps = tuple(a * b for a, b in zip(step, outer.kind[1], strict=True))
        pairs = zip(inner.kind[2], step, outer.kind[2], strict=True)
        kind = ("window", steps, tuple(e + s * (1 + f) for e, s, f in pairs))
    else:
        return None
    both = {
        (p, q): tuple(s * a + b for s, a, b in zip(step, p, q, strict=True))
        for p in outer.places
        for q in inner.places
    }
    places = tuple(sorted(set(both.values())))
    channels = inner.group * inner.columns
    if outer.rows * channels * len(places) > _LARGEST:
        return None

    count = outer.columns * len(outer.places)
    slack = outer.error + inner.error + error + outer.unit / 2 * (1 + np.sqrt(count))
    # What a channel is known less well counts as more of its size.
    weight = 1 + more / slack if more.any() else np.ones(())

    def product(sizes: bool) -> Array:
        return _product(outer, inner, np.abs(gain) * weight if sizes else gain, both, places, sizes)

    return replace(
        outer,
        kind=kind,
        data_axis=inner.data_axis,
        load=lambda: product(False),
        mass=lambda: product(True),
        part=None,
        columns=channels,
        group=1,
        places=places,
        gain=None,
        error=slack,
        unit=max(outer.unit, inner.unit),
        is_padded=outer.is_padded or inner.is_padded,
    )


def _product(
    outer: Linear,
    inner: Linear,
    gain: Double,
    both: Mapping[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, ...]],
    places: tuple[tuple[int, ...], ...],
    sizes: bool,
) -> Array:
    """The weights of two operators in series, or with ``sizes`` the sums of their sizes."""
    first, second = (_dense(each, sizes) for each in (inner, outer))
    at = {place: number for number, place in enumerate(places)}
    if inner.gain is not None:
        first *= np.abs(inner.gain)[:, None] if sizes else inner.gain[:, None]
    made = np.zeros((outer.rows, first.shape[1], len(places)))
    for i, p in enumerate(outer.places):
        for j, q in enumerate(inner.places):
            made[:, :, at[both[p, q]]] += (second[:, :, i] * gain) @ first[:, :, j]
    return made


def _dense(linear: Linear, sizes: bool) -> Double:
    """All weights of an operator, [rows, channels, places]; zeros outside of a row's group."""
    held = linear.mass() if sizes and linear.mass is not None else linear.load()
    values = np.abs(held.astype(np.float64)) if sizes else held.astype(np.float64)
    if linear.group == 1:
        return values
    rows, channels = linear.rows // linear.group, linear.group * linear.columns
    made = np.zeros((linear.group, rows, channels, values.shape[2]))
    parts = values.reshape(linear.group, -1, linear.columns, values.shape[2])
    for group in range(linear.group):
        start = group * linear.columns
        made[group, :, start : start + linear.columns] = parts[group]
    return made.reshape(linear.rows, -1, values.shape[2])
