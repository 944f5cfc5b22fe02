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


STEPS = {"Mul": 1, "Add": 1, "BatchNormalization": 2}


@dataclass(frozen=True)
class Move:
    """Affine nodes that give way.

    ``absorb``: ``absorbed`` goes into the parameters of node ``into``. ``compose``: they stand
    alone (``into`` is the first of them) and nothing is absorbed. Either way ``left`` has to stand
    where they stood, as the operators in ``stands``. ``chain`` lists, in data order, the nodes
    after the absorber (for ``compose``: from the first map on), carriers included; ``maps`` those
    of them that are affine.
    """

    law: Law
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    absorbed: AffineMap
    left: AffineMap
    stands: tuple[str, ...]

    @property
    def changes_values(self) -> bool:
        """Whether tensors on the way hold other values than before."""
        return not (self.absorbed.is_identity and self.left.is_identity)


@dataclass(frozen=True)
class Moves:
    """What the planner decided for one graph: the moves, and a reason for each map that stays."""

    moves: tuple[Move, ...]
    kept: Mapping[int, Reason]


def plan(view: View, refused: Mapping[int, Reason]) -> Moves:
    """Plan one graph. ``refused`` holds maps found unfit when weights were looked at."""
    return _Planner(view, refused).run()


_IDENTITY = AffineMap.of(1.0, 0.0, None)


