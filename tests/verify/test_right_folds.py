"""Right folds that the certificate once refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from bnfold._proof.certificate import certify

from .. import runtimes
from ..graphs import const, counts, done, model, op, positive, rand

MS = "com.microsoft"


def _of(values, names):
    return [(name, values[name]) for name in names]


def test_an_operator_that_takes_nothing_in_has_no_certificate():
    """Two Muls become one behind a MatMul whose weight is an output: it is no part of that."""
    m = model(
        op("QuantizeLinear", "w s z", "q", axis=0),
        op("DequantizeLinear", "q s z", "d", axis=0),
        op("MatMul", "x d", "p"),
        const("Mul", "p", "a", positive(4)),
        const("Mul", "a", "y", positive(4)),
        x=(4, 4, 4),
        y="y d",
        weights={"w": rand(4, 4), "s": positive(4) / 50, "z": np.zeros(4, np.int8)},
        opset=21,
    )
    once = done(m)
    assert counts(once.folded)["Mul"] == 1
    (found,) = certify(m, once.folded, once.applied)
    assert found.holds, found


@pytest.mark.parametrize("opset", [11, 13])
def test_the_rank_of_a_product_follows_from_its_weight(opset):
    """ONNX infers none of a transposed one below opset 12, nor where the ranks differ."""
    if runtimes.is_old():
        pytest.skip("an old onnxruntime crashes on it")
    m = model(
        (op("FusedMatMul", "x w", "p", domain=MS, transA=1), {"w": rand(2, 2, 2)}),
        op("Relu", "p", "r"),
        const("Div", "r", "y", positive(2)),
        x=(2, 2),
        opset=opset,
        domains={MS: 1},
    )
    once = done(m)
    assert counts(once.folded) == {"FusedMatMul": 1, "Relu": 1}
    at = {"x": rand(2, 2), "r": rand(2, 2, 2)}
    found = list(certify(m, once.folded, once.applied, numbers=lambda some: _of(at, some)))
    assert [each.holds for each in found] == [True, True, True], found


def test_a_map_that_is_none_in_float16_is_left_out():
    """0.001 · 1000 is 1.0004 of the two halves: less than half a unit off."""
    m = model(
        const("Mul", "x", "a", np.float16(1e-3)),
        const("Mul", "a", "b", np.float16(1e3)),
        op("Relu", "b", "y"),
        x=(3, 3),
        elem=TensorProto.FLOAT16,
    )
    once = done(m)
    assert counts(once.folded) == {"Relu": 1}
    at = {"x": rand(3, 3)}
    (found,) = certify(m, once.folded, once.applied, numbers=lambda some: _of(at, some))
    assert found.holds, found
