"""The algebra of affine maps, against plain arithmetic on arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold._core.affine import IDENTITY, AffineMap

from .maps import RANK, SIZE, act, maps, tensors


@given(tensors(), maps(), maps())
def test_composition_is_one_map_after_the_other(x, first, second):
    both = first.then(second)
    if both is None:
        assert first.axis != second.axis
        assert None not in (first.axis, second.axis)
    else:
        np.testing.assert_allclose(act(both, x), act(second, act(first, x)), rtol=1e-12, atol=1e-12)


@given(maps())
def test_the_identity_changes_nothing(map_):
    for both in (IDENTITY.then(map_), map_.then(IDENTITY)):
        assert both is not None
        assert both.axis == map_.axis
        np.testing.assert_array_equal(both.scale, map_.scale)
        np.testing.assert_array_equal(both.shift, map_.shift)


def test_equal_sizes_on_two_axes_do_not_make_one():
    first = AffineMap.of([1.0, 2.0], 0.0, 1)
    second = AffineMap.of([3.0, 4.0], 0.0, 2)
    assert first.then(second) is None


def test_a_uniform_vector_forgets_its_axis():
    assert AffineMap.of([2.0, 2.0], [1.0, 1.0], 1).axis is None
    assert AffineMap.of([2.0, 2.0], [1.0, 0.0], 1).axis == 1
    assert AffineMap.of(2.0, [1.0, 0.0], 1).scale.tolist() == [2.0, 2.0]


def test_numbers_that_float64_rounded_apart_are_one():
    shift = np.full(4, 0.7) * np.array([0.3, 1.1, 2.3, 0.9]) / np.array([0.3, 1.1, 2.3, 0.9])
    shift[1] = np.nextafter(shift[0], 1)
    assert AffineMap.of(1.0, shift, 1).axis is None
    assert AffineMap.of(1.0, shift * np.array([1, 1, 1, 1 + 1e-13]), 1).axis == 1


def test_nan_is_not_uniform_and_not_finite():
    map_ = AffineMap.of([np.nan, np.nan], 0.0, 1)
    assert map_.axis == 1
    assert not map_.is_finite
    assert not map_.keeps_scale


def test_batch_norm_is_its_formula():
    rng = np.random.default_rng(0)
    gamma, beta, mean, x = rng.normal(size=(4, SIZE))
    variance = rng.uniform(0.1, 2, SIZE)
    map_ = AffineMap.batch_norm(gamma, beta, mean, variance, 1e-3, 1)
    wanted = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(map_.scale * x + map_.shift, wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rounding_is_that_of_the_dtype(dtype):
    map_ = AffineMap.of([1.0 + 1e-9, 1.0 - 1e-9], [1e-9, 1e9], 1).rounded(np.dtype(dtype))
    assert map_.keeps_scale
    assert map_.shift[0] == float(dtype(1e-9))
    assert np.isinf(map_.shift[1]) == (dtype is np.float16)


@given(st.integers(0, RANK - 1))
def test_a_constant_of_the_caller_is_copied(axis):
    scale = np.arange(SIZE, dtype=np.float64)
    map_ = AffineMap.of(scale, 0.0, axis)
    scale[0] = 7.0
    assert map_.scale[0] == 0.0
