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
