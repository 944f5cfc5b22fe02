"""Gather the affine operators of a graph into places, in one pass along its order.

A map joins the place of the operator that writes its input. Carriers between the two are crossed.
``Conv → BatchNorm → Identity → Mul`` has one place with two maps, and the Conv ahead of it takes in
what it can. Here each place is planned by itself. Later, `relocation` may carry away what is left.
"""

from __future__ import annotations

from collections.abc import Mapping

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, Affine, Barrier, Carrier, View
from bnfold._plan.places import PLAIN, Place, affine
from bnfold._plan.row import LONGEST, State, drained, extended, taking


def gather(view: View, refused: Mapping[int, Reason]) -> tuple[list[Place], dict[int, Reason]]:
    """The places of a graph, in the order of their first maps, and why other operators stay.

    An affine operator has no place if it is no fixed map, if it only absorbs later maps, or if it
    is ``refused``, which has the reason.
    """
    gatherer = _Gatherer(view, refused)
    for index, node in enumerate(view.nodes):
        if isinstance(node.role, Barrier):
            gatherer.kept[index] = node.role.reason
        elif isinstance(node.role, Affine):
            gatherer.settle(index, node.role)
    places = [closed for place in gatherer.places for closed in gatherer.close(place)]
    return sorted(places, key=lambda place: place.maps[0]), gatherer.kept


