"""Activations and sums inside of onnxruntime's fused operators, by their definition.

``y = f(L(x) + z)``: the weights of L are checked against what has to hold ahead of f.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import label
from bnfold._proof.absorption import SLACK, Absorption, deviation
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import composed

_SINGLE = np.dtype(np.float32)


def ahead_of_activation(case: Absorption) -> tuple[Absorption, float]:
    """The case of the operator without its activation, and how far the numbers of this are off.

    Behind f stands ``S·f(u) + T`` in the original and ``R·g(v) + U`` in the folded model. They are
    the same for every u where

    - f is g, and S = R and T = U: then u = v;
    - f is g and a Relu or LeakyRelu, T = U, and S and R have the same sign: ``S·u = R·v``;
    - f and g are Clips, or ThresholdedRelus, whose numbers p and q fit: ``S·p + T = R·q + U``, and
      S/R is positive; of the two, a ThresholdedRelu needs T = U besides;
    - f and g are Clips, S/R is negative, and the bounds of f, the lower of which is no larger than
      the upper one, fit those of g turned round.
    """
    kind, old = _activation(case.node)
    other, new = _activation(case.twin)
    if kind != other:
        raise Mismatch(f"the activation of {label(case.twin)} changed")
    target, remaining = case.target, case.remaining
    if not kind:
        return case, 0.0
    bulk = target.bulk + remaining.bulk + np.abs(target.shift) + np.abs(remaining.shift)
    shifted = bool((np.abs(target.shift - remaining.shift) > SLACK * bulk).any())
    same = old == new and not shifted
    apart = np.abs(target.scale - remaining.scale)
    if same and bool((apart <= SLACK * np.abs(target.scale)).all()):
        return case, 0.0
    dead = (target.scale == 0) & (remaining.scale == 0)
    signs = np.sign(target.scale) * np.sign(remaining.scale)
    turns = kind == "Clip" and len(old) == len(new) == 2 and old[0] <= old[1]
    if not bool(((signs > 0) | dead | ((signs < 0) & turns)).all()):
        raise Mismatch(f"a scale that is not positive went past the {kind} of {label(case.node)}")
    if same and kind in ("Relu", "LeakyRelu"):
        still = np.zeros_like(target.shift)
        return (
            replace(
                case,
                target=replace(target, shift=still, bulk=still),
                remaining=replace(remaining, shift=still, bulk=still),
            ),
            0.0,
        )
    if kind not in ("Clip", "ThresholdedRelu") or (shifted and kind == "ThresholdedRelu"):
        raise Mismatch(f"a map went past the {kind} of {label(case.node)}")
    worst = 0.0
    for straight, crossed, now in zip(old, old[::-1], new, strict=True):
        was = np.where(signs < 0, crossed, straight)
        scale = np.where(dead, 1.0, remaining.scale)
        wanted = (target.scale * was + target.shift - remaining.shift) / scale
        terms = (np.abs(target.scale * was) + bulk) / np.abs(scale)
        wanted = np.where(dead, now, wanted)
        worst = max(worst, deviation(np.asarray(now), wanted, terms, _SINGLE))
    return case, worst


def without_sum(case: Absorption, at: int) -> Absorption:
    """The case of an operator that adds its input number ``at`` to what it computes, without that.

    ``S·(L(x) + F(z)) + T = R·(M(x) + G(z)) + U`` for every z where ``S·F = R·G`` in the scale; the
    shifts of F and G go to T and U.
    """
    given = [at < len(one.input) and one.input[at] != "" for one in (case.node, case.twin)]
    if given[0] != given[1]:
        raise Mismatch(f"what {label(case.twin)} adds is not what {label(case.node)} does")
    if not given[0]:
        return case
    name = case.node.input[at]
    twice = any(other == name for place, other in enumerate(case.node.input) if place != at)
    if twice and name in case.related:
        raise Mismatch(f"{label(case.node)} reads {name} more than once")
    stored, made = case.stored(at), case.new(at)
    if (stored is None) != (made is None) or not np.array_equal(
        np.zeros(0) if stored is None else stored, np.zeros(0) if made is None else made
    ):
        raise Mismatch(f"what {label(case.twin)} adds has changed")
    related = case.related.get(name)
    rank = case.target.scale.ndim
    old = composed(related.old if related else (), rank)
    new = composed(related.new if related else (), rank)
    target, remaining = case.target.copy(), case.remaining.copy()
    before, after = target.scale * old.scale, remaining.scale * new.scale
    size = np.maximum(np.abs(before), np.abs(after))
    if bool((old.unknown | new.unknown | (np.abs(before - after) > SLACK * size)).any()):
        raise Mismatch(f"what {label(case.twin)} adds does not fit its weights")
    target.add(target.scale * old.shift)
    remaining.add(remaining.scale * new.shift)
    others = {key: value for key, value in case.related.items() if key != name}
    return replace(case, target=target, remaining=remaining, related=others)


def _activation(node: NodeProto) -> tuple[str, tuple[float, ...]]:
    """The name of an activation and its numbers; "" for none."""
    kind = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    listed = next((list(a.floats) for a in node.attribute if a.name == "activation_params"), [])
    named = {
        a.name: float(a.f)
        for a in node.attribute
        if a.name.startswith("activation_") and a.type == 1
    }
    if kind == "ThresholdedRelu":
        named.setdefault("activation_alpha", 1.0)
    return kind, (*map(float, listed), *(named[name] for name in sorted(named)))
