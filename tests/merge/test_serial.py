"""Operators in series that become one, and one step outside the law."""

from __future__ import annotations

from typing import Any

import pytest

import bnfold

from ..graphs import (
    bn,
    codes,
    const,
    conv,
    folds,
    model,
    op,
    rand,
)
from .branches import SAME, X, attributes, unmerged


def row(first: Any, second: Any, *between: Any, bias: bool = True, x: Any = X) -> Any:
    (shape, attrs), (after, others) = first, second
    last = between[-1][0].output[0] if between else "a"
    return model(
        conv("a", "x", "a", shape, bias, **attrs),
        *between,
        conv("b", last, "y", after, **others),
        x=x,
    )


@pytest.mark.parametrize(
    "first, second, kernel",
    [
        (((3, 4, 1, 1), {}), ((4, 3, 1, 1), {}), [1, 1]),
        (((8, 4, 1, 1), {}), ((4, 8, 3, 3), {}), [3, 3]),
        (((8, 4, 3, 3), SAME), ((4, 8, 1, 1), {}), [3, 3]),
        (((4, 4, 1, 1), SAME), ((4, 4, 3, 3), {}), [3, 3]),
        (((8, 4, 1, 1), {"strides": [2, 2]}), ((4, 8, 2, 2), {}), [2, 2]),
        (((8, 4, 2, 2), {}), ((4, 8, 1, 1), {"strides": [2, 2]}), [2, 2]),
        (((4, 1, 3, 3), {"group": 4, **SAME}), ((4, 1, 1, 1), {"group": 4}), [3, 3]),
        (((8, 2, 1, 1), {"group": 2}), ((4, 4, 3, 3), {"group": 2}), [3, 3]),
    ],
)
def test_a_row_is_one(first, second, kernel):
    folded = folds(row(first, second, bn("n", "a", "m", first[0][0])), Conv=1)
    assert attributes(folded)["kernel_shape"] == kernel


def test_padding_ahead_of_a_row():
    """A 1×1 convolution with a bias, then a padded 3×3 one: right inside, wrong at the border."""
    first, second = ((8, 4, 1, 1), {}), ((4, 8, 3, 3), SAME)
    unmerged(row(first, second), "zero-padding")
    folds(row(first, second, bias=False), Conv=1)
    shifted = row(first, second, const("Add", "a", "m", rand(8, 1, 1)), bias=False)
    assert codes(shifted)["b"] == "zero-padding"
    scaled = row(first, second, const("Mul", "a", "m", rand(8, 1, 1)), bias=False)
    folds(scaled, Conv=1)


def test_padding_behind_a_wide_kernel():
    """What the first one would write beyond its ends is not zero."""
    unmerged(row(((8, 4, 3, 3), SAME), ((4, 8, 3, 3), SAME), bias=False), "zero-padding")
    first, second = ((8, 4, 2, 2), {"pads": [1, 1, 0, 0]}), ((1, 8, 2, 2), {"pads": [0, 0, 1, 1]})
    unmerged(row(first, second, bias=False), "zero-padding")
    folds(row(first, ((1, 8, 2, 2), {}), bias=False), Conv=1)


@pytest.mark.parametrize("x", [X, ("N", 4, "H", "W")])
def test_a_row_that_grows_the_work_stays(x):
    made = row(((1, 4, 1, 1), {}), ((4, 1, 1, 1), {}), x=x)
    unmerged(made, "merge-cost")
    (kept,) = bnfold.plan(made).kept
    assert "16 multiply-adds per position instead of 8, 2 times" in kept.message


def test_a_row_that_someone_else_reads_stays():
    made = row(((8, 4, 1, 1), {}), ((4, 8, 3, 3), {}))
    made.graph.output.add().CopyFrom(made.graph.output[0])
    made.graph.output[1].name = "a"
    made.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 8
    made.graph.output[1].type.tensor_type.shape.dim[2].dim_value = 6
    made.graph.output[1].type.tensor_type.shape.dim[3].dim_value = 7
    unmerged(made)


def test_an_average_behind_a_convolution_where_it_pays():
    pool = op("AveragePool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])
    folds(model(conv("a", "x", "a", (4, 4, 3, 3)), pool, x=(2, 4, 8, 8)), Conv=1)
    unmerged(model(conv("a", "x", "a", (4, 4, 1, 1)), pool, x=(2, 4, 8, 8)))
