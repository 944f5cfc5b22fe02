"""What is said of a model that onnxruntime does not load or run, and what a session leaves."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

import bnfold
from bnfold._run.session import EngineError, OnnxRuntime

from ..graphs import bn, conv, model, op


def layered() -> ModelProto:
    return model(conv("conv", "x", "a", (4, 3, 3, 3)), bn("bn", "a", "y", 4))


@pytest.mark.parametrize(
    "what, message",
    [
        ("format", "its IR version 200 is later than onnxruntime {version} knows; a newer one"),
        ("opset", "opset 200 of ai.onnx is later than onnxruntime {version} knows; a newer one"),
    ],
)
def test_a_model_that_is_newer_than_the_runtime(what: str, message: str) -> None:
    made = layered()
    if what == "format":
        made.ir_version = 200
    else:
        made.opset_import[0].version = 200
    with pytest.raises(EngineError) as caught:
        OnnxRuntime(made.SerializeToString())
    assert message.format(version=onnxruntime.__version__) in str(caught.value)
    assert caught.value.missing_kernel  # another engine may run it


def test_the_reference_evaluator_runs_what_is_newer_than_the_runtime() -> None:
    made = layered()
    made.ir_version = 200
    wrong = ModelProto()
    wrong.CopyFrom(made)
    wrong.graph.initializer[0].raw_data = (
        np.frombuffer(made.graph.initializer[0].raw_data, np.float32) * np.float32(1.01)
    ).tobytes()
    right, caught = bnfold.verify(made, bnfold.fold(made)), bnfold.verify(made, wrong)
    assert (right.status, caught.status) == ("pass", "fail")
    for result in (right, caught):
        assert result.runtime.startswith("onnx.reference")
        assert "IR version 200 is later than" in result.notes[0]


def test_places_in_the_source_of_the_runtime_are_left_out() -> None:
    made = model(op("Reshape", "x s", "y"), x=(4,), weights={"s": np.array([3, 3])})
    with pytest.raises(EngineError, match="cannot be reshaped to the requested shape") as caught:
        OnnxRuntime(made.SerializeToString()).run({"x": np.ones(4, np.float32)})
    assert "onnxruntime/core" not in str(caught.value)
    assert "::" not in str(caught.value)


def test_no_output_keeps_the_memory_of_its_session() -> None:
    """An array of onnxruntime lies in memory of its session, weights and all, and keeps that."""
    made = layered()
    session = OnnxRuntime(made.SerializeToString())
    feeds = {"x": np.ones(session.inputs[0].shape, np.float32)}
    for outputs in (session.run(feeds), session.fetch(["y"], feeds)):
        assert outputs[0].size and all(output.flags.owndata for output in outputs)
