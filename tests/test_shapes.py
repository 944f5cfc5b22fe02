"""What is known of shapes beyond ONNX's own inference."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold._onnx._network import read

from .graphs import bn, conv, folds, model, op, stays


def sizes(made, name):
    return read(made, None).graphs[0].context.shape(name)


def reshape(target, x=("n", 4, 3, 3)):
    return model(op("Reshape", "x t", "y"), x=x, weights={"t": np.array(target, np.int64)})


@pytest.mark.parametrize(
    "target, x, known",
    [
        ((0, 4, -1), ("n", 4, 3, 3), (None, 4, 9)),
        ((0, -1, 6), ("n", 4, 3, 3), (None, 6, 6)),
        ((0, 0, -1), ("n", "c", 3, 3), (None, None, 9)),
        ((0, -1), ("n", "c", 3, 3), (None, None)),
        ((-1, 9), ("n", 4, 3, 3), (None, 9)),
    ],
)
def test_the_size_that_is_left(target, x, known):
    assert sizes(reshape(target, x), "y") == known


@pytest.mark.parametrize("read_from", ["x", "other"])
def test_a_size_asked_for_at_run_time(read_from):
    """The batch of the very tensor that is reshaped keeps its axis; another tensor's proves
    nothing, even where both are called n.
    """
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        op("Shape", read_from, "s"),
        op("Gather", "s zero", "b", axis=0),
        op("Concat", "b four rest", "t", axis=0),
        op("Reshape", "c t", "r"),
        bn("bn", "r", "y", 4),
        x={"x": ("n", 3, 5, 5), "other": ("n", 7)},
        weights={
            "zero": np.array([0], np.int64),
            "four": np.array([4], np.int64),
            "rest": np.array([-1], np.int64),
        },
    )
    if read_from == "x":
        folds(m, Conv=1, Shape=1, Gather=1, Concat=1, Reshape=1)
    else:
        stays(m, {"bn": "not-carried"})
