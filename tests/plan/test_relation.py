"""What is known of a tensor that maps have passed in both directions."""

from __future__ import annotations

import numpy as np
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import MultiAxisMap
from bnfold._plan.relation import Relation

DOUBLE = AffineMap.of([2.0, 3.0], [1.0, 0.0], 1)
HALF_LOST = AffineMap.of([2.0, 0.0], [1.0, 5.0], 1)


def through(maps, x):
    """A value on each of two channels after maps."""
    scale, shift = np.ones(2), np.zeros(2)
    for map_ in maps:
        scale = scale * map_.scale
        shift = shift * map_.scale + map_.shift
    return scale * x + shift


def test_one_direction():
    behind = Relation().behind(DOUBLE).behind(HALF_LOST)
    assert behind.old == ()
    np.testing.assert_allclose(behind.new[0].scale, [4, 0])
    ahead = Relation().ahead(DOUBLE).ahead(HALF_LOST)
    assert ahead.new == ()
    np.testing.assert_allclose(ahead.old[0].scale, [4, 0])
    np.testing.assert_allclose(ahead.old[0].shift, [3, 15])


def test_what_passes_both_ways_leaves_no_trace():
    (map_,) = Relation().behind(DOUBLE).ahead(DOUBLE).old
    assert map_.is_identity
    (map_,) = Relation().ahead(DOUBLE).behind(DOUBLE).new
    assert map_.is_identity


def test_one_of_two_is_undone():
    made = Relation().ahead(DOUBLE).behind(HALF_LOST)
    assert made.old == ()
    np.testing.assert_allclose(made.new[0].scale, [1, 0])
    made = Relation().ahead(HALF_LOST).behind(DOUBLE)
    assert made.new == ()
    np.testing.assert_allclose(made.old[0].scale, [1, 0])


def test_nothing_is_known_where_both_lose_the_value():
    made = Relation().behind(HALF_LOST).ahead(HALF_LOST)
    assert made.new == ()
    np.testing.assert_allclose(made.old[0].scale, [1, np.nan])
    np.testing.assert_allclose(made.old[0].shift, [0, 0])


def test_a_value_that_is_always_the_same_stays_known():
    made = Relation().ahead(HALF_LOST).behind(HALF_LOST)
    assert made.old
    assert made.new
    np.testing.assert_allclose(through(made.old, np.ones(2))[1], 5)
    np.testing.assert_allclose(through(made.new, np.ones(2))[1], 5)


def test_maps_along_two_axes_are_undone_whole_or_not_at_all():
    wide = MultiAxisMap(np.full((1, 2, 2), 2.0), np.ones((1, 2, 2)))
    other = AffineMap.of([0.0, 1.0], 0.0, 2)
    assert Relation().behind(wide).ahead(other) is not None
    assert Relation().behind(HALF_LOST).ahead(other) is None


NUMBERS = st.sampled_from([0.0, 0.0, 1.0, -2.0, 0.5, 3.0])


@st.composite
def maps(draw):
    return AffineMap.of(*(draw(st.tuples(NUMBERS, NUMBERS)) for _ in "st"), 1)


@example(
    [],
    [
        AffineMap.of(0.0, 0.0, None),
        1,
        AffineMap.of([0.0, 0.0], [0.0, -2.0], 1),
        AffineMap.of([1.0, 3.0], [0.0, 1.0], 1),
        1,
    ],
    (0, 0),
)
@settings(max_examples=600, deadline=None)
@given(
    st.lists(maps(), max_size=3),
    st.lists(st.one_of(st.integers(1, 2), maps()), min_size=1, max_size=6),
    st.tuples(*[st.integers(-3, 3)] * 2),
)
def test_the_truth_is_never_denied(first, steps, x):
    """``stack`` is what acts ahead of the tensor; a step adds a map to it or takes the last ones of
    it away, as one.

    For whatever comes in, the relation must allow the values that the tensor had and has, and where
    it names a value for one of them, no other.
    """
    stack, relation = list(first), Relation()
    old = through(first, x)
    for step in steps:
        if isinstance(step, AffineMap):
            stack.append(step)
            relation = relation.behind(step)
        elif len(stack) >= step:
            last = stack.pop()
            relation = relation.ahead(stack.pop().then(last) if step == 2 else last)
            assert relation is not None
    new = through(stack, x)
    assert all(np.isfinite(map_.shift).all() for map_ in relation.old)
    for channel in range(2):
        (s, t), (a, b) = (
            (
                through(side, np.full(2, 1.0))[channel] - through(side, np.zeros(2))[channel],
                through(side, np.zeros(2))[channel],
            )
            for side in (relation.old, relation.new)
        )
        if np.isnan(s):
            event("unknown")
            assert a != 0 or np.isclose(b, new[channel], rtol=0, atol=1e-9)
            continue
        if a != 0:
            z = (new[channel] - b) / a
        elif s != 0:
            z = (old[channel] - t) / s
        else:
            event("both constant")
            z = 0.0
        np.testing.assert_allclose(s * z + t, old[channel], atol=1e-9)
        np.testing.assert_allclose(a * z + b, new[channel], atol=1e-9)
