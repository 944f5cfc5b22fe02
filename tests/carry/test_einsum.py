"""Einsum is linear in each of its inputs: a number passes through any one, and no other map."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from ..graphs import HALF, certified, codes, const, conv, counts, feeds, model, op, rand, run

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


def test_a_constant_input_stays_as_it_is():
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
