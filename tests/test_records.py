"""A record is what a dataclass of Python's own is, but that nothing freezes it at run time."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from bnfold._system.records import record


def made(how: Any) -> tuple[type, ...]:
    """The same classes as dataclasses or as records."""

    @how(frozen=True)
    class Point:
        """Two numbers."""

        x: int
        y: int = 2
        names: tuple[str, ...] = field(default=(), repr=False)
        seen: list[int] = field(default_factory=list, compare=False)

    @how(frozen=True)
    class Far(Point):
        """A point of another class."""

        z: int = 0

    @how
    class Open:
        """Fields may change."""

        x: int

    @how(frozen=True)
    class Empty:
        """No field."""

    @how(frozen=True)
    class One:
        """One field."""

        x: object

    @how(frozen=True, eq=False)
    class Apart:
        """Each is equal to itself alone."""

        x: int

    @how(frozen=True)
    class Own:
        """It says itself what is equal."""

        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.x % 2 == other.x % 2

        def __hash__(self) -> int:
            return self.x % 2

        def __repr__(self) -> str:
            return "own"

    @how(frozen=True, kw_only=True)
    class Named:
        """No position."""

        x: int = 0

    return Point, Far, Open, Empty, One, Apart, Own, Named


def told(how: Any) -> list[object]:
    """What can be seen of the classes and their objects."""
    point, far, opened, empty, one, apart, own, named = made(how)
    things = [point(1), point(1, 2), point(1, 3), far(1), far(1, z=0), far(1, z=5), opened(1)]
    things += [opened(1), empty(), empty(), one(1), one((1,)), one(1), apart(1), apart(1)]
    things += [own(1), own(3), own(2), named(x=1), named()]
    hashes = [type(thing).__hash__ is not None for thing in things]
    held = [thing for thing, can in zip(things, hashes, strict=True) if can]
    alike = [[hash(a) == hash(b) for b in held if not isinstance(b, apart)] for a in held]
    alike = [row for row, a in zip(alike, held, strict=True) if not isinstance(a, apart)]
    return [
        [repr(thing).partition(".<locals>.")[2] for thing in things if not isinstance(thing, own)],
        [[a == b for b in things] for a in things],
        [point(1) == (1, 2), point(1).__eq__((1, 2)) is NotImplemented],
        [[each.name for each in fields(thing)] for thing in things],
        hashes,
        alike,
        replace(point(1), y=7).y,
        copy.copy(far(1, z=4)) == far(1, z=4),
        copy.deepcopy(far(1, z=4)) == far(1, z=4),
        point.__match_args__,
        point(1, seen=[1]) == point(1, seen=[2]),
    ]


def test_a_record_is_a_dataclass() -> None:
    assert told(record) == told(dataclass)


def test_what_is_missing_is_told_as_ever() -> None:
    for how in (record, dataclass):
        point, *_, named = made(how)
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
            point()
        with pytest.raises(TypeError, match="positional argument"):
            named(1)


@record(frozen=True)
class Kept:
    """One that can be found by its name."""

    x: int


def test_a_record_goes_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Kept(3))) == Kept(3)
