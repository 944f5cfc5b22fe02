"""Neg and scales below 0 at Add and Sub: the operator becomes the other one, or swaps its terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from .. import graphs
from ..functions import DOMAIN, function
from ..graphs import DOUBLE, HALF, Piece, bn, const, conv, counts, model, op, rand, subgraph
from ..test_subgraphs import both, with_cond
from .holding import same
from .nets import goes, holds, stays

X = (4, 4, 4, 4)  # batch, channels and sizes agree by accident


def terms() -> list[Piece]:
    """Two tensors that take no map in, each read once."""
    return [op("Tanh", "x", "a"), op("Sigmoid", "x", "b")]


# What is computed, by the nodes for it; and the one operator that computes it.
ONE = {
    "a + (-b)": ([op("Neg", "b", "n"), op("Add", "a n", "y")], "Sub a b"),
    "(-a) + b": ([op("Neg", "a", "n"), op("Add", "n b", "y")], "Sub b a"),
    "a - (-b)": ([op("Neg", "b", "n"), op("Sub", "a n", "y")], "Add a b"),
    "-(a - b)": ([op("Sub", "a b", "n"), op("Neg", "n", "y")], "Sub b a"),
    "(-a) - (-b)": (
        [op("Neg", "a", "n"), op("Neg", "b", "m"), op("Sub", "n m", "y")],
        "Sub b a",
    ),
    "-((-a) - b)": (
        [op("Neg", "a", "n"), op("Sub", "n b", "m"), op("Neg", "m", "y")],
        "Add a b",
    ),
    "-(b - (-a))": (
        [op("Neg", "a", "n"), op("Add", "b n", "m"), op("Neg", "m", "y")],
        "Sub a b",
    ),
    "the sum of a and -b": ([op("Neg", "b", "n"), op("Sum", "a n", "y")], "Sub a b"),
    "a + b·(-1)": ([const("Mul", "b", "n", np.float32(-1)), op("Add", "a n", "y")], "Sub a b"),
    "a + (0 - b)": (
        [const("Sub", "b", "n", np.float32(0), left=True), op("Add", "a n", "y")],
        "Sub a b",
    ),
}


@pytest.mark.parametrize("elem", [graphs.FLOAT, HALF, DOUBLE])
@pytest.mark.parametrize("case", ONE)
def test_a_sign_goes_into_a_sum_or_a_difference(case, elem):
    """Bit for bit: to negate rounds nothing. The order of the terms shows in what is computed."""
    nodes, last = ONE[case]
    made = model(*terms(), *nodes, x=X, elem=elem)
    once = graphs.done(made)
    graphs.certified(made, once)
    folded = goes(made) if elem != HALF else once.folded
    node = folded.graph.node[-1]
    assert len(folded.graph.node) == 3
    assert " ".join([node.op_type, *node.input]) == last
    data = graphs.feeds(made)
    assert np.array_equal(graphs.run(made, data)[0], graphs.run(folded, data)[0])


@pytest.mark.parametrize(
    "nodes",
    [
        [op("Add", "a b", "m"), op("Neg", "m", "y", name="map")],
        [op("Neg", "a", "m", name="map"), op("Sub", "m b", "y")],
        [op("Neg", "a", "m", name="map"), op("Sum", "m b b", "y")],
        [const("Mul", "b", "m", np.float32(-2), name="map"), op("Add", "a m", "y")],
        [const("Mul", "b", "m", np.array([-1, -1, 1, -1], np.float32), name="map"),
         op("Add", "a m", "y")],
    ],
    ids=["-(a + b)", "-a - b", "three terms", "another size", "some channels"],
)  # fmt: skip
def test_a_sign_stays_where_one_operator_cannot_have_it(nodes):
    stays(model(*terms(), *nodes, x=X))


def test_a_sign_that_others_read_stays():
    nodes = [op("Neg", "b", "n", name="map"), op("Add", "a n", "y")]
    stays(model(*terms(), *nodes, op("Tanh", "n", "z"), x=X, y="y z"))
    stays(model(*terms(), *nodes, x=X, y="y n"))
    nodes = [op("Sub", "a b", "n"), op("Neg", "n", "y", name="map")]
    stays(model(*terms(), *nodes, op("Tanh", "n", "z"), x=X, y="y z"))


def test_a_sign_goes_into_all_that_read_it():
    made = model(
        *terms(),
        op("Neg", "b", "n"),
        op("Add", "a n", "y"),
        op("Sub", "a n", "z"),
        op("Sub", "n a", "s"),
        conv("c", "s", "w", (3, 4, 1, 1)),
        x=X,
        y="y z w",
    )
    assert counts(goes(made)) == {"Tanh": 1, "Sigmoid": 1, "Sub": 1, "Add": 2, "Conv": 1}


def test_a_sum_without_broadcasting_rules_stays():
    """Until opset 6 the second operand gave way to the first: it may not come first."""
    nodes = [op("Sub", "a b", "n", broadcast=1, axis=1), op("Neg", "n", "y", name="map")]
    x = {"a": X, "b": (4, 4)}
    assert [k.code for k in graphs.done(model(*nodes, x=x, opset=6)).plan.kept] != []


@pytest.mark.parametrize("shapes", [(X, (4, 1, 1)), ((4,), X), ((1, 4, 1, 1), (4, 1, 4, 4))])
def test_terms_that_broadcast_change_places(shapes):
    nodes = [op("Tanh", "p", "a"), op("Sigmoid", "q", "b"), *ONE["-(a - b)"][0]]
    made = model(*nodes, x=dict(zip("pq", shapes, strict=True)))
    assert list(goes(made).graph.node[-1].input) == ["b", "a"]
    data = graphs.feeds(made)  # and where no rank is known, which nothing here asks for
    made = model(*nodes, x={"p": None, "q": None})
    folded = graphs.done(made).folded
    assert list(folded.graph.node[-1].input) == ["b", "a"]
    same(made, folded, data)


def test_a_difference_of_one_tensor_with_itself():
    made = model(op("Tanh", "x", "a"), op("Sub", "a a", "n"), op("Neg", "n", "y"), x=X)
    assert counts(goes(made)) == {"Tanh": 1, "Sub": 1}
    made = model(op("Tanh", "x", "a"), op("Neg", "a", "n"), op("Sub", "a n", "y"), x=X)
    assert counts(goes(made)) == {"Tanh": 1, "Add": 1}


@pytest.mark.parametrize("order", ["a n", "n a"])
@pytest.mark.parametrize("kind, left", [("Add", "Sub"), ("Sub", "Add")])
def test_a_tensor_and_its_own_negative(kind, left, order):
    """Both terms are one tensor then: which is which cannot be told, and need not be."""
    first = op("Tanh", "x", "a"), op("Neg", "a", "n", name="map")
    made = model(*first, op(kind, order, "y"), x=X)
    if (kind, order) == ("Sub", "n a"):
        stays(made)  # −a − a
    else:
        assert counts(goes(made)) == {"Tanh": 1, left: 1}


def test_what_takes_a_sign_in_goes_ahead_of_what_hands_it_on():
    """Handed on, it would meet the one Neg that is left, and no operator less would stand."""
    made = model(
        conv("c", "x", "p", (4, 4, 1, 1)),
        op("Neg", "p", "q"),
        op("Split", "q", "a b", axis=1),
        op("Sub", "b b", "d"),
        op("Neg", "d", "n"),
        op("Identity", "n", "i"),
        op("Sum", "i n", "z"),
        x=X,
        y="a z",
        weights={},
    )
    assert counts(goes(made)).get("Neg", 0) == 0


@pytest.mark.parametrize("kind", ["Mul", "Neg"])
def test_a_swap_makes_scales_positive_that_a_relu_lets_pass(kind):
    """``−2·(r(p) − r(q)) = r(2q) − r(2p)``. A scale of both signs has no such way."""
    last = op("Neg", "d", "y", name="map")

    def made(values: Any, kind: str = "Mul") -> ModelProto:
        scale = const("Mul", "d", "y", np.asarray(values, np.float32).reshape(-1, 1, 1), name="map")
        return model(
            conv("c1", "x", "p", (4, 4, 1, 1)),
            op("Relu", "p", "a"),
            conv("c2", "x", "q", (4, 4, 3, 3), pads=[1] * 4),
            op("Relu", "q", "b"),
            op("Sub", "a b", "d"),
            last if kind == "Neg" else scale,
            x=X,
        )

    folded = goes(made([-2, -3, -0.5, -1], kind))
    assert counts(folded) == {"Conv": 2, "Relu": 2, "Sub": 1}
    stays(made([-2, 3, -0.5, -1]))


def test_a_norm_and_a_sign_behind_a_difference():
    """The shift goes to the term that its sign lets take it."""
    made = model(
        conv("c1", "x", "a", (4, 4, 1, 1)),
        op("Relu", "x", "r"),
        conv("c2", "r", "b", (4, 4, 3, 3), pads=[1] * 4),
        op("Sub", "a b", "d"),
        bn("map", "d", "e", 4),
        op("Neg", "e", "y"),
        x=X,
    )
    assert counts(goes(made)) == {"Conv": 2, "Relu": 1, "Sub": 1}


@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("order", ["g q", "q g"])
def test_a_constant_minus_a_sum(kind, order):
    """``c − (g − q) = (q + c) − g``: the shift has the new sign of the term that takes it."""
    made = model(
        op("Sigmoid", "x", "g"),
        conv("c2", "x", "q", (4, 4, 3, 3), pads=[1] * 4),
        op(kind, order, "d"),
        const("Sub", "d", "y", rand(4, 1, 1), left=True),
        x=X,
    )
    last = "Add" if (kind, order) == ("Sub", "q g") else "Sub"
    assert counts(goes(made)) == {"Conv": 1, "Sigmoid": 1, last: 1}


def test_a_shift_and_a_sign_go_one_after_the_other():
    """``−2·(r(p) − q) + t = (2q + t) − r(2p)``: q, which was subtracted, is added."""
    made = model(
        conv("c1", "x", "p", (4, 4, 1, 1)),
        op("Relu", "p", "a"),
        op("Sigmoid", "x", "g"),
        conv("c2", "g", "q", (4, 4, 3, 3), pads=[1] * 4),
        op("Sub", "a q", "d"),
        const("Mul", "d", "e", np.float32(-2)),
        const("Add", "e", "y", rand(4, 1, 1)),
        x=X,
    )
    assert counts(goes(made)) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Sub": 1}


def test_a_constant_minus_a_term():
    """``a + (c − b) = (a − b) + c``: the shift goes on to where it is taken in."""
    made = model(
        *terms(),
        const("Sub", "b", "n", rand(4, 1, 1), left=True),
        op("Add", "a n", "s"),
        conv("c", "s", "y", (3, 4, 1, 1)),
        x=X,
    )
    assert counts(goes(made)) == {"Tanh": 1, "Sigmoid": 1, "Sub": 1, "Conv": 1}


def test_integers_are_left_alone():
    made = model(
        op("Cast", "x", "a", to=TensorProto.INT32),
        op("Neg", "a", "n"),
        op("Add", "n a", "s"),
        op("Cast", "s", "y", to=TensorProto.FLOAT),
        x=X,
    )
    assert counts(holds(made)) == counts(made)


def test_in_bodies_and_functions():
    nodes = ONE["-(a - b)"][0]
    then = subgraph(op("Sub", "a b", "n"), op("Neg", "n", "t"), y="t")
    other = subgraph(op("Neg", "b", "m"), op("Add", "a m", "e"), y="e")
    branches = op("If", "cond", "y", name="if", then_branch=then, else_branch=other)
    both(with_cond(*terms(), branches), Tanh=1, Sigmoid=1, If=1, Sub=2)
    called = function("F", "a b", "y", nodes)
    call = op("F", "a b", "y", domain="my")
    made = model(*terms(), call, x=X, functions=[called], domains=DOMAIN)
    assert counts(graphs.fold(made)) == {"Tanh": 1, "Sigmoid": 1, "F": 1, "Sub": 1}


def test_it_is_told():
    for case, told in (("a + (-b)", "turn Add into Sub"), ("-(a - b)", "swap the inputs of Sub")):
        (step,) = graphs.done(model(*terms(), *ONE[case][0], x=X)).plan.folds
        assert told in step.laws
