"""The check of a quantizer that took a scale in, by its definition: it need not run for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._onnx.write.applied import Related
from bnfold._proof.absorption import deviation
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked
from bnfold._proof.full_rank_maps import composed
from bnfold._proof.steps import Steps


def check_quantizer(
    before: CheckedModel,
    after: CheckedModel,
    old: Scope,
    new: Scope,
    node: NodeProto,
    twin: NodeProto,
    related: Mapping[str, Related],
    steps: Steps,
) -> float | Unchecked:
    """How far the scale of a QuantizeLinear is off, in units in the last place.

    The old one puts out ``round(F(u) / p) + z``, the new one ``round(G(u) / q) + z``. Both are the
    same for all u if ``F / p`` and ``G / q`` have the same scale and shift, and p and q are
    positive. Returns `Unchecked` where the maps lie along axes of a
    tensor whose rank is not known. Raises `Mismatch` where anything else has changed.
    """
    if node.output[0] in related:
        raise Mismatch(f"a map went past {label(node)}, which rounds")
    same = [a.SerializeToString(deterministic=True) for a in node.attribute] == [
        a.SerializeToString(deterministic=True) for a in twin.attribute
    ]
    zero, other = (
        model.values(scope, one.input[2]) if len(one.input) > 2 and one.input[2] else np.zeros(0)
        for model, scope, one in ((before, old, node), (after, new, twin))
    )
    if zero is None or other is None or type_of(node) != type_of(twin) or not same:
        raise Mismatch(f"{label(twin)} rounds in another way")
    if zero.dtype != other.dtype or not np.array_equal(zero, other):
        raise Mismatch(f"the zero point of {label(twin)} changed")
    steps.require_same_data(old, new, node, twin)
    if not _same_constant(before.fixed(old, node.input[0]), after.fixed(new, twin.input[0])):
        raise Mismatch(f"{label(twin)} rounds other numbers")
    was, now = before.double(old, node, 1), after.values(new, twin.input[1])
    if was is None or now is None or was.size != 1 or now.size != 1 or min(was, now) <= 0:
        raise Mismatch(f"{label(twin)} does not have one positive scale")
    known = related.get(node.input[0])
    lines = (known.old, known.new) if known else ((), ())
    rank = before.rank(old, node.input[0])
    if rank is None:
        if any(step.scale.size != 1 or step.shift.size != 1 for line in lines for step in line):
            return Unchecked(Obstacle.SHAPE_UNKNOWN, node.input[0])
        rank = 2  # A single number is the same along any axis.
    f, g = (composed(steps, rank) for steps in lines)
    if bool((f.unknown | g.unknown | (f.scale == 0)).any()):
        raise Mismatch(f"what {label(node)} reads is not known")
    wanted = float(was.reshape(-1)[0]) * g.scale / f.scale
    worst = deviation(np.asarray(float(now.reshape(-1)[0])), wanted, np.abs(wanted), now.dtype)
    shifts = deviation(g.shift / wanted, f.shift / was.reshape(-1)[0], f.bulk / was, now.dtype)
    return max(worst, shifts)


def _same_constant(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether two inputs are the same constant, or none of them is one."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)
