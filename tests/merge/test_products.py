"""Matrix products that become one, and one step outside the law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnfold

from ..graphs import (
    const,
    conv,
    fold,
    folds,
    model,
    op,
    rand,
)
from .branches import SAME, X, unmerged


def product(name: str, x: str, y: str, w: Any) -> Any:
    return op("MatMul", f"{x} {name}", y, name=f"{name}n"), {name: w}


@pytest.mark.parametrize("x", [(5, 4), (2, 5, 4), (4, 4), (2, 3, 4, 4)])
def test_a_low_rank_update_is_one_product(x):
    made = model(
        product("w", "x", "a", rand(4, 4)),
        product("down", "x", "b", rand(4, 1)),
        product("up", "b", "c", rand(1, 4)),
        const("Mul", "c", "d", np.float32(0.5)),
        op("Add", "a d", "y"),
        x=x,
    )
    folds(made, MatMul=1)


def test_biases_become_one_add():
    made = model(
        product("w", "x", "a", rand(4, 3)),
        const("Add", "a", "b", rand(3)),
        product("v", "x", "c", rand(4, 3)),
        const("Add", "c", "d", rand(3)),
        op("Add", "b d", "y"),
        x=(2, 5, 4),
    )
    folds(made, MatMul=1, Add=1)


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_gemms(opset):
    weights = {"w": rand(3, 4), "c": rand(3), "v": rand(4, 3)}
    made = model(
        op("Gemm", "x w c", "a", transB=1, alpha=0.5, beta=2.0),
        op("MatMul", "x v", "b"),
        op("Sub", "b a", "s"),
        op("Relu", "s", "y"),
        x=(5, 4),
        weights=weights,
        opset=opset,
    )
    folds(made, Gemm=1, Relu=1)


def test_layers_in_series():
    made = model(
        product("w", "x", "a", rand(4, 6)),
        const("Add", "a", "b", rand(6)),
        product("v", "b", "c", rand(6, 3)),
        const("Add", "c", "y", rand(3)),
        x=(2, 5, 4),
    )
    folds(made, MatMul=1, Add=1)
    narrow = model(
        product("w", "x", "a", rand(4, 1)), product("v", "a", "y", rand(1, 4)), x=(2, 5, 4)
    )
    unmerged(narrow, "merge-cost")


def test_a_map_along_another_axis_is_no_part_of_a_product():
    """Sizes agree: 4 rows, 4 columns, 4 channels."""
    made = model(
        product("w", "x", "a", rand(4, 4)),
        const("Mul", "a", "b", rand(4, 1)),
        op("Add", "x b", "y"),
        x=(4, 4, 4),
    )
    plan = bnfold.plan(made)
    assert not [f for f in plan.folds if "merge" in f.laws[0]]
    fold(made)


def test_a_product_along_space_is_no_convolution():
    made = model(
        conv("a", "x", "ay", (4, 4, 1, 1)),
        product("w", "x", "by", rand(4, 4)),
        op("Add", "ay by", "y"),
        x=(4, 4, 4, 4),
    )
    unmerged(made)


def test_constants_of_full_shape():
    """Numbers that are all the same, laid out over the whole tensor."""
    made = model(
        conv("a", "x", "a0", (4, 4, 3, 3), strides=[2, 2], **SAME),
        const("Div", "a0", "a1", np.full((2, 4, 3, 4), 1.5, np.float32)),
        conv("b", "x", "b0", (4, 4, 1, 1), strides=[2, 2]),
        const("Add", "b0", "b1", np.full((3, 1), 0.5, np.float32)),
        op("Add", "a1 b1", "y"),
        x=X,
    )
    folds(made, Conv=1)
    rows = model(
        op("Gemm", "x w c", "a", beta=0.0),
        (op("MatMul", "x v", "b"), {"w": rand(4, 3), "v": rand(4, 3), "c": rand(5, 1)}),
        const("Mul", "b", "d", np.full((5, 1), 2, np.float32)),
        op("Add", "a d", "y"),
        x=(5, 4),
    )
    folds(rows, Gemm=1)
