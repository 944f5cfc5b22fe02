"""One attempt to carry a map through the graph: what `backward` and `forward` have in common.

Backward, the map of a tensor becomes maps of the tensors from which it is computed. This goes in
reverse order of the graph: a tensor's turn comes when all its readers have said which map they
want. Forward, the map becomes maps of the tensors that are computed from this one. This goes in
order of the graph: an operator's turn comes when all its inputs have their maps. An attempt only
finds out whether the map can be carried. Its `Trip` says what that would change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bnfold._core.index_maps import Map, MultiAxisMap
from bnfold._core.laws import Edit, Law, Way, not_carried
from bnfold._core.pointwise import Converted
from bnfold._core.reasons import Reason, Refusal, past_padding
from bnfold._core.view import Absorber, Crossing
from bnfold._plan.dead_ends import DeadEnd, Place, Span, Stop
from bnfold._plan.relation import Relation
from bnfold._plan.trips import WIDE, End, Terrain, Trip

TRIES = 8
"""Attempts that are made where laws leave a choice."""


class Impassable(Refusal):
    """No map at all can pass a tensor."""

    lasting = True


class Known(Refusal):
    """An earlier trip has failed from here on. ``lasting``: no map at all can pass the tensor."""

    def __init__(self, stop: Stop, lasting: bool, numbers: bool = False) -> None:
        super().__init__(stop.reason, numbers)
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
        self.wide = 0
        self.cut = False
        # The operators behind which the kind of a map ahead of them does not tell what maps there
        # are: other maps have come along, or more ways would be left to other numbers; and those
        # that put channels together or apart, where this matters to some maps.
        self.joined: set[int] = set()
        self.regrouped: set[int] = set()
        # The tensors at which all of the trip was at some time: with what map and after how many
        # steps it came there; what stopped it from there on, and whether the numbers decided.
        self.necks: dict[int, tuple[Map, int]] = {}
        self.stops: list[tuple[int, Stop, bool]] = []
        self.numbers = False

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
            brief = f"at {node.label} ({node.op}), {reason.message}"
            if reason.code == "zero-padding":
                brief = past_padding(node.op, node.label)
            reason = Reason(reason.code, node.label, message, brief=brief)
        known = isinstance(refusal, Known)
        stop = refusal.stop if isinstance(refusal, Known) else Stop(reason)
        lasting = refusal.lasting if isinstance(refusal, Known | Impassable) else False
        dying, self.numbers = lasting, refusal.numbers
        if dying:
            self.impassable.setdefault(value, stop)
        while True:
            if value in self.necks:
                self.stops.append((value, stop, self.numbers))
            if value not in self.parents:
                return stop
            index, value = self.parents[value]
            stop = stop.behind(self.view.nodes[index].op)
            split = not lasting and index in self.regrouped
            self.numbers = self.numbers or split or index in self.joined
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
        if self.wide or node in self.terrain.wide:
            self._spend(node)

    def _spend(self, node: int) -> None:
        """Come to an operator with a map that has a part for each port of a wide one, or will have.
        Raises `Refusal` where all trips together have come to too many.
        """
        self.wide = max(self.wide, self.terrain.wide.get(node, 0))
        self.terrain.left -= self.wide
        if self.terrain.left < 0:
            label = self.view.nodes[node].label
            message = (
                f"a map of {self.wide} parts comes to {label}; the search for such maps ends there"
            )
            refusal = Impassable if node in self.terrain.wide else Refusal
            raise refusal.of("not-carried", label, message)

    def remember(self, tried: Sequence[Sweep]) -> None:
        """Note for later trips how this one has ended, as all that were ``tried`` after it have.

        A part of a map whose other part has just been taken in says nothing of other maps.
        """
        if not self.alone:
            return
        cut = any(other.cut for other in tried)
        chance = any(other.numbers for other in tried if other is not self)
        for other in tried:
            self.span.cover(other.span)
            self.put_off = self.put_off or other.put_off
        known, reach = self.terrain.dead_ends, self.terrain.reach
        for value, stop, numbers in self.stops:
            map_, steps = self.necks[value]
            room = reach - steps if cut else None
            end = DeadEnd(stop, known.changes.time, self.span, self.put_off, room)
            known.note(self._place(value), map_, end, numbers or chance)

    def _place(self, value: int) -> Place:
        return self.ahead, self.terrain.turning, value

    def pass_neck(self, value: int, map_: Map) -> None:
        """All of the trip is at one tensor. Raises `Refusal` if one has failed from here on."""
        room = self.terrain.reach - self.steps
        found = self.terrain.dead_ends.find(self._place(value), map_, room)
        if found is not None:
            end, numbers = found
            if end.room is not None:
                self.cut = self.terrain.cut = True
            self.value = value
            self.span.cover(end.span)
            self._put_off(end.put_off)
            raise Known(end.stop, lasting=False, numbers=numbers)
        self.necks[value] = map_, self.steps

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

    def cross(self, node: int, crossing: Crossing, way: Way, maps: Iterable[Map]) -> None:
        """Note that ``maps`` cross an operator.

        Raises `Refusal` if the operator cannot store its new numbers.
        """
        self._renumber(node, crossing, way)
        law = crossing.law
        if law.may_gain_a_way:
            self.joined.add(node)
        if len({map_.scale.shape for map_ in (*maps, *way.maps.values())}) > 1:
            self.regrouped.add(node)
            ports = len(self.view.nodes[node].inputs) + len(self.view.nodes[node].outputs)
            if ports > WIDE:
                self.terrain.wide[node] = ports
                self.wide = max(self.wide, ports)
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
                message = "its new numbers would leave the range of their type"
                raise not_carried(message, numbers=True)
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
