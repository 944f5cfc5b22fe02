"""Carry a map forward: from a tensor to all who read it."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Mapping

from bnfold._core.affine import LAST, AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.laws import Law, Way, not_known
from bnfold._core.reasons import Refusal
from bnfold._core.view import Absorber, Affine, Carrier, Crossing, Receiver
from bnfold._plan.dead_ends import Stop
from bnfold._plan.relation import Relation
from bnfold._plan.sweep import TRIES, Impassable, Known, Sweep
from bnfold._plan.trips import End, Terrain, Trip

# Of an operator with more inputs than these, either all bring a map along or none does.
_JOINED = 64


def carry_ahead(
    terrain: Terrain, trip: Trip, value: int, map_: AffineMap
) -> Iterator[tuple[Trip, Stop | None]]:
    """Carry a map of a tensor to all who read it.

    ``conv(maxpool(s·x + t))``: the map passes the pool and ends ahead of the Conv. Gives the trip
    with these changes and None, or the trip as it was and what stopped the map. Where a law leaves
    a choice, a few are tried in order: the caller asks for the next where one is of no use.
    """
    choices: dict[int, int] | None = {}
    tried: list[_Forward] = []
    arrived = False
    while choices is not None and len(tried) < TRIES:
        sweep = _Forward(terrain, trip.copy(), value, map_, choices)
        stop = sweep.run()
        arrived = arrived or stop is None
        tried.append(sweep)
        yield (sweep.trip, None) if stop is None else (trip, stop)
        choices = sweep.next_choices()
    if not arrived:
        tried[0].remember(tried)


class _Forward(Sweep):
    """Forward. ``arrived`` has for each operator the maps at its inputs, by input number."""

    ahead = True

    def __init__(
        self,
        terrain: Terrain,
        trip: Trip,
        value: int,
        map_: AffineMap,
        choices: Mapping[int, int],
    ) -> None:
        super().__init__(terrain, trip, value, choices)
        self.map = map_
        self.arrived: dict[int, dict[int, Map]] = {}
        self.heap: list[int] = []
        self.unread: int | None = None

    def always_passes(self, node: int) -> bool:
        """Not for every operator: in x − x a shift vanishes, in x·x a sign."""
        role = self.view.nodes[node].role
        if not isinstance(role, Crossing):
            return True
        return len(self.arrived[node]) == 1 and not role.law.may_lose_a_map

    def carry(self) -> None:
        """Carry the map until it is taken in. Raises `Refusal`.

        A tensor that nobody reads does not stop the map. But it is no end: at least one operator
        must take the map in. To remove unused operators is not to fold.
        """
        self._spread(self.value, self.map, None)
        while self.heap:
            node = heapq.heappop(self.heap)
            arrived = self.arrived[node]
            self.step(node)
            if not self.heap:
                values = {self.view.nodes[node].inputs[position] for position in arrived}
                if len(values) == 1:
                    self.pass_neck(values.pop(), next(iter(arrived.values())))
            self._past(node, arrived)
        if self.unread is not None and not self.trip.ends:
            self.value = self.unread
            name = self.view.values[self.unread].name
            raise Refusal.of("no-linear-operator", name, f"nobody reads {name}")

    def _spread(self, value: int, map_: Map, via: tuple[int, int] | None) -> None:
        """Hand a map of a tensor to all who read the tensor. Raises `Refusal`."""
        if map_.is_identity:
            return
        self.value = value
        if via is not None:
            self.parents[value] = via
        tensor = self.view.values[value]
        if value in self.impassable:
            raise Known(self.impassable[value], lasting=True)
        if tensor.pinned is not None:
            raise Impassable(tensor.pinned)
        if not tensor.readers:
            self.unread = value
        for reader in dict.fromkeys(tensor.readers):
            node = self.view.nodes[reader]
            if not isinstance(node.role, Absorber | Receiver | Affine | Carrier | Crossing):
                message = f"{node.label} ({node.op}) reads it, and no map passes"
                raise Impassable.of("no-linear-operator", node.label, message)
            if reader not in self.arrived:
                heapq.heappush(self.heap, reader)
            arrived = self.arrived.setdefault(reader, {})
            arrived.update(dict.fromkeys(node.reads[value], map_))
        if tensor.producer is not None:
            self.span.reach(tensor.producer)
        self.relate(value, map_)

    def _past(self, index: int, arrived: Mapping[int, Map]) -> None:
        """Carry maps of an operator's inputs to its outputs, or let it take them in."""
        node = self.view.nodes[index]
        role, position = node.role, min(arrived)
        value, map_ = node.inputs[position], arrived[position]
        self.node, self.value = index, value
        if isinstance(role, Crossing):
            self._across(index, role, arrived)
            return
        still = bool((map_.scale == 1).all())
        if isinstance(role, Absorber) and set(arrived) == {role.beside} and still:
            self.end(index, map_, "behind")  # L(x) + (z + t) = (L(x) + t) + z
            return
        if isinstance(role, Absorber | Receiver):
            if role.ahead is None or set(arrived) != {role.ahead.data}:
                message = f"{node.label} ({node.op}) reads it, and cannot take it in"
                refusal = Impassable if role.ahead is None else Refusal
                raise refusal.of("no-linear-operator", node.label, message)
            self.end(index, map_, "ahead")
            return
        assert isinstance(role, Affine | Carrier)
        self._check_data(index, (role.data,), arrived)
        if isinstance(role, Affine) and not self.taker.is_gone(self.trip, index):
            self.end(index, map_, "ahead")
            return
        if isinstance(role, Carrier):
            self.trip.crossed.append(index)
        self._spread(node.outputs[0], map_, (index, value))

    def _across(self, index: int, role: Crossing, arrived: Mapping[int, Map]) -> None:
        if any(isinstance(m, AffineMap) and m.axis == LAST for m in arrived.values()):
            raise not_known("the rank of what it reads is not known")
        node, value, law = self.view.nodes[index], self.value, self.law(index, role)
        self._check_data(index, role.counted, arrived)
        first = node.outputs[0]
        if first in self.impassable and len(node.outputs) == 1 and self.always_passes(index):
            self.value, self.parents[first] = first, (index, value)
            raise Known(self.impassable[first], lasting=True)
        maps = {role.counted[position]: arrived[position] for position in sorted(arrived)}
        try:
            way = self.chosen(index, law.forward(maps))
        except Refusal as refusal:
            ways = self._with_others(index, role, law, maps) if len(maps) < len(role.data) else None
            if ways is None:
                refusal.numbers = refusal.numbers or index in self.joined
                raise
            way = self.chosen(index, ways)
        self.cross(index, role, way, maps.values())
        if way.edit is not None and all(part.is_identity for part in way.maps.values()):
            self.trip.ends.append(End(index, "ahead"))  # Its own numbers have taken the map in.
        for number, part in way.maps.items():
            if number < len(node.outputs) and node.outputs[number] >= 0:
                self._spread(node.outputs[number], part, (index, value))

    def _check_data(self, index: int, data: Container[int], arrived: Mapping[int, Map]) -> None:
        """Raise `Refusal` if a map has arrived at another input than data: in ``x / s`` at s."""
        if not all(position in data for position in arrived):
            node = self.view.nodes[index]
            message = f"{node.label} ({node.op}) reads it as something else than its data"
            raise Refusal.of("no-linear-operator", node.label, message)

    def _with_others(
        self, index: int, role: Crossing, law: Law, maps: Mapping[int, Map]
    ) -> list[Way] | None:
        """The ways across an operator if the maps ahead of its other inputs come along; else None.

        ``s·a + s·b``: the sum refuses the scale of one term alone, but both scales pass together.
        """
        node, joined, along = self.view.nodes[index], dict(maps), {}
        for number, position in enumerate(role.data):
            if number not in joined:
                value = node.inputs[position]
                producer = self.view.values[value].producer
                if producer is not None:
                    self.span.reach(producer)
                found = self.taker.ahead_of(self.trip, value, index)
                if found is not None:
                    joined[number] = along[value] = found
                elif len(role.data) > _JOINED:
                    return None
        if along:
            self.joined.add(index)
        try:
            ways = law.forward(joined)
        except Refusal:
            return None
        for value, map_ in along.items():
            self.taker.take_along(self.trip, value)
            self.trip.relations[value] = Relation((map_,))
        return ways
