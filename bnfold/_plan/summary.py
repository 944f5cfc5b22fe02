"""The plan that users see, from the moves that the planner decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from bnfold._core.result import REWRITES, Fold, Kept, Plan
from bnfold._core.view import Absorber, Affine, View
from bnfold._merge.merging import Stays
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move, Moves

Written = Callable[[View, Move, Standing], Sequence[str]]
"""The types of the operators that are written for one that a move leaves."""


def _as_in_onnx(view: View, move: Move, standing: Standing) -> Sequence[str]:
    return (standing.op,)


def summarize(
    settled: Iterable[tuple[str, View, Moves]],
    before: Mapping[str, int],
    written: Written = _as_in_onnx,
) -> Plan:
    """The plan of a model: for each of its graphs the path to it, its view and its moves.

    ``before`` counts the operators of the whole model by type.
    """
    after = Counter(before)
    folds, kept = [], []
    order = list[tuple[str, str, str]]()
    for path, view, moves in settled:
        order += [(path, node.label, node.op) for node in view.nodes]
        for move in moves.moves:
            left = [name for each in move.stands for name in written(view, move, each)]
            folds.append(_fold(path, view, move, moves, left))
            after.subtract(view.nodes[i].op for i in move.maps)
            after.update(left)
        for pair in moves.unneeded:
            after.subtract(view.nodes[i].op for i in (pair.up, *pair.down))
        for index, op in moves.turned.items():
            after.subtract([view.nodes[index].op])
            after.update([op])
        after.update(moves.copied)
        for index, reason in moves.kept.items():
            node = view.nodes[index]
            kept.append(
                Kept(
                    node.label,
                    node.op,
                    reason.code,
                    reason.at,
                    reason.message,
                    reason.advice,
                    path,
                    brief=reason.brief,
                    is_bias=_is_bias(view, index),
                )
            )
    return Plan(tuple(folds), tuple(kept), dict(before), dict(+after), tuple(order))


def _is_bias(view: View, index: int) -> bool:
    """Whether an affine operator is the bias of a linear one that has no place for it: it adds to
    what a MatMul puts out, and nothing else reads that.
    """
    role = view.nodes[index].role
    if not isinstance(role, Affine) or not role.map.keeps_scale:
        return False
    data = view.values[view.nodes[index].inputs[role.data]]
    if data.producer is None or len(data.readers) != 1 or data.pinned is not None:
        return False
    linear = view.nodes[data.producer].role
    return isinstance(linear, Absorber) and linear.ahead is not None and not linear.bias_free


def _fold(path: str, view: View, move: Move, moves: Moves, left: Sequence[str]) -> Fold:
    nodes, turned = view.nodes, moves.turned
    ended = {end.node for end in move.ends}
    crossed = [nodes[i].op for i in (*move.carriers, *move.crossed) if i not in ended]
    laws = [f"carry through {op}" for op in crossed]
    changed = (*move.crossed, *ended, *([move.into] if move.law == "absorb" else []))
    for op, other in [(nodes[i].op, turned[i]) for i in dict.fromkeys(changed) if i in turned]:
        laws.append(f"turn {op} into {other}" if op != other else f"swap the inputs of {op}")
    laws += [f"drop {nodes[one.up].op}" for one in moves.unneeded if one.up in move.crossed]
    target = nodes[move.into].label
    if move.law == "absorb":
        laws.append(f"absorb behind {nodes[move.into].op}")
    for end in move.ends:
        verb = "compose" if isinstance(nodes[end.node].role, Affine) else "absorb"
        laws.append(f"{verb} {end.side} {'of ' if end.side == 'ahead' else ''}{nodes[end.node].op}")
    if move.ends and move.law == "carry":
        target = nodes[move.ends[0].node].label
    if move.stands and move.law != "compose":
        laws.append(f"leave {' and '.join(left)}")
    if move.rewrites:
        laws = [REWRITES + " and ".join(left)]
    elif move.law == "compose" and not move.stands:
        laws.insert(0, "drop the identity")
    elif len(move.maps) > 1 or move.law == "compose" or (move.law == "carry" and not move.ends):
        laws.insert(0, "compose")
    return Fold(
        tuple(nodes[i].label for i in move.maps),
        tuple(nodes[i].op for i in move.maps),
        target,
        tuple(dict.fromkeys(laws)),
        path,
    )


def kept_apart(stays: Stays, path: str) -> Kept:
    """The plan's entry for a linear operator that did not merge with others."""
    reason = stays.reason
    return Kept(
        stays.node,
        stays.op,
        reason.code,
        reason.at,
        reason.message,
        reason.advice,
        path,
        "merge",
        reason.brief,
    )
