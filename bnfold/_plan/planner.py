"""Decide which affine maps move where. Deterministic, linear in the size of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, Affine, Barrier, Carrier, Value, View
from bnfold._plan.places import STEPS, Place, Standing, State
from bnfold._plan.places import stands as stands_of
from bnfold._plan.relation import Relation
from bnfold._plan.relocation import LONGEST_ROW, Relocator
from bnfold._plan.row import Row, drained, extended, taking
from bnfold._plan.stops import Stop, explained
from bnfold._plan.trips import End

Law = Literal["absorb", "compose", "carry"]


@dataclass(frozen=True)
class Move:
    """Affine nodes that give way.

    ``absorb``: they go into node ``into`` directly ahead of them. ``compose``: they stand alone
    (``into`` is the first of them). ``carry``: of those that stand alone, something is carried away
    or has arrived; ``ends`` says where theirs was taken in and ``crossed`` what it crossed on the
    way. In all cases the operators in ``stands`` have to stand where the maps stood. ``absorbed``
    is what ``into`` takes in behind itself, all in all. ``chain`` lists, in data order, the nodes
    after the absorber (otherwise: from the first map on), carriers included; ``maps`` those of them
    that are affine.
    """

    law: Law
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    absorbed: AffineMap
    stands: tuple[Standing, ...]
    ends: tuple[End, ...] = ()
    crossed: tuple[int, ...] = ()

    @property
    def carriers(self) -> tuple[int, ...]:
        """The nodes of the chain that are no maps."""
        maps = set(self.maps)
        return tuple(index for index in self.chain if index not in maps)

    @property
    def changes_values(self) -> bool:
        """Whether tensors on the way hold other values than before."""
        return bool(self.stands) or self.law == "carry" or not self.absorbed.is_identity


@dataclass(frozen=True)
class Sides:
    """What an operator takes in behind itself, and ahead of itself."""

    behind: AffineMap = IDENTITY
    ahead: AffineMap = IDENTITY


@dataclass(frozen=True)
class Moves:
    """What the planner decided for one graph: the moves, and a reason for each map that stays.

    ``sides`` says what each operator takes in, ``relations`` how tensors change that maps are
    carried past, ``edits`` the new numbers of operators on the way. ``blame`` names for each
    operator that takes something in the last maps of the moves it comes from.
    """

    moves: tuple[Move, ...]
    kept: Mapping[int, Reason]
    sides: Mapping[int, Sides] = field(default_factory=dict)
    relations: Mapping[int, Relation] = field(default_factory=dict)
    edits: Mapping[int, Edit] = field(default_factory=dict)
    blame: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def plan(view: View, refused: Mapping[int, Reason]) -> Moves:
    """Plan one graph. ``refused`` holds maps found unfit when weights were looked at."""
    return _Planner(view, refused).run()


@dataclass(frozen=True)
class _State:
    """The composition of a group's maps, ``row ∘ absorbed``, and the operators that it needs, after
    ``maps`` maps in a chain of ``chain`` nodes.
    """

    absorbed: AffineMap = IDENTITY
    row: Row = ()
    stands: tuple[Standing, ...] = ()
    maps: int = 0
    chain: int = 0


@dataclass
class _Group:
    """Maps in a row that may move together, behind an absorber or (``absorber`` None) behind none.

    Maps join as they come; ``best`` is the last state that paid, and only the maps up to there
    move. ``reasons`` says of each map why it is not wholly absorbed, where that is so. ``dtype`` is
    that of the constants of what stands, ``norm`` whether one of the maps is a BatchNormalization.
    """

    into: int
    absorber: Absorber | None
    stopped: Reason | None = None
    maps: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    now: _State = _State()
    best: _State = _State()
    reasons: dict[int, Reason] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None
    norm: bool = False


class _Planner:
    def __init__(self, view: View, refused: Mapping[int, Reason]) -> None:
        self.view = view
        self.refused = refused
        self.home: dict[int, _Group] = {}
        self.groups: list[_Group] = []
        self.lone: list[int] = []
        self.kept: dict[int, Reason] = {}

    def run(self) -> Moves:
        for index, node in enumerate(self.view.nodes):
            if isinstance(node.role, Barrier):
                self.kept[index] = node.role.reason
            elif isinstance(node.role, Affine):
                self._settle(index, node.role)
        places = [place for group in self.groups for place in self._close(group)]
        places += [self._lone(index) for index in self.lone]
        places.sort(key=lambda place: place.maps[0])
        relocator = Relocator(self.view, places)
        relocator.run()
        moves = [
            move
            for number, place in enumerate(places)
            if (move := self._emit(place, relocator.stops.get(number, {}))) is not None
        ]
        for move in moves:
            if move.law == "absorb" and move.into not in relocator.behind:
                relocator.behind[move.into] = move.absorbed
                relocator.blame.setdefault(move.into, []).append(move.maps[-1])
        nodes = sorted({*relocator.behind, *relocator.ahead})
        return Moves(
            tuple(moves),
            dict(sorted(self.kept.items())),
            {
                node: Sides(
                    relocator.behind.get(node, IDENTITY), relocator.ahead.get(node, IDENTITY)
                )
                for node in nodes
            },
            relocator.relations,
            relocator.edits,
            {node: tuple(maps) for node, maps in relocator.blame.items()},
        )

    def _settle(self, index: int, role: Affine) -> None:
        """Find a home for one map: a linear operator, a row of maps that stand, or a new row."""
        reason = self.refused.get(index) or self._walk_back(index, role)
        if reason is None:
            return
        self.kept[index] = reason
        if index not in self.refused and role.composable:
            group = _Group(index, None, reason)
            self._join(group, index, role, [index])
        elif index not in self.refused and role.absorber is not None:
            group = _Group(index, role.absorber, reason)
            self.home[index] = group
        else:
            if index not in self.refused:
                self.lone.append(index)
            return
        self.groups.append(group)

    def _walk_back(self, index: int, role: Affine) -> Reason | None:
        """Follow the data upstream until something takes the map in; else say what stopped it."""
        nodes, values = self.view.nodes, self.view.values
        carriers: list[int] = []
        reader, position = index, role.data
        while True:
            value = values[nodes[reader].inputs[position]]
            reason = absorbing.unshared(self.view, value, reader)
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
        group = self.home.get(to)
        if group is not None:
            return self._join(group, index, role, chain)
        if isinstance(node.role, Absorber):
            group = _Group(to, node.role)
            reason = self._join(group, index, role, chain)
            if reason is None:
                self.groups.append(group)
            return reason
        return Reason(
            "no-linear-operator",
            node.label,
            f"what it reads is written by {node.label}, which cannot absorb it",
        )

    def _join(self, group: _Group, index: int, role: Affine, chain: list[int]) -> Reason | None:
        """Put a map behind those of a group; None, or why it cannot stand there."""
        reason, now = self._joined(group, role)
        if now.row and (not role.composable or len(now.row) > LONGEST_ROW):
            return reason or Reason(
                "unknown-shape",
                self.view.nodes[index].label,
                "what stays of it would need a rank and type that are not known",
            )
        group.maps.append(index)
        group.chain.extend(chain)
        group.dtype = group.dtype or role.dtype
        group.norm = group.norm or role.absorber is not None
        stands = stands_of(now.row, group.dtype, group.norm)
        group.now = replace(now, stands=stands, maps=len(group.maps), chain=len(group.chain))
        if reason is not None:
            group.reasons[index] = reason
        if self._pays(group):
            group.best = group.now
        self.home[index] = group
        return None

    def _joined(self, group: _Group, role: Affine) -> tuple[Reason | None, _State]:
        """The state with one more map, and why the map is not wholly absorbed, where it is not."""
        row = extended(group.now.row, role.map)
        absorber, node = group.absorber, self.view.nodes[group.into]
        if absorber is None:
            return self._behind(group), _State(IDENTITY, row)
        take = taking(node, absorber)
        now = _State(*drained(row, group.now.absorbed, take, absorber.bias_free))
        if now.row == group.now.row:
            return None, now
        try:
            absorbing.absorb_behind(node, absorber, group.now.absorbed, role.map)
        except Refusal as refusal:
            return refusal.reason, now
        if not group.reasons:
            message = f"{node.label} has no bias: its shift needs an Add of its own"
            return Reason("no-gain", node.label, message), now
        return self._behind(group), now

    def _behind(self, group: _Group) -> Reason:
        """Why the next map of a group stays: what stops the first that stays."""
        if group.stopped is not None and not group.maps:
            return group.stopped
        first, reason = next(iter(group.reasons.items()))
        return reason.behind(self.view.nodes[first].label)

    def _pays(self, group: _Group) -> bool:
        """Whether a group's last map makes it cheaper than its best state with all later maps."""
        before, after = group.best.stands, group.now.stands
        later = group.maps[group.best.maps :]
        return absorbing.pays(
            len(before) + len(later),
            sum(STEPS[s.op] for s in before) + sum(self._affine(i).steps for i in later),
            len(after),
            sum(STEPS[s.op] for s in after),
        )

    def _close(self, group: _Group) -> list[Place]:
        """The places that a group leaves: one of all its maps, if they may be written anew."""
        best, maps = group.best, tuple(group.maps)
        if not maps:
            return [self._lone(group.into)] if group.absorber is not None else []
        kept = best.maps
        if group.absorber is None and kept and not best.stands:
            kept = kept if self._droppable(list(maps[:kept])) else 0
        for index in maps[:kept]:
            self.kept.pop(index, None)
        self.kept.update((index, group.reasons[index]) for index in maps[kept:])
        written = State(best.absorbed, best.row)
        whole = State(group.now.absorbed, group.now.row)
        if kept == len(maps):
            return [self._place(group, maps, written, kept)]
        composable = all(self._affine(index).composable for index in maps[kept:])
        if kept == best.maps and composable and len(whole.row) <= LONGEST_ROW:
            return [self._place(group, maps, whole, kept, written)]
        places = [self._place(group, maps[:kept], written, kept)] if kept else []
        return [*places, *(self._lone(index) for index in maps[kept:])]

    def _place(
        self,
        group: _Group,
        maps: tuple[int, ...],
        state: State,
        paid: int,
        written: State | None = None,
    ) -> Place:
        """The place of a group's maps; ``written`` is the state of those that paid, if not all."""
        chain = group.chain[: group.chain.index(maps[-1]) + 1]
        if group.absorber is None:
            chain = chain[chain.index(maps[0]) :]
        before = group.best.stands
        rest = maps[paid:]
        return Place(
            maps,
            tuple(chain),
            None if group.absorber is None else group.into,
            state,
            (
                len(before) + len(rest),
                sum(STEPS[standing.op] for standing in before)
                + sum(self._affine(index).steps for index in rest),
            ),
            written is not None,
            paid,
            written if written is not None else State(),
            restated=all(self._affine(index).composable for index in maps),
            dtype=group.dtype,
            norm=any(self._affine(index).absorber is not None for index in maps),
            minus=self._minus(maps),
            reasons={index: group.reasons[index] for index in maps if index in group.reasons},
        )

    def _lone(self, index: int) -> Place:
        """The place of one map that stays as it is, for now."""
        role = self._affine(index)
        return Place(
            (index,),
            (index,),
            None,
            State(IDENTITY, (role.map,)),
            (1, role.steps),
            as_written=True,
            restated=role.composable,
            dtype=role.dtype,
            norm=role.absorber is not None,
            minus=self._minus((index,)),
            fixed=self.refused.get(index),
        )

    def _minus(self, maps: Sequence[int]) -> bool:
        """Whether a Sub of a constant could hold a shift, and no Add is there to."""
        ops = {(self.view.nodes[index].op, self._affine(index).data) for index in maps}
        return ("Sub", 0) in ops and not ops & {("Add", 0), ("Add", 1)}

    def _emit(self, place: Place, stops: Mapping[bool, Stop]) -> Move | None:
        """The move that a place makes, if any; and the reasons of the maps that stay."""
        if place.as_written:
            for index in place.maps[place.paid :]:
                self.kept[index] = explained(self.kept[index], stops)
            if not place.paid:
                return None
            maps = place.maps[: place.paid]
            part = place.chain[: place.chain.index(maps[-1]) + 1]
            norm = any(self._affine(index).absorber is not None for index in maps)
            place = replace(
                place,
                maps=maps,
                chain=part,
                state=place.written,
                norm=norm,
                minus=self._minus(maps),
            )
        reasons = {i: self.kept.pop(i) for i in place.maps if i in self.kept} | {
            i: reason for i, reason in place.reasons.items() if i in place.maps
        }
        standing = place.stands(place.state)
        first = next((index for index in place.maps if index in reasons), None)
        if standing and first is not None:
            self.kept[first] = explained(reasons[first], stops)
        absorbed = place.state.absorbed
        chain = list(place.chain)
        ends, crossed = tuple(place.ends), tuple(place.crossed)
        taken = place.carried or not standing or not absorbed.is_identity
        if place.into is not None and taken:
            return Move(
                "absorb", place.into, place.maps, place.chain, absorbed, standing, ends, crossed
            )
        chain = chain[chain.index(place.maps[0]) :]
        maps = place.maps
        if place.carried:
            return Move("carry", maps[0], maps, tuple(chain), IDENTITY, standing, ends, crossed)
        behind = self._into_batch_norm(list(maps), standing)
        if behind is not None:
            return Move("absorb", maps[0], maps[1:], tuple(chain[1:]), behind, ())
        return Move("compose", maps[0], maps, tuple(chain), IDENTITY, standing)

    def _into_batch_norm(self, maps: list[int], stands: tuple[Standing, ...]) -> AffineMap | None:
        """The composition of maps that follow a BatchNormalization, where its γ and β take it."""
        absorber = self._affine(maps[0]).absorber
        if absorber is None or [s.op for s in stands] != ["BatchNormalization"]:
            return None
        total = IDENTITY
        for index in maps[1:]:
            joined = total.then(self._affine(index).map)
            if joined is None:
                return None
            total = joined
        return taking(self.view.nodes[maps[0]], absorber)(IDENTITY, total)

    def _droppable(self, maps: list[int]) -> bool:
        """Whether maps that compose to the identity can go without an operator in their place."""
        last = self._value(self.view.nodes[maps[-1]].outputs[0])
        if last.pinned is None:
            return True
        first = self.view.nodes[maps[0]]
        source = self._value(first.inputs[self._affine(maps[0]).data])
        return (
            source.producer is not None and absorbing.unshared(self.view, source, maps[0]) is None
        )

    def _affine(self, index: int) -> Affine:
        role = self.view.nodes[index].role
        assert isinstance(role, Affine)
        return role

    def _value(self, index: int) -> Value:
        return self.view.values[index]
