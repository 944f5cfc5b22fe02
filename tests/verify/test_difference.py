"""How far outputs are apart, in one look or in three."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as extra

from bnfold._judge.difference import distance, mismatch, step

SOME = [0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, float(np.finfo(np.float16).max)]


@given(data=st.data(), dtype=st.sampled_from(["f2", "f4", "f8"]))
def test_a_step_is_the_distance_where_nothing_else_differs(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(extra.array_shapes(min_dims=0, min_side=0, max_side=3))
    values = st.sampled_from(SOME) | st.floats(width=16)
    left = data.draw(extra.arrays(dtype, shape, elements=values))
    right = data.draw(st.just(left.copy()) | extra.arrays(dtype, shape, elements=values))
    if mismatch(left, right):
        assert step(left, right) is None
    else:
        assert step(left, right) == distance(left, right)


def test_a_difference_too_large_for_float64_is_one() -> None:
    left = np.full(3, np.finfo(np.float64).max)
    assert step(left, -left) == distance(left, -left) == np.inf


@pytest.mark.parametrize(
    "right", [[1.0], np.ones(2, np.float32), np.ones(3, np.float64), np.ones(3, np.int64)]
)
def test_what_is_no_tensor_of_the_same_kind_has_no_distance(right: object) -> None:
    assert step(np.ones(3, np.float32), right) is None


def test_integers_and_nothing_at_all_are_equal_or_not() -> None:
    assert step(np.arange(3), np.arange(3)) == 0
    assert step(np.arange(3), np.arange(3)[::-1]) == 1
    assert step(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)) == 0
