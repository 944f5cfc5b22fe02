"""Sites whose bias holds numbers that are no part of it, where no operator alone asks for it."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold._core.affine import AffineMap
from bnfold._core.channels import ChannelLayout, along_axis
from bnfold._core.parameters import Entrance, Site

from .test_operators import Stored

SHIFT = AffineMap.of(1.0, [1.0, 10.0], 2)


def site(rows, bias):
    """A weight [1, rows, 2] of ones, whose bias [1, rows + 2] ends in two other numbers."""
    shape = (1, rows, 2)
    return Site(
        "site",
        1,
        3,
        {},
        lambda axis: ChannelLayout(shape, (1, rows, 1)),
        lambda axis: (1, rows),
        Stored(np.ones(shape, np.float32)),
        Stored(bias) if bias is not None else None,
        (1, rows + 2),
        bias_beyond=2,
        entrance=Entrance(along_axis(shape, 2)),
    )


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_is_beyond_a_bias_stays(rows):
    """One row is the trap: one number would broadcast over all of the bias."""
    bias = np.full((1, rows + 2), 5, np.float32)
    wanted = [[16.0] * rows + [5.0, 5.0]]
    assert site(rows, bias).new_bias(AffineMap.of(1.0, 0.0, None), SHIFT).tolist() == wanted
    wanted = [[11.0] * rows + [0.0, 0.0]]
    assert site(rows, None).new_bias(AffineMap.of(1.0, 0.0, None), SHIFT).tolist() == wanted


def test_a_uniform_map_behind_leaves_what_is_beyond():
    made = site(2, np.full((1, 4), 5, np.float32)).new_bias(AffineMap.of(2.0, 1.0, None))
    assert made.tolist() == [[11.0, 11.0, 5.0, 5.0]]
