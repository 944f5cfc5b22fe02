"""Where in a model merges are made, in what numbers, and what is told of them."""

from __future__ import annotations

import numpy as np

import bnfold

from ..graphs import (
    codes,
    conv,
    fold,
    folds,
    model,
    op,
    run,
    subgraph,
)
from .branches import SAME, X, two


def test_in_a_body():
    inner = [
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "z"),
    ]
    body = subgraph(*inner, y="z")
    made = model(
        op("If", "on", "y", then_branch=body, else_branch=body),
        x=X,
        weights={"on": np.array(True)},
    )
    folded = fold(made)
    for attribute in folded.graph.node[0].attribute:
        assert [n.op_type for n in attribute.g.node] == ["Conv"]


def test_half_precision():
    from ..graphs import HALF

    folds(two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), elem=HALF), Conv=1)


def test_before_opset_7_nothing_merges():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), opset=6)
    assert not bnfold.plan(made).folds


def test_what_it_saves_is_counted():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}))
    plan = bnfold.plan(made)
    assert (plan.before, plan.after) == ({"Conv": 2, "Add": 1}, {"Conv": 1})
    (merge,) = plan.folds
    assert (set(merge.nodes), merge.into, merge.laws) == (
        {"b", "y_add"},
        "a",
        ("merge in parallel",),
    )


def test_infinite_weights_stay():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}))
    weight = next(t for t in made.graph.initializer if t.name == "b.w")
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[0] = np.inf
    weight.raw_data = values.tobytes()
    assert codes(made)["a"] == "non-finite"
    assert bnfold.fold(made).SerializeToString() == made.SerializeToString()


def test_weights_that_would_overflow_stay():
    made = two(((4, 4, 1, 1), {}), ((4, 4, 1, 1), {}))
    for tensor in made.graph.initializer:
        if tensor.name.endswith(".w"):
            tensor.raw_data = np.full((4, 4), 3e38, np.float32).tobytes()
    assert "overflow" in codes(made).values()


def test_it_computes_the_same_at_every_size():
    """The whole of a small input is border."""
    made = two(((4, 4, 5, 5), {"pads": [2] * 4}), ((4, 4, 3, 3), SAME), x=("N", 4, "H", "W"))
    folded = fold(made)
    for size in range(1, 6):
        x = np.random.default_rng(size).normal(size=(1, 4, size, size + 1)).astype(np.float32)
        (one,), (other,) = run(made, {"x": x}), run(folded, {"x": x})
        assert np.abs(one - other).max() <= 1e-5
