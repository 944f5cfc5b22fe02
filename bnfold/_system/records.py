"""Dataclasses that take little time to define, for what only this package uses.

`dataclasses` writes and compiles six functions for each class. With the 300 classes here that is a
tenth of a second of every start. Here it compiles one, ``__init__``; the others are made of parts
that all classes share. That fields of a frozen one do not change is for mypy to see: at run time
nothing keeps them, and so they are also made in half the time. What a caller gets to see is a
dataclass of Python's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["record"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(cls=None, /, *, frozen=False, eq=True, kw_only=False):
        """What ``dataclasses.dataclass`` does, but that nothing freezes the fields."""
        if cls is None:
            return lambda given: record(given, frozen=frozen, eq=eq, kw_only=kw_only)
        own = cls.__dict__.keys() & {"__eq__", "__repr__"}
        explicit = cls.__dict__.get("__hash__")
        dataclasses.dataclass(cls, repr=False, eq=False, kw_only=kw_only)
        held = dataclasses.fields(cls)
        if "__repr__" not in own:
            cls.__repr__ = _told([field.name for field in held if field.repr])
        values = _getter([field.name for field in held if field.compare])
        if eq and "__eq__" not in own:
            cls.__eq__ = _equal(values)
        if eq and explicit is None:
            cls.__hash__ = _hashed(values) if frozen else None
        return cls


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Gives the values of some fields of an object."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda given: tuple(getattr(given, name) for name in names)


def _told(names: list[str]) -> Callable[[Any], str]:
    def told(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return told


def _equal(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], Any]:
    def equal(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return equal


def _hashed(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], int]:
    def hashed(self: Any) -> int:
        return hash(values(self))

    return hashed
