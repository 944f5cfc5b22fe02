"""A tolerance that a user has chosen, and the one that is measured."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold._judge.tolerance import Fixed, Tolerance

from ..graphs import conv, model, op
from .test_bisect import net, spoiled

AT = (0, 0)


@pytest.mark.parametrize("rtol", [0.0, 1e-3])
@pytest.mark.parametrize("atol", [0.0, 1e-2])
def test_a_chosen_tolerance_is_numpys(rtol: float, atol: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        left = rng.normal(size=(3, 4)).astype(np.float32)
        off = rng.choice([0, 1e-3, 9e-4, 1.1e-2], left.shape) * rng.choice([0, 1], left.shape)
        right = (left + off * np.abs(left)).astype(np.float32)
        found = Tolerance(None, Fixed(rtol, atol)).measure(AT, left, right)
        wide = left.astype(np.float64), right.astype(np.float64)
        expected = bool((np.abs(wide[0] - wide[1]) <= atol + rtol * np.abs(wide[0])).all())
        assert (found.ratio <= 1.0) == expected
        assert found.difference <= found.tolerance or not expected


def test_infinities_and_nan_that_agree_are_no_difference() -> None:
    left = np.array([np.inf, np.nan, 1.0], np.float32)
    assert Tolerance(None, Fixed(0.1, 0.0)).measure(AT, left, left).ratio == 0.0


def test_nothing_is_allowed_of_integers() -> None:
    left = np.array([1000, 2000])
    assert Tolerance(None, Fixed(1.0, 1.0)).measure(AT, left, left + 1).ratio > 1


@pytest.mark.parametrize("times, status", [(4, "pass"), (1e-4, "fail")])
def test_verify_takes_it(times: float, status: str) -> None:
    made = net()
    wrong = spoiled(bnfold.fold(made), "three", 1.0001)
    measured = bnfold.verify(made, wrong)
    assert measured.status == "fail"
    off = max(check.difference or 0.0 for check in measured.checks)
    assert bnfold.verify(made, wrong, atol=times * off).status == status


def test_a_tolerance_that_hides_every_error_decides_nothing() -> None:
    made = net()
    result = bnfold.verify(made, bnfold.fold(made), rtol=100.0, atol=100.0)
    assert result.status == "inconclusive"
    assert "a planted error in some layers" in result.checks[0].note
    assert any("hides every planted error" in note for note in result.notes)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_that_mean_nothing(name: str, wrong: float) -> None:
    made = net()
    with pytest.raises(bnfold.UsageError, match=name):
        bnfold.verify(made, made, **{name: wrong})


def test_random_numbers_prove_nothing() -> None:
    """Below opset 11, where no fixed ones can take their place."""
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        op("RandomNormalLike", "a", "noise"),
        op("Add", "a noise", "y"),
        opset=10,
    )
    other = model(*made.graph.node, opset=9)
    other.graph.initializer.extend(made.graph.initializer)
    result = bnfold.verify(made, other)
    assert result.status == "inconclusive"
    assert "random numbers" in result.checks[0].note
