"""How a relation of what an operator reads becomes one of what it puts out.

An operator without a law, and one whose law does not hold, asks for the same data on both sides.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold._relation import pointwise, rearranging, windows
from bnfold._relation.call import Call, Pair
from bnfold._relation.expressions import ONE, ZERO


def passed(call: Call) -> list[Pair] | None:
    """For each output its scale and shift, or None where the data would have to be the same."""
    known = [each for each in call.inputs if each is not None]
    law = LAWS.get(call.kind)
    if all(each.is_identity for each in known) and tuple(call.numbers) == tuple(call.others):
        return [(ONE, ZERO)] * len(call.node.output)
    found = law(call) if law is not None else None
    if found is None:
        return None
    return found if isinstance(found, list) else [found] * len(call.node.output)


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
    "Expand": pointwise.uniform,
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
