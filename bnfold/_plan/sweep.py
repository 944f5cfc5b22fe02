"""Carry a map through the graph to where it can be taken in, or say what stops it.

Backward the map of a tensor becomes maps of the tensors that it is computed from, in reverse order
of the graph, so that a tensor with several readers is reached once all of them have said what they
want of it. Forward it becomes maps of what is computed from the tensor, in the order of the graph,
so that an operator is reached once all its inputs have their maps. Nothing is decided here but
whether it can be done: a `Trip` says what it would change.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, MultiAxisMap
from bnfold._core.joins import Picked
from bnfold._core.laws import PADDING, Clipped, Edit, Homogeneous, Law, Padded, Way
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, Carrier, Crossing, Node, View
from bnfold._plan.relation import Relation

_TRIES = 8
# Of a tensor with more readers than these no parts are looked at: all of them would be, each time.
_PARTS = 64


@dataclass(frozen=True)
class End:
    """Where a map was taken in: ``behind`` or ``ahead`` of an absorber or of maps that stand."""

    node: int
    side: str


@dataclass
class Trip:
    """What carrying maps would change: tensors and operators on the way, and where they end.

    ``states`` belongs to who takes the maps in.
    """

    relations: dict[int, Relation] = field(default_factory=dict)
    edits: dict[int, Edit] = field(default_factory=dict)
    crossed: list[int] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    states: dict[object, object] = field(default_factory=dict)

    def copy(self) -> Trip:
        """One to try something on."""
        return Trip(
            dict(self.relations),
            dict(self.edits),
            list(self.crossed),
            list(self.ends),
            dict(self.states),
        )


class Taker(Protocol):
    """Who takes maps in: each gives None, or why it does not."""

    def take_behind(self, trip: Trip, node: int, map_: AffineMap) -> Reason | None:
        """A map behind an absorber, or behind the maps that stand at an affine operator."""
        ...

    def take_ahead(self, trip: Trip, node: int, map_: AffineMap) -> Reason | None:
        """A map ahead of an absorber, or of the maps that stand at an affine operator."""
        ...

    def is_gone(self, trip: Trip, node: int) -> bool:
        """Whether nothing stands at an affine operator any more."""
        ...

    def take_along(self, trip: Trip, value: int, reader: int) -> AffineMap | None:
        """The whole map that stands ahead of a tensor, taken out to be carried on with another."""
        ...


@dataclass(frozen=True)
class Stop:
    """Why a trip failed; ``through`` are the types of the operators crossed on the way there."""

    reason: Reason
    through: tuple[str, ...] = ()


class Sweeper:
    """Plans trips in one view. ``relations`` and ``edits`` are those of trips made before."""

    def __init__(
        self,
        view: View,
        taker: Taker,
        relations: Mapping[int, Relation],
        edits: Mapping[int, Edit],
    ) -> None:
        self.view = view
        self.taker = taker
        self.relations = relations
        self.edits = edits
        # Tensors that no map gets past, whatever it is.
        self.dead: dict[bool, dict[int, Reason]] = {True: {}, False: {}}

    def backward(
        self, trip: Trip, value: int, reader: int, map_: AffineMap
    ) -> tuple[Trip, Stop | None]:
        """Carry a map that ``reader`` applied to a tensor to those who compute the tensor.

        Where a law leaves a choice (which summand takes the shift), a few are tried in order.
        """
        choices: dict[int, int] = {}
        first: Stop | None = None
        for _ in range(_TRIES):
            sweep = _Backward(self, trip.copy(), choices)
            stop = sweep.run(value, reader, map_)
            if stop is None:
                return sweep.trip, None
            first = first or stop
            nodes = sorted(n for n, ways in sweep.ways.items() if choices.get(n, 0) + 1 < ways)
            if not nodes:
                break
            # The one decided last is the lowest: the sweep goes backward.
            turned = nodes[0]
            choices = {n: c for n, c in choices.items() if n > turned}
            choices[turned] = sweep.taken.get(turned, 0) + 1
        return trip, first

    def forward(self, trip: Trip, value: int, map_: AffineMap) -> tuple[Trip, Stop | None]:
        """Carry a map of a tensor to all who read it."""
        sweep = _Forward(self, trip.copy())
        stop = sweep.run(value, map_)
        return (sweep.trip, None) if stop is None else (trip, stop)


class _Sweep:
    """What both directions share: bookkeeping of one attempt."""

    ahead: bool

    def __init__(self, sweeper: Sweeper, trip: Trip) -> None:
        self.sweeper = sweeper
        self.view = sweeper.view
        self.taker = sweeper.taker
        self.trip = trip
        self.parents: dict[int, tuple[int, int]] = {}

    def relate(self, value: int, map_: Map) -> Stop | None:
        """Note that a tensor's values change."""
        known = self.trip.relations.get(value) or self.sweeper.relations.get(value)
        relation = known or Relation()
        new = relation.ahead(map_) if self.ahead else relation.behind(map_)
        if new is None:
            name = self.view.values[value].name
            return self.stop(value, Reason("no-gain", name, f"another map has moved past {name}"))
        self.trip.relations[value] = new
        return None

    def stop(self, value: int, reason: Reason, for_all: bool = False) -> Stop:
        """Say why nothing gets past a tensor, and remember it if that holds for every map."""
        through: list[str] = []
        dying, current = for_all, value
        if for_all:
            self.sweeper.dead[self.ahead].setdefault(value, reason)
        while current in self.parents:
            node, current = self.parents[current]
            through.append(self.view.nodes[node].op)
            dying = dying and self.passes_all(node)
            if dying:
                self.sweeper.dead[self.ahead].setdefault(current, reason)
        return Stop(reason, tuple(through[::-1]))

    def passes_all(self, index: int) -> bool:
        """Whether a map of one side of an operator is always one of the other, too."""
        raise NotImplementedError

    def law(self, node: int, crossing: Crossing) -> Law:
        """The law of an operator, with the numbers that an earlier trip gave it."""
        law = crossing.law
        edit = self.trip.edits.get(node) or self.sweeper.edits.get(node)
        if edit is None:
            return law
        if isinstance(law, Clipped):
            return replace(law, low=edit.values.get("min"), high=edit.values.get("max"))
        assert isinstance(law, Padded)
        return replace(law, value=edit.values["value"])

    def cross(self, node: int, way: Way) -> None:
        self.trip.crossed.append(node)
        if way.edit is not None:
            self.trip.edits[node] = way.edit

    def end(self, value: int, node: int, map_: Map, behind: bool) -> Stop | None:
        """Let an absorber, or maps that stand, take a map in."""
        if isinstance(map_, MultiAxisMap):
            label = self.view.nodes[node].label
            message = f"the map varies along several axes of what {label} sees"
            return self.stop(value, Reason("axis-mismatch", label, message))
        take = self.taker.take_behind if behind else self.taker.take_ahead
        reason = take(self.trip, node, map_)
        if reason is not None:
            return self.stop(value, reason)
        self.trip.ends.append(End(node, "behind" if behind else "ahead"))
        return None

    def refused(self, value: int, node: int, problem: str) -> Stop:
        """A law that does not hold."""
        label, op = self.view.nodes[node].label, self.view.nodes[node].op
        code = "zero-padding" if problem == PADDING else "not-carried"
        return self.stop(value, Reason(code, label, f"{label} ({op}): {problem}"))


