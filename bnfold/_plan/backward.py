"""Carry a map backward: from a tensor to the operators that compute it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, equal
from bnfold._core.laws import Law, Way, not_carried
from bnfold._core.reasons import Refusal
from bnfold._core.view import Absorber, Affine, Carrier, Crossing, Node
from bnfold._plan.dead_ends import Stop
from bnfold._plan.sweep import TRIES, Impassable, Known, Sweep
from bnfold._plan.trips import End, Terrain, Trip

# With more readers than these, no parts of a tensor are tried: each time all would be visited.
_PARTS = 64


def carry_back(
    terrain: Terrain, trip: Trip, value: int, reader: int, map_: AffineMap
) -> tuple[Trip, Stop | None]:
    """Carry a map that ``reader`` applies to a tensor to the operators that compute the tensor.

    ``relu(conv(x))·s``: the scale passes the Relu and ends behind the Conv. Gives the trip with
    these changes and None, or the trip as it was and what first stopped the map. Some laws leave a
    choice, for example which term of a sum takes the shift. Then a few choices are tried in order.
    """
    choices: dict[int, int] | None = {}
    first: Stop | None = None
    tried: list[_Backward] = []
    while choices is not None and len(tried) < TRIES:
        sweep = _Backward(terrain, trip.copy(), value, choices)
        sweep.want(reader, map_)
        stop = sweep.run()
        if stop is None:
            return sweep.trip, None
        first = first or stop
        tried.append(sweep)
        choices = sweep.next_choices()
    tried[0].remember(tried)
    return trip, first


class _Backward(Sweep):
    """Backward.

    ``wanted`` has for each tensor the maps that its readers want, by reader and input number.
    """

    ahead = False

    def __init__(
        self, terrain: Terrain, trip: Trip, value: int, choices: Mapping[int, int]
    ) -> None:
        super().__init__(terrain, trip, value, choices)
        self.wanted: dict[int, dict[tuple[int, int], Map]] = {}
        self.heap: list[tuple[int, int]] = []

    def always_passes(self, node: int) -> bool:
        """Not for an operator with several inputs: the map may go to another one of them."""
        role = self.view.nodes[node].role
        several = isinstance(role, Crossing) and len(role.data) > 1
        return not (several or isinstance(role, Absorber))

    def want(self, reader: int, map_: AffineMap) -> None:
        """Note which map the reader of the first tensor wants."""
        self._want(self.value, reader, self.view.nodes[reader].inputs.index(self.value), map_, None)

    def carry(self) -> None:
        """Carry the map until it is taken in. Raises `Refusal`.

        All outputs of an operator are handled together.
        """
        while self.heap:
            key = self.heap[0][0]
            agreed: list[tuple[int, Map]] = []
            while self.heap and self.heap[0][0] == key:
                value = heapq.heappop(self.heap)[1]
                agreed.append((value, self._agreed(value)))
            producer = self.view.values[agreed[0][0]].producer
            assert producer is not None
            self.step(producer)
            if len(agreed) == 1 and not self.heap:
                self.pass_neck(*agreed[0])
            self._past(producer, agreed)

    def _want(
        self, value: int, reader: int, position: int, map_: Map, via: tuple[int, int] | None
    ) -> None:
        if value not in self.wanted:
            producer = self.view.values[value].producer
            heapq.heappush(self.heap, (-1 if producer is None else -2 - producer, value))
            if via is not None:
                self.parents[value] = via
        self.wanted.setdefault(value, {})[reader, position] = map_

    def _agreed(self, value: int) -> Map:
        """The one map that all readers of a tensor want. Raises `Refusal` if there is none."""
        self.value = value
        wants, tensor = self.wanted[value], self.view.values[value]
        if value in self.impassable:
            raise Known(self.impassable[value], lasting=True)
        if tensor.pinned is not None:
            raise Impassable(tensor.pinned)
        first, *others = wants.values()
        map_: Map | None = first
        if len(wants) < len(tensor.readers) or not all(equal(first, other) for other in others):
            map_ = self._in_parts(value, wants)
        if map_ is None:
            raise self._disagreed(value, wants)
        if tensor.producer is None:
            message = f"it reads {tensor.name}, which enters the graph from outside"
            raise Impassable.of("no-linear-operator", tensor.name, message)
        self.relate(value, map_)
        return map_

    def _disagreed(self, value: int, wants: Mapping[tuple[int, int], Map]) -> Refusal:
        tensor, known = self.view.values[value], {by for by, _ in wants}
        other = next((r for r in tensor.readers if r not in known), None)
        if other is not None or len(wants) < len(tensor.readers):
            label = self.view.nodes[next(iter(known)) if other is None else other].label
            message = f"{tensor.name} is also read by {label}"
            return Refusal.of("shared-output", label, message, self._parts(value) is not None)
        label = self.view.nodes[next(iter(known))].label
        message = f"the readers of {tensor.name} ask for different maps of it"
        return Refusal.of("shared-output", label, message, numbers=True)

    def _parts(self, value: int) -> Mapping[int, Law] | None:
        """The laws by which all readers of a tensor take parts of it; None if one does not."""
        if len(self.view.values[value].readers) > _PARTS:
            return None
        readers = dict.fromkeys(self.view.values[value].readers)
        roles = [self.view.nodes[reader].role for reader in readers]
        laws = [r.law for r in roles if isinstance(r, Crossing) and r.law.takes_single_places]
        return dict(zip(readers, laws, strict=True)) if len(laws) == len(roles) else None

    def _in_parts(self, value: int, wants: Mapping[tuple[int, int], Map]) -> Map | None:
        """One map for a tensor of which every reader takes a part; None if there is none.

        Each reader must see the map that it wants in its own part; a reader without a wish must see
        no change. Example: two Slices read channels 0–1 and 2–3 of a tensor ``[N, 4, …]``. The
        first wants the scales (2, 3), the second nothing. The map has the scales (2, 3, 1, 1).
        """
        laws = self._parts(value)
        if laws is None:
            return None
        total = IDENTITY
        for map_ in wants.values():
            joined = total.then(map_) if isinstance(map_, AffineMap) else None
            if joined is None:
                return None
            total = joined
        for reader, law in laws.items():
            asked = next((m for (by, _), m in wants.items() if by == reader), IDENTITY)
            try:
                seen, wanted = law.forward({0: total})[0], law.forward({0: asked})[0]
            except Refusal:
                return None
            if not all(equal(seen.maps[n], wanted.maps[n]) for n in seen.maps):
                return None
        return total

    def _past(self, producer: int, agreed: list[tuple[int, Map]]) -> None:
        """Carry maps of an operator's outputs to its inputs, or let it take them in."""
        node = self.view.nodes[producer]
        role, (value, map_) = node.role, agreed[0]
        self.node, self.value = producer, value
        if isinstance(role, Crossing):
            self._across(producer, role, agreed)
            return
        if node.outputs[0] != value:
            name = self.view.values[value].name
            message = f"it reads {name}, which is not the main output of {node.label}"
            raise Impassable.of("no-linear-operator", node.label, message)
        if isinstance(role, Carrier) or (
            isinstance(role, Affine) and self.taker.is_gone(self.trip, producer)
        ):
            if isinstance(role, Carrier):
                self.trip.crossed.append(producer)
            self._want(node.inputs[role.data], producer, role.data, map_, (producer, value))
        elif isinstance(role, Affine):
            self.end(producer, map_, "behind")
        elif isinstance(role, Absorber):
            self._into(producer, role, value, map_)
        else:
            message = f"what it reads is written by {node.label}, which cannot absorb it"
            raise Impassable.of("no-linear-operator", node.label, message)

    def _into(self, producer: int, role: Absorber, value: int, map_: Map) -> None:
        """Let an absorber take a map in. ``s·(L(x) + z) + t = (s·L(x) + t) + s·z``: the scale goes
        to the tensor that it adds, too.
        """
        inner = self.inside(producer, role, map_)
        self.end(producer, inner, "behind")
        if role.beside is not None and isinstance(inner, AffineMap) and not inner.keeps_scale:
            beside = self.view.nodes[producer].inputs[role.beside]
            scale = AffineMap.of(inner.scale, 0.0, inner.axis)
            self._want(beside, producer, role.beside, scale, (producer, value))

    def _across(self, producer: int, role: Crossing, agreed: list[tuple[int, Map]]) -> None:
        node, law = self.view.nodes[producer], self.law(producer, role)
        totals: dict[int, Map] = {}
        for value, map_ in agreed:
            self.value = value
            ways = self._promising(node, role, law.backward(node.outputs.index(value), map_))
            way = self.chosen(producer, ways)
            self.cross(producer, role, way, (map_,))
            if way.edit is not None and not way.maps:
                self.trip.ends.append(End(producer, "behind"))  # It has become what takes it in.
            for number, part in way.maps.items():
                totals[number] = part if number not in totals else _both(totals[number], part)
        for number, part in totals.items():
            if not part.is_identity:
                position = role.data[number]
                via = (producer, agreed[0][0])
                self._want(node.inputs[position], producer, position, part, via)

    def _promising(self, node: Node, role: Crossing, ways: list[Way]) -> list[Way]:
        """Ways that do not ask for a map of a tensor that no map gets past; all if none is left."""

        def fails(way: Way) -> bool:
            return any(
                not part.is_identity and node.inputs[role.data[number]] in self.impassable
                for number, part in way.maps.items()
            )

        return [way for way in ways if not fails(way)] or ways


def _both(one: Map, other: Map) -> Map:
    """The map that two outputs of an operator want of one input. Raises `Refusal`."""
    both = one.then(other) if isinstance(one, AffineMap) and isinstance(other, AffineMap) else None
    if both is None:
        raise not_carried("its outputs ask for different maps", numbers=True)
    return both