class _Gatherer:
    """Finds places. ``home`` has the place for each operator behind which another map may join."""

    def __init__(self, view: View, refused: Mapping[int, Reason]) -> None:
        self.view = view
        self.refused = refused
        self.home: dict[int, Place] = {}
        self.places: list[Place] = []
        self.kept: dict[int, Reason] = {}

    def settle(self, index: int, role: Affine) -> None:
        """Put one map into a place: behind an absorber, behind maps that stand, or a new place."""
        if index in self.refused:
            self.kept[index] = self.refused[index]
            return
        try:
            self._walk_back(index, role)
        except Refusal as refusal:
            reason = refusal.reason
        else:
            return
        if role.composable:
            place = Place(stopped=reason)
            self._join(place, index, role, [index])
        elif role.absorber is not None:
            place = Place(index, role.absorber, reason)
            self.home[index] = place
        else:
            place = self._alone(index, reason)
        self.places.append(place)

    def _walk_back(self, index: int, role: Affine) -> None:
        """Follow the data upstream until an operator takes the map in. Raises `Refusal`."""
        nodes, values = self.view.nodes, self.view.values
        carriers: list[int] = []
        reader, position = index, role.data
        while True:
            value = values[nodes[reader].inputs[position]]
            reason = absorbing.unshared(self.view, value, reader)
            if reason is not None:
                raise Refusal(reason)
            if value.producer is None:
                message = f"it reads {value.name}, which enters the graph from outside"
                raise Refusal.of("no-linear-operator", value.name, message)
            producer = nodes[value.producer]
            if values[producer.outputs[0]] is not value:
                message = f"it reads {value.name}, which is not the main output of {producer.label}"
                raise Refusal.of("no-linear-operator", producer.label, message)
            if not isinstance(producer.role, Carrier):
                self._offer(index, role, value.producer, carriers[::-1])
                return
            carriers.append(value.producer)
            reader, position = value.producer, producer.role.data

    def _offer(self, index: int, role: Affine, to: int, carriers: list[int]) -> None:
        """Offer a map to the operator ``to`` ahead of ``carriers``. Raises `Refusal`."""
        node, place = self.view.nodes[to], self.home.get(to)
        if place is not None:
            self._join(place, index, role, [*carriers, index])
        elif isinstance(node.role, Absorber) and node.role.is_plain:
            place = Place(to, node.role)
            self._join(place, index, role, [*carriers, index])
            self.places.append(place)
        elif isinstance(node.role, Absorber):
            # A trip goes there: the map may pass its activation, and the scale go beside it.
            if node.role.activation is None:
                absorbing.absorb_behind(node, node.role, IDENTITY, role.map)
            message = f"what it reads is written by {node.label}, which cannot take it in"
            raise Refusal.of("no-linear-operator", node.label, message)
        elif to in self.refused:
            raise Refusal(self.refused[to].behind(node.label))
        else:
            message = f"what it reads is written by {node.label}, which cannot absorb it"
            raise Refusal.of("no-linear-operator", node.label, message)

    def _join(self, place: Place, index: int, role: Affine, chain: list[int]) -> None:
        """Put a map behind the maps of a place. Raises `Refusal` if it cannot stand there."""
        state, reason = self._with(place, role)
        if state.row and (not role.composable or len(state.row) > LONGEST):
            message = "what stays of it would need a rank and type that are not known"
            label = self.view.nodes[index].label
            raise Refusal(reason or Reason("unknown-shape", label, message))
        if place.maps and state.row:
            first = self.view.nodes[place.maps[0]].label
            lost = place.style.refuses(state.row, first)
            if lost is not None and place.style.refuses(place.state.row, first) is None:
                raise Refusal(lost)
        place.join(index, self.view.nodes[index], chain, state)
        if reason is not None:
            place.reasons[index] = reason
        self.home[index] = place

    def _with(self, place: Place, role: Affine) -> tuple[State, Reason | None]:
        """The state with one more map, and why the map is not wholly absorbed; None if it is."""
        row, absorbed = extended(place.state.row, role.map), place.state.absorbed
        if place.absorber is None or place.into is None:
            return State(IDENTITY, row), self._behind(place)
        absorber, node = place.absorber, self.view.nodes[place.into]
        state = State(*drained(row, absorbed, taking(node, absorber), absorber.bias_free))
        if state.row == place.state.row:
            return state, None
        try:
            absorbing.absorb_behind(node, absorber, absorbed, role.map)
        except Refusal as refusal:
            return state, refusal.reason
        if not place.reasons:
            message = f"{node.label} has no bias: its shift needs an Add of its own"
            return state, Reason("no-gain", node.label, message)
        return state, self._behind(place)

    def _behind(self, place: Place) -> Reason:
        """Why the next map of a place stays: the reason of the first map that stays."""
        if place.stopped is not None and not place.maps:
            return place.stopped
        first, reason = next(iter(place.reasons.items()))
        return reason.behind(self.view.nodes[first].label)

    def close(self, place: Place) -> list[Place]:
        """The final places for one place: itself, if all its maps may be written anew.

        Otherwise the maps that did not pay get a place of their own each.
        """
        if place.into is not None and place.stopped is not None:
            if not place.maps:
                return [self._alone(place.into, place.stopped)]
            self.kept[place.into] = place.stopped
        paid, rest = place.paid, place.maps[place.paid :]
        vanish = place.into is None and paid and not place.stands(place.written)
        if vanish and not self._droppable(place.maps[:paid]):
            paid, rest = 0, place.maps
        elif len(place.state.row) <= LONGEST and all(
            affine(self.view.nodes[index]).composable for index in rest
        ):
            return [place]
        first = [place.first(self.view, paid)] if paid else []
        return [*first, *(self._alone(index, place.reasons[index]) for index in rest)]

    def _alone(self, index: int, reason: Reason) -> Place:
        """A place for one map, which stays as it is for now."""
        node = self.view.nodes[index]
        role = affine(node)
        return Place(
            maps=[index],
            chain=[index],
            reasons={index: reason},
            style=PLAIN.joined(node),
            state=State(IDENTITY, (role.map,)),
            price=(1, role.operations),
            restated=role.composable or (role.absorber is not None and role.renewable),
        )

    def _droppable(self, maps: list[int]) -> bool:
        """Whether maps that compose to the identity can go without an operator in their place."""
        nodes, values = self.view.nodes, self.view.values
        if values[nodes[maps[-1]].outputs[0]].pinned is None:
            return True
        first = nodes[maps[0]]
        source = values[first.inputs[affine(first).data]]
        return (
            source.producer is not None and absorbing.unshared(self.view, source, maps[0]) is None
        )