@dataclass
class _Group:
    """Maps that will move together: their composition is ``left ∘ absorbed``.

    ``reason`` is what kept the first of them from moving on, None where nothing did.
    """

    law: Law
    into: int
    absorber: Absorber | None
    reason: Reason | None
    maps: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    absorbed: AffineMap = _IDENTITY
    left: AffineMap = _IDENTITY
    closed: bool = False


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
            move = self._move(group)
            stays = self._stays(group, move)
            if stays is not None:
                self._keep(group, stays)
                continue
            moves.append(move)
            if group.reason is not None and move.stands:
                self.kept[group.maps[0]] = group.reason
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
        if not role.composable:
            self.kept[index] = reason
            return
        group = _Group("compose", index, None, reason, [index], [index], left=role.map)
        self.groups.append(group)
        if role.absorber is not None:
            self.standing[index] = group
        else:
            self.home[index] = group

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
            return self._absorb(index, role, to, node.role, chain)
        if isinstance(node.role, Affine):
            group = self.home.get(to)
            if group is not None:
                return self._join(group, index, role, chain)
            if node.role.absorber is not None and to not in self.refused:
                return self._absorb(index, role, to, node.role.absorber, chain)
        return Reason(
            "no-linear-operator",
            node.label,
            f"what it reads is written by {node.label}, which cannot absorb it",
        )

    def _absorb(
        self, index: int, role: Affine, to: int, absorber: Absorber, chain: list[int]
    ) -> Reason | None:
        """Open a group that goes into an absorber, or say why it takes not even the scale."""
        group = _Group("absorb", to, absorber, None)
        reason = self._take(group, absorber, role.map, index, chain)
        if reason is not None:
            return reason
        self.groups.append(group)
        if to in self.standing:
            self.standing[to].closed = True
        return None

    def _join(self, group: _Group, index: int, role: Affine, chain: list[int]) -> Reason | None:
        """Compose a map with those of a group that ends where the map begins."""
        left = group.left.then(role.map)
        label = self.view.nodes[group.maps[-1]].label
        if left is None:
            return Reason(
                "axis-mismatch", label, f"it varies along another axis than {label} before it"
            )
        if not left.is_finite:
            return Reason("overflow", label, f"composed with {label} it is no longer finite")
        if group.absorber is None:
            if not role.composable:
                return group.reason
            group.left = left
            self._append(group, index, chain)
            return None
        reason = self._take(group, group.absorber, left, index, chain)
        if reason is None or self._pays(group) or not self._composable([*group.maps, index]):
            return reason
        return self._detach(group, index, role, chain, reason)

    def _take(
        self, group: _Group, absorber: Absorber, left: AffineMap, index: int, chain: list[int]
    ) -> Reason | None:
        """Let an absorber take all of ``left`` where that costs nothing, else its scale, and with
        it a new last map ``index``; None, or why it takes neither.
        """
        node = self.view.nodes[group.into]
        reason: Reason | None = None
        whole = _laws.absorb_behind(node, absorber, group.absorbed, left)
        if isinstance(whole, Reason):
            reason = whole
        elif absorber.bias_free or left.keeps_origin:
            group.absorbed, group.left, group.reason = whole, _IDENTITY, None
            self._append(group, index, chain)
            return None
        scale, shift = _laws.split(left)
        part = _laws.absorb_behind(node, absorber, group.absorbed, scale)
        if isinstance(part, Reason):
            return reason or part
        if not self._composable([*group.maps, index]):
            return reason or Reason(
                "unknown-shape",
                node.label,
                f"{node.label} has no bias, and an Add needs a rank and type that are not known",
            )
        group.absorbed, group.left, group.reason = part, shift, reason
        self._append(group, index, chain)
        return None

    def _detach(
        self, group: _Group, index: int, role: Affine, chain: list[int], reason: Reason
    ) -> Reason | None:
        """Let a group that gains nothing at its operator stand alone with what follows.

        It holds one map: with two, at most one operator is left, which is a gain.
        """
        (first,) = group.maps
        left = self._affine(first).map.then(role.map)
        if left is None or not left.is_finite:
            return reason
        group.law, group.into, group.absorber, group.reason = "compose", first, None, reason
        group.absorbed, group.left = _IDENTITY, left
        group.chain = [first]
        self._append(group, index, chain)
        return None

    def _append(self, group: _Group, index: int, chain: list[int]) -> None:
        group.maps.append(index)
        group.chain.extend(chain)
        self.home[index] = group

    def _composable(self, maps: list[int]) -> bool:
        return all(self._affine(index).composable for index in maps)

    def _move(self, group: _Group) -> Move:
        return Move(
            group.law,
            group.into,
            tuple(group.maps),
            tuple(group.chain),
            group.absorbed,
            group.left,
            self._stands(group),
        )

    def _stands(self, group: _Group) -> tuple[str, ...]:
        """The operators that what is left of a group needs, once rounded to its dtype."""
        dtypes = (self._affine(index).dtype for index in group.maps)
        dtype = next((dtype for dtype in dtypes if dtype is not None), None)
        left = group.left if dtype is None else group.left.rounded(dtype)
        both = not (left.keeps_scale or left.keeps_origin)
        if both and left.axis in (None, 1) and self._has_batch_norm(group):
            return ("BatchNormalization",)
        mul = () if left.keeps_scale else ("Mul",)
        add = () if left.keeps_origin else ("Add",)
        return mul + add

    def _has_batch_norm(self, group: _Group) -> bool:
        return any(self._affine(index).absorber is not None for index in group.maps)

    def _affine(self, index: int) -> Affine:
        role = self.view.nodes[index].role
        assert isinstance(role, Affine)
        return role

    def _stays(self, group: _Group, move: Move) -> Reason | None:
        """Why a group is left as it is, or None where moving it pays."""
        if group.closed:
            return group.reason
        if not self._pays(group):
            if group.reason is not None:
                return group.reason
            label = self.view.nodes[group.into].label
            return Reason(
                "no-gain",
                label,
                f"{label} has no bias: its shift needs an Add of its own, which is there already",
            )
        if group.law == "compose" and not move.stands and not self._droppable(group):
            return group.reason
        return None

    def _pays(self, group: _Group) -> bool:
        steps = sum(self._affine(index).steps for index in group.maps)
        stands = self._stands(group)
        standing = sum(STEPS[op] for op in stands)
        return _laws.pays(len(group.maps), steps, len(stands), standing)

    def _droppable(self, group: _Group) -> bool:
        """Whether maps that compose to the identity can go without an operator in their place."""
        last = self._value(self.view.nodes[group.maps[-1]].outputs[0])
        if last.pinned is None:
            return True
        first = self.view.nodes[group.into]
        source = self._value(first.inputs[self._affine(group.into).data])
        return source.producer is not None and _laws.unshared(self.view, source, group.into) is None

    def _value(self, index: int) -> Value:
        return self.view.values[index]
