"""Weights that are read in parts: every one is compared, wherever the parts end."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

import bnfold
from bnfold._onnx import tensors
from bnfold._relation import rows

from ..graphs import model, op, rand
from .pairs import changed

LAYERS = {
    "conv": op("Conv", "x w", "y", group=2),
    "matmul": op("MatMul", "x w", "y"),
    "gemm": op("Gemm", "x w", "y", transB=1),
}
SHAPES = {"conv": (6, 2, 3, 3), "matmul": (5, 6), "gemm": (6, 5)}
INPUTS = {"conv": (1, 4, 5, 5), "matmul": (2, 5), "gemm": (2, 5)}


def stored(folder, name, made):
    """The file of a model whose weights lie beside it. What onnx saves so is changed by that."""
    path, copied = folder / name, copy.deepcopy(made)
    beside = f"{name}.data"
    onnx.save(copied, path, save_as_external_data=True, size_threshold=0, location=beside)
    return path


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("at_once", [1, 7, 40, 1 << 20])
def test_every_weight_of_external_data_is_compared(kind, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_READ", at_once)
    monkeypatch.setattr(rows, "_BLOCK", max(at_once // 2, 1))
    one = model(LAYERS[kind], x=INPUTS[kind], weights={"w": rand(*SHAPES[kind])})
    first = stored(tmp_path, "one.onnx", one)
    assert bnfold.prove(first, stored(tmp_path, "same.onnx", one)).status == "proved"
    for place in range(0, int(np.prod(SHAPES[kind])), 4):

        def moved(values, place=place):
            values.reshape(-1)[place] *= np.float32(1.001)
            return values

        (tmp_path / "other.onnx.data").unlink(missing_ok=True)
        other = stored(tmp_path, "other.onnx", changed(one, "w", moved))
        assert bnfold.prove(first, other).status != "proved", place


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_part_of_a_tensor_is_that_part(axis, dtype, tmp_path):
    values = rand(5, 4, 3).astype(dtype)
    made = model(op("Mul", "x w", "y"), x=(5, 4, 3), weights={"w": values})
    loaded = onnx.load(stored(tmp_path, "m.onnx", made), load_external_data=False)
    (tensor,) = loaded.graph.initializer
    for start, stop in ((0, 1), (1, 3), (3, 4), (2, 2)):
        wanted = values[(slice(None),) * axis + (slice(start, stop),)].astype(np.float32)
        found = tensors.part(tensor, tmp_path, axis, start, stop)
        assert np.array_equal(found.astype(np.float32), wanted), (start, stop)


def test_a_row_of_zeros_is_a_constant():
    """It is known as that in both files, whatever its scale would be."""
    weight, bias, scale = rand(3, 4), np.abs(rand(3)), np.float32([2, 2, 2])
    weight[1] = 0
    first = model(
        op("Gemm", "x w b", "g", transB=1),
        op("Relu", "g", "r"),
        op("Mul", "r k", "y"),
        x=(2, 4),
        weights={"w": weight, "b": bias, "k": scale},
    )
    second = model(
        op("Gemm", "x w b", "g", transB=1),
        op("Relu", "g", "y"),
        x=(2, 4),
        weights={"w": weight * scale[:, None], "b": bias * scale},
    )
    assert bnfold.prove(first, second).status == "proved"

    def moved(values):
        values[1] *= np.float32(1.001)
        return values

    assert bnfold.prove(first, changed(second, "b", moved)).status != "proved"
