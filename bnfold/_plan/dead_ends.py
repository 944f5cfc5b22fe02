"""What failed trips have found, so that no later trip goes the same way to the same end.

Maps pile up: a chain of n maps with a Relu behind each becomes one map that moves on n times. Each
time it also looks for a way back, as far as the graph begins. Where all of a trip is at one tensor,
the rest of it depends on the tensor, on the map and on what lies behind. So its end is noted there:
for all maps of that kind, or for that map alone where its numbers have decided. The note holds
until something behind changes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import field

import numpy as np

from bnfold._core.index_maps import Map, MultiAxisMap, equal
from bnfold._core.reasons import Reason
from bnfold._system.records import record

NAMED = 3
"""So many of the operators that a trip has crossed are named to the user."""

# A kind of more bytes is noted by its hash: n parts of a Concat may be n kinds of n channels each.
_WRITTEN_OUT = 320

# What mostly decides how far a map gets: its axis, where its scales lie, and where it has shifts.
Kind = tuple[object, ...]
# The direction, whether operators may become others, and the tensor.
Place = tuple[bool, bool, int]


def kind_of(map_: Map) -> Kind:
    """The kind of a map. Laws ask for the axis, for signs, whether a scale is below 1 or is ±1, and
    whether there is a shift; they let maps of one kind pass alike. Where a law asks for more, its
    refusal says that it depends on the numbers.

    A Slice leaves out some channels, so these count one by one.
    """
    scale, shift = map_.scale, map_.shift
    axis = scale.shape if isinstance(map_, MultiAxisMap) else map_.axis
    if scale.size == 1:
        s, t = float(scale.flat[0]), float(shift.flat[0])
        return axis, t != 0, s < 0, s == 0, abs(s) < 1, abs(s) == 1
    size = np.abs(scale)
    where = (shift != 0, scale < 0, size == 0, size < 1, size == 1)
    told = b"".join(each.tobytes() for each in where)
    return axis, told if len(told) <= _WRITTEN_OUT else hashlib.sha256(told).digest()


@record(frozen=True)
class Stop:
    """Why a trip failed. ``crossed`` is the number of operators that it has crossed before that,
    ``through`` has the types of the first few.
    """

    reason: Reason
    through: tuple[str, ...] = ()
    crossed: int = 0

    def behind(self, op: str) -> Stop:
        """The stop of a trip that has crossed one more operator at first."""
        return Stop(self.reason, (op, *self.through)[:NAMED], self.crossed + 1)


@record
class Span:
    """The operators ``first`` to ``last``, in the order of the graph; none at first."""

    first: int = sys.maxsize
    last: int = -1

    def reach(self, node: int) -> None:
        """Let the span reach as far as an operator."""
        self.first, self.last = min(self.first, node), max(self.last, node)

    def cover(self, other: Span) -> None:
        """Let the span reach as far as another one."""
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)


class Changes:
    """When each operator, or a tensor that it writes, was last changed by a trip.

    A tree of maxima: to note a change and to ask for the last one in a span take log n steps.
    """

    def __init__(self, count: int) -> None:
        self.time = 0
        self._count = max(count, 1)
        self._last = [0] * (2 * self._count)

    def note(self, nodes: Iterable[int]) -> None:
        """Some operators change now."""
        self.time += 1
        for node in nodes:
            at = node + self._count
            while at and self._last[at] != self.time:
                self._last[at] = self.time
                at //= 2

    def since(self, time: int, span: Span) -> bool:
        """Whether an operator of a span has changed after a time."""
        low, high = span.first + self._count, span.last + 1 + self._count
        while low < high:
            if low & 1:
                if self._last[low] > time:
                    return True
                low += 1
            if high & 1:
                high -= 1
                if self._last[high] > time:
                    return True
            low, high = low // 2, high // 2
        return False


@record(frozen=True)
class DeadEnd:
    """How a trip ended that failed, when that was, and which operators it has seen from there.

    ``put_off``: it has met an operator that may become another one, but not yet. ``room`` is set if
    it was cut off: so many operators it could still cross, and that was not enough.
    """

    stop: Stop
    time: int
    span: Span
    put_off: bool
    room: int | None


@record
class DeadEnds:
    """The ends of trips that failed, by place: of all maps of a kind, and of the last map whose
    numbers have decided.
    """

    changes: Changes
    kinds: dict[tuple[Place, Kind], DeadEnd] = field(default_factory=dict)
    single: dict[Place, tuple[Map, DeadEnd]] = field(default_factory=dict)

    def find(self, place: Place, map_: Map, room: int) -> tuple[DeadEnd, bool] | None:
        """The end of a map that may still cross ``room`` operators, if one is noted that holds, and
        whether it is that of just this map.
        """
        end = self.kinds.get((place, kind_of(map_)))
        if end is not None and self._holds(end, room):
            return end, False
        noted = self.single.get(place)
        if noted is not None and equal(noted[0], map_) and self._holds(noted[1], room):
            return noted[1], True
        return None

    def _holds(self, end: DeadEnd, room: int) -> bool:
        near = end.room is None or room <= end.room
        return near and not self.changes.since(end.time, end.span)

    def note(self, place: Place, map_: Map, end: DeadEnd, numbers: bool) -> None:
        """Note how a trip ended from here on, and whether that depends on the map's numbers."""
        if numbers:
            self.single[place] = map_, end
        else:
            self.kinds[place, kind_of(map_)] = end
