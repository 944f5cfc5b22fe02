"""Trips: maps on their way through the graph, what they would change, and who takes them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bnfold._core.affine import AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason
from bnfold._core.view import View
from bnfold._plan.relation import Relation
from bnfold._plan.row import State

_TOLD = ("no-gain", "not-carried", "zero-padding")
_NAMED = 3


@dataclass(frozen=True)
class End:
    """Where a map was taken in: ``behind`` or ``ahead`` of an absorber or of maps that stand."""

    node: int
    side: str


@dataclass
class Trip:
    """What carrying maps would change: tensors and operators on the way, and where they end.

    ``states`` are those of places, by number; ``taken`` is what an absorber has taken in, by side
    (``behind``, ``ahead``) and node.
    """

    relations: dict[int, Relation] = field(default_factory=dict)
    edits: dict[int, Edit] = field(default_factory=dict)
    crossed: list[int] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    taken: dict[tuple[str, int], AffineMap] = field(default_factory=dict)

    def copy(self) -> Trip:
        """One to try something on."""
        return Trip(
            dict(self.relations),
            dict(self.edits),
            list(self.crossed),
            list(self.ends),
            dict(self.states),
            dict(self.taken),
        )


class Taker(Protocol):
    """Who takes maps in, and notes that in the trip."""

    def take_behind(self, trip: Trip, node: int, map_: AffineMap) -> None:
        """Take a map in behind an absorber, or behind the maps that stand at an affine operator.

        Raises `Refusal`.
        """
        ...

    def take_ahead(self, trip: Trip, node: int, map_: AffineMap) -> None:
        """Take a map in ahead of an absorber, or of the maps that stand at an affine operator.

        Raises `Refusal`.
        """
        ...

    def is_gone(self, trip: Trip, node: int) -> bool:
        """Whether nothing stands at an affine operator any more."""
        ...

    def take_along(self, trip: Trip, value: int, reader: int) -> AffineMap | None:
        """The whole map that stands ahead of a tensor, taken out to be carried on with another."""
        ...


@dataclass
class Terrain:
    """What trips go through: a view, who takes maps in there, and what trips made before changed.

    ``impassable`` has the tensors that no map gets past, whatever it is, and why: by the way that
    it goes, ahead (True) or back (False).
    """

    view: View
    taker: Taker
    relations: Mapping[int, Relation]
    edits: Mapping[int, Edit]
    impassable: dict[bool, dict[int, Reason]] = field(default_factory=lambda: {True: {}, False: {}})


@dataclass(frozen=True)
class Stop:
    """Why a trip failed; ``through`` are the types of the operators crossed on the way there."""

    reason: Reason
    through: tuple[str, ...] = ()


def explained(reason: Reason, stops: Mapping[bool, Stop]) -> Reason:
    """A reason with what stopped the map backward (``stops[False]``) and forward (``True``).

    Zero padding ahead is what a user asks about most, so it comes first; otherwise what stopped the
    map on its way back does.
    """
    back, forth = stops.get(False), stops.get(True)
    main = reason
    if back is not None and (back.through or back.reason.code in _TOLD):
        text = _told(back, "carried back through") if back.through else back.reason.message
        main = Reason(back.reason.code, back.reason.at, text)
    if forth is None:
        return main
    text = _told(forth, "carried forward through")
    if forth.reason.code == "zero-padding" and main.code != "zero-padding":
        return Reason(forth.reason.code, forth.reason.at, f"{text}; backward, {main.message}")
    return Reason(main.code, main.at, f"{main.message}; forward, {text}", main.cause)


def _told(stop: Stop, carried: str) -> str:
    if not stop.through:
        return stop.reason.message
    names = list(stop.through)
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
    through = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    at, message = stop.reason.at, stop.reason.message
    where = message if message.startswith(at) else f"{at}: {message}"
    return f"{carried} {through}, stopped at {where}"
