"""Decide which affine maps move where. Deterministic, linear in the size of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnfold._affine import AffineMap
from bnfold._plan import _laws
from bnfold._plan._reasons import Reason
from bnfold._plan._view import Absorber, Affine, Barrier, Carrier, Value, View

Law = Literal["absorb", "compose"]


@dataclass(frozen=True)
class Move:
    """Affine nodes that give way.

    ``absorb``: their composition ``map`` goes into the parameters of node ``into``.
    ``compose``: they stand alone (``into`` is the first of them) and shrink to a Mul, an Add,
    both, or nothing. ``chain`` lists, in data order, the nodes after the absorber (for
    ``compose``: from the first map on), carriers included; ``maps`` those of them that are affine.
    """

    law: Law
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    map: AffineMap
    bias_free: bool = True

    @property
    def adds_mul(self) -> bool:
        """Whether a Mul has to stand where the maps stood."""
        return self.law == "compose" and not self.map.keeps_scale

    @property
    def adds_add(self) -> bool:
        """Whether an Add has to stand where the maps stood."""
        return not self.map.keeps_origin and (self.law == "compose" or not self.bias_free)


@dataclass(frozen=True)
class Moves:
    """What the planner decided for one graph: the moves, and a reason for each map that stays."""

    moves: tuple[Move, ...]
    kept: Mapping[int, Reason]


def plan(view: View, refused: Mapping[int, Reason]) -> Moves:
    """Plan one graph. ``refused`` holds maps found unfit when weights were looked at."""
    return _Planner(view, refused).run()


@dataclass
class _Group:
    """Maps that will move together, and the composition of all of them."""

    law: Law
    into: int
    map: AffineMap
    absorber: Absorber | None
    reason: Reason | None = None
    maps: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    closed: bool = False

    def frozen(self) -> Move:
        free = self.absorber is None or self.absorber.bias_free
        return Move(self.law, self.into, tuple(self.maps), tuple(self.chain), self.map, free)


class _Planner:
    def __init__(self, view: View, refused: Mapping[int, Reason]) -> None:
        self.view = view
        self.refused = refused
        self.home: dict[int, _Group] = {}
        self.standing: dict[int, _Group] = {}
        self.groups: list[_Group] = []
        self.kept: dict[int, Reason] = {}

    def run(self) -> Moves:
        for index, node in enumerate(self.view.nodes):
            if isinstance(node.role, Barrier):
                self.kept[index] = node.role.reason
            elif isinstance(node.role, Affine):
                self._settle(index, node.role)
        moves = []
        for group in self.groups:
            move = group.frozen()
            stays = self._stays(group, move)
            if stays is None:
                moves.append(move)
            if stays is not None:
                self.kept.update(dict.fromkeys(group.maps, stays))
            elif group.reason is not None and (move.adds_mul or move.adds_add):
                self.kept[group.into] = group.reason
        return Moves(tuple(moves), dict(sorted(self.kept.items())))

    def _keep(self, group: _Group, reason: Reason) -> None:
        """The first map of a group says what stopped it, the others that they follow it."""
        first, *later = group.maps
        self.kept[first] = reason
        label = self.view.nodes[first].label
        behind = Reason(
            reason.code, reason.at, f"it follows {label}, which stays: {reason.message}"
        )
        self.kept.update(dict.fromkeys(later, behind))

    def _settle(self, index: int, role: Affine) -> None:
        """Find a home for one map: a linear operator, a chain of standing maps, or its own."""
        reason = self.refused.get(index)
        if reason is not None:
            self.kept[index] = reason
            return
        reason = self._walk_back(index, role)
        if reason is None:
            return
        if role.composable:
            group = self._open("compose", index, None, role.map, [index], index, reason)
            if role.absorber is not None:
                self.standing[index] = group
                self.home.pop(index)
        else:
            self.kept[index] = reason

    def _walk_back(self, index: int, role: Affine) -> Reason | None:
        """Follow the data upstream until something takes the map in; else say what stopped it."""
        nodes, values = self.view.nodes, self.view.values
        carriers: list[int] = []
        reader, position = index, role.data
        while True:
            value = values[nodes[reader].inputs[position]]
            reason = _laws.unshared(self.view, value, reader)
            if reason is not None:
                return reason
            if value.producer is None:
                return Reason(
                    "no-linear-operator",
                    value.name,
                    f"it reads {value.name}, which enters the graph from outside",
                )
            producer = nodes[value.producer]
            if values[producer.outputs[0]] is not value:
                return Reason(
                    "no-linear-operator",
                    producer.label,
                    f"it reads {value.name}, which is not the main output of {producer.label}",
                )
            if not isinstance(producer.role, Carrier):
                return self._offer(index, role, value.producer, carriers[::-1])
            carriers.append(value.producer)
            reader, position = value.producer, producer.role.data

    def _offer(self, index: int, role: Affine, to: int, carriers: list[int]) -> Reason | None:
        """Offer a map to the operator that writes its input, carriers between them crossed."""
        node = self.view.nodes[to]
        chain = [*carriers, index]
        if isinstance(node.role, Absorber):
            return self._absorb(index, role.map, to, node.role, chain)
        if isinstance(node.role, Affine):
            group = self.home.get(to)
            if group is not None:
                return self._join(group, index, role, chain)
            if node.role.absorber is not None and to not in self.refused:
                return self._absorb(index, role.map, to, node.role.absorber, chain)
        return Reason(
            "no-linear-operator",
            node.label,
            f"what it reads is written by {node.label}, which cannot absorb it",
        )

    def _absorb(
        self, index: int, map_: AffineMap, to: int, absorber: Absorber, chain: list[int]
    ) -> Reason | None:
        reason = _laws.absorb_behind(self.view.nodes[to], absorber, map_)
        if reason is None:
            self._open("absorb", to, absorber, map_, chain, index, None)
            if to in self.standing:
                self.standing[to].closed = True
        return reason

    def _join(self, group: _Group, index: int, role: Affine, chain: list[int]) -> Reason | None:
        """Compose a map with those of a group that ends where the map begins."""
        total = group.map.then(role.map)
        label = self.view.nodes[group.maps[-1]].label
        if total is None:
            return Reason(
                "axis-mismatch", label, f"it varies along another axis than {label} before it"
            )
        if not total.is_finite:
            return Reason("overflow", label, f"composed with {label} it is no longer finite")
        if group.absorber is not None:
            node = self.view.nodes[group.into]
            reason = _laws.absorb_behind(node, group.absorber, total)
            if reason is not None:
                return reason
        elif not role.composable:
            return group.reason
        group.map = total
        group.maps.append(index)
        group.chain.extend(chain)
        self.home[index] = group
        return None

    def _open(
        self,
        law: Law,
        into: int,
        absorber: Absorber | None,
        map_: AffineMap,
        chain: list[int],
        index: int,
        reason: Reason | None,
    ) -> _Group:
        group = _Group(law, into, map_, absorber, reason, [index], list(chain))
        self.groups.append(group)
        self.home[index] = group
        return group

    def _stays(self, group: _Group, move: Move) -> Reason | None:
        """Why a group is left as it is, or None where moving it pays."""
        if group.closed:
            return group.reason
        steps = 0
        for index in group.maps:
            role = self.view.nodes[index].role
            assert isinstance(role, Affine)
            steps += role.steps
        added = int(move.adds_mul) + int(move.adds_add)
        if not _laws.pays(len(group.maps), steps, added):
            if group.reason is not None:
                return group.reason
            label = self.view.nodes[group.into].label
            return Reason(
                "no-gain",
                label,
                f"{label} has no bias: its shift needs an Add of its own, which is there already",
            )
        if group.law == "compose" and added == 0 and not self._droppable(group):
            return group.reason
        return None

    def _droppable(self, group: _Group) -> bool:
        """Whether maps that compose to the identity can go without an operator in their place."""
        last = self._value(self.view.nodes[group.maps[-1]].outputs[0])
        if last.pinned is None:
            return True
        first = self.view.nodes[group.into]
        assert isinstance(first.role, Affine)
        source = self._value(first.inputs[first.role.data])
        return source.producer is not None and _laws.unshared(self.view, source, group.into) is None

    def _value(self, index: int) -> Value:
        return self.view.values[index]
