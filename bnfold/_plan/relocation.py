"""Carry the maps that stand to operators that take them in.

A map moves as a whole, or its scale moves one way and its shift the other. A move is made only if
it pays: it lowers the number of operators or of operations, and raises neither. So planning ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, LAST, AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, Affine, Receiver, View
from bnfold._plan.backward import carry_back
from bnfold._plan.conversions import why_unfit
from bnfold._plan.dead_ends import Changes, DeadEnds, Span, Stop
from bnfold._plan.forward import carry_ahead
from bnfold._plan.places import Place, affine
from bnfold._plan.relation import Relation
from bnfold._plan.row import LONGEST, Row, State, drained, extended, normal, splits, taking
from bnfold._plan.trips import Terrain, Trip
from bnfold._system.records import record

# So many operators a trip crosses at first; and so many for each operator of the graph, and at
# least, all trips together that go further.
_NEAR = 32
_FAR = 64
_LEAST = 10_000
# So many parts, and more for each operator, may all maps behind wide operators have: enough where
# a thousand maps stand ahead of one Concat.
_PARTS = 1 << 21


@record(frozen=True)
class _Failed:
    """When no trip of a place paid, which operators they have seen, and whether one was cut off."""

    time: int
    seen: Span
    cut: bool


class Relocator:
    """Carries away what stands at the places of one view; `run` changes the places themselves.

    Afterwards ``behind`` and ``ahead`` have the map that each absorber takes in on that side.
    ``relations`` says how tensors change, ``edits`` has the new numbers of crossed operators.
    ``blame`` lists for each absorber the last map of each place from which it took something.
    ``stops`` has for each place what stopped its maps backward (False) and forward (True).
    """

    def __init__(self, view: View, places: Sequence[Place]) -> None:
        self.view = view
        self.places = places
        self.behind: dict[int, AffineMap] = {}
        self.ahead: dict[int, AffineMap] = {}
        self.relations: dict[int, Relation] = {}
        self.edits: dict[int, Edit] = {}
        self.blame: dict[int, list[int]] = {}
        self.stops: dict[int, dict[bool, Stop]] = {}
        self._at = {index: n for n, place in enumerate(places) for index in place.maps}
        self._after = {place.into: n for n, place in enumerate(places) if place.into is not None}
        for place in places:
            if place.into is not None and place.paid:
                self.behind[place.into] = place.written.absorbed
                self.blame.setdefault(place.into, []).append(place.maps[place.paid - 1])
        self._changes = Changes(len(view.nodes))
        self._terrain = Terrain(view, self, self.relations, self.edits, DeadEnds(self._changes))
        self._terrain.left = _FAR * len(view.nodes) + _PARTS
        # The graph output whose name a tensor takes, by that tensor.
        self._named: dict[int, int] = {}
        self._named.update(self._names(Trip(), range(len(places))) or {})

    def run(self) -> None:
        """Make moves until none is left that pays: near ones first, then far ones.

        So maps of one chain meet, and one of them goes far. All far trips together have a bound.
        """
        failed: dict[int, _Failed] = {}
        self._move_all(failed, 0)
        if cut := [number for number, last in failed.items() if last.cut]:
            for number in cut:
                del failed[number]
            bound = _FAR * len(self.view.nodes) + _LEAST
            self._move_all(failed, self._terrain.spent + bound)

    def _move_all(self, failed: dict[int, _Failed], bound: int) -> None:
        """Make moves until none is left that pays, by trips of any length up to a bound for all."""
        terrain, moved = self._terrain, True
        while moved:
            moved = False
            for number, place in enumerate(self.places):
                last = failed.get(number)
                if last is not None and not self._changes.since(last.time, last.seen):
                    continue
                while place.state.row and self._improve(number, place, bound):
                    moved = True
                if place.state.row:
                    failed[number] = _Failed(self._changes.time, terrain.seen, terrain.cut)

    def _improve(self, number: int, place: Place, bound: int) -> bool:
        """Make the first move of a place that pays. Gives whether there was one.

        An operator on the way becomes another one only where no move pays without that.
        """
        terrain = self._terrain
        terrain.turning = terrain.put_off = terrain.cut = False
        terrain.reach = max(_NEAR, bound - terrain.spent)
        terrain.seen = Span()
        for node in place.maps[0], place.maps[-1]:
            terrain.seen.reach(node)
        if self._move(number, place):
            return True
        terrain.turning = True
        return terrain.put_off and self._move(number, place)

    def _move(self, number: int, place: Place) -> bool:
        """Make the first move of a place that pays. Gives whether there was one."""
        stops: dict[bool, Stop] = {}
        label = self.view.nodes[place.maps[0]].label
        for split in splits(place.state.row, place.into is None):
            for trip, stop, ahead in self._tried(number, place, *split):
                if stop is not None:
                    stops.setdefault(ahead, stop)
                    continue
                unfit = why_unfit(
                    self.view, trip, place, self.places, partial(self._standing, trip)
                )
                if unfit is not None:  # That depends on all that reads it further on.
                    self._terrain.seen = Span(0, len(self.view.nodes) - 1)
                    stops.setdefault(ahead, Stop(unfit))
                    continue
                named = self._names(trip, trip.states)
                if named is None:  # That depends on names that other tensors have got.
                    self._terrain.seen = Span(0, len(self.view.nodes) - 1)
                    message = f"without {label} an output would be the same tensor as another"
                    stops.setdefault(ahead, Stop(Reason("no-gain", label, message)))
                    continue
                reason = self._refuses(trip)
                if reason is None and self._pays(trip):
                    self._named.update(named)
                    self._commit(trip, place)
                    return True
                message = f"carrying it away from {label} would leave as many operators"
                reason = reason or Reason("no-gain", label, message)
                stops.setdefault(ahead, Stop(reason))
        self.stops[number] = stops
        return False

    def _tried(
        self, number: int, place: Place, rest: Row, back: AffineMap | None, forth: AffineMap | None
    ) -> Iterator[tuple[Trip, Stop | None, bool]]:
        """Trips that carry maps of a place away and leave ``rest``, each with what stopped it, and
        whether the last map went forward.
        """
        if back is not None and back.axis == LAST:
            label = self.view.nodes[place.maps[0]].label
            message = f"the rank of what {label} reads is not known"
            yield Trip(), Stop(Reason("unknown-shape", label, message)), True
            return
        trip = Trip()
        self._settle(trip, number, normal(rest))
        if back is not None:
            source = self._source(place)
            trip, stop = carry_back(self._terrain, trip, source, place.maps[0], back)
            if stop is not None or forth is None:
                yield trip, stop, False
                return
        assert forth is not None
        output = self.view.nodes[place.maps[-1]].outputs[0]
        for ahead, stop in carry_ahead(self._terrain, trip, output, forth):
            yield ahead, stop, True

    def _source(self, place: Place) -> int:
        """The tensor that a place reads."""
        first = self.view.nodes[place.maps[0]]
        return first.inputs[affine(first).data]

    def _refuses(self, trip: Trip) -> Reason | None:
        """Why a place could not store the maps that it would have; None if all can."""
        for number, state in trip.states.items():
            place = self.places[number]
            label = self.view.nodes[place.maps[0]].label
            reason = place.style.refuses(state.row, label) if state.row else None
            if reason is not None and place.style.refuses(place.state.row, label) is None:
                return reason
        return None

    def _pays(self, trip: Trip) -> bool:
        old_operators = old_operations = new_operators = new_operations = 0
        for number, state in trip.states.items():
            place = self.places[number]
            old, new = place.cost(place.state), place.cost(state)
            if old is None or new is None or len(state.row) > LONGEST:
                return False
            old_operators, old_operations = old_operators + old[0], old_operations + old[1]
            new_operators, new_operations = new_operators + new[0], new_operations + new[1]
        return absorbing.pays(old_operators, old_operations, new_operators, new_operations)

    def _standing(self, trip: Trip, node: int) -> Row:
        """What stands at the place of an affine operator."""
        number = self._at.get(node)
        if number is None:
            return (affine(self.view.nodes[node]).map,)
        return self._state(trip, number).row

    def _names(self, trip: Trip, numbers: Iterable[int]) -> dict[int, int] | None:
        """The graph outputs whose names pass to other tensors when some places become empty.

        The result has the output by the tensor that takes its name. None if a tensor would need two
        names, or has a name that must stay.
        """
        found: dict[int, int] = {}
        for number in numbers:
            place = self.places[number]
            if place.into is not None or self._state(trip, number).row:
                continue
            output = self.view.nodes[place.maps[-1]].outputs[0]
            pinned = self.view.values[output].pinned is not None
            name = output if pinned else self._named.get(output)
            if name is None:
                continue
            root = self._root(trip, self._source(place))
            tensor = self.view.values[root]
            taken = self._named.get(root, name) != name or found.get(root, name) != name
            if taken or tensor.producer is None or tensor.pinned is not None:
                return None
            found[root] = name
        return found

    def _root(self, trip: Trip, value: int) -> int:
        """The tensor ahead of all empty places that lie directly ahead of ``value``."""
        producer = self.view.values[value].producer
        while producer is not None and self.is_gone(trip, producer):
            node = self.view.nodes[producer]
            value = node.inputs[affine(node).data]
            producer = self.view.values[value].producer
        return value

    def _commit(self, trip: Trip, source: Place) -> None:
        self._changes.note(self._touched(trip))
        self.relations.update(trip.relations)
        self.edits.update(trip.edits)
        for number, state in trip.states.items():
            place = self.places[number]
            place.state, place.carried = state, True
            if place.into is not None:
                self.behind[place.into] = state.absorbed
        for (side, node), map_ in trip.taken.items():
            (self.behind if side == "behind" else self.ahead)[node] = map_
        source.ends += tuple(trip.ends)
        source.crossed += tuple(trip.crossed)
        for end in trip.ends:
            at = self._at.get(end.node)
            home = self.places[at].into if at is not None else end.node
            if home is not None:
                self.blame.setdefault(home, []).append(source.maps[-1])

    def _touched(self, trip: Trip) -> Iterator[int]:
        """The operators that a trip changes, or whose output it changes."""
        for value in trip.relations:
            producer = self.view.values[value].producer
            if producer is not None:
                yield producer
        yield from trip.edits
        for _, node in trip.taken:
            yield node
        for number in trip.states:
            place = self.places[number]
            yield from (place.maps[0], place.maps[-1])
            if place.into is not None:
                yield place.into

    def is_gone(self, trip: Trip, node: int) -> bool:
        """Whether nothing is left at the place of an affine operator, which has no absorber."""
        number = self._at.get(node)
        if number is None:
            return False
        return self.places[number].into is None and self._state(trip, number).row == ()

    def ahead_of(self, trip: Trip, value: int, reader: int) -> AffineMap | None:
        """The only map that stands ahead of a tensor.

        None if there is no such map, or if another reader than ``reader`` sees the tensor.
        """
        tensor = self.view.values[value]
        number = self._at.get(tensor.producer) if tensor.producer is not None else None
        if number is None or value in self.relations or value in trip.relations:
            return None
        place, state = self.places[number], self._state(trip, number)
        if tensor.producer != place.maps[-1] or len(state.row) != 1 or state.row[0].axis == LAST:
            return None
        if absorbing.unshared(self.view, tensor, reader) is not None:
            return None
        return state.row[0]

    def take_along(self, trip: Trip, value: int) -> None:
        """Take out the map that stands ahead of a tensor: the caller carries it on."""
        producer = self.view.values[value].producer
        assert producer is not None
        number = self._at[producer]
        trip.states[number] = State(self._state(trip, number).absorbed, ())

    def take_behind(self, trip: Trip, node: int, map_: AffineMap) -> None:
        """Take a map in behind an absorber, or behind the maps at an affine operator's place."""
        here = self.view.nodes[node]
        if isinstance(here.role, Affine):
            number = self._place_at(node, -1, map_)
            self._settle(trip, number, extended(self._state(trip, number).row, map_))
            return
        assert isinstance(here.role, Absorber)
        total = absorbing.absorb_behind(here, here.role, self._taken(trip, "behind", node), map_)
        if not (here.role.bias_free or total.keeps_origin):
            message = f"{here.label} has no bias: its shift needs an Add of its own"
            raise Refusal.of("no-gain", here.label, message)
        trip.taken["behind", node] = total

    def take_ahead(self, trip: Trip, node: int, map_: AffineMap) -> None:
        """Take a map in ahead of an absorber, or of the maps at an affine operator's place."""
        here = self.view.nodes[node]
        if isinstance(here.role, Affine):
            number = self._place_at(node, 0, map_)
            state = self._state(trip, number)
            trip.states[number] = State(state.absorbed, normal((map_, *state.row)))
            return
        assert isinstance(here.role, Absorber | Receiver)
        assert here.role.ahead is not None
        ahead = here.role.ahead
        total = absorbing.absorb_ahead(here, ahead, self._taken(trip, "ahead", node), map_)
        if ahead.image is not None and not total.keeps_origin:
            after = self._after.get(node)
            if after is None:
                message = f"{here.label} has no bias to take the shift"
                raise Refusal.of("no-gain", here.label, message)
            self._insert(trip, after, ahead.image(total))
            total = absorbing.split(total)[0]
        trip.taken["ahead", node] = total

    def _place_at(self, node: int, end: int, map_: AffineMap) -> int:
        """The number of the place whose first (``end`` 0) or last (−1) map is ``node``, to put
        another map there.

        Raises `Refusal` if there is none, or if that map varies along an axis, which can be written
        only where the rank is known.
        """
        number, label = self._at.get(node), self.view.nodes[node].label
        if number is None or self.places[number].maps[end] != node:
            raise Refusal.of("no-linear-operator", label, f"{label} stays as it is")
        maps = self.places[number].maps
        lies = any(map(self._lies_on_channels, maps)) and map_.axis != LAST
        if map_.axis is not None and not lies:
            message = f"the rank of what {label} reads is not known"
            raise Refusal.of("unknown-shape", label, message)
        return number

    def _lies_on_channels(self, index: int) -> bool:
        """Whether an affine operator knows its axes: by the rank of what it reads, as a norm, or
        because its own numbers lie along one that is counted from the first.
        """
        node = self.view.nodes[index]
        role = affine(node)
        known = self.view.values[node.inputs[role.data]].shape is not None
        return known or role.absorber is not None or role.map.axis not in (None, LAST)

    def _insert(self, trip: Trip, number: int, shift: AffineMap) -> None:
        """Put a shift of the output of the absorber ahead of a place first in that place.

        The shift acts before the maps that the absorber has taken in. It is moved behind them by
        ``A(s, t)∘A(1, u) = A(1, s·u)∘A(s, t)``. Raises `Refusal`.
        """
        place, state = self.places[number], self._state(trip, number)
        moved = shift.then(absorbing.split(state.absorbed)[0])
        if moved is None:
            label = self.view.nodes[place.maps[0]].label
            message = f"the shift would vary along several axes ahead of {label}"
            raise Refusal.of("axis-mismatch", label, message, numbers=True)
        self._settle(trip, number, normal((absorbing.split(moved)[1], *state.row)))

    def _settle(self, trip: Trip, number: int, row: Row) -> None:
        """Let ``row`` stand at a place from now on, except what the absorber ahead takes in."""
        place, state = self.places[number], self._state(trip, number)
        if place.into is None or place.absorber is None:
            trip.states[number] = State(state.absorbed, row)
            return
        take = taking(self.view.nodes[place.into], place.absorber)
        drawn = drained(row, state.absorbed, take, place.absorber.bias_free)
        trip.states[number] = State(*drawn)

    def _state(self, trip: Trip, number: int) -> State:
        return trip.states.get(number, self.places[number].state)

    def _taken(self, trip: Trip, side: str, node: int) -> AffineMap:
        mine = (self.behind if side == "behind" else self.ahead).get(node, IDENTITY)
        return trip.taken.get((side, node), mine)
