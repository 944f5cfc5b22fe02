"""Rows of maps along several axes: fewer of them, and the same function."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._plan.row import drained, extended

from .maps import act, maps, tensors


def _row(drawn):
    row = ()
    for map_ in drawn:
        row = extended(row, map_)
    return row


@settings(max_examples=300)
@given(tensors(), st.lists(maps(), max_size=8))
def test_a_row_is_its_maps_in_order(x, drawn):
    row = _row(drawn)
    assert len(row) <= len(drawn)
    wanted, made = x, x
    for map_ in drawn:
        wanted = act(map_, wanted)
    for map_ in row:
        made = act(map_, made)
    np.testing.assert_allclose(made, wanted, rtol=1e-9, atol=1e-9)


@given(st.lists(maps(), max_size=8))
def test_a_row_is_settled(drawn):
    row = _row(drawn)
    assert extended(row, IDENTITY) == row
    assert not any(map_.is_identity for map_ in row)


@given(st.lists(maps(), max_size=6), st.integers(0, 3), st.booleans(), tensors())
def test_what_an_absorber_takes_acts_first(drawn, axis, bias_free, x):
    def take(absorbed, part):
        total = absorbed.then(part)
        return total if total is not None and total.axis in (None, axis) else None

    row = _row(drawn)
    absorbed, left = drained(row, IDENTITY, take, bias_free)
    assert absorbed.axis in (None, axis)
    assert bias_free or absorbed.keeps_origin
    wanted, made = x, act(absorbed, x)
    for map_ in row:
        wanted = act(map_, wanted)
    for map_ in left:
        made = act(map_, made)
    np.testing.assert_allclose(made, wanted, rtol=1e-9, atol=1e-9)


@given(maps(), maps(), tensors())
def test_maps_that_commute_do(first, second, x):
    one_way, other_way = act(second, act(first, x)), act(first, act(second, x))
    if absorbing.commute(first, second):
        np.testing.assert_allclose(one_way, other_way, rtol=1e-12, atol=1e-12)


@given(maps(), tensors())
def test_a_split_map_is_the_same_map(map_, x):
    scale, shift = absorbing.split(map_)
    np.testing.assert_array_equal(act(shift, act(scale, x)), act(map_, x))


def test_a_scale_passes_a_scale_but_not_a_shift_along_another_axis():
    channel = AffineMap.of([2.0, 3.0], 0.0, 1)
    width = AffineMap.of([5.0, 7.0], 0.0, 3)
    shifted = AffineMap.of(1.0, [5.0, 7.0], 3)
    assert len(_row([channel, width, channel])) == 2
    assert len(_row([channel, shifted, channel])) == 3
