"""Where two files are not seen to agree, and who is to blame for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold._relation.bounds import Bounds
from bnfold._relation.liveness import Effect
from bnfold._relation.relations import Related
from bnfold._system.records import record

SURE = 4
"""Weights that are apart by so many times what rounding explains are no rounding."""
OUTPUT = -1
"""Stands for the base of an output itself."""
Showing = Callable[[Bounds], Mapping[int, Effect]]
"""What differs of which bases, as far as a difference is sure to show there."""


@record(frozen=True, eq=False)
class Problem:
    """A place where the two files are not seen to agree.

    ``kind`` is "weights" (rows of weights differ), "map" (a scale or shift differs) or "structure"
    (the first file has no such operator). ``is_sure`` tells that nothing else can make up for it.
    ``allowed`` is how many units in the last place rounding explains. ``read`` are the bases whose
    numbers come in otherwise: where one of them is always the same, nothing shows. ``showing``
    tells what differs; None where that is not known.
    """

    kind: str
    at: str
    why: str
    units: float = 0.0
    allowed: float = 0.0
    is_sure: bool = True
    read: Collection[int] = ()
    showing: Showing | None = None


class Blamed(Exception):
    """Bases whose relation to the first file nothing behind them makes up for."""

    def __init__(self, bases: Collection[int], by: str, is_sure: bool) -> None:
        super().__init__()
        self.bases = frozenset(bases)
        self.by = Blame(by, is_sure)


@record(frozen=True)
class Blame:
    """Who reads a relation that is not the identity, and whether that is sure to show."""

    by: str
    is_sure: bool


@dataclass(frozen=True)
class Layer:
    """A sum of linear operators that both files have, and how far their weights are apart."""

    at: str
    distance: float


def of_map(at: str, what: str, found: Related, sure: bool, showing: Showing) -> Problem:
    """The problem that a tensor is scaled or shifted otherwise; ``what`` says which one it is."""
    scale, shift = np.broadcast_arrays(found.scale, found.shift)
    wrong = ((scale != 1) | (shift != 0)).reshape(-1)
    place = int(np.argmax(wrong))
    factor, added = float(scale.reshape(-1)[place]), float(shift.reshape(-1)[place])
    told = f"{f'channel {place} of ' if wrong.size > 1 else ''}{what} is {_apart(factor, added)}"
    units = max(abs(factor - 1), abs(added)) * 2.0**23
    allowed = float(np.max(found.error)) * 2.0**23
    return Problem("map", at, told, units, allowed, sure, showing=showing)


def _apart(factor: float, added: float) -> str:
    """How a number is made of the one that it should be."""
    short = f"{factor:.6g}"
    if short == "1":  # few digits would hide what is wrong
        short = f"{factor:.9g}"
    told = "what it was" if factor == 1 else f"{short} times what it was,"
    if not added:
        return told.rstrip(",")
    return f"{told} {'minus' if added < 0 else 'plus'} {abs(added):.6g}"
