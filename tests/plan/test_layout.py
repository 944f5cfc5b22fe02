"""Where channels go in a Reshape or Transpose: NumPy doing the same to a whole tensor tells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import MultiAxisMap, Permuted, inverse, moved, regrouped


@st.composite
def shapes(draw):
    """Two shapes of one tensor: the primes of a size, cut in two ways."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def cut():
        sizes, size = [], 1
        for prime in primes:
            size *= prime
            if draw(st.booleans()):
                sizes.append(size)
                size = 1
        return (*sizes, size)

    return cut(), cut()


@st.composite
def journeys(draw):
    """A shape, a few steps from it, and the same steps as functions of NumPy arrays."""
    start, shape = None, None
    steps, functions = [], []
    for _ in range(draw(st.integers(1, 3))):
        before, after = draw(shapes())
        if shape is not None:
            total = math.prod(shape)
            after = (total,) if draw(st.booleans()) else (*shape[:-2], math.prod(shape[-2:]))
            before = shape
        start = start or before
        steps.append(regrouped(before, after))
        functions.append(lambda a, after=after: a.reshape(after))
        order = tuple(draw(st.permutations(range(len(after)))))
        steps.append(Permuted(order))
        functions.append(lambda a, order=order: a.transpose(order))
        shape = tuple(after[k] for k in order)
    return start, tuple(steps), functions


def spread(map_, shape):
    if isinstance(map_, MultiAxisMap):
        return np.broadcast_to(map_.scale, shape)
    if map_.axis is None:
        return np.full(shape, map_.scale[0])
    along = tuple(-1 if k == map_.axis else 1 for k in range(len(shape)))
    return np.broadcast_to(map_.scale.reshape(along), shape)


@given(journeys(), st.data())
def test_moved_maps_are_where_numpy_puts_them(journey, data):
    shape, steps, functions = journey
    axis = data.draw(st.integers(0, len(shape) - 1))
    map_ = AffineMap.of(np.arange(1.0, shape[axis] + 1), 0.5, axis)
    result = moved(map_, steps)
    wanted = spread(map_, shape)
    for function in functions:
        wanted = function(wanted)
    if result is not None:
        np.testing.assert_array_equal(spread(result, wanted.shape), wanted)
    undone = moved(result, inverse(steps)) if result is not None else None
    if undone is not None:
        np.testing.assert_array_equal(spread(undone, shape), spread(map_, shape))


@given(shapes())
def test_known_sizes_always_tell(pair):
    before, after = pair
    for axis, size in enumerate(before):
        map_ = AffineMap.of(np.arange(1.0, size + 1), 0.0, axis)
        assert moved(map_, (regrouped(before, after),)) is not None


@pytest.mark.parametrize(
    "before, after, axis, where",
    [
        (("n", 4, "h", "w"), ("n", 4, None), 1, 1),
        (("n", 4, "h", "w"), ("n", 4, None), 2, None),
        (("n", 4, 5, 5), ("n", 100), 1, 1),
        (("n", 4, "h", "w"), ("n", None), 1, None),
        (("n", 4, None), (None, 4, "w"), 1, None),
        ((None, 4, 3), (None, 12), 1, 1),
        (("n", 1, 4), ("n", 4), 2, 1),
        ((4, 4), (4, 4), 1, 1),
    ],
)
def test_unknown_sizes(before, after, axis, where):
    """A size that is not known keeps apart what lies ahead of it and behind it, no more."""
    map_ = AffineMap.of([2.0, 3.0, 4.0, 5.0][: 3 if before[axis] == 3 else 4], 0.0, axis)
    result = moved(map_, (regrouped(before, after),))
    if where is None:
        assert result is None
    else:
        assert isinstance(result, AffineMap)
        assert result.axis == where


def test_a_channel_shuffle_varies_along_two_axes_on_its_way():
    map_ = AffineMap.of(np.arange(1.0, 7.0), 0.0, 1)
    steps = (regrouped(("n", 6, "w"), ("n", 2, 3, "w")), Permuted((0, 2, 1, 3)))
    wide = moved(map_, steps)
    assert isinstance(wide, MultiAxisMap)
    result = moved(wide, (regrouped(("n", 3, 2, "w"), ("n", 6, "w")),))
    assert isinstance(result, AffineMap)
    assert result.scale.tolist() == [1, 4, 2, 5, 3, 6]
