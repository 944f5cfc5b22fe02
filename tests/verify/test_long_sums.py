"""Sums of many numbers, which float32 arithmetic lets be off by more than weights are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold._judge.float64_model import Float64Model
from bnfold._judge.long_sums import movements
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.source import Source

from ..graphs import const, conv, model, op, rand

LONG = [
    ("ReduceMean", {"axes": [2, 3]}, 100),
    ("GlobalAveragePool", {}, 100),
    ("ReduceSum", {"axes": [2, 3]}, 1e6),
]


@pytest.mark.parametrize(("kind", "attributes", "size"), LONG)
def test_a_sum_of_many_numbers_is_off_by_what_that_costs(kind, attributes, size):
    """A shift ahead of it is added up a quarter of a million times in float32, and was not before.
    Weights that are wrong fail, and so does a runtime that is off by more.
    """
    shift = rand(4, 1, 1) * np.float32(size)
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op(kind, "c", "p", **attributes),
        const("Add", "p", "y", shift),
        x=(1, 4, 512, 512),
        opset=11,
    )
    folded = bnfold.fold(made)
    assert not any(node.op_type == "Add" for node in folded.graph.node)
    assert bnfold.verify(made, folded, prove=False).status == "pass"
    (bias,) = (t for t in folded.graph.initializer if t.name == "conv.b")
    right = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array(right * np.float32(1.0001), "conv.b"))
    assert bnfold.verify(made, folded, prove=False).status == "fail"


def test_what_sums_explain(tmp_path):
    """(n − 1)·u·Σ|x|, whatever cancels; nothing of a short product, and of operators of opset 6."""
    x = np.tile(np.float32([1, -1]), 2500)[None]
    for node, weights, bound in (
        (op("ReduceMean", "x", "y", axes=[1]), {}, 1.0),
        (op("ReduceSum", "x", "y", axes=[1]), {}, 5000.0),
        (op("MatMul", "x w", "y"), {"w": np.full((5000, 1), -2, np.float32)}, 10_000.0),
        (op("Gemm", "x w", "y", transB=1), {"w": np.full((1, 5000), 2, np.float32)}, 10_000.0),
        (op("Relu", "x", "y"), {}, 0.0),
    ):
        made = model(node, x=(1, 5000), weights=weights, opset=11)
        onnx.save(made, tmp_path / "m.onnx")

        def run(source):
            return Float64Model(source, UNBOUNDED).run({"x": x})

        (moved,) = movements(Source(tmp_path / "m.onnx"), run)
        np.testing.assert_allclose(moved.max(), bound * 5000 * 2.0**-24, rtol=1e-6)
