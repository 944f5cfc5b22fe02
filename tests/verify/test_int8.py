"""How far a model in int8 is from itself, measured at layers whose errors nothing hides."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold._run.bounds import UNBOUNDED
from bnfold._run.drawing import USUAL
from bnfold._run.int8 import NotMeasured, drawn, int8_error, last_layers

from ..graphs import conv, model, op


def error(made, sets=None):
    return int8_error(made, None, sets or drawn(made, 0, USUAL)[0], UNBOUNDED)


def saturated(scale=1.0):
    """A layer behind a Softmax that is all 0 and 1, with one channel of tiny weights."""
    first, weights = conv("first", "x", "a", (4, 3, 1, 1), bias=False)
    weights["first.w"] = weights["first.w"] * np.array([1e-3, 1, 1, scale]).reshape(4, 1, 1, 1)
    weights["first.w"] = weights["first.w"].astype(np.float32)
    return model((first, weights), op("Softmax", "a", "y", axis=1))


def test_what_a_softmax_hides_is_seen():
    """One scale for weights of 1 and of 1000: the small ones are a step or two."""
    assert error(saturated(1e3)) > 0.001
    assert last_layers(saturated()) == ["a"]


def test_one_large_channel_costs_more_than_alike_channels():
    """The largest weight sets the step of all others; int8's own noise is about a percent."""
    even = model(conv("first", "x", "y", (4, 3, 3, 3)))
    assert 0 < error(even) < 0.05
    odd = model(
        conv("first", "x", "a", (4, 3, 1, 1)), conv("second", "a", "y", (1, 4, 1, 1)),
    )  # fmt: skip
    before = error(odd)
    for held in odd.graph.initializer:
        weight = np.frombuffer(held.raw_data, np.float32).reshape(held.dims).copy()
        if held.name == "first.w" or held.name == "first.b":
            weight[0] *= 1000
        elif held.name == "second.w":
            weight[:, 0] /= 1000
        held.raw_data = weight.tobytes()
    assert error(odd) > 3 * before


def test_the_last_layers_are_those_that_outputs_see():
    made = model(
        conv("first", "x", "a", (4, 3, 1, 1)),
        op("Relu", "a", "r"),
        conv("second", "r", "b", (4, 4, 1, 1)),
        op("Sigmoid", "b", "s"),
        op("Mul", "s r", "y"),
    )
    assert last_layers(made) == ["a", "b"]


def test_a_model_without_layers_is_not_measured():
    with pytest.raises(NotMeasured, match="no layer"):
        error(model(op("Relu", "x", "y")))


def test_outputs_that_do_not_vary_are_not_measured():
    first, weights = conv("first", "x", "y", (4, 3, 1, 1), bias=False)
    weights["first.w"] = np.zeros((4, 3, 1, 1), np.float32)
    with pytest.raises(NotMeasured, match="nothing that varies"):
        error(model((first, weights)))


def test_what_onnxruntime_raises_is_an_answer(monkeypatch):
    """Its errors have no base of their own."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    def quantize(*_, **__):
        raise Fail("no kernel")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", quantize)
    with pytest.raises(NotMeasured, match="does not quantize it: no kernel"):
        error(saturated())
