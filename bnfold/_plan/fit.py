"""Plan until every folded weight fits its dtype, and what stands of each move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bnfold._core.affine import Vector
from bnfold._core.limits import overflows, underflows
from bnfold._core.parameters import Reading, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, View
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move, Moves, Sides, plan

Readings = Sequence[Reading]
# Why a whole set of moves may not be made as it is: reasons by the number of the move.
Objections = Callable[[Sequence[Move]], Mapping[int, Reason]]


def no_objection(moves: Sequence[Move]) -> Mapping[int, Reason]:
    """Every move that the planner makes can be written."""
    return {}


def settle(view: View, readings: Readings, objections: Objections = no_objection) -> Moves:
    """Plan one graph, and plan again without the maps whose folded weights would not fit.

    Of a group that overflows or underflows, or that ``objections`` names, the last map is refused
    first, so that the others may still fold. ``readings`` has an entry for each node of the view.
    """
    refused: dict[int, Reason] = {}
    remembered: dict[tuple[int, int, int], Vector] = {}
    while True:
        moves = plan(view, refused)
        found = {
            moves.moves[number].maps[-1]: reason
            for number, reason in objections(moves.moves).items()
        }
        for move in moves.moves:
            reason = _standing_refusal(view, readings, move) if move.stands else None
            if reason is not None:
                found[move.maps[-1]] = reason
        for node, sides in moves.sides.items():
            reason = _refusal(readings[node].sites, node, sides, remembered)
            if reason is not None:
                found[moves.blame[node][-1]] = reason
        if not found:
            return moves
        refused.update(found)


def _refusal(
    sites: Sequence[Site],
    node: int,
    sides: Sides,
    remembered: dict[tuple[int, int, int], Vector],
) -> Reason | None:
    """Whether what an operator takes in would be lost in its dtype at one of its sites."""

    def peaks(number: int, axis: int) -> Vector:
        key = (node, number, axis)
        if key not in remembered:
            remembered[key] = sites[number].peaks(axis)
        return remembered[key]

    reasons = (
        site.refuses(sides.behind, sides.ahead, partial(peaks, number))
        for number, site in enumerate(sites)
    )
    return next((reason for reason in reasons if reason is not None), None)


def _standing_refusal(view: View, readings: Readings, move: Move) -> Reason | None:
    """Whether the constants of operators that have to stand would be lost to rounding."""
    where = view.nodes[move.into].label
    dtype = standing_dtype(view, readings, move)
    for standing in move.stands:
        vectors = standing_constants(readings, move, standing)
        if any(overflows(np.abs(vector), dtype) for vector in vectors):
            return Reason("overflow", where, f"the composed constants would overflow {dtype}")
        lost = standing.op not in ("Add", "Sub") and underflows(np.ones(1), vectors[0], dtype).any()
        if lost:
            message = f"the composed scale would fall below {dtype}'s range"
            return Reason("underflow", where, message)
    return None


def standing_constants(readings: Readings, move: Move, standing: Standing) -> list[Vector]:
    """The constants of an operator that stands where a group stood, in float64.

    Of a Mul or an Add its one constant. A BatchNormalization is the last one of the group, with
    ``γ = S·√(var + ε)``, ``β = T``, mean 0 and its own variance: exactly ``A(S, T)``.
    """
    map_ = standing.map
    if standing.op != "BatchNormalization":
        return [{"Mul": map_.scale, "Add": map_.shift, "Sub": -map_.shift}[standing.op]]
    deviation = readings[standing_batch_norm(readings, move)].deviation
    assert deviation is not None
    gamma, beta = map_.scale * deviation, np.broadcast_to(map_.shift, deviation.shape)
    return [gamma, beta, np.zeros(deviation.shape)]


def standing_batch_norm(readings: Readings, move: Move) -> int:
    """The BatchNormalization of a group that stays to hold the composition of all of it."""
    return next(i for i in reversed(move.maps) if readings[i].deviation is not None)


def standing_dtype(view: View, readings: Readings, move: Move) -> np.dtype[np.generic]:
    """The element type of the constants that a group leaves behind."""
    dtype = readings[move.into].dtype if move.law == "absorb" else None
    if dtype is None and any(standing.op == "BatchNormalization" for standing in move.stands):
        dtype = readings[standing_batch_norm(readings, move)].dtype
        assert dtype is not None
    if dtype is not None:
        return dtype
    roles = [view.nodes[index].role for index in move.maps]
    dtypes = [role.dtype for role in roles if isinstance(role, Affine)]
    return next((dtype for dtype in dtypes if dtype is not None), np.dtype(np.float32))
