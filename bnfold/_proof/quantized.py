"""The right new scales of operators that multiply integers, by their definitions.

The formulas are like those of `formulas`.
"""

from __future__ import annotations

import numpy as np

from bnfold._onnx.read.scopes import label
from bnfold._proof.absorption import (
    Absorption,
    bias_deviation,
    deviation,
    require_same_input,
    require_same_shape,
)
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double


def dequantized(case: Absorption) -> float:
    """``S·(q − z)·s``: one scale, or one for each position of ``axis``; q and z stay."""
    scale, made = case.stored(1), case.new(1)
    if scale is None or made is None or case.node.input[0] != case.twin.input[0]:
        raise Mismatch(f"{label(case.twin)} reads other integers")
    if case.entry is not None:
        raise Mismatch(f"a map went ahead of {label(case.node)}, which reads integers")
    require_same_shape(case, scale, made)
    require_same_input(case, 2)
    if not bool((made.astype(np.float64) > 0).all()):
        raise Mismatch(f"the scale of {label(case.twin)} is not positive")
    rank = case.target.scale.ndim
    own = [next((a.i for a in case.node.attribute if a.name == "axis"), 1) % max(rank, 1)]
    laid = [-1 if scale.size > 1 and k in own else 1 for k in range(rank)]
    wanted = scale.astype(np.float64).reshape(laid)
    wanted = wanted * case.scale(own if scale.size > 1 else [], made.dtype)
    found = made.astype(np.float64).reshape(laid)
    worst = deviation(found, wanted, np.abs(wanted), made.dtype, forgiven=case.forgiven)
    none = np.zeros((1,) * rank)
    return max(worst, bias_deviation(case, none, none, made.dtype))


def rescaled(case: Absorption) -> float:
    """``S·(n·(x·s)) = n·(x·(S·s))``: n are the sums of integers, x is the scale of one factor as it
    is at run time, s the constant scale of the other.
    """
    sides = [(case.before, case.old_scope, case.node), (case.after, case.new_scope, case.twin)]
    found: list[tuple[Double, str, str]] = []
    for model, scope, node in sides:
        for own, other in ((0, 1), (1, 0)):
            writer = scope.producers.get(node.input[own])
            inner = scope.nodes[writer] if writer is not None else None
            if inner is None or inner.op_type != "Mul":
                continue
            parts = [model.double(scope, inner, at) for at in (0, 1)]
            fixed = [at for at in (0, 1) if parts[at] is not None]
            if len(fixed) == 1:
                (at,) = fixed
                scale = parts[at]
                assert scale is not None
                found.append((scale, inner.input[1 - at], node.input[other]))
                break
    if len(found) != 2 or found[0][1:] != found[1][1:] or case.entry is not None:
        raise Mismatch(f"{label(case.twin)} does not multiply the same integers by two scales")
    (old, *_), (made, *_) = found
    rank = max(case.target.scale.ndim, old.ndim, made.ndim)
    dtype = np.dtype(np.float32)
    scale = case.scale([axis for axis in range(rank) if _lies(made, axis, rank)], dtype)
    wanted, new = np.broadcast_arrays(old * scale, made)
    worst = deviation(new, wanted, np.abs(wanted), dtype, forgiven=case.forgiven + 1)
    none = np.zeros((1,) * rank)
    return max(worst, bias_deviation(case, none, none, dtype))


def _lies(values: Double, axis: int, rank: int) -> bool:
    """Whether values that broadcast to a rank vary along one of its axes."""
    own = axis - (rank - values.ndim)
    return own >= 0 and values.shape[own] > 1
