"""Preprocessing in front of rare graphs: where a name, or an operator, is not what it seems.

The reference that a verdict compares with is made by the same writer, so no verdict sees its
mistakes: what a picture gives is computed here without bnfold.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Preprocessing

from ..graphs import conv, i64, op
from .camera import MEAN, STD, picture, same
from .test_weights import CYCLE, first, folded, kinds


def test_a_body_that_has_an_input_of_the_same_name():
    """The state of a loop is called as the model's input is: it is another tensor."""
    body = helper.make_graph(
        [op("Relu", "x", "r"), op("Mul", "r half", "x2"), op("Identity", "on", "on2")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3, 3, 3]),
        ],
        [
            helper.make_tensor_value_info("on2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x2", TensorProto.FLOAT, [3, 3, 3, 3]),
        ],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    made = first(
        conv("a", "x", "c", (3, 3, 3, 3), pads=[1, 1, 1, 1]),
        op("Loop", "n yes c", "y", body=body),
        weights={"n": i64(2).reshape(()), "yes": np.array(True)},
    )
    (output,) = made.graph.output
    output.CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3, 3, 3]))
    found = folded(made, mean=MEAN, std=STD)
    same(made, found, picture(3, 3, 3, 3, dtype="float32"), mean=MEAN, std=STD)


def test_a_region_of_interest_may_turn_channels_round():
    """By ONNX, whatever a runtime makes of it: a Resize to the same size reads from 1 to 0."""
    made = first(
        op(
            "Resize",
            "x roi scales",
            "h",
            mode="nearest",
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        conv("a", "h", "y", (4, 3, 2, 2)),
        weights={
            "roi": np.array([0, 1, 0, 0, 1, 0, 1, 1], np.float32),
            "scales": np.ones(4, np.float32),
        },
    )
    assert kinds(folded(made, channels=CYCLE)) == ["Gather", "Resize", "Conv"]


def test_an_input_that_is_named_in_two_ways():
    made = first(conv("a", "x", "y", (4, 3, 2, 2)))
    both = {"": Preprocessing(mean=MEAN), "x": Preprocessing(std=STD)}
    with pytest.raises(bnfold.UsageError, match="input x has preprocessing twice"):
        bnfold.fold(made, preprocessing=both)
