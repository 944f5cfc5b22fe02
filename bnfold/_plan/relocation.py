"""Carry the maps that stand to operators that take them in.

A map moves as a whole, or its scale moves one way and its shift the other. A move is made only if
it pays: it lowers the number of operators or of operations, and raises neither. So planning ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, Affine, Receiver, View
from bnfold._plan.backward import carry_back
from bnfold._plan.conversions import enlarges, mixing, not_rounded
from bnfold._plan.forward import carry_ahead
from bnfold._plan.places import Place, affine
from bnfold._plan.relation import Relation
from bnfold._plan.row import LONGEST, Row, State, drained, extended, normal, taking
from bnfold._plan.trips import Stop, Terrain, Trip


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
        self._terrain = Terrain(view, self, self.relations, self.edits)
        # The graph output whose name a tensor takes, by that tensor.
        self._named: dict[int, int] = {}
        self._named.update(self._names(Trip(), range(len(places))) or {})

    def run(self) -> None:
        """Make moves until none is left that pays."""
        moved = True
        while moved:
            moved = False
            for number, place in enumerate(self.places):
                while place.state.row and self._improve(number, place):
                    moved = True

    def _improve(self, number: int, place: Place) -> bool:
        """Make the first move of a place that pays. Gives whether there was one.

        An operator on the way becomes another one only where no move pays without that.
        """
        terrain = self._terrain
        terrain.turning = terrain.put_off = False
        if self._move(number, place):
            return True
        terrain.turning = True
        return terrain.put_off and self._move(number, place)

    def _move(self, number: int, place: Place) -> bool:
        """Make the first move of a place that pays. Gives whether there was one."""
        stops: dict[bool, Stop] = {}
        label = self.view.nodes[place.maps[0]].label
        for split in _splits(place):
            for trip, stop, ahead in self._tried(number, place, *split):
                if stop is not None:
                    stops.setdefault(ahead, stop)
                    continue
                unfit = self._unfit(trip, place)
                if unfit is not None:
                    stops.setdefault(ahead, Stop(unfit))
                    continue
                named = self._names(trip, trip.states)
                if named is None:
                    message = f"without {label} an output would be the same tensor as another"
                    stops.setdefault(ahead, Stop(Reason("no-gain", label, message)))
                    continue
                if self._pays(trip):
                    self._named.update(named)
                    self._commit(trip, place)
                    return True
                message = f"carrying it away from {label} would leave as many operators"
                stops.setdefault(ahead, Stop(Reason("no-gain", label, message)))
        self.stops[number] = stops
        return False

    def _tried(
        self, number: int, place: Place, rest: Row, back: AffineMap | None, forth: AffineMap | None
    ) -> Iterator[tuple[Trip, Stop | None, bool]]:
        """Trips that carry maps of a place away and leave ``rest``, each with what stopped it, and
        whether the last map went forward.
        """
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

    def _unfit(self, trip: Trip, source: Place) -> Reason | None:
        """Why a map may not go from a wider type to a narrower one; None if it may, or does not.

        The condition of `pointwise.Converted`: what it makes is rounded to the narrower type
        anyway, nothing but scales stays where it was, and no operator that stands takes it up. A
        map of a tensor of the narrower type has been rounded there.
        """
        types = {affine(self.view.nodes[index]).dtype for index in source.maps}
        if not trip.narrow or types == set(trip.narrow):
            return None
        (first, *others), label = trip.narrow, self.view.nodes[source.maps[0]].label
        for number, state in trip.states.items():
            place = self.places[number]
            left = state.row if place is not source else [m for m in state.row if not enlarges(m)]
            if left and state.row != place.state.row:
                message = f"it would leave an operator of {label} in {first}"
                return Reason("not-carried", label, message)
        if any(other != first for other in others):
            return Reason("not-carried", label, f"{label} would go through several types")
        node = mixing(self.view, trip.crossed)
        if node is not None:
            message = f"{node.label} ({node.op}) puts together numbers that would be rounded first"
            return Reason("not-carried", node.label, message)
        output = self.view.nodes[source.maps[-1]].outputs[0]
        return not_rounded(self.view, output, first, lambda node: self._standing(trip, node))

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

    def is_gone(self, trip: Trip, node: int) -> bool:
        """Whether nothing is left at the place of an affine operator, which has no absorber."""
        number = self._at.get(node)
        if number is None:
            return False
        return self.places[number].into is None and self._state(trip, number).row == ()

    def take_along(self, trip: Trip, value: int, reader: int) -> AffineMap | None:
        """Take out the only map that stands ahead of a tensor, and return it.

        None if there is no such map, or if another reader than ``reader`` sees the tensor.
        """
        tensor = self.view.values[value]
        number = self._at.get(tensor.producer) if tensor.producer is not None else None
        if number is None or value in self.relations or value in trip.relations:
            return None
        place, state = self.places[number], self._state(trip, number)
        if tensor.producer != place.maps[-1] or len(state.row) != 1:
            return None
        if absorbing.unshared(self.view, tensor, reader) is not None:
            return None
        trip.states[number] = State(state.absorbed, ())
        return state.row[0]

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
        if map_.axis is not None and not any(map(self._lies_on_channels, maps)):
            message = f"the rank of what {label} reads is not known"
            raise Refusal.of("unknown-shape", label, message)
        return number

    def _lies_on_channels(self, index: int) -> bool:
        """Whether an affine operator knows its axes: by the rank of what it reads, or as a norm."""
        node = self.view.nodes[index]
        role = affine(node)
        known = self.view.values[node.inputs[role.data]].shape is not None
        return known or role.absorber is not None

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
            raise Refusal.of("axis-mismatch", label, message)
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


def _splits(place: Place) -> Iterator[tuple[Row, AffineMap | None, AffineMap | None]]:
    """The ways to take a row apart: what stays, what goes backward, and what goes forward.

    Backward goes a map that can act first of all, or its part that can. Forward goes a map that can
    act last of all, or its part that can. First come whole maps, then both parts of one map in two
    directions, then one part. Nothing goes backward if there is an absorber directly ahead: it has
    taken in all it can.
    """
    row, backward = place.state.row, place.into is None
    firsts = [n for n in range(len(row)) if _all_commute(row[:n], row[n])] if backward else []
    lasts = [n for n in reversed(range(len(row))) if _all_commute(row[n + 1 :], row[n])]
    for n in firsts:
        yield (*row[:n], *row[n + 1 :]), row[n], None
    for n in lasts:
        yield (*row[:n], *row[n + 1 :]), None, row[n]
    parts = {n: _parts(row[n]) for n in {*firsts, *lasts}}
    for n in firsts:
        for first, second in parts[n] if n in lasts else ():
            yield (*row[:n], *row[n + 1 :]), first, second
    for n in firsts:
        for part, rest in parts[n]:
            yield (*row[:n], rest, *row[n + 1 :]), part, None
    for n in lasts:
        for rest, part in parts[n]:
            yield (*row[:n], rest, *row[n + 1 :]), None, part


def _parts(map_: AffineMap) -> list[tuple[AffineMap, AffineMap]]:
    """A map in two parts, each time the part first that acts first.

    The pairs are scale and shift, and, where it exists, shift and scale; none for a single part.
    """
    if map_.keeps_scale or map_.keeps_origin:
        return []
    turned = absorbing.split_shift_first(map_)
    return [absorbing.split(map_), *([turned] if turned is not None else [])]


def _all_commute(others: Row, map_: AffineMap) -> bool:
    return all(absorbing.commute(other, map_) for other in others)
