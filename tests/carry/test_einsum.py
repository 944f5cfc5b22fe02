"""Einsum is linear in each of its inputs: a number passes through any one. A constant takes scales
in, along the axes that it has by their letters.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnfold
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._proof.certificate import certify

from ..graphs import (
    HALF,
    bn,
    certified,
    codes,
    const,
    conv,
    counts,
    done,
    feeds,
    model,
    op,
    overridable,
    rand,
    run,
)

SHAPE = (4, 4, 4, 4)


def holds(made, *, folds: bool, rtol: float = 1e-4):
    folded = bnfold.fold(made)
    assert (folded.SerializeToString() != made.SerializeToString()) == folds
    certified(made)
    data = feeds(made)
    for wanted, found in zip(run(made, data), run(folded, data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-4)
    return counts(folded)


@pytest.mark.parametrize("equation", ["bchw,bcwv->bchv", "bchw,bdhw->bcd", "bihj,bjhi"])
@pytest.mark.parametrize("first", [True, False])
def test_a_number_goes_back_into_either_input(equation, first):
    """The other input is one of the graph."""
    inputs = "c z" if first else "z c"
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op("Einsum", inputs, "e", equation=equation),
        const("Mul", "e", "y", np.float32(-0.7), name="map"),
        x={"x": SHAPE, "z": SHAPE},
    )
    assert "Mul" not in holds(made, folds=True)


def test_a_number_goes_into_a_constant_input():
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        (op("Einsum", "c w", "e", equation="bchw,wv->bchv"), {"w": rand(4, 4)}),
        const("Mul", "e", "y", np.float32(2.5), name="map"),
        x=SHAPE,
    )
    assert holds(made, folds=True) == {"Conv": 1, "Einsum": 1}


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_shift_and_a_map_along_an_axis_stay(kind):
    value = np.float32(0.7) if kind == "Add" else rand(4, 1, 1)
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op("Einsum", "c z", "e", equation="bchw,bcwv->bchv"),
        const(kind, "e", "y", value, name="map"),
        x={"x": SHAPE, "z": SHAPE},
    )
    assert codes(made) == {"map": "not-carried"}
    holds(made, folds=False)


def test_numbers_ahead_of_both_inputs_go_forward():
    made = model(
        const("Mul", "x", "a", np.float32(1.5)),
        const("Mul", "z", "b", np.float32(-2.0)),
        op("Einsum", "a b", "e", equation="bchw,bcwv->bchv"),
        conv("conv", "e", "y", (4, 4, 1, 1)),
        x={"x": SHAPE, "z": SHAPE},
    )
    assert holds(made, folds=True) == {"Einsum": 1, "Conv": 1}


def test_one_tensor_twice_is_squared():
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op("Einsum", "c c", "e", equation="bchw,bcvw->bchv"),
        const("Mul", "e", "y", np.float32(2.5), name="map"),
        x=SHAPE,
    )
    holds(made, folds=False)


def test_half_precision_does_not_lose_what_keeps_its_sums_small():
    made = model(
        const("Mul", "x", "a", np.float32(0.125)),
        op("Einsum", "a z", "e", equation="bchw,bcwv->bchv"),
        conv("conv", "e", "y", (4, 4, 1, 1)),
        x={"x": SHAPE, "z": SHAPE},
        elem=HALF,
    )
    assert bnfold.fold(made).SerializeToString() == made.SerializeToString()


# --- a constant of two -------------------------------------------------------------------------

# By equation: the rank of the data, the shape of the weight, and the axes along which it takes a
# scale behind it and ahead of it, counted from the end. All sizes agree.
WEIGHTED = {
    "bij,jk->bik": (3, (4, 4), {1}, {1}),
    "bij,kj->bik": (3, (4, 4), {1}, {1}),
    "bij,jk->bki": (3, (4, 4), {2}, {1}),
    "bchw,cd->bdhw": (4, (4, 4), {3}, {3}),
    "bid,dbe->bie": (3, (4, 4, 4), {1, 3}, {1}),
    "bhid,hde->bhie": (4, (4, 4, 4), {1, 3}, {1}),
    "bij,ij->b": (3, (4, 4), set(), {2}),
    "ij,kl->ijkl": (2, (4, 4), {1, 2}, set()),
    "bij,j->bij": (3, (4,), {1}, set()),
    "bij,j->bi": (3, (4,), set(), {1}),
    "i,i->": (1, (4,), set(), {1}),
    "b i j, j k -> b i k": (3, (4, 4), {1}, {1}),
    # One number for several places, letters that come twice, and what is not told.
    "bij,ij->bji": (3, (1, 4), {2}, set()),
    "bij,jj->bij": (3, (4, 4), set(), set()),
    "iij,jk->ik": (3, (4, 4), set(), set()),
    "...ij,jk->...ik": (3, (4, 4), set(), set()),
    "bij,jk": (3, (4, 4), set(), set()),
}
EVERY_WAY = [
    pytest.param(equation, side, along, first, id=f"{equation}-{side}-{along}-{first}")
    for equation, (rank, _, _, _) in WEIGHTED.items()
    for side in ("behind", "ahead")
    for along in range(5)
    for first in (False, True)
    if (along == 0 or along <= (rank if side == "ahead" else len(equation.partition(">")[2])))
    and (not first or "->" in equation)
]


def weighted(equation, side, along, first, kind="Mul"):
    rank, shape, *_ = WEIGHTED[equation]
    value = rand(4, *(1,) * (along - 1)) if along else np.float32(-1.5)
    data = "m" if side == "ahead" else "x"
    inputs = f"w {data}" if first else f"{data} w"
    if first:
        left, arrow, out = equation.partition("->")
        equation = ",".join(reversed(left.split(","))) + arrow + out
    out = "e" if side == "behind" else "y"
    einsum = op("Einsum", inputs, out, equation=equation, name="einsum"), {"w": rand(*shape)}
    map_ = const(kind, *(("e", "y") if side == "behind" else ("x", "m")), value, name="map")
    pieces = (einsum, map_) if side == "behind" else (map_, einsum)
    return model(*pieces, x=(4,) * rank)


@pytest.mark.parametrize("equation, side, along, first", EVERY_WAY)
def test_a_scale_goes_into_the_constant_along_the_axes_that_it_has(equation, side, along, first):
    made = weighted(equation, side, along, first)
    _, _, behind, ahead = WEIGHTED[equation]
    taken = along == 0 or along in (behind if side == "behind" else ahead)
    if equation == "bij,ij->b" and side == "ahead" and along == 1:
        taken = False  # Both letters are summed over: one of them takes maps in.
    assert holds(made, folds=taken).get("Mul", 0) == (not taken)


@pytest.mark.parametrize("side", ["behind", "ahead"])
@pytest.mark.parametrize("along", [0, 1])
def test_a_shift_has_no_place_in_it(side, along):
    made = weighted("bij,jk->bik", side, along, False, "Add")
    assert holds(made, folds=False)["Add"] == 1


def test_a_shift_stays_behind_the_scale():
    made = model(
        (op("Einsum", "x w", "e", equation="bij,jk->bik"), {"w": rand(4, 4)}),
        const("Mul", "e", "m", rand(4)), const("Add", "m", "y", rand(4), name="shift"),
        x=(4, 4, 4),
    )  # fmt: skip
    assert holds(made, folds=True) == {"Einsum": 1, "Add": 1}
    assert codes(made) == {"shift": "no-gain"}


def test_a_constant_that_a_caller_sets_takes_nothing():
    made = overridable(weighted("bij,jk->bik", "behind", 1, False), "w")
    assert counts(bnfold.fold(made))["Mul"] == 1


@pytest.mark.parametrize("equation", ["bij,jk->bki", "bhid,hde->bhie", "bij,jk->bik"])
@pytest.mark.parametrize("side", ["behind", "ahead"])
def test_a_wrong_weight_of_an_einsum_shows(equation, side):
    _, _, behind, ahead = WEIGHTED[equation]
    made = weighted(equation, side, max(behind if side == "behind" else ahead), False)
    once = done(made)
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    (held,) = (t for t in once.folded.graph.initializer if t.name.startswith("w"))
    right = numpy_helper.to_array(held)
    for wrong in (right.swapaxes(0, -1), right * np.float32(1.001), np.roll(right, 1)):
        held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wrong), held.name))
        assert not all(one.holds for one in certify(made, once.folded, once.applied))


def test_products_that_grow_along_a_wide_axis_lose_nothing_in_half():
    """The scale goes into the weights: the products are what they were."""
    made = model(
        const("Mul", "x", "a", np.float32(0.125)),
        (op("Einsum", "a w", "y", equation="bij,jk->bik"), {"w": rand(4, 4)}),
        x=(4, 4, 4), elem=HALF,
    )  # fmt: skip
    once = done(made)
    assert counts(once.folded) == {"Einsum": 1}
    assert all(one.holds for one in certify(made, once.folded, once.applied))


# --- letters of several sizes ------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["w x", "x w", "v x", "x v"])
@pytest.mark.parametrize("sizes", [(4, 8), ("a", "b"), (4, "b")])
def test_an_operand_of_size_1_makes_nothing_smaller(inputs, sizes):
    """ONNX's inference says [4, 1] of what is [4, 8]: a Reshape would lay maps by wrong sizes."""
    made = model(
        (op("Einsum", inputs, "e", equation="ab,ab->ab"), {"w": rand(4, 1)}),
        (op("Reshape", "e s", "r"), {"s": np.array([2, -1])}),
        (op("Reshape", "r u", "z"), {"u": np.array([4, 2, 4])}),
        const("Mul", "z", "y", rand(2, 1), name="map"),
        x={"x": sizes, "v": (4, 1)}, opset=17,
    )  # fmt: skip
    for out in made.graph.output:
        out.type.tensor_type.ClearField("shape")
    once = done(made)
    data = {"x": rand(4, 8), "v": rand(4, 1)}
    for was, now in zip(run(made, data), run(once.folded, data), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", ["w x", "x w", "v x", "x v"])
def test_inference_is_not_believed_there(inputs):
    made = model(
        (op("Einsum", inputs, "e", equation="ab,ab->ab"), {"w": rand(4, 1)}),
        op("Tanh", "e", "y"), x={"x": (4, 8), "v": (4, 1)},
    )  # fmt: skip
    made.graph.output[0].type.tensor_type.ClearField("shape")
    scopes = read_scopes(made)
    assert infer(made, scopes).shape(scopes[0], "y") is None


def test_what_follows_there_is_proved_by_the_rank_that_the_letters_tell():
    """Axes of a norm count from the first, those of a constant from the last."""
    made = model(
        (op("Einsum", "w x", "e", equation="ij,bij->bji"), {"w": rand(1, 4)}),
        op("Tanh", "e", "t"), bn("bn", "e", "m", 4), const("Mul", "m", "n", rand(4, 1)),
        op("Add", "n t", "y"), x=(4, 4, 4),
    )  # fmt: skip
    once = done(made)
    assert counts(once.folded) == {"Einsum": 1, "Tanh": 1, "BatchNormalization": 1, "Add": 1}
    assert all(one.holds for one in certify(made, once.folded, once.applied))


@pytest.mark.parametrize("equation", ["...b,...b->...b", "ab,cb->ac"])
def test_what_broadcasts_by_the_rules_is_inferred(equation):
    made = model(
        (op("Einsum", "x w", "e", equation=equation), {"w": rand(4, 4)}),
        const("Mul", "e", "y", rand(4), name="map"), x=(4, 4),
    )  # fmt: skip
    assert codes(made).get("map") != "unknown-shape"
