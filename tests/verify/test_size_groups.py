"""Which parts of an output are judged apart, and that an error in a small one is seen."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import ModelProto

import bnfold
from bnfold._judge.size_groups import SPAN, SizeGroups

from ..graphs import Array, const, conv, model, op, rand
from .test_evidence import changed, scaled


def values(shape: tuple[int, ...], dtype: object = np.float32) -> Array:
    """Numbers whose largest along every axis is near one."""
    drawn = np.random.default_rng(sum(shape)).uniform(0.5, 1, shape)
    return np.asarray(drawn, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_one_size_are_a_group(axis: int, dtype: object) -> None:
    sizes = np.array([1, 1000, 1, 0, 0.03, 1000, 0.03])
    array = np.moveaxis(values((7, 6, 7)).astype(np.float64).T * sizes, -1, axis).astype(dtype)  # type: ignore[call-overload]
    array = np.ascontiguousarray(array)
    groups = SizeGroups.of(array)
    assert groups.axis == axis
    assert groups.of_slices is not None
    assert list(groups.of_slices) == [1, 0, 1, 0, 2, 0, 2]  # zeros belong to the largest
    assert groups.sizes == pytest.approx([1000, 1, 0.03], rel=0.5)
    assert list(groups.peaks(np.abs(array))) == list(groups.sizes)


@pytest.mark.parametrize(
    "array",
    [
        values((4, 5)),
        values((4, 5)) * np.array([1, 1, 1, 1, 1.01 / SPAN], np.float32),
        np.array(3, np.float32),
        np.zeros((4, 5), np.float32),
        np.zeros((0, 5), np.float32),
        np.full((4, 5), np.nan, np.float32),
        np.arange(20).reshape(4, 5) ** 4,
        np.arange(20).reshape(4, 5) > 9,
    ],
    ids=["even", "nearly", "scalar", "zeros", "empty", "no number", "integers", "flags"],
)
def test_what_is_one_group(array: Array) -> None:
    groups = SizeGroups.of(array)
    assert (groups.axis, groups.of_slices, len(groups.sizes)) == (None, None, 1)


def test_what_is_not_finite_has_no_size() -> None:
    array = values((3, 8)) * np.array([[100], [1], [1]], np.float32)
    array[1, 2], array[2, 3] = np.inf, np.nan
    groups = SizeGroups.of(array)
    assert groups.of_slices is not None
    assert list(groups.of_slices) == [0, 1, 1]
    assert np.isfinite(groups.sizes).all()


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(max_dims=4, max_side=6),
        elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-1, 1, width=32),
    )
)
def test_laws_of_groups(array: Array) -> None:
    groups = SizeGroups.of(array)
    whole = np.abs(array).max()
    assert groups.sizes[0] == groups.peaks(np.abs(array)).max() == whole
    if groups.of_slices is None or groups.axis is None:
        return
    assert set(groups.of_slices) == set(range(len(groups.sizes)))
    assert (np.diff(groups.sizes) < 0).all()
    assert list(groups.peaks(np.abs(array))) == list(groups.sizes)


def regressor() -> ModelProto:
    """Four numbers in units of their own, at the end of a network."""
    return model(
        op("Gemm", "x w b", "h"),
        op("Tanh", "h", "t"),
        op("Gemm", "t v c", "z"),
        const("Mul", "z", "y", np.array([2e5, 1, 1e-2, 3], np.float32), name="units"),
        x=("n", 8),
        weights={"w": rand(8, 16), "b": rand(16), "v": rand(16, 4), "c": rand(4)},
    )


def detector() -> ModelProto:
    """Boxes in pixels and scores from 0 to 1 in one tensor."""
    return model(
        conv("stem", "x", "s", (8, 3, 3, 3)),
        op("Relu", "s", "r"),
        conv("boxes", "r", "b", (4, 8, 1, 1)),
        const("Mul", "b", "pixels", np.float32(640)),
        conv("classes", "r", "c", (6, 8, 1, 1)),
        op("Sigmoid", "c", "scores"),
        op("Concat", "pixels scores", "y", axis=1),
        x=(1, 3, 12, 12),
    )


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("channel", range(4))
def test_a_number_in_small_units(channel: int, power: bool) -> None:
    made = regressor()
    wrong = changed(made, "c", scaled(channel, 1.01))
    result = bnfold.verify(made, wrong, power=power)
    assert result.status == "fail"
    assert bnfold.verify(made, made, power=power).status == "pass"


@pytest.mark.parametrize("factor", [1.01, 1.5])
@pytest.mark.parametrize("channel", range(6))
def test_a_score_beside_boxes(channel: int, factor: float) -> None:
    made = detector()
    result = bnfold.verify(made, changed(made, "classes.w", scaled(channel, factor)))
    assert result.status == "fail"
    failed = [check for check in result.checks if check.status == "fail"]
    assert all(check.tolerance is not None and check.tolerance < 1e-4 for check in failed)
    assert all(check.difference is not None and check.difference < 1 for check in failed)


@pytest.mark.parametrize("made", [regressor(), detector()], ids=["regressor", "detector"])
def test_a_right_fold_passes(made: ModelProto) -> None:
    for seed in range(5):
        assert bnfold.verify(made, bnfold.fold(made), seed=seed).status == "pass"
