"""A positive scale of all that a QuantizeLinear reads goes into its scale: the integers stay.

The pixels of a quantized network are divided by 255 ahead of it. What no cheaper test catches: what
must not go in, and that only this quantizer's scale changes, though others read the same number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import bnfold
from bnfold._onnx.write.applied import Factor, Related
from bnfold._proof.certificate import certify

from .graphs import (
    HALF,
    certified,
    codes,
    const,
    counts,
    done,
    feeds,
    model,
    op,
    overridable,
    rand,
    run,
)


def quantized(*ahead: Any, x: Any = (2, 3, 6, 6), zero: bool = True, **weights: Any) -> ModelProto:
    """A QLinearConv whose input is quantized with the scale that it reads itself, too."""
    stored = {
        "q": np.float32(0.02),
        "z": np.uint8(128 if zero else 0),
        "w": np.arange(-40, 41).reshape(3, 3, 3, 3).astype(np.int8),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "r": np.float32(0.05),
        "rz": np.uint8(120),
        **weights,
    }
    source = "n" if ahead else "x"
    return model(
        *ahead,
        op("QuantizeLinear", f"{source} q z" if zero else f"{source} q", "i", name="round"),
        op("QLinearConv", "i q z w ws wz r rz", "o"),
        op("DequantizeLinear", "o r rz", "y"),
        x=x,
        weights=stored,
    )


def same(m: ModelProto) -> dict[str, int]:
    """Fold; no number of a few thousand is off by more than one step; the operators left."""
    result = bnfold.fold(m)
    data = feeds(m)
    (wanted,), (found,) = run(m, data), run(result, data)
    steps = np.abs(wanted - found) / 0.05
    assert steps.max() < 1.5 and (steps > 0.5).mean() < 0.02
    certified(m)
    return counts(result)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("kind, number", [("Mul", 0.37), ("Div", 255.0), ("Div", 0.01)])
def test_a_scale_goes_into_the_scale(kind, number, zero):
    ahead = const(kind, "x", "n", np.float32(number), name="map")
    m = quantized(ahead, zero=zero, q=np.float32(0.02 * (number if kind == "Mul" else 1 / number)))
    assert same(m) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    stored = {t.name: numpy_helper.to_array(t) for t in bnfold.fold(m).graph.initializer}
    np.testing.assert_array_equal(stored["q"], numpy_helper.to_array(m.graph.initializer[0]))


@pytest.mark.parametrize(
    "ahead",
    [
        const("Mul", "x", "n", np.float32(-0.5), name="map"),
        const("Mul", "x", "n", rand(3, 1, 1), name="map"),
        const("Add", "x", "n", np.float32(0.02), name="map"),
        const("Mul", "x", "n", np.float32(0.0), name="map"),
        const("Mul", "x", "n", np.float32(1e-41), name="map"),
    ],
    ids=["negative", "per channel", "shift", "zero", "a scale that overflows"],
)
def test_any_other_map_stays(ahead):
    m = quantized(ahead)
    assert counts(bnfold.fold(m)) == counts(m)
    assert "map" in codes(m)


def test_what_others_read_or_a_caller_sets_stays():
    ahead = const("Mul", "x", "n", np.float32(0.5), name="map")
    m = overridable(quantized(ahead), "q")
    assert counts(bnfold.fold(m)) == counts(m)
    m = quantized(ahead)
    m.graph.output.append(m.graph.input[0])
    m.graph.output[-1].name = "n"
    assert counts(bnfold.fold(m)) == counts(m)


@pytest.mark.parametrize("what", ["scale", "zero"])
def test_the_certificate_sees_a_number_that_is_wrong(what):
    m = quantized(const("Mul", "x", "n", np.float32(0.5), name="map"))
    once = done(m)
    result, applied = once.folded, once.applied
    assert all(c.holds for c in certify(m, result, applied))
    node = next(n for n in result.graph.node if n.op_type == "QuantizeLinear")
    for stored in result.graph.initializer:
        if stored.name == node.input[1] and what == "scale":
            values = numpy_helper.to_array(stored) * np.float32(1.000001)
            stored.CopyFrom(numpy_helper.from_array(values, stored.name))
        if stored.name == node.input[2] and what == "zero":
            stored.CopyFrom(numpy_helper.from_array(np.uint8(127), stored.name))
    assert not all(c.holds for c in certify(m, result, applied))


def test_the_verdict_passes():
    m = quantized(const("Div", "x", "n", np.float32(255), name="map"), q=np.float32(0.02 / 255))
    assert bnfold.verify(m, bnfold.fold(m)).status == "pass"


def test_half_precision():
    """The number that a half-precision quantizer holds has to stay in range."""

    def made(number):
        return model(
            const("Mul", "x", "n", np.float32(number), name="map"),
            op("QuantizeLinear", "n q z", "i"),
            op("DequantizeLinear", "i q z", "y"),
            weights={"q": np.float32(0.02), "z": np.uint8(3)},
            opset=19,
            elem=HALF,
        )

    assert counts(bnfold.fold(made(0.5))) == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert counts(bnfold.fold(made(1000)))["Mul"] == 1


@pytest.mark.parametrize("wrong", ["data", "domain", "constant"])
def test_the_certificate_sees_a_quantizer_of_something_else(wrong):
    """It reads what it read, and is what it was: the scale alone says nothing of that."""
    m = quantized(
        const("Mul", "x", "n", np.float32(0.5), name="map"), op("Neg", "x", "m"), x=(2, 3, 6, 6)
    )
    once = done(m)
    result, applied = once.folded, once.applied
    assert all(c.holds for c in certify(m, result, applied))
    node = next(n for n in result.graph.node if n.op_type == "QuantizeLinear")
    if wrong == "domain":
        node.domain = "mine"
    elif wrong == "data":
        node.input[0] = "m"
    else:
        result.graph.initializer.append(numpy_helper.from_array(rand(2, 3, 6, 6), "k"))
        node.input[0] = "k"
    assert not any(c.holds for c in certify(m, result, applied) if c.law == "cross")


def test_a_quantizer_of_unknown_rank_takes_a_scale_in():
    m = quantized(const("Mul", "x", "n", np.float32(0.5), name="map"))
    m.graph.input[0].type.tensor_type.ClearField("shape")
    once = done(m)
    result, applied = once.folded, once.applied
    assert counts(result) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert all(c.holds for c in certify(m, result, applied))
    (step,) = (s for s in applied if s.law == "cross")
    uneven = {  # a record of a map along an axis of a tensor whose rank nobody knows
        name: Related((Factor(np.full(3, 2.0), np.zeros(3), 1),), ()) for name in step.related
    }
    steps = [replace(s, related=uneven) if s is step else s for s in applied]
    found = certify(m, result, steps)[applied.index(step)]
    assert found.unchecked is not None and not found.fails