class _Backward(_Sweep):
    ahead = False

    def __init__(self, sweeper: Sweeper, trip: Trip, choices: Mapping[int, int]) -> None:
        super().__init__(sweeper, trip)
        self.choices = choices
        self.ways: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        self.wanted: dict[int, dict[tuple[int, int], Map]] = {}
        self.heap: list[tuple[int, int]] = []

    def passes_all(self, index: int) -> bool:
        role = self.view.nodes[index].role
        return not isinstance(role, Crossing) or len(role.data) == 1

    def run(self, value: int, reader: int, map_: AffineMap) -> Stop | None:
        position = self.view.nodes[reader].inputs.index(value)
        self._want(value, reader, position, map_, None)
        while self.heap:
            stop = self._step()
            if stop is not None:
                return stop
        return None

    def _want(
        self, value: int, reader: int, position: int, map_: Map, via: tuple[int, int] | None
    ) -> None:
        if value not in self.wanted:
            producer = self.view.values[value].producer
            heapq.heappush(self.heap, (-1 if producer is None else -2 - producer, value))
            if via is not None:
                self.parents[value] = via
        self.wanted.setdefault(value, {})[reader, position] = map_

    def _step(self) -> Stop | None:
        key = self.heap[0][0]
        values: list[int] = []
        while self.heap and self.heap[0][0] == key and (key != -1 or not values):
            values.append(heapq.heappop(self.heap)[1])
        agreed = []
        for value in values:
            stop, map_ = self._agreed(value)
            if stop is not None or map_ is None:
                return stop
            agreed.append((value, map_))
        producer = self.view.values[values[0]].producer
        assert producer is not None
        return self._past(producer, agreed)

    def _agreed(self, value: int) -> tuple[Stop | None, Map | None]:
        """The one map that all readers of a tensor want of it."""
        view, wants = self.view, self.wanted[value]
        tensor = view.values[value]
        dead = self.sweeper.dead[False].get(value)
        if dead is not None:
            return self.stop(value, dead), None
        if tensor.pinned is not None:
            return self.stop(value, tensor.pinned, for_all=True), None
        maps = list(wants.values())
        map_: Map | None = maps[0]
        if len(wants) < len(tensor.readers) or not all(_equal(maps[0], m) for m in maps[1:]):
            map_ = self._in_parts(value, wants)
        if map_ is None:
            return self.stop(value, self._disagreed(value, wants)), None
        if tensor.producer is None:
            message = f"it reads {tensor.name}, which enters the graph from outside"
            reason = Reason("no-linear-operator", tensor.name, message)
            return self.stop(value, reason, for_all=True), None
        stop = self.relate(value, map_)
        return stop, map_

    def _disagreed(self, value: int, wants: Mapping[tuple[int, int], Map]) -> Reason:
        tensor, known = self.view.values[value], {by for by, _ in wants}
        other = next((r for r in tensor.readers if r not in known), None)
        if other is not None or len(wants) < len(tensor.readers):
            label = self.view.nodes[next(iter(known)) if other is None else other].label
            return Reason("shared-output", label, f"{tensor.name} is also read by {label}")
        label = self.view.nodes[next(iter(known))].label
        message = f"the readers of {tensor.name} ask for different maps of it"
        return Reason("shared-output", label, message)

    def _in_parts(self, value: int, wants: Mapping[tuple[int, int], Map]) -> Map | None:
        """The map of a tensor of which every reader picks a part, where each sees of it what it
        asked for, and nothing if it asked for nothing.
        """
        readers = self.view.values[value].readers
        if len(readers) > _PARTS or not all(_picks(self.view.nodes[r]) for r in readers):
            return None
        total = IDENTITY
        for map_ in wants.values():
            joined = total.then(map_) if isinstance(map_, AffineMap) else None
            if joined is None:
                return None
            total = joined
        for reader in dict.fromkeys(readers):
            law = self.view.nodes[reader].role.law  # type: ignore[union-attr]
            asked = next((m for (by, _), m in wants.items() if by == reader), IDENTITY)
            seen, wanted = law.forward({0: total}), law.forward({0: asked})
            if isinstance(seen, str) or isinstance(wanted, str):
                return None
            if not all(_equal(seen.maps[n], wanted.maps[n]) for n in seen.maps):
                return None
        return total

    def _past(self, producer: int, agreed: list[tuple[int, Map]]) -> Stop | None:
        """Carry maps of what an operator puts out to what it reads, or let it take them in."""
        node = self.view.nodes[producer]
        value, map_ = agreed[0]
        role = node.role
        if isinstance(role, Crossing):
            return self._across(producer, role, agreed)
        if node.outputs[0] != value:
            name = self.view.values[value].name
            message = f"it reads {name}, which is not the main output of {node.label}"
            reason = Reason("no-linear-operator", node.label, message)
            return self.stop(value, reason, for_all=True)
        if isinstance(role, Carrier) or (
            isinstance(role, Affine) and self.taker.is_gone(self.trip, producer)
        ):
            if isinstance(role, Carrier):
                self.trip.crossed.append(producer)
            source = node.inputs[role.data]
            self._want(source, producer, role.data, map_, (producer, value))
            return None
        if isinstance(role, Absorber | Affine):
            return self.end(value, producer, map_, behind=True)
        message = f"what it reads is written by {node.label}, which cannot absorb it"
        return self.stop(value, Reason("no-linear-operator", node.label, message), for_all=True)

    def _across(self, producer: int, role: Crossing, agreed: list[tuple[int, Map]]) -> Stop | None:
        node, law = self.view.nodes[producer], self.law(producer, role)
        totals: dict[int, Map] = {}
        for value, map_ in agreed:
            ways = law.backward(node.outputs.index(value), map_)
            if isinstance(ways, str):
                return self.refused(value, producer, ways)
            ways = self._promising(node, role, ways)
            choice = min(self.choices.get(producer, 0), len(ways) - 1)
            self.ways[producer], self.taken[producer] = len(ways), choice
            way = ways[choice]
            if way.edit is not None and not way.edit.fits(role.dtype):
                return self.refused(
                    value, producer, "its new numbers would leave the range of their type"
                )
            self.cross(producer, way)
            for number, part in way.maps.items():
                before = totals.get(number)
                if before is None:
                    totals[number] = part
                    continue
                both = (
                    before.then(part)
                    if isinstance(before, AffineMap) and isinstance(part, AffineMap)
                    else None
                )
                if both is None:
                    return self.refused(value, producer, "its outputs ask for different maps")
                totals[number] = both
        for number, part in totals.items():
            if not part.is_identity:
                position = role.data[number]
                via = (producer, agreed[0][0])
                self._want(node.inputs[position], producer, position, part, via)
        return None

    def _promising(self, node: Node, role: Crossing, ways: list[Way]) -> list[Way]:
        """Ways that do not ask for a map of a tensor that no map gets past; all if none is left."""
        dead = self.sweeper.dead[False]

        def fails(way: Way) -> bool:
            return any(
                not part.is_identity and node.inputs[role.data[number]] in dead
                for number, part in way.maps.items()
            )

        return [way for way in ways if not fails(way)] or ways


