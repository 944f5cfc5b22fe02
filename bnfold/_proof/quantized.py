"""The right new scales of operators that multiply integers, by their definitions.

The formulas are like those of `formulas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._proof.absorption import (
    Absorption,
    bias_deviation,
    deviation,
    require_same_input,
    require_same_shape,
)
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch


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


def product_of_integers(
    case: Absorption,
    at: int,
    bias_at: int | None,
    matrix_at: int | None,
    other_at: int | None = None,
) -> float:
    """``S·(n·(x·s) + b) + T = n·(x·(S·s)) + (S·b + T)``: n are sums of integers, x is the scale of
    one factor, s that of the other, at input ``at``. The bias b, at ``bias_at``, may be missing.

    s is one number, or one for each place of the last axis, as b is. One becomes several only for a
    matrix, which is input ``matrix_at``. Where s is computed, x at ``other_at`` may be the constant
    one, and stays one number. All else stays.
    """
    if other_at is not None and case.stored(at) is None:
        at, matrix_at = other_at, None
    scale, made = case.stored(at), case.new(at)
    if scale is None or made is None:
        raise Mismatch(f"the scale of {label(case.twin)} is not constant")
    if case.entry is not None:
        raise Mismatch(f"a map went ahead of {label(case.node)}, which multiplies integers")
    for place in range(max(len(case.node.input), len(case.twin.input))):
        if place not in (at, bias_at):
            require_same_input(case, place)
    several = made.shape != scale.shape
    matrix: Sequence[int | None] = ()
    if several and matrix_at is not None:
        matrix = case.after.shapes.shape(case.new_scope, case.twin.input[matrix_at]) or ()
    allowed = scale.size == 1 and len(matrix) == 2 and made.shape == matrix[1:]
    if made.dtype != scale.dtype or scale.ndim > 1 or (several and not allowed):
        raise Mismatch(f"the scale of {label(case.twin)} has shape {made.shape}")
    rank = max(case.target.scale.ndim, 1)
    wanted = scale.astype(np.float64) * case.scale([rank - 1] if made.size > 1 else [], made.dtype)
    found = made.astype(np.float64)
    wanted = np.where(np.isnan(wanted), found, wanted)
    worst = deviation(found, wanted, np.abs(wanted), made.dtype, forgiven=case.forgiven)
    old, new = (np.zeros(1) if b is None else b.astype(np.float64) for b in _biases(case, bias_at))
    return max(worst, bias_deviation(case, old, new, made.dtype))


def _biases(case: Absorption, at: int | None) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """The bias before and after. Raises `Mismatch` where one is there and not constant."""
    if at is None:
        return None, None
    found = case.stored(at), case.new(at)
    for values, node in zip(found, (case.node, case.twin), strict=True):
        if values is None and any(node.input[at : at + 1]):
            raise Mismatch(f"the bias of {label(node)} is not constant")
    return found


def rescaled(case: Absorption) -> float:
    """``S·(n·(x·s)) = n·(x·(S·s))``: n are the sums of integers, x is the scale of one factor as it
    is at run time, s the constant scale of the other.

    Nobody else may read ``x·(S·s)``.
    """
    sides = [(case.before, case.old_scope, case.node), (case.after, case.new_scope, case.twin)]
    (old, *others), (made, *those) = (_of_two_scales(*side) for side in sides)
    if others != those or case.entry is not None:
        raise Mismatch(f"{label(case.twin)} does not multiply the same integers by two scales")
    (product,) = (name for name in case.twin.input if name != those[1])
    if not case.new_scope.is_read_once(product):
        raise Mismatch(f"{product}, which {label(case.twin)} reads, is read by someone else too")
    rank = max(case.target.scale.ndim, old.ndim, made.ndim)
    dtype = made.dtype
    scale = case.scale([axis for axis in range(rank) if _lies(made, axis, rank)], dtype)
    wanted, new = np.broadcast_arrays(old.astype(np.float64) * scale, made.astype(np.float64))
    worst = deviation(new, wanted, np.abs(wanted), dtype, forgiven=case.forgiven + 1)
    none = np.zeros((1,) * rank)
    return max(worst, bias_deviation(case, none, none, dtype))


def _of_two_scales(
    model: CheckedModel, scope: Scope, node: NodeProto
) -> tuple[NDArray[Any], str, str]:
    """The constant s of ``n·(x·s)``, and the names of x and n. Raises `Mismatch` for another node.

    A Mul of another domain, or of an opset that aligns its operands by an attribute, is another.
    """
    for own, other in ((0, 1), (1, 0)) if len(node.input) == 2 else ():
        inner = scope.writer(node.input[own])
        if type_of(inner) != "Mul" or inner.attribute or len(inner.input) != 2:
            continue
        parts = [model.values(scope, name) for name in inner.input]
        for at, scale in enumerate(parts):
            if scale is not None and parts[1 - at] is None:
                return scale, inner.input[1 - at], node.input[other]
    raise Mismatch(f"{label(node)} does not multiply integers by two scales")


def _lies(values: NDArray[Any], axis: int, rank: int) -> bool:
    """Whether values that broadcast to a rank vary along one of its axes."""
    own = axis - (rank - values.ndim)
    return own >= 0 and values.shape[own] > 1
