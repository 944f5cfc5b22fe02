"""What relates two expressions, and what may refute: laws that no pair of files shows alone."""

from __future__ import annotations

import numpy as np

from bnfold._relation.expressions import Expression
from bnfold._relation.problems import OUTPUT, Problem
from bnfold._relation.proof import _is_refuted
from bnfold._relation.relations import of_maps, settled
from bnfold._relation.table import Table

UNIT = 2.0**-24


def constant(values):
    shift = np.asarray(values, np.float64)
    return Expression((), shift, np.abs(shift), 0.0, UNIT)


def test_constants_of_other_shapes_are_not_related():
    """Their numbers would be broadcast: what a row is in one file is a column in the other."""
    row, column = constant([[1.0, 1.0]]), constant([[1.0], [1.0]])
    found = of_maps(row, constant([[1.0, 1.0]]))
    assert found is not None and found.is_identity
    assert of_maps(row, column) is None


def test_a_shift_that_is_left_out_beside_a_scale_may_be_one_yet():
    """Where the scale is 1 nothing is left of it; elsewhere the other file may agree in it."""
    first, second = constant([1.0, 1.0]), constant([1.0, 2.0 + UNIT])
    found = settled(first, second, np.array([1.0, 2.0]), 4 * UNIT, UNIT)
    assert not np.any(found.shift)
    assert np.broadcast_to(found.mass, 2)[0] == 0 < np.broadcast_to(found.mass, 2)[1]


def test_numbers_that_differ_by_rounding_along_an_axis_do_not_vary_there():
    """A shift of each place and channel, of which places tell the same: rows and columns alike.

    A scale that is not 1 gives the shift room to be off: 4 units of a mass of about 2.
    """
    columns = np.array([[1.0, 2.0, 3.0]]) * np.ones((3, 1))
    off = UNIT * np.array([[0.0], [1.0], [-1.0]])
    zero, scale = constant(np.zeros((3, 3))), np.full((3, 3), 2.0)
    found = settled(zero, constant(columns + off), scale, 4 * UNIT, UNIT)
    assert found.shift.shape == found.mass.shape == (1, 3)
    np.testing.assert_allclose(found.shift, columns[:1], rtol=0, atol=4 * UNIT)
    found = settled(zero, constant((columns + off).T), scale, 4 * UNIT, UNIT)
    assert found.shift.shape == (3, 1)
    found = settled(zero, constant(2 + off), scale, 4 * UNIT, UNIT)
    assert found.shift.shape == ()
    found = settled(zero, constant(columns + 100 * off), scale, 4 * UNIT, UNIT)
    assert found.shift.shape == (3, 3)
    one = Expression((), 1 + off[:, 0], np.ones((3, 3)), 0.0, UNIT)  # A mass may have more axes.
    assert settled(constant(np.zeros(3)), one, np.asarray(2.0), 4 * UNIT, UNIT).shift.size == 1


def test_what_something_may_make_up_for_does_not_refute():
    for is_sure in (True, False):
        problem = Problem(
            "weights",
            "conv",
            "off",
            1e6,
            1.0,
            is_sure,
            showing=lambda bounds: {OUTPUT: np.ones(())},
        )
        assert _is_refuted(problem, Table(), ()) is is_sure
