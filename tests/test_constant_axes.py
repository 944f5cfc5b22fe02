"""Along which axis a constant stands, whatever sizes agree, and which it widens."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from .graphs import (
    codes,
    const,
    conv,
    fold,
    folds,
    model,
    rand,
    stays,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def test_full_constant_equal_along_height_and_width_is_per_channel():
    k = np.broadcast_to(rand(1, 4, 1, 1), (1, 4, 6, 6)).copy()
    folds(model(conv(*CONV), const("Mul", "c", "y", k)), Conv=1)


def test_full_constant_of_one_value_is_a_scalar():
    k = np.full((2, 4, 6, 6), 1.25, np.float32)
    folds(model(conv(*CONV), const("Mul", "c", "y", k)), Conv=1)


def test_full_constant_that_fixes_a_free_size_stays():
    """[1, 4, 6, 6] on [n, 4, h, w]: dropping it would accept h = w = 1 or fail to expand it."""
    k = np.broadcast_to(rand(1, 4, 1, 1), (1, 4, 6, 6)).copy()
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="mul"), x=("n", 3, "h", "w"))
    after = bnfold.fold(m)
    data = {"x": rand(2, 3, 3, 3)}
    from .graphs import assert_same

    assert_same(m, after, data)


@pytest.mark.parametrize(
    "shape",
    [(6,), (6, 1), (1, 1, 6, 6), (4, 6, 6), (2, 1, 1, 1), (2, 4, 1, 1)],
    ids=["W", "H", "HW", "CHW", "N", "NC"],
)
@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
def test_constant_along_another_axis_stays(kind, shape):
    m = model(conv(*CONV), const(kind, "c", "y", rand(*shape), name="k"))
    kept = codes(m)["k"]
    assert kept in ("not-per-channel", "axis-mismatch")
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1), (4, 4), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_constant_along_another_axis_of_equal_size_stays(kind, shape):
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        const(kind, "c", "y", rand(*shape), name="k"),
        x=(4,) * 4,
    )
    assert codes(m)["k"] in ("not-per-channel", "axis-mismatch")
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)], ids=str)
def test_constant_that_widens_one_channel_stays(shape):
    m = model(conv("conv", "x", "c", (1, 3, 3, 3)), const("Mul", "c", "y", rand(*shape), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_constant_of_more_axes_than_the_tensor_stays():
    m = model(conv(*CONV), const("Mul", "c", "y", rand(1, 1, 4, 1, 1), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_scalar_of_more_axes_than_the_tensor_stays():
    """It is one value, but it raises the rank."""
    m = model(conv(*CONV), const("Mul", "c", "y", rand(1, 1, 1, 1, 1), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_scalar_that_expands_stays():
    k = np.full((5, 4, 6, 6), 1.25, np.float32)
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="k"), x=(1, 3, 8, 8))
    stays(m, {"k": "not-per-channel"})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 1, 1, 1)], ids=["W", "H", "N"])
def test_constant_along_a_free_axis_stays(shape):
    m = model(conv(*CONV), const("Mul", "c", "y", rand(*shape), name="k"), x=("n", 3, "h", "w"))
    assert codes(m)["k"] in ("not-per-channel", "axis-mismatch", "unknown-shape")
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 1, 1, 1), (1, 1, 6, 1)], ids=str)
def test_equal_values_along_a_free_axis_may_expand_it(shape):
    """[2, 4, 1, 1] on [n, 4, h, w] makes n = 2 of n = 1, whatever its values are."""
    k = np.broadcast_to(rand(1, shape[1], 1, 1), shape).copy()
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="k"), x=("n", 3, "h", "w"))
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["k"] in ("not-per-channel", "unknown-shape")