class _Forward(_Sweep):
    ahead = True

    def __init__(self, sweeper: Sweeper, trip: Trip) -> None:
        super().__init__(sweeper, trip)
        self.arrived: dict[int, dict[int, Map]] = {}
        self.heap: list[int] = []
        self.unread: int | None = None

    def passes_all(self, index: int) -> bool:
        role = self.view.nodes[index].role
        if not isinstance(role, Crossing):
            return True
        if len(self.arrived[index]) > 1:  # In x − x a shift vanishes, in x·x a sign.
            return False
        return not (
            isinstance(role.law, Picked) or (isinstance(role.law, Homogeneous) and role.law.even)
        )

    def run(self, value: int, map_: AffineMap) -> Stop | None:
        """Carry a map until all who read it have taken it. A tensor that nobody reads asks for
        nothing, but does not take in a map by itself: to remove what is unused is not to fold.
        """
        stop = self._spread(value, map_, None)
        while stop is None and self.heap:
            node = heapq.heappop(self.heap)
            stop = self._past(node, self.arrived[node])
        if stop is None and self.unread is not None and not self.trip.ends:
            name = self.view.values[self.unread].name
            reason = Reason("no-linear-operator", name, f"nobody reads {name}")
            return self.stop(self.unread, reason)
        return stop

    def _spread(self, value: int, map_: Map, via: tuple[int, int] | None) -> Stop | None:
        """Hand a map to everyone who reads a tensor."""
        if map_.is_identity:
            return None
        if via is not None:
            self.parents[value] = via
        tensor = self.view.values[value]
        dead = self.sweeper.dead[True].get(value)
        if dead is not None:
            return self.stop(value, dead)
        if tensor.pinned is not None:
            return self.stop(value, tensor.pinned, for_all=True)
        if not tensor.readers:
            self.unread = value
        for reader in dict.fromkeys(tensor.readers):
            node = self.view.nodes[reader]
            if not isinstance(node.role, Absorber | Affine | Carrier | Crossing):
                message = f"{node.label} ({node.op}) reads it, and no map passes"
                reason = Reason("no-linear-operator", node.label, message)
                return self.stop(value, reason, for_all=True)
            if reader not in self.arrived:
                heapq.heappush(self.heap, reader)
            arrived = self.arrived.setdefault(reader, {})
            for position, name in enumerate(node.inputs):
                if name == value:
                    arrived[position] = map_
        return self.relate(value, map_)

    def _past(self, index: int, arrived: dict[int, Map]) -> Stop | None:
        node = self.view.nodes[index]
        role = node.role
        position = min(arrived)
        value, map_ = node.inputs[position], arrived[position]
        if isinstance(role, Crossing):
            return self._across(index, role, arrived)
        if isinstance(role, Absorber):
            if role.ahead is None or set(arrived) != {role.ahead.data}:
                message = f"{node.label} ({node.op}) reads it, and cannot take it in"
                reason = Reason("no-linear-operator", node.label, message)
                return self.stop(value, reason, for_all=role.ahead is None)
            return self.end(value, index, map_, behind=False)
        assert isinstance(role, Affine | Carrier)
        if set(arrived) != {role.data}:
            message = f"{node.label} ({node.op}) reads it as something else than its data"
            return self.stop(value, Reason("no-linear-operator", node.label, message))
        if isinstance(role, Affine) and not self.taker.is_gone(self.trip, index):
            return self.end(value, index, map_, behind=False)
        if isinstance(role, Carrier):
            self.trip.crossed.append(index)
        return self._spread(node.outputs[0], map_, (index, value))

    def _across(self, index: int, role: Crossing, arrived: dict[int, Map]) -> Stop | None:
        node, law = self.view.nodes[index], self.law(index, role)
        position = min(arrived)
        value = node.inputs[position]
        if not set(arrived) <= set(role.data):
            message = f"{node.label} ({node.op}) reads it as something else than its data"
            return self.stop(value, Reason("no-linear-operator", node.label, message))
        dead = self.sweeper.dead[True].get(node.outputs[0])
        if dead is not None and len(node.outputs) == 1 and self.passes_all(index):
            self.parents[node.outputs[0]] = (index, value)
            return self.stop(node.outputs[0], dead)
        maps: dict[int, Map] = {n: arrived[p] for n, p in enumerate(role.data) if p in arrived}
        way = law.forward(maps)
        if isinstance(way, str) and len(maps) < len(role.data):
            way = self._with_others(index, role, law, maps) or way
        if isinstance(way, str):
            return self.refused(value, index, way)
        if way.edit is not None and not way.edit.fits(role.dtype):
            return self.refused(value, index, "its new numbers would leave the range of their type")
        self.cross(index, way)
        for number, part in way.maps.items():
            if number < len(node.outputs) and node.outputs[number] >= 0:
                stop = self._spread(node.outputs[number], part, (index, value))
                if stop is not None:
                    return stop
        return None

    def _with_others(
        self, index: int, role: Crossing, law: Law, maps: dict[int, Map]
    ) -> Way | None:
        """The way across once the maps that stand ahead of the other inputs come along."""
        node, trip = self.view.nodes[index], self.trip
        tried = trip.copy()
        maps = dict(maps)
        for number, position in enumerate(role.data):
            if number not in maps:
                found = self.taker.take_along(tried, node.inputs[position], index)
                if found is not None:
                    maps[number] = found
                    tried.relations[node.inputs[position]] = Relation((found,))
        way = law.forward(maps)
        if isinstance(way, str):
            return None
        self.trip = tried
        return way


def _picks(node: Node) -> bool:
    return isinstance(node.role, Crossing) and isinstance(node.role.law, Picked)


def _equal(one: Map, other: Map) -> bool:
    if one is other:
        return True
    if isinstance(one, AffineMap) and isinstance(other, AffineMap) and one.axis != other.axis:
        return False
    if isinstance(one, MultiAxisMap) != isinstance(other, MultiAxisMap):
        return False
    same = one.scale.shape == other.scale.shape and one.shift.shape == other.shift.shape
    return same and bool((one.scale == other.scale).all() and (one.shift == other.shift).all())
