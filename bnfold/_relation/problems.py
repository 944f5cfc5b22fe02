"""Where two files are not seen to agree, and who is to blame for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold._relation.relations import Related
from bnfold._system.records import record


@record(frozen=True, eq=False)
class Problem:
    """A place where the two files are not seen to agree.

    ``kind`` is "weights" (rows of weights differ), "map" (a scale or shift differs) or "structure"
    (the first file has no such operator). ``base`` is the value whose rows ``channels`` differ.
    ``is_sure`` tells that nothing else can make up for it. ``allowed`` is how many units in the
    last place rounding explains. ``read`` are the bases whose numbers come in otherwise:
    where one of them is always the same, nothing shows.
    """

    kind: str
    at: str
    why: str
    base: int | None = None
    channels: Sequence[int] = ()
    units: float = 0.0
    allowed: float = 0.0
    is_sure: bool = True
    read: Collection[int] = ()


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


def of_map(at: str, what: str, found: Related, base: int | None, sure: bool) -> Problem:
    """The problem that a tensor is scaled or shifted otherwise."""
    scale, shift = np.broadcast_arrays(found.scale, found.shift)
    wrong = ((scale != 1) | (shift != 0)).reshape(-1)
    place = int(np.argmax(wrong))
    factor, added = float(scale.reshape(-1)[place]), float(shift.reshape(-1)[place])
    told = f"{what}: channel {place} is {factor:.9g} times what it was" + (
        f", plus {added:.9g}" if added else ""
    )
    units = max(abs(factor - 1), abs(added)) * 2.0**23
    channels = [int(each) for each in np.flatnonzero(wrong)]
    return Problem(
        "map", at, told, base, channels, units, float(np.max(found.error)) * 2.0**23, sure
    )
