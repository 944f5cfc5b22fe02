"""Laws of operators that go number by number, or take all numbers alike.

Each says for which s and t ``f(s·x + t) = s'·f(x) + t'`` holds for every x, from the operator's
definition in ONNX, and gives s' and t'.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from bnfold._relation.call import Call, Pair, is_off, number
from bnfold._relation.expressions import ONE, ZERO
from bnfold._relation.relations import most


def homogeneous(call: Call) -> Pair | None:
    """Relu, LeakyRelu, PRelu: ``f(s·x) = s·f(x)`` for s > 0."""
    one = call.first
    if call.others_agree() and np.all(one.scale > 0) and not one.shift.any():
        return one.scale, ZERO
    return None


def absolute(call: Call) -> Pair | None:
    """``|s·x| = |s|·|x|``."""
    one = call.first
    return (np.abs(one.scale), ZERO) if not one.shift.any() else None


def odd(call: Call) -> Pair | None:
    """Tanh, Erf, Sin …: ``f(−x) = −f(x)``."""
    one = call.first
    signs = np.all(np.abs(one.scale) == 1) and not one.shift.any()
    return (one.scale, ZERO) if signs else None


def softmax(call: Call) -> Pair | None:
    """Softmax, LogSoftmax: a shift that is the same along the axis goes away."""
    one, rank = call.first, call.rank()
    if rank is None or call.scope.opset < 13 or not np.all(one.scale == 1):
        return None
    axis = call.given.get("axis", -1) % rank
    return (ONE, ZERO) if is_off(one.shift, rank, [axis]) else None


def uniform(call: Call) -> Pair | None:
    """DepthToSpace, SpaceToDepth, Tile: the same numbers everywhere stay."""
    one = call.first
    if call.others_agree() and one.scale.size == 1 and one.shift.size == 1:
        return one.scale.reshape(()), one.shift.reshape(())
    return None


def multiplied(call: Call) -> Pair | None:
    """Mul, Div: scales multiply and divide; a shift does not pass.

    Before opset 7 an attribute says along which axes the second operand lies.
    """
    scales = []
    if call.scope.opset < 7:
        return None
    for one in call.inputs:
        if one is not None and one.shift.any():
            return None
        scales.append(ONE if one is None else one.scale)
    first, second = scales
    return (first * second if call.node.op_type == "Mul" else first / second), ZERO


def product(call: Call) -> Pair | None:
    """MatMul of data: one scale for each operand passes."""
    scale = ONE
    for one in call.inputs:
        if one is not None:
            if one.shift.any() or one.scale.size > 1:
                return None
            scale = scale * one.scale.reshape(())
    return scale, ZERO


def chosen(call: Call) -> Pair | None:
    """Max, Min of data: one s > 0 and one t for all."""
    found = [each for each in call.inputs if each is not None]
    one = found[0]
    if len(found) < len(call.inputs) or not np.all(one.scale > 0):
        return None
    same = all(
        np.array_equal(each.scale, one.scale) and np.array_equal(each.shift, one.shift)
        for each in found
    )
    return (one.scale, one.shift) if same else None


def untouched(call: Call) -> Pair:
    """Shape, Size: what they put out depends on no number."""
    return ONE, ZERO


def _moves(call: Call, scale: float, shift: float) -> bool:
    """Whether each parameter of the second operator is ``scale`` times the first's, plus a shift.

    Rounding may have moved it as far as the relation, by no larger a part than of any number, and
    by its own unit. It is one number for all channels: the channel known best says how far.
    """
    slip = min(call.first.slip, most(0)) * float(np.min(call.first.mass)) if shift else 0.0
    error = min(float(np.min(call.first.error)), most(0))
    kind = call.side.shapes.type(call.scope, call.node.input[0])
    unit = 2.0**-52 if kind == TensorProto.DOUBLE else 2.0**-23
    for one, other in zip(call.numbers, call.others, strict=True):
        meant = scale * one + shift
        slack = (error + unit) * (abs(scale * one) + abs(shift)) + slip
        if meant != other and not (np.isfinite(meant) and abs(meant - other) <= slack):
            return False
    return True


def clipped(call: Call) -> Pair | None:
    """Clip: ``clip(s·x + t, s·a + t, s·b + t) = s·clip(x, a, b) + t``; s < 0 swaps the bounds."""
    scale, shift = (number(each) for each in (call.first.scale, call.first.shift))
    if scale is None or shift is None or not scale or not call.numbers:
        return None  # Bounds that are no stored numbers are not moved.
    if not call.numbers[0] <= call.numbers[1]:
        return None
    if scale < 0:
        call = replace(call, numbers=call.numbers[::-1])
    return (call.first.scale, call.first.shift) if _moves(call, scale, shift) else None


def thresholded(call: Call) -> Pair | None:
    """ThresholdedRelu: x where it is above α, else 0; ``s·x`` with ``s·α``, for s > 0."""
    scale = number(call.first.scale)
    if scale is None or scale <= 0 or call.first.shift.any() or not _moves(call, scale, 0.0):
        return None
    return call.first.scale, ZERO


def padded(call: Call) -> Pair | None:
    """Pad: copies of the data keep s and t; zeros keep s. Neither varies along padded axes.

    A value that is no stored number stays as it is: then nothing passes.
    """
    rank, one = call.rank(), call.first
    pads = call.integers(1, "pads")
    some = len(call.node.input) > 3 and call.node.input[3] != ""
    if rank is None or pads is None or len(pads) != 2 * rank or some:
        return None
    if not call.numbers and call.given.get("mode", b"constant") == b"constant":
        return None
    axes = [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]
    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):
        return None
    if call.numbers:
        scale, shift = (number(each) for each in (one.scale, one.shift))
        zeros = call.numbers[0] == call.others[0] == 0 and not one.shift.any()
        if not zeros and (scale is None or shift is None or not _moves(call, scale, shift)):
            return None
    return one.scale, one.shift
