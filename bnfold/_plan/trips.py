"""Trips: maps on their way through the graph, what they would change, and what stops them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason
from bnfold._core.view import View
from bnfold._plan.dead_ends import NAMED, DeadEnds, Span, Stop
from bnfold._plan.relation import Relation
from bnfold._plan.row import State
from bnfold._system.records import record

WIDE = 256
"""With more inputs and outputs together an operator is wide."""

_TOLD = ("no-gain", "not-carried", "unknown-shape", "zero-padding")


@record(frozen=True)
class End:
    """Where a map was taken in: on one ``side`` of a ``node``.

    The side is "behind" or "ahead". The node is an absorber, or an affine operator that stands.
    """

    node: int
    side: str


@record
class Trip:
    """All that would change if some maps were carried.

    ``relations`` says how the tensors on the way change. ``edits`` has the new numbers of operators
    on the way. ``crossed`` lists these operators, ``ends`` the places where maps were taken in.
    ``states`` has the new states of places, by number. ``taken`` has what an absorber has taken in,
    by side ("behind", "ahead") and node. ``narrow`` has the types of tensors that a map has entered
    from a wider type.
    """

    relations: dict[int, Relation] = field(default_factory=dict)
    edits: dict[int, Edit] = field(default_factory=dict)
    crossed: list[int] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    taken: dict[tuple[str, int], AffineMap] = field(default_factory=dict)
    narrow: list[np.dtype[Any]] = field(default_factory=list)

    def copy(self) -> Trip:
        """A copy, on which something can be tried."""
        return Trip(
            dict(self.relations),
            dict(self.edits),
            list(self.crossed),
            list(self.ends),
            dict(self.states),
            dict(self.taken),
            list(self.narrow),
        )


class Taker(Protocol):
    """Takes maps in, and notes that in the trip."""

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
        """Whether nothing is left at the place of an affine operator."""
        ...

    def ahead_of(self, trip: Trip, value: int, reader: int) -> AffineMap | None:
        """The map that stands ahead of a tensor and may go along with another one, or None."""
        ...

    def take_along(self, trip: Trip, value: int) -> None:
        """Take out the map that stands ahead of a tensor: the caller carries it on."""
        ...


@record
class Terrain:
    """What trips go through: a view, who takes maps in, and the changes of earlier trips.

    ``impassable`` has the tensors that no map can pass, and why. There is one such table for each
    direction: forward (True) and backward (False). ``dead_ends`` has what failed trips have found.
    A trip that crosses more operators than ``reach`` is ``cut`` off; all trips have crossed as many
    as ``spent`` says. ``turning``: an operator may become one of another type. ``put_off`` is set
    where it may not, and could have. ``seen`` has the operators on which the trips of one place
    depend. ``wide`` has the operators of many inputs or outputs that put channels together or
    apart, and how many these are: a map behind one has a part for each, so that n maps take time by
    n². ``left`` is how many parts all trips together may still come to.
    """

    view: View
    taker: Taker
    relations: Mapping[int, Relation]
    edits: Mapping[int, Edit]
    dead_ends: DeadEnds
    impassable: dict[bool, dict[int, Stop]] = field(default_factory=lambda: {True: {}, False: {}})
    reach: int = 0
    spent: int = 0
    cut: bool = False
    turning: bool = False
    put_off: bool = False
    seen: Span = field(default_factory=Span)
    wide: dict[int, int] = field(default_factory=dict)
    left: int = 0


def explained(reason: Reason, stops: Mapping[bool, Stop]) -> Reason:
    """A reason that also tells what stopped the map backward and forward.

    ``stops[False]`` is the stop backward, ``stops[True]`` the stop forward. Users ask most about
    zero padding, so a forward stop by zero padding comes first. So does one by a quantizer, or by
    a layout that onnxruntime has made, where nothing backward takes the map in. Otherwise the
    backward stop does.
    """
    back, forth = stops.get(False), stops.get(True)
    main = reason
    if back is not None and (back.through or back.reason.code in _TOLD):
        text = _told(back, "carried back through") if back.through else back.reason.message
        main = Reason(back.reason.code, back.reason.at, text, brief=_brief(back.reason))
    if forth is None:
        return main
    text = _told(forth, "carried forward through")
    padded = forth.reason.code == "zero-padding" and main.code != "zero-padding"
    tells = forth.reason.code in ("blocked-layout", "quantizer-between")
    if padded or (tells and main.code == "no-linear-operator"):
        told, brief = f"{text}; backward, {main.message}", _brief(forth.reason)
        return Reason(forth.reason.code, forth.reason.at, told, brief=brief)
    brief = _brief(main)
    if main.code == forth.reason.code == "no-linear-operator" and main.at and forth.reason.at:
        brief = f"neither {main.at} ahead of it nor {forth.reason.at} behind it can take it in"
    return Reason(main.code, main.at, f"{main.message}; forward, {text}", main.cause, brief)


def _brief(reason: Reason) -> str:
    """A reason in few words."""
    return reason.brief or reason.message


def _told(stop: Stop, carried: str) -> str:
    if not stop.through:
        return stop.reason.message
    names = list(stop.through)
    if stop.crossed > NAMED:
        names[-1] = f"{stop.crossed - NAMED + 1} more"
    through = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    at, message = stop.reason.at, stop.reason.message
    where = message if message.startswith(at) else f"{at}: {message}"
    return f"{carried} {through}, stopped at {where}"
