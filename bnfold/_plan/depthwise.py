"""Writes norms that nothing takes in as other operators, for runtimes without such norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.limits import overflows, underflows
from bnfold._core.operators.affine import FixedNorm
from bnfold._core.operators.record import Operator
from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Affine, Node, View
from bnfold._plan.fit import standing_batch_norm
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move, Moves, Sides

# The numbers of axes of data that a convolution may have, its batch and its channels included.
_CONVOLVED = (3, 4, 5)


def without_norms(
    view: View,
    records: Sequence[Operator],
    readings: Sequence[Reading],
    moves: Moves,
    *,
    double: bool,
    whole: bool = False,
    objection: Callable[[Move], Reason | None] = lambda move: None,
) -> Moves:
    """The moves, and one more for each norm that would stay.

    A norm by fixed statistics is ``A(s, t)`` along axis 1. A convolution with the kernel 1, as many
    groups as channels, the weights s and the bias t is the same map, always exactly; so are a Mul
    by s and an Add of t. A convolution is written where the data have three to five axes; without
    ``double`` not in float64, in which onnxruntime has none. What the norm would have taken in goes
    into the same numbers. If it has to be one ``whole``, a ScaleShift stands for Mul and Add. A
    norm stays where the type or the number of axes is not known, where s or t does not fit the
    type, or where there is an ``objection``; its reason says so.
    """

    def forms(node: Node, norm: FixedNorm, map_: AffineMap | None) -> tuple[Standing, ...]:
        return _forms(view, node, norm, map_, double, whole)

    made = [_replaced(view, records, readings, move, forms) for move in moves.moves]
    sides, kept = dict(moves.sides), dict(moves.kept)
    gone = {index for move in made for index in move.maps}
    into = {move.into: place for place, move in enumerate(made) if move.law == "absorb"}
    for index, record in enumerate(records):
        node = view.nodes[index]
        if not isinstance(record, FixedNorm) or not isinstance(node.role, Affine) or index in gone:
            continue
        taken = sides.get(index, Sides())
        before = taken.ahead.then(node.role.map)
        total = before.then(taken.behind) if before is not None else None
        try:
            stands = forms(node, record, total)
        except Refusal as refusal:
            kept[index] = refusal.reason
            continue
        old = made[into[index]] if index in into else None
        maps, chain = ((index, *old.maps), (index, *old.chain)) if old else ((index,), (index,))
        rest = old.stands if old is not None else ()
        ends, crossed = (old.ends, old.crossed) if old is not None else ((), ())
        move = Move(
            "compose", index, maps, chain, IDENTITY, (*stands, *rest), ends, crossed, rewrites=True
        )
        problem = objection(move)
        if problem is not None:
            kept[index] = problem
            continue
        sides.pop(index, None)
        kept.pop(index, None)
        if old is not None:
            made[into[index]] = move
        else:
            made.append(move)
    made.sort(key=lambda move: move.maps[0])
    return replace(moves, moves=tuple(made), sides=sides, kept=dict(sorted(kept.items())))


def _replaced(
    view: View,
    records: Sequence[Operator],
    readings: Sequence[Reading],
    move: Move,
    forms: Callable[[Node, FixedNorm, AffineMap], tuple[Standing, ...]],
) -> Move:
    """A move that leaves no BatchNormalization, if that can be written as something else."""
    stands: list[Standing] = []
    for standing in move.stands:
        if standing.op != "BatchNormalization":
            stands.append(standing)
            continue
        index = standing_batch_norm(readings, move)
        record = records[index]
        assert isinstance(record, FixedNorm)
        try:
            stands += forms(view.nodes[index], record, standing.map)
        except Refusal:
            return move
    return replace(move, stands=tuple(stands))


def _forms(
    view: View,
    node: Node,
    norm: FixedNorm,
    map_: AffineMap | None,
    double: bool,
    whole: bool,
) -> tuple[Standing, ...]:
    """The operators that are the map of a norm. Raises `Refusal` where there are none."""
    role = node.role
    assert isinstance(role, Affine)
    shape, dtype = view.values[node.inputs[role.data]].shape, role.dtype
    if map_ is None:
        message = f"{node.label} takes in a map along another axis"
        raise Refusal(Reason("axis-mismatch", node.label, message))
    if shape is None or dtype is None:
        message = f"the type or the number of axes of what {node.label} reads is not known"
        raise Refusal(Reason("unknown-shape", node.label, message))
    own = norm.sites[0].dtype if norm.sites else dtype
    if own != dtype:
        message = f"{node.label} has {own} parameters for {dtype} data, which these would round to"
        raise Refusal(Reason("unsupported-dtype", node.label, message))
    if any(overflows(np.abs(vector), dtype) for vector in (map_.scale, map_.shift)):
        message = f"the scale or shift of {node.label} would overflow {dtype}"
        raise Refusal(Reason("overflow", node.label, message))
    if underflows(np.ones(1), map_.scale, dtype).any():
        message = f"the scale of {node.label} would fall below {dtype}'s range"
        raise Refusal(Reason("underflow", node.label, message))
    channels = norm.divisor.size
    if whole and len(shape) > 1:
        return (Standing("Conv" if len(shape) in _CONVOLVED else "ScaleShift", map_, channels),)
    if len(shape) in _CONVOLVED and (double or dtype != np.float64 or not role.composable):
        return (Standing("Conv", map_, channels),)
    if not role.composable or len(shape) < 2:
        message = f"no operator of this opset is {node.label} on data of {len(shape)} axes"
        raise Refusal(Reason("unsupported-opset", node.label, message))
    scale, shift = absorbing.split(map_)
    rounded = map_.rounded(dtype)
    parts = [Standing("Mul", scale)] if not rounded.keeps_scale or rounded.keeps_origin else []
    return (*parts, *([] if rounded.keeps_origin else [Standing("Add", shift)]))
