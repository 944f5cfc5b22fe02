"""Tensors whose rank is not known, and what tells it."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold._proof.certificate import certify

from .graphs import (
    assert_same,
    bn,
    const,
    conv,
    counts,
    done,
    model,
    op,
    positive,
    rand,
    sizes,
)


def test_a_target_that_is_not_known_tells_the_rank():
    m = model(op("Reshape", "x t", "y"), x={"x": (2, 4, 3), "t": (2,)})
    assert sizes(m, "y") == (None, None)


def test_the_rank_of_a_weight_that_is_reshaped_to_computed_sizes():
    """onnxruntime leaves the γ of a norm of Paddle so: the length of the target is the rank."""
    made = model(
        op("Shape", "x", "s"),
        op("Abs", "s", "t"),
        op("Reshape", "g t", "y"),
        x=("n", 4, 3),
        weights={"g": np.zeros(12, np.float32)},
        opset=12,  # from 13 on ONNX's own inference tells
    )
    assert len(sizes(made, "y")) == 3


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("ReduceMax", {"axes": [2]}),
        ("Split", {"axis": 2}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
    ],
)
def test_a_map_that_has_channels_does_not_go_where_the_rank_is_not_known(kind, attributes):
    """What a Conv puts out has the rank of its weight; what follows has none, as far as is known.
    The number behind goes to the map instead, except out of one of two parts.
    """
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        const("Mul", "c", "m", rand(4, 1, 1), name="map"),
        op(kind, "m", "o rest" if kind == "Split" else "o", **attributes),
        const("Mul", "o", "y", np.float32(3)),
        x={"x": None},
        y="c y",
        opset=12,
    )
    assert sizes(m, "m") == (None, 4, None, None)
    left = {"Conv": 1, "Mul": 2 if kind == "Split" else 1, kind: 1}
    folded = bnfold.fold(m)
    assert counts(folded) == left
    assert_same(m, folded, {"x": rand(4, 3, 4, 4)})


@pytest.mark.parametrize("known", [None, ["n", 3, 8, 8]])
def test_norms_of_tensors_of_unknown_rank_become_one_norm(known):
    """As where the rank is known: all that is left is written as the last norm."""
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    pieces, value = [], "x"
    for n in range(3):
        (node, stored), name = bn(f"bn{n}", value, f"v{n}", 3), f"bn{n}"
        stored[f"{name}.scale"] = positive(3)
        if n < 2:  # A shift would not pass the Relu.
            stored |= {f"{name}.bias": zero, f"{name}.mean": zero, f"{name}.var": one}
        pieces += [(node, stored), op("Relu", f"v{n}", f"r{n}")]
        value = f"r{n}"
    m = model(*pieces, x={"x": known}, y="r2")
    folded = bnfold.fold(m)
    assert counts(folded) == {"Relu": 3, "BatchNormalization": 1}
    assert_same(m, folded, {"x": rand(2, 3, 8, 8)})


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("further", [False, True])
def test_the_shape_of_a_weight_that_is_an_input_tells_the_rank(kind, further):
    """The fold has its bias by that; its certificate called it a bias of another shape."""
    same = [op("Identity", "c", "i")] if further else []
    behind = const("Add", "i" if further else "c", "y", rand(4, 1, 1))
    m = model(op(kind, "x w", "c"), *same, behind, x={"x": None, "w": (4, 4, 2, 2)}, opset=21)
    found = done(m)
    assert found.applied and len(found.folded.graph.node[0].input) == 3
    assert all(one.holds for one in certify(m, found.folded, found.applied))


def test_a_transpose_of_fewer_axes_than_there_are():
    """Nothing runs that; a map comes to it through a Reshape to another rank."""
    m = model(
        bn("bn", "x", "a", 6),
        (op("Reshape", "a five", "b"), {"five": np.array([0, 3, 2, 2, 3])}),
        op("Transpose", "b", "c", perm=[0, 2, 3, 4]),
        (op("Reshape", "c four", "d"), {"four": np.array([0, 6, 2, 3])}),
        conv("conv", "d", "y", (3, 6, 1, 1)),
        x=(6, 6, 2, 3),
    )
    assert {kept.node for kept in bnfold.plan(m).kept} == {"bn"}
