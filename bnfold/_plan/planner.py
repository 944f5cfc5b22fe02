"""Decide which affine maps move where. Deterministic, linear in the size of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.laws import Edit
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, View
from bnfold._plan.conversions import Unneeded, unneeded
from bnfold._plan.dead_ends import Stop
from bnfold._plan.gathering import gather
from bnfold._plan.places import Place, Standing, affine
from bnfold._plan.relation import Relation
from bnfold._plan.relocation import Relocator
from bnfold._plan.row import taking
from bnfold._plan.trips import End, explained
from bnfold._system.records import record

MoveKind = Literal["absorb", "compose", "carry"]


@record(frozen=True)
class Move:
    """Affine nodes that go, and where their maps go.

    ``law`` says how. ``absorb``: the maps go into node ``into``, directly ahead of them.
    ``compose``: no node ahead takes them in; the maps become fewer, and ``into`` is the first one.
    ``carry``: no node ahead takes them in, and maps were carried away from here or to here.
    ``ends`` says where maps that left were taken in, ``crossed`` what they crossed. The operators
    ``stands`` are left in place of the maps. ``absorbed`` is the whole map that ``into`` takes in
    behind itself. ``chain`` lists in data order the nodes behind the absorber, or from the first
    map on, with carriers. ``maps`` are the affine nodes among them. If it ``rewrites``, the first
    map is a norm that stays and is written as other operators.
    """

    law: MoveKind
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    absorbed: AffineMap
    stands: tuple[Standing, ...]
    ends: tuple[End, ...] = ()
    crossed: tuple[int, ...] = ()
    rewrites: bool = False

    @property
    def carriers(self) -> tuple[int, ...]:
        """The nodes of the chain that are no maps."""
        maps = set(self.maps)
        return tuple(index for index in self.chain if index not in maps)

    @property
    def changes_values(self) -> bool:
        """Whether tensors along the chain hold other values than before."""
        return bool(self.stands) or self.law == "carry" or not self.absorbed.is_identity


@record(frozen=True)
class Sides:
    """The maps that an operator takes in behind itself and ahead of itself."""

    behind: AffineMap = IDENTITY
    ahead: AffineMap = IDENTITY


@record(frozen=True)
class Moves:
    """What the planner decided for one graph: the moves, and a reason for each map that stays.

    ``sides`` has the maps that each operator takes in. ``relations`` says how tensors on the way of
    carried maps change, ``edits`` has the new numbers of operators on the way. ``blame`` lists for
    each operator that takes maps in the last map of each move from which it took one. ``unneeded``
    has the conversions between types that go with the maps. ``turned`` are the operators that
    become others, and of which type; of the same one where their inputs are swapped. ``copied`` has
    the types of operators of which another one is made, for weights that part.
    """

    moves: tuple[Move, ...]
    kept: Mapping[int, Reason]
    sides: Mapping[int, Sides] = field(default_factory=dict)
    relations: Mapping[int, Relation] = field(default_factory=dict)
    edits: Mapping[int, Edit] = field(default_factory=dict)
    blame: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    unneeded: tuple[Unneeded, ...] = ()
    turned: Mapping[int, str] = field(default_factory=dict)
    copied: tuple[str, ...] = ()


def plan(view: View, refused: Mapping[int, Reason]) -> Moves:
    """The moves of one graph. ``refused`` has the maps that may not fold, each with its reason."""
    places, kept = gather(view, refused)
    relocator = Relocator(view, places)
    relocator.run()
    behind, ahead, blame = relocator.behind, relocator.ahead, relocator.blame
    moves: list[Move] = []
    for number, place in enumerate(places):
        move, reasons = _told(view, place, relocator.stops.get(number, {}))
        kept.update(reasons)
        if move is not None:
            moves.append(move)
    for move in moves:
        if move.law == "absorb" and move.into not in behind:
            behind[move.into] = move.absorbed
            blame.setdefault(move.into, []).append(move.maps[-1])
    into = {move.into for move in moves if move.law == "absorb"}
    sides = {
        node: Sides(behind.get(node, IDENTITY), ahead.get(node, IDENTITY))
        for node in sorted({*behind, *ahead})
        if node in into or not (_is_none(behind.get(node)) and _is_none(ahead.get(node)))
    }
    return Moves(
        tuple(moves),
        dict(sorted(kept.items())),
        sides,
        relocator.relations,
        relocator.edits,
        {node: tuple(maps) for node, maps in blame.items()},
        unneeded(
            view,
            [node for move in moves for node in move.crossed],
            {index for move in moves if not move.stands for index in move.maps},
        ),
        _turned(view, relocator.edits, sides),
    )


def _is_none(map_: AffineMap | None) -> bool:
    """Whether nothing is taken in."""
    return map_ is None or map_.is_identity


def _turned(view: View, edits: Mapping[int, Edit], sides: Mapping[int, Sides]) -> dict[int, str]:
    """What operators become that get the numbers of another, a bias without a place for one, or
    their inputs in another order.
    """
    found = {}
    for node, edit in edits.items():
        form, op = edit.form, view.nodes[node].op
        if form is not None and (form.op != op or form.order != tuple(sorted(form.order))):
            found[node] = form.op
    for node, taken in sides.items():
        role = view.nodes[node].role
        shifted = not (taken.behind.keeps_origin and taken.ahead.keeps_origin)
        if isinstance(role, Absorber) and role.becomes and shifted:
            found[node] = role.becomes
    return found


def _told(
    view: View, place: Place, stops: Mapping[bool, Stop]
) -> tuple[Move | None, dict[int, Reason]]:
    """The move of a place, or None, and the reasons of its maps that stay."""
    kept: dict[int, Reason] = {}
    if place.as_written:
        for index in place.maps[place.paid :]:
            kept[index] = explained(place.reasons[index], stops)
        if not place.paid:
            return None, kept
        place = place.first(view, place.paid)
    standing = place.stands(place.state)
    first = next((index for index in place.maps if index in place.reasons), None)
    if standing and first is not None:
        kept[_left(view, place, standing, first)] = explained(place.reasons[first], stops)
    return _move(view, place, standing), kept


def _left(view: View, place: Place, standing: Sequence[Standing], first: int) -> int:
    """The map that an operator which is left goes by: one of its type, whose node it has."""
    left = {each.op for each in standing}
    alike = [index for index in place.maps if view.nodes[index].op in left]
    return first if first in alike or not alike else alike[0]


def _move(view: View, place: Place, standing: tuple[Standing, ...]) -> Move:
    maps, chain = tuple(place.maps), tuple(place.chain)
    ends, crossed, absorbed = place.ends, place.crossed, place.state.absorbed
    if place.into is not None and (place.carried or not standing or not absorbed.is_identity):
        return Move("absorb", place.into, maps, chain, absorbed, standing, ends, crossed)
    chain = chain[chain.index(maps[0]) :]
    if place.carried:
        return Move("carry", maps[0], maps, chain, IDENTITY, standing, ends, crossed)
    behind = _into_batch_norm(view, maps, standing)
    if behind is not None:
        return Move("absorb", maps[0], maps[1:], chain[1:], behind, ())
    return Move("compose", maps[0], maps, chain, IDENTITY, standing)


def _into_batch_norm(
    view: View, maps: Sequence[int], stands: tuple[Standing, ...]
) -> AffineMap | None:
    """The composition of the maps behind a BatchNormalization, if its γ and β take that in."""
    first, *others = (view.nodes[index] for index in maps)
    absorber = affine(first).absorber
    if absorber is None or [s.op for s in stands] != ["BatchNormalization"]:
        return None
    total = IDENTITY
    for node in others:
        joined = total.then(affine(node).map)
        if joined is None:
            return None
        total = joined
    return taking(first, absorber)(IDENTITY, total)
