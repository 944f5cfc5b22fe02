"""The laws by which an operator takes in an affine map; a law that says no raises `Refusal`.

A law here decides from axes, sizes and roles alone. Overflow and underflow depend on the values of
large weights. `_core.parameters` decides them when it reads the weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold._core.affine import LAST, AffineMap
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, InputSide, Node, Value, View


def unshared(view: View, value: Value, reader: int) -> Reason | None:
    """Why a tensor may not change for the sake of one reader; None if it may.

    It may change only if ``reader`` reads it once and nobody else sees it: no other node, no body
    of an If, Loop or Scan, no graph output.
    """
    if value.pinned is not None:
        return value.pinned
    other = next((r for r in value.readers if r != reader), None)
    if other is not None:
        label = view.nodes[other].label
        return Reason("shared-output", label, f"{value.name} is also read by {label}")
    if len(value.readers) > 1:
        label = view.nodes[reader].label
        return Reason("shared-output", label, f"{label} reads {value.name} more than once")
    return None


def absorb_behind(
    node: Node, absorber: Absorber, absorbed: AffineMap, map_: AffineMap
) -> AffineMap:
    """The whole map that an operator takes in behind itself: first ``absorbed``, then ``map_``.

    ``A∘L`` is L with weights ``W[o]·s_o`` and bias ``s·b + t``, for a linear operator and for a
    normalization's γ and β. Exact if two things hold. The map varies along no axis, or along an
    axis whose positions have parameters of their own. The parameters are constants that nobody
    else may set. A map that would broadcast the output to a larger shape is refused. Raises
    `Refusal`.
    """
    total = _total(node, absorber, absorbed.then(map_), map_, absorbed, "before")
    if absorber.varying_blocked is not None and total.axis is not None:
        raise Refusal(absorber.varying_blocked)
    if absorber.signed_blocked is not None and not bool((total.scale > 0).all()):
        raise Refusal(absorber.signed_blocked)
    if total.axis is not None:
        size = absorber.channels.get(total.axis)
        if size is None:
            where = _named(*absorber.channels)
            raise Refusal.of(
                "axis-mismatch",
                node.label,
                f"the map varies along {_named(total.axis)}; {node.label} has its own parameters "
                f"along {where}",
            )
        if size != total.scale.size:
            raise Refusal.of(
                "not-per-channel",
                node.label,
                f"the map has {total.scale.size} channels, {node.label} writes {size}",
            )
    return total


def absorb_ahead(node: Node, ahead: InputSide, absorbed: AffineMap, map_: AffineMap) -> AffineMap:
    """The whole map that an operator takes in ahead of itself: first ``map_``, then ``absorbed``.

    ``L∘A`` is L with weights ``W[o, i]·s_i`` and bias ``b_o + Σ W[o, i, k]·t_i``. The scale is
    always exact. The shift is exact only if every output sums over the whole kernel: no output
    reads padding. The map must vary along the axis that the weight sums over, or along none. One
    along the last axis lies along the axis of that number where the operator tells its rank, as a
    Gemm does. Raises `Refusal`.
    """
    if map_.axis == LAST and ahead.rank is not None:
        map_ = replace(map_, axis=ahead.rank - 1)
    total = _total(node, ahead, map_.then(absorbed), map_, absorbed, "ahead of it")
    if total.axis is not None and ahead.channels.get(total.axis) != total.scale.size:
        where = _named(*ahead.channels)
        raise Refusal.of(
            "axis-mismatch",
            node.label,
            f"the map varies along {_named(total.axis)}; {node.label} has weights of their own for "
            f"each position along {where} of its input",
        )
    return total


def _named(*axes: int) -> str:
    """Axes as the user reads of them."""
    if LAST in axes:
        return "the last axis"
    return f"axis {', '.join(map(str, sorted(axes))) or 'none'}"


def _total(
    node: Node,
    side: Absorber | InputSide,
    total: AffineMap | None,
    map_: AffineMap,
    absorbed: AffineMap,
    where: str,
) -> AffineMap:
    """``total``, which composes ``map_`` and ``absorbed``, if the side may take it in.

    Raises `Refusal`.
    """
    if total is None:
        assert map_.axis is not None
        assert absorbed.axis is not None
        own = side.channels.get(map_.axis) == map_.scale.size and map_.axis != absorbed.axis
        once_more = "; the result, folded once more, may take it in" if own else ""
        raise Refusal.of(
            "axis-mismatch",
            node.label,
            f"the map varies along {_named(map_.axis)}; what {node.label} takes in {where} varies "
            f"along {_named(absorbed.axis)}{once_more}",
        )
    if not total.is_finite:
        message = f"composed with what {node.label} takes in {where}, it is no longer finite"
        raise Refusal.of("overflow", node.label, message, numbers=True)
    if not total.keeps_scale and side.scale_blocked is not None:
        raise Refusal(side.scale_blocked)
    if not total.keeps_origin and side.shift_blocked is not None:
        raise Refusal(side.shift_blocked)
    return total


def split(map_: AffineMap) -> tuple[AffineMap, AffineMap]:
    """The scale, which acts first, and the shift of a map: ``A(s, t) = A(1, t)∘A(s, 0)``.

    Always exact.
    """
    return AffineMap.of(map_.scale, 0.0, map_.axis), AffineMap.of(1.0, map_.shift, map_.axis)


def split_shift_first(map_: AffineMap) -> tuple[AffineMap, AffineMap] | None:
    """The shift, which acts first, and the scale of a map: ``A(s, t) = A(s, 0)∘A(1, t/s)``.

    Exact up to the rounding of t/s in float64. None if a scale is 0 or t/s is not finite.
    """
    if not bool((map_.scale != 0).all()):
        return None
    with np.errstate(over="ignore"):
        shift = AffineMap.of(1.0, map_.shift / map_.scale, map_.axis)
    if not shift.is_finite:
        return None
    return shift, AffineMap.of(map_.scale, 0.0, map_.axis)


def commute(first: AffineMap, second: AffineMap) -> bool:
    """Whether two maps along different axes may change places without any other change.

    ``A(s₂, t₂)∘A(s₁, t₁)`` and ``A(s₁, t₁)∘A(s₂, t₂)`` have the same scale. Their shifts are
    ``s₂·t₁ + t₂`` and ``s₁·t₂ + t₁``. These are equal if t₁ = 0 or s₂ = 1, and t₂ = 0 or s₁ = 1.
    """
    outward = first.keeps_origin or second.keeps_scale
    return outward and (second.keeps_origin or first.keeps_scale)


def pays(removed: int, removed_operations: int, added: int, added_operations: int) -> bool:
    """Whether a move pays: it lowers the number of operators or of operations, and raises neither.

    Operations are elementwise: 2 for a BatchNormalization, 1 for a Mul or an Add.
    """
    fewer = added < removed or added_operations < removed_operations
    return fewer and added <= removed and added_operations <= removed_operations
