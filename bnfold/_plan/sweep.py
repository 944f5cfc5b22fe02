"""One attempt to carry a map through the graph: what `backward` and `forward` have in common.

Backward, the map of a tensor becomes maps of the tensors from which it is computed. This goes in
reverse order of the graph: a tensor's turn comes when all its readers have said which map they
want. Forward, the map becomes maps of the tensors that are computed from this one. This goes in
order of the graph: an operator's turn comes when all its inputs have their maps. An attempt only
finds out whether the map can be carried. Its `Trip` says what that would change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bnfold._core.index_maps import Map, MultiAxisMap
from bnfold._core.laws import Edit, Law, Way, not_carried
from bnfold._core.pointwise import Converted
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, Crossing
from bnfold._plan.dead_ends import DeadEnd, Key, Span, Stop, kind_of
from bnfold._plan.relation import Relation
from bnfold._plan.trips import End, Terrain, Trip

TRIES = 8
"""Attempts that are made where laws leave a choice."""


class Impassable(Refusal):
    """No map at all can pass a tensor."""


class Known(Refusal):
    """An earlier trip has failed from here on. ``lasting``: no map at all can pass the tensor."""

    def __init__(self, stop: Stop, lasting: bool) -> None:
        super().__init__(stop.reason)
        self.stop = stop
        self.lasting = lasting


class Sweep:
    """One attempt in one direction.

    The map is at the tensor ``value``. The next operator that it has to pass is ``node``, -1 before
    the first one. A `Refusal` there ends the attempt.

    A law may give several ways across an operator. For each operator ``ways`` has their number,
    ``choices`` the one to take, and ``taken`` the one that was taken.
    """

    ahead: bool

    def __init__(
        self, terrain: Terrain, trip: Trip, value: int, choices: Mapping[int, int]
    ) -> None:
        self.terrain = terrain
        self.view = terrain.view
        self.taker = terrain.taker
        self.impassable = terrain.impassable[self.ahead]
        self.alone = not trip.ends
        self.trip = trip
        self.value = value
        self.node = -1
        self.choices = choices
        self.ways: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        # For each tensor on the way: the operator and the tensor from which its map came.
        self.parents: dict[int, tuple[int, int]] = {}
        self.span = Span()
        self.put_off = False
        self.steps = 0
        self.cut = False
        # The tensors at which all of the trip was at some time: by what key its end is noted there,
        # after how many steps it came there, and what stopped it from there on.
        self.necks: dict[int, tuple[Key, int]] = {}
        self.stops: list[tuple[tuple[Key, int], Stop]] = []

    def run(self) -> Stop | None:
        """Carry the map until it is taken in. Gives None, or what stopped the map."""
        try:
            self.carry()
        except Refusal as refusal:
            return self._stop(refusal)
        finally:
            self.terrain.seen.cover(self.span)
        return None

    def carry(self) -> None:
        """Carry the map until it is taken in. Raises `Refusal` if that cannot be done."""
        raise NotImplementedError

    def always_passes(self, node: int) -> bool:
        """Whether every map that passes an operator arrives on its other side."""
        raise NotImplementedError

    def _stop(self, refusal: Refusal) -> Stop:
        """What stopped the map where it is now.

        A tensor that no map can pass is remembered as impassable. So are the tensors from which
        every map would arrive there.
        """
        reason, value = refusal.reason, self.value
        if not reason.at:  # A law does not know the name of its operator.
            node = self.view.nodes[self.node]
            message = f"{node.label} ({node.op}): {reason.message}"
            reason = Reason(reason.code, node.label, message)
        known = isinstance(refusal, Known)
        stop = refusal.stop if isinstance(refusal, Known) else Stop(reason)
        dying = isinstance(refusal, Impassable) or (isinstance(refusal, Known) and refusal.lasting)
        if dying:
            self.impassable.setdefault(value, stop)
        while True:
            if value in self.necks:
                self.stops.append((self.necks[value], stop))
            if value not in self.parents:
                return stop
            index, value = self.parents[value]
            stop = stop.behind(self.view.nodes[index].op)
            dying = dying and self.always_passes(index)
            if dying:
                self.impassable.setdefault(value, stop if known else Stop(reason))

    def step(self, node: int) -> None:
        """Come to an operator. Raises `Refusal` if it is too far away."""
        self.span.reach(node)
        self.steps += 1
        self.terrain.spent += 1
        if self.steps > self.terrain.reach:
            self.cut = self.terrain.cut = True
            label = self.view.nodes[node].label
            message = f"{label} is {self.steps} operators away, and the search ends there"
            raise Refusal.of("not-carried", label, message)

    def remember(self, tried: Sequence[Sweep]) -> None:
        """Note for later trips how this one has ended, as all that were ``tried`` after it have.

        A part of a map whose other part has just been taken in says nothing of other maps, nor does
        a number that leaves its range.
        """
        ranges = any(stop.reason.code == "overflow" for _, stop in self.stops)
        if not self.alone or ranges:
            return
        cut = any(other.cut for other in tried)
        for other in tried:
            self.span.cover(other.span)
            self.put_off = self.put_off or other.put_off
        known, reach = self.terrain.dead_ends, self.terrain.reach
        for (key, steps), stop in self.stops:
            room = reach - steps if cut else None
            end = DeadEnd(stop, known.changes.time, self.span, self.put_off, room)
            known.note(key, end)

    def pass_neck(self, value: int, map_: Map) -> None:
        """All of the trip is at one tensor. Raises `Refusal` if one has failed from here on."""
        key = (self.ahead, self.terrain.turning, value, kind_of(map_))
        end = self.terrain.dead_ends.find(key)
        if end is not None and (end.room is None or self.terrain.reach - self.steps <= end.room):
            if end.room is not None:
                self.cut = self.terrain.cut = True
            self.value = value
            self.span.cover(end.span)
            self._put_off(end.put_off)
            raise Known(end.stop, lasting=False)
        self.necks[value] = key, self.steps

    def relate(self, value: int, map_: Map) -> None:
        """Note how a tensor's values change. Raises `Refusal` if that cannot be expressed."""
        relation = self.trip.relations.get(value) or self.terrain.relations.get(value) or Relation()
        new = relation.ahead(map_) if self.ahead else relation.behind(map_)
        if new is None:
            name = self.view.values[value].name
            raise Refusal.of("no-gain", name, f"another map has moved past {name}")
        self.trip.relations[value] = new

    def law(self, node: int, crossing: Crossing) -> Law:
        """The law of an operator, with the numbers that an earlier trip gave it."""
        edit = self._edit(node)
        return crossing.law if edit is None else crossing.law.with_numbers(edit)

    def _edit(self, node: int) -> Edit | None:
        """What this trip, or one made before, changes of an operator."""
        return self.trip.edits.get(node) or self.terrain.edits.get(node)

    def chosen(self, node: int, ways: Sequence[Way]) -> Way:
        """The way across an operator that this attempt takes. Raises `Refusal` where the operator
        would have to become another, and may not yet.
        """
        if not self.terrain.turning:
            plain = [way for way in ways if way.edit is None or way.edit.form is None]
            self._put_off(len(plain) < len(ways))
            ways = plain
        if not ways:
            raise not_carried("it would become another operator")
        choice = min(self.choices.get(node, 0), len(ways) - 1)
        self.ways[node], self.taken[node] = len(ways), choice
        return ways[choice]

    def _put_off(self, it: bool) -> None:
        self.put_off = self.put_off or it
        self.terrain.put_off = self.terrain.put_off or it

    def next_choices(self) -> dict[int, int] | None:
        """What to choose in the next attempt: another way where a choice was left last of all.
        None where all have been tried.
        """
        nodes = [n for n, ways in self.ways.items() if self.choices.get(n, 0) + 1 < ways]
        if not nodes:
            return None
        turned = max(nodes) if self.ahead else min(nodes)
        kept = {n: c for n, c in self.choices.items() if (n < turned) == self.ahead and n != turned}
        return kept | {turned: self.taken.get(turned, 0) + 1}

    def cross(self, node: int, crossing: Crossing, way: Way) -> None:
        """Note that a map crosses an operator.

        Raises `Refusal` if the operator cannot store its new numbers.
        """
        self._renumber(node, crossing, way)
        law = crossing.law
        if isinstance(law, Converted) and law.widens and not self.ahead:
            self.trip.narrow.append(law.narrow)
        self.trip.crossed.append(node)

    def inside(self, node: int, absorber: Absorber, map_: Map) -> Map:
        """The map of what an operator computes that has the effect of a map of its output.

        ``A∘f = f∘A₁``, where f is its activation. Raises `Refusal` where the law of f has no A₁.
        """
        if absorber.activation is None:
            return map_
        law = self.law(node, absorber.activation)
        way = self.chosen(node, law.backward(0, map_))
        self._renumber(node, absorber.activation, way)
        return way.maps[0]

    def _renumber(self, node: int, crossing: Crossing, way: Way) -> None:
        """Note the new numbers of an operator. Raises `Refusal` if it cannot store them."""
        if way.edit is not None:
            edit = way.edit.after(self._edit(node))
            if not edit.fits(crossing.dtype if edit.form is None else edit.form.dtype):
                raise not_carried("its new numbers would leave the range of their type")
            self.trip.edits[node] = edit

    def end(self, node: int, map_: Map, side: str) -> None:
        """Let an absorber, or maps that stand, take the map in. Raises `Refusal`."""
        if isinstance(map_, MultiAxisMap):
            label = self.view.nodes[node].label
            message = f"the map varies along several axes of what {label} sees"
            raise Refusal.of("axis-mismatch", label, message)
        take = self.taker.take_ahead if side == "ahead" else self.taker.take_behind
        take(self.trip, node, map_)
        self.trip.ends.append(End(node, side))


def equal(one: Map, other: Map) -> bool:
    """Whether two maps are the same, bit for bit."""
    if one is other:
        return True
    if isinstance(one, MultiAxisMap) or isinstance(other, MultiAxisMap):
        same = isinstance(one, MultiAxisMap) and isinstance(other, MultiAxisMap)
    else:
        same = one.axis == other.axis
    return (
        same and np.array_equal(one.scale, other.scale) and np.array_equal(one.shift, other.shift)
    )
