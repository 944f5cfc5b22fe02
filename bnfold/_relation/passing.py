"""How a relation of what an operator reads becomes one of what it puts out.

An operator without a law, and one whose law does not hold, asks for the same data on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bnfold._relation import pointwise, rearranging, windows
from bnfold._relation.call import Call, Pair
from bnfold._relation.expressions import ONE, ZERO, Double, is_uneven


def passed(call: Call) -> list[Pair] | None:
    """For each output its scale and shift, or None where the data would have to be the same.

    Only laws of `_OF_ALL` say what comes of other inputs than the first, such as the scales of a
    Resize: for all others these have to be the same.
    """
    known = [each for each in call.inputs if each is not None]
    law = LAWS.get(call.kind)
    if all(each.is_identity for each in known) and tuple(call.numbers) == tuple(call.others):
        return [(ONE, ZERO)] * len(call.node.output)
    if law is None or (call.kind not in _OF_ALL and not call.others_agree()):
        return None
    found = law(call)
    if found is None:
        return None
    pairs = found if isinstance(found, list) else [found] * len(call.node.output)
    return [(_plain(scale), _plain(shift)) for scale, shift in pairs]


def _plain(values: Double) -> Double:
    """The one number, where parts of a Concat have the same, say."""
    is_one = values.size > 1 and bool(np.all(values == values.flat[0]))
    return np.asarray(values.flat[0]) if is_one else values


def errors_behind(call: Call, found: Sequence[Pair]) -> list[Double | float] | None:
    """For each output how far rounding explains a difference of its scale, relative to it.

    An error of its own in each channel goes where the scale of that channel goes: the law is asked
    once more with scales that are off by it. An operator that goes number by number, and reads one
    tensor, leaves it where it is. None where the law does not say, and some channels are
    known much less well than others: one number for all would lay more to rounding than there is.
    """
    known = [each for each in call.inputs if each is not None and not each.is_identity]
    most = max((float(np.max(each.error)) for each in known), default=0.0)
    if all(np.size(each.error) == 1 for each in known):
        return [most] * len(found)
    errors: list[Double | float] = [0.0] * len(found)
    for place, one in enumerate(call.inputs):
        if one is None or one.is_identity:
            continue
        off = [*call.inputs]
        off[place] = replace(one, scale=one.scale * (1 + np.asarray(one.error)))
        moved = passed(replace(call, inputs=off))
        if moved is None and call.kind in _POINTWISE:
            return [one.error] * len(found)
        if moved is None:
            return None if any(is_uneven(each.error) for each in known) else [most] * len(found)
        for number, ((scale, _), (far, _)) in enumerate(zip(found, moved, strict=True)):
            ratio = np.divide(far, scale, out=np.full(far.shape, 1 + most), where=scale != 0)
            errors[number] = np.maximum(errors[number], np.abs(ratio - 1))
    return errors


_OF_ALL = ("Concat", "Div", "MatMul", "Max", "Min", "Mul")
"""Operators whose laws look at all that they read."""
_POINTWISE = ("Clip", "Erf", "Sin", "Tanh", "ThresholdedRelu")
"""Operators on one tensor, whose laws ask for the same scale in all channels."""
LAWS: dict[str, Callable[[Call], Pair | list[Pair] | None]] = {
    "Abs": pointwise.absolute,
    "ArgMax": windows.place_of_largest,
    "ArgMin": windows.place_of_largest,
    "AveragePool": windows.mean_of_window,
    "Clip": pointwise.clipped,
    "Concat": rearranging.joined,
    "DepthToSpace": pointwise.uniform,
    "Div": pointwise.multiplied,
    "Erf": pointwise.odd,
    "Expand": rearranging.expanded,
    "Flatten": rearranging.rearranged,
    "Gather": rearranging.picked,
    "GlobalAveragePool": windows.of_positions,
    "GlobalMaxPool": windows.of_positions,
    "InstanceNormalization": windows.centred,
    "LeakyRelu": pointwise.homogeneous,
    "LogSoftmax": pointwise.softmax,
    "MatMul": pointwise.product,
    "Max": pointwise.chosen,
    "MaxPool": windows.largest_of_window,
    "Min": pointwise.chosen,
    "Mul": pointwise.multiplied,
    "PRelu": pointwise.homogeneous,
    "Pad": pointwise.padded,
    "ReduceMax": windows.largest,
    "ReduceMean": windows.mean,
    "ReduceMin": windows.largest,
    "ReduceSum": windows.total,
    "Relu": pointwise.homogeneous,
    "Reshape": rearranging.rearranged,
    "Resize": windows.resized,
    "Shape": pointwise.untouched,
    "Sin": pointwise.odd,
    "Size": pointwise.untouched,
    "Slice": rearranging.sliced,
    "Softmax": pointwise.softmax,
    "SpaceToDepth": pointwise.uniform,
    "Split": rearranging.split,
    "Squeeze": rearranging.rearranged,
    "Tanh": pointwise.odd,
    "ThresholdedRelu": pointwise.thresholded,
    "Tile": pointwise.uniform,
    "Transpose": rearranging.transposed,
    "Unsqueeze": rearranging.rearranged,
    "Upsample": windows.resized,
}
"""By the type of the operator."""
