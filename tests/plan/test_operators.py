"""What follows from the record of an operator, where no operator of a framework alone asks it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from bnfold._core.affine import AffineMap
from bnfold._core.operators.affine import Norm
from bnfold._core.operators.linear import Convolution
from bnfold._core.operators.record import UNKNOWN, Operand, Row, unweighted
from bnfold._core.parts import Picked
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.windows import Window
from bnfold._merge.steps import Blocked, linear_form

REASON = Reason("dynamic-weight", "w", "w is computed at run time")
UNIFORM = AffineMap.of(2.0, 1.0, None)
PLACES = (np.array([0]), np.array([-1]))


@dataclass(frozen=True)
class Stored:
    values: np.ndarray
    name: str = "w"

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def load(self):
        return self.values


def convolution(window, *, taps=1, transposed=False):
    weight = Stored(np.ones((4, 4, taps), np.float32))
    return Convolution(
        label="conv",
        weight=Operand(1, weight),
        bias=Operand(2),
        kernel=weight.shape,
        groups=1,
        windows=(window,) if window is not None else None,
        transposed=transposed,
    )


@pytest.mark.parametrize(
    ("window", "plain", "turned"),
    [
        (Window(), True, True),
        (Window.of(1, 1, 2, (0, 0)), True, False),
        (Window.of(1, 1, 1, (1, 0)), False, False),
        (Window.of(3, 1, 1, (0, 0)), True, False),
        (Window.of(3, 1, 1, (0, 1)), False, False),
        (None, False, False),
    ],
)
def test_a_shift_goes_in_where_every_output_sums_the_whole_kernel(window, plain, turned):
    for transposed, exact in ((False, plain), (True, turned)):
        taps = window.taps if window is not None else 1
        ahead = convolution(window, taps=taps, transposed=transposed).role.ahead
        assert ahead.scale_blocked is None
        assert (ahead.shift_blocked is None) == exact
        assert exact or ahead.shift_blocked.code == "zero-padding"


def test_a_bias_of_another_shape_is_none_to_change():
    made = replace(convolution(Window()), bias=Operand(2, Stored(np.ones(3), "b")))
    assert made.role.shift_blocked.code == made.role.scale_blocked.code == "not-per-channel"
    assert made.sites[0].bias_value is None


def test_a_norm_without_a_place_for_beta_takes_the_scale_alone():
    gamma = Operand(1, Stored(np.ones(4, np.float32)))
    made = Norm(label="rms", gamma=gamma, beta=None, start=2)
    assert not made.role.bias_free
    assert made.role.channels == {2: 4}
    assert made.sites[0].new_weight(AffineMap.of([1, 2, 3, 4], 0, 2)).tolist() == [1, 2, 3, 4]
    assert made.sites[0].new_bias(UNIFORM) is None


def test_what_is_stored_as_integers_does_not_merge():
    weight = Operand(1, Stored(np.ones((4, 4, 1))), unmerged=REASON)
    made = replace(convolution(Window()), weight=weight)
    assert made.role.scale_blocked is None
    assert linear_form(made).step == Blocked(REASON)


def test_a_refusal_is_what_the_row_makes_of_it():
    def read(value):
        raise Refusal(REASON) if value else Refusal(replace(REASON, code="unknown-shape"))

    assert Row(read, unweighted).translate(1).role.scale_blocked == REASON
    assert Row(read).translate(0) is UNKNOWN


def test_single_places_of_an_axis_whose_size_is_not_known():
    one, two = (Picked(1, None, PLACES[:n], gone=True) for n in (1, 2))
    (way,) = one.backward(0, UNIFORM)
    assert way.maps[0].axis is None
    (way,) = one.backward(0, AffineMap.of([1, 2, 3], 0.0, 1))
    assert way.maps[0].axis == 2
    for map_ in (UNIFORM, AffineMap.of([1, 2, 3], 0.0, 1)):
        with pytest.raises(Refusal):
            two.backward(0, map_)
    (way,) = two.forward({0: AffineMap.of([1, 2, 3], 0.0, 1)})
    assert [way.maps[n].scale.tolist() for n in (0, 1)] == [[1], [3]]


def test_single_places_of_an_axis_of_known_size_get_maps_of_their_own():
    (way,) = Picked(1, 3, PLACES, gone=True).backward(1, UNIFORM)
    assert (way.maps[0].axis, way.maps[0].scale.tolist()) == (1, [1, 1, 2])
