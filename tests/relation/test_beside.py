"""What operators read beside their data: scales, bounds, steps, which maps of the data ignore.

Each row is two functions, told by onnxruntime, and would be one if a law looked at the data alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from ..graphs import model, op
from .pairs import differ, ints, proof

V, S = "v", "s"
TWO = np.float32(2)
W = {
    "two": TWO,
    "spread": np.array([1, 1, 2, 2], np.float32),
    "pads": ints(0, 0, 1, 1, 0, 0, 1, 1),
    "low": np.float32(-9),
    "last": np.float32([1, 2, 3, 4]),
    "odd": np.float32([1, 3]).reshape(2, 1, 1, 1),
    "even": np.float32([2, 4]).reshape(2, 1, 1, 1),
    "begin": ints(-1),
    "end": ints(-9),
    "axis": ints(0),
    "back": ints(-1),
    "zero": ints(0),
    "whole": ints(4),
    "step": ints(2),
}
TURN = op("Transpose", "x", "t", perm=[3, 0, 1, 2])
SCALED = [op("Mul", "x last", "c"), op("Transpose", "c", "t", perm=[3, 0, 1, 2])]
REVERSED = op("Slice", "t begin end axis back", "y")
STEPS = op("Slice", "t zero whole axis step", "y")


def other(kind, names, name, factor="two", **given):
    """An operator, and the same with one of its other inputs times a factor."""
    behind = " ".join("w" if each == name else each for each in names.split())
    return [op(kind, names, "y", **given)], [
        op("Mul", f"{name} {factor}", "w"),
        op(kind, behind, "y", **given),
    ]


ROWS = {
    "a value around the data": other("Pad", "x pads v", V),
    "data in a value around": (
        [op("Pad", "x pads v", "q"), op("Mul", "q two", "y")],
        [op("Mul", "x two", "c"), op("Pad", "c pads v", "y")],
    ),
    "a lower bound": other("Clip", "x v", V),
    "data above a bound": other("Clip", "x v", "x"),
    "data between bounds": other("Clip", "x low v", "x"),
    "scales": other("Resize", "x _ s", S, "spread"),
    "data in reverse": ([TURN, REVERSED], [*SCALED, REVERSED]),
    "data in steps": ([TURN, STEPS], [*SCALED, STEPS]),
    "a block": (
        [op("SpaceToDepth", "x", "y", blocksize=2)],
        [op("Mul", "x last", "c"), op("SpaceToDepth", "c", "y", blocksize=2)],
    ),
}


def made(nodes):
    whole = model(*nodes, x=(1, 2, 4, 4), weights=W, opset=17)
    whole.graph.input.append(helper.make_tensor_value_info(V, TensorProto.FLOAT, []))
    whole.graph.input.append(helper.make_tensor_value_info(S, TensorProto.FLOAT, [4]))
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


@pytest.mark.parametrize("name", ROWS)
def test_what_is_read_beside_the_data_counts(name):
    one, two = map(made, ROWS[name])
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((1, 2, 4, 4)).astype(np.float32), V: np.array(0.5, "f")}
    feeds[S] = np.array([1, 1, 2, 2], np.float32)
    assert differ(one, two, feeds)
    assert proof(one, two).status != "proved"
    assert proof(one, one).status == "proved"


@pytest.mark.parametrize(("scales", "status"), [("odd", "proved"), ("even", "refuted")])
def test_steps_take_scales_along(scales, status):
    """Of the numbers 1, 2, 3, 4 along an axis every second one is 1, 3."""
    behind = [TURN, op("Slice", "t zero whole axis step", "q"), op("Mul", f"q {scales}", "y")]
    assert proof(made([*SCALED, STEPS]), made(behind)).status == status
