"""Sizes that are not known as polynomials of those that are named: ``2·h·w + 1``.

A name is the size of an axis of a tensor, or a quotient that does not come out even. So two amounts
are written alike in both files if the arithmetic of integers makes them equal. Amounts that are
written otherwise may be equal all the same.

A short file may ask for an amount that no memory holds: it squares a size over and over. One that
is too long to be written out has a name of its own, made of its hash: it is the same in both files,
and nothing else is known of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

from bnfold._system.records import record

Product = tuple[Hashable, ...]


@record(frozen=True)
class Amount:
    """``Σ factor · product of names``, in a fixed order. One that is a number is an ``int``."""

    terms: tuple[tuple[Product, int], ...]

    @cached_property
    def weight(self) -> int:
        """How many parts it is written with, those within quotients among them."""
        return _width(self) + sum(map(weight, self._inner))

    @cached_property
    def depth(self) -> int:
        """How many quotients stand within each other."""
        return 1 + max((each.depth for each in self._inner), default=0)

    @property
    def _inner(self) -> list[Amount]:
        """The amounts within its names."""
        names = (name for product, _ in self.terms for name in product if isinstance(name, tuple))
        return [each for name in names for each in name[1:] if isinstance(each, Amount)]

    @property
    def is_size(self) -> bool:
        """Whether it cannot be below zero: names of sizes, no term of which is taken away."""
        return all(
            factor > 0 and all(isinstance(name, tuple) and name[0] == "size" for name in product)
            for product, factor in self.terms
        )


Size = int | Amount


def named(name: Hashable) -> Amount:
    """The amount of a name."""
    return Amount((((name,), 1),))


def _terms(value: Size) -> dict[Product, int]:
    if isinstance(value, int):
        return {(): value} if value else {}
    return dict(value.terms)


def _made(terms: Mapping[Product, int]) -> Size:
    kept = {product: factor for product, factor in terms.items() if factor}
    if any(factor.bit_length() > _LONGEST for factor in kept.values()):
        return _hashed("sum", *sorted(map(repr, kept.items())))
    if not kept.keys() - {()}:
        return kept.get((), 0)
    made = Amount(tuple(sorted(kept.items(), key=repr)))
    return _hashed("sum", made) if are_many((made,)) else made


def _hashed(kind: str, *values: Hashable) -> Amount:
    """A name for what is too long to be written out."""
    return named((_HASHED, kind, hashlib.sha256(repr(values).encode()).hexdigest()))


def fits(value: Size, bits: int) -> bool:
    """Whether an integer of so many bits and a sign holds an amount, unless sizes are large.

    Factors have half of the bits, so that products of sizes may have the other half.
    """
    if isinstance(value, int):
        return -(1 << bits) <= value < 1 << bits
    return sum(abs(factor) for _, factor in value.terms) < 1 << bits // 2


def plus(one: Size, other: Size, sign: int = 1) -> Size:
    """The sum, or the difference."""
    made = _terms(one)
    for product, factor in _terms(other).items():
        made[product] = made.get(product, 0) + sign * factor
    return _made(made)


def times(one: Size, other: Size) -> Size:
    """The product."""
    made: dict[Product, int] = {}
    for left, a in _terms(one).items():
        for right, b in _terms(other).items():
            product = tuple(sorted((*left, *right), key=repr))
            made[product] = made.get(product, 0) + a * b
    return _made(made)


_MOST = 1 << 9
"""No more parts are multiplied out."""
_DEEPEST = 32
"""No more quotients stand within each other."""
_LONGEST = 256
"""No number has more bits."""
_HASHED = "hashed"


def weight(value: Size) -> int:
    """How many parts an amount is written with, those within quotients among them."""
    return 1 if isinstance(value, int) else value.weight


def _width(value: Size) -> int:
    return 1 if isinstance(value, int) else sum(1 + len(product) for product, _ in value.terms)


def are_many(values: Sequence[Size]) -> bool:
    """Whether the product of amounts, or their quotient, may have more parts than are written."""
    if all(isinstance(value, int) for value in values):
        return False
    deepest = max(value.depth for value in values if isinstance(value, Amount))
    wide = prod(map(_width, values)) > _MOST or sum(map(weight, values)) > _MOST
    return wide or deepest > _DEEPEST


def product_of(values: Iterable[Size]) -> Size:
    """The product of several amounts; 1 of none. One of too many parts has a name."""
    made: Size = 1
    values = tuple(values)
    if are_many(values):
        return _hashed("product", *values)
    for value in values:
        made = times(made, value)
    return made


def even_quotient(one: Size, other: Size) -> Size | None:
    """``one / other`` where the quotient of every term comes out even; None otherwise.

    ``other`` is a number or one product: a quotient by a sum is not looked for.
    """
    below = _terms(other)
    if len(below) != 1:
        return None
    ((names, divisor),) = below.items()
    made: dict[Product, int] = {}
    for product, factor in _terms(one).items():
        left = list(product)
        for name in names:
            if name not in left:
                return None
            left.remove(name)
        if factor % divisor:
            return None
        made[tuple(left)] = factor // divisor
    return _made(made)


def quotient(one: Size, other: Size) -> Size:
    """What Div makes of integers: it rounds toward zero. One that is not even has a name."""
    even = even_quotient(one, other) if other != 0 else None
    if even is not None:
        return even
    if isinstance(one, int) and isinstance(other, int) and other:
        sign = 1 if (one < 0) == (other < 0) else -1
        return sign * (abs(one) // abs(other))
    if are_many((one, other)):
        return _hashed("quotient", one, other)
    return named(("quotient", one, other))


def are_equal(one: Size, other: Size) -> bool | None:
    """Whether two amounts are the same; None where that is not known. No size is below zero."""
    if one == other:
        return True
    if isinstance(one, int) and isinstance(other, int):
        return False
    size, number = (one, other) if isinstance(one, Amount) else (other, one)
    below = isinstance(number, int) and number < 0
    return False if below and isinstance(size, Amount) and size.is_size else None


def name_of(value: Size) -> Hashable | None:
    """The name that an amount is, or None."""
    if isinstance(value, int) or len(value.terms) != 1:
        return None
    ((product, factor),) = value.terms
    return product[0] if len(product) == 1 and factor == 1 else None


def holds(value: Size, name: Hashable) -> bool:
    """Whether a name is part of an amount, also within the name of a quotient.

    It may be part of one that has its name of a hash.
    """
    return any(_is_in(part, name) for product in _terms(value) for part in product)


def _is_in(part: Any, name: Hashable) -> bool:
    inner = [each for each in part[1:] if isinstance(each, Amount)] if part != name else ()
    return part == name or part[0] == _HASHED or any(holds(each, name) for each in inner)


def replaced(value: Size, meant: Mapping[Hashable, Size]) -> Size:
    """An amount in which names are what they mean, over and over; quotients stay as they are."""
    for _ in range(len(meant)):
        held = _terms(value)
        if not any(name in meant for product in held for name in product):
            break
        made: Size = 0
        for product, factor in held.items():
            parts = (meant[name] if name in meant else named(name) for name in product)
            made = plus(made, times(factor, product_of(parts)))
        value = made
    return value
