from pathlib import Path

import numpy as np
import pytest

from bnfold._run.noise import Noise, can_move


def steps(moved: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Count the units in the last place between two arrays of one sign."""
    width = {2: np.int16, 4: np.int32, 8: np.int64}[array.dtype.itemsize]
    return moved.view(width).astype(np.int64) - array.view(width).astype(np.int64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_moves_each_element_by_at_most_one_unit(dtype: type) -> None:
    rng = np.random.default_rng(1)
    array = rng.normal(size=(7, 100_003)).astype(dtype)
    before = array.copy()
    moved = Noise({"w": array}, rng).rounding()["w"]
    taken, counts = np.unique(steps(moved, array), return_counts=True)
    assert taken.tolist() == [-1, 0, 1]
    assert counts.min() > 0.3 * array.size
    assert np.array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_weights_move_alike_in_every_other_draw(dtype: type) -> None:
    """Powers of two differ in few of their bits, in float64 in none of the lower half."""
    values = np.ldexp(np.ones(24), np.arange(-12, 12)).astype(dtype)
    array = np.tile(values, 3000)
    noise = Noise({"w": array}, np.random.default_rng(2))
    first, second, third = (
        steps(noise.rounding()["w"].copy(), array).reshape(3000, 24) for _ in range(3)
    )
    assert (first == first[0]).all() and (third == third[0]).all()
    assert set(first[0]) == {-1, 0, 1} and not np.array_equal(first[0], third[0])
    assert all(set(column) == {-1, 0, 1} for column in second.T)


def test_zeros_and_values_without_neighbours_stay() -> None:
    largest = np.finfo(np.float32).max
    array = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, largest, -largest], dtype=np.float32)
    noise = Noise({"w": array}, np.random.default_rng(0))
    for _ in range(8):
        assert noise.rounding()["w"].tobytes() == array.tobytes()


def test_zeros_stay_wherever_they_are_in_a_large_weight() -> None:
    array = np.ones(200_000, np.float32)
    array[[3, 65_536, 150_000, 199_999]] = 0
    noise = Noise({"w": array}, np.random.default_rng(0))
    for _ in range(4):
        assert np.array_equal(noise.rounding()["w"] == 0, array == 0)


def test_draws_differ_and_scalars_keep_their_rank() -> None:
    noise = Noise({"w": np.float32(2.0).reshape(())}, np.random.default_rng(0))
    draws = {float(noise.rounding()["w"]) for _ in range(20)}
    assert len(draws) == 3
    assert noise.rounding()["w"].shape == ()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mistake_is_one_percent_in_one_slice_of_touched_weights(axis: int) -> None:
    array = np.full((3, 40, 2), 2.0, dtype=np.float32)
    scalar = np.float32(1).reshape(())
    noise = Noise({"a": array, "b": array, "c": scalar}, np.random.default_rng(0))
    wrong = noise.mistake({"a": axis, "c": 0})
    assert set(wrong) == {"a", "c"}
    off = np.moveaxis(np.abs(wrong["a"] / array - 1), axis, 0)
    (place,) = np.flatnonzero(off.any(axis=(1, 2)))
    assert np.allclose(off[place], 0.01, atol=1e-6)
    assert abs(float(wrong["c"]) - 1) == pytest.approx(0.01, abs=1e-6)
    assert noise.mistake({}) == {}


def test_a_mistake_is_in_a_slice_that_holds_something() -> None:
    array = np.zeros((64, 3), np.float32)
    array[41] = 5
    noise = Noise({"w": array}, np.random.default_rng(0))
    assert np.flatnonzero((noise.mistake({"w": 0})["w"] != array).any(axis=1)).tolist() == [41]


def test_a_mistake_shows_in_weights_that_are_all_zero() -> None:
    noise = Noise({"w": np.zeros(4, np.float32)}, np.random.default_rng(0))
    assert np.allclose(np.abs(noise.mistake({"w": 0})["w"]), 0.01, atol=1e-6)


def test_only_floats_of_known_width_move() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert can_move(np.zeros(1, np.float16))
    assert not can_move(np.zeros(1, np.int64))
    assert not can_move(np.zeros(1, ml_dtypes.bfloat16))


def test_memory_is_given_back_and_taken_again() -> None:
    """The numbers drawn are those that would have been drawn without that."""
    rng = np.random.default_rng(7)
    weights = {"large": rng.normal(size=(90, 90)).astype(np.float32), "small": np.float32([1, 2])}
    first, second = (Noise(weights, np.random.default_rng(3)) for _ in range(2))
    for _ in range(3):
        expected, found = first.rounding(), second.rounding()
        assert all(np.array_equal(found[name], expected[name]) for name in weights)
        second.release()
        assert not second._buffers and not second._runs
    wrong = [noise.mistake({"large": 0, "small": 0}) for noise in (first, second)]
    assert all(np.array_equal(wrong[0][name], wrong[1][name]) for name in weights)


def test_mapped_weights_move_as_others_do(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(64, 100)).astype(np.float32)
    array.tofile(tmp_path / "w")
    mapped = np.asarray(np.memmap(tmp_path / "w", np.float32, "r", 0, (64, 100)))
    held, read = (Noise({"w": w}, np.random.default_rng(3)) for w in (array, mapped))
    for _ in range(2):
        assert np.array_equal(held.rounding()["w"], read.rounding()["w"])
    assert np.array_equal(held.mistake({"w": 1})["w"], read.mistake({"w": 1})["w"])


def test_a_weight_that_several_names_have_moves_once_and_is_wrong_in_one_of_them() -> None:
    """Layers share it through Identity nodes: noise takes its memory once."""
    array = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    noise = Noise({"a": array, "b": array, "c": array.copy()}, np.random.default_rng(1))
    moved = noise.rounding()
    assert moved["a"] is moved["b"] and moved["a"] is not moved["c"]
    assert set(np.unique(steps(moved["a"], array))) == {-1, 0, 1}
    wrong = noise.mistake({"a": 0, "b": 1})
    assert set(wrong) == {"a", "b"}
    off = {name: np.abs(steps(values, array)) > 100 for name, values in wrong.items()}
    assert off["a"].any(axis=1).sum() == 1 and off["b"].any(axis=0).sum() == 1
    assert not np.shares_memory(wrong["a"], wrong["b"])
