"""Models of opset 6, which onnxruntime does not run: their broadcasting is that of their time.

onnx's evaluator lines axes up from the last one. Where the width is the number of channels, it
gives a wrong result without an error, and a right fold failed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold._run.reference import Reference
from bnfold._run.session import EngineError, OnnxRuntime

from ..graphs import conv, model, op, positive, rand
from .folds import folded as folded_of

WIDTHS = [(4, 4), (5, 4)]  # channels and width: the same by accident, and not
NUMPY = {"Add": np.add, "Div": np.divide, "Mul": np.multiply, "Sub": np.subtract}


def scaled(channels: int, width: int, kind: str = "Mul", **attributes: Any) -> ModelProto:
    """Conv → an elementwise operator with a constant for each channel → PRelu, one for each."""
    return model(
        conv("conv", "x", "c", (channels, 3, 3, 3), bias=False),
        op(kind, "c k", "a", **{"broadcast": 1, "axis": 1, **attributes}),
        op("PRelu", "a p", "y"),
        x=(1, 3, width + 2, width + 2),
        weights={"k": rand(channels), "p": rand(channels)},
        opset=6,
    )


def values(made: ModelProto, name: str) -> Any:
    return next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == name)


@pytest.mark.parametrize("channels, width", WIDTHS)
@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("axis", [1, -3])
def test_the_reference_runs_it_along_the_axis(
    channels: int, width: int, kind: str, axis: int
) -> None:
    made = scaled(channels, width, kind, axis=axis)
    found = Reference(made.SerializeToString()).run({"x": (x := rand(1, 3, width + 2, width + 2))})
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), (1, 2))
    data = np.einsum("chwij,ocij->ohw", windows, values(made, "conv.w"))
    data = NUMPY[kind](data, values(made, "k")[:, None, None])
    wanted = np.where(data > 0, data, data * values(made, "p")[:, None, None])
    np.testing.assert_allclose(found[0][0], wanted, rtol=1e-4, atol=1e-5)


def test_without_an_axis_the_last_ones_are_meant() -> None:
    made = model(op("Mul", "x k", "y", broadcast=1), x=(2, 4, 4), weights={"k": rand(4)}, opset=6)
    (found,) = Reference(made.SerializeToString()).run({"x": (x := rand(2, 4, 4))})
    np.testing.assert_array_equal(found, x * values(made, "k"))


@pytest.mark.parametrize("opset", [6, 7, 9, 13, 14])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_the_reference_runs_a_batch_normalization_of_inference(opset, spatial, inner):
    """It mixes batch statistics in below opset 14; and one of training is refused."""
    if opset > 8 and not spatial:
        return
    shape = (4,) if spatial else (4, 5, 5)
    weights = {"s": rand(*shape), "b": rand(*shape), "m": rand(*shape), "v": positive(*shape)}
    given = {"spatial": int(spatial)} if opset < 9 else {}
    norm = op(
        "BatchNormalization", "x s b m v", "y", **given, **{"is_test": 1} if opset < 7 else {}
    )
    if inner:
        branch = helper.make_graph([norm], "g", [], [helper.make_tensor_value_info("y", 1, None)])
        node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
        made = model(
            (node, {"c": np.array(True)}), x=(3, 4, 5, 5), y="z", weights=weights, opset=opset
        )
    else:
        made = model(norm, x=(3, 4, 5, 5), weights=weights, opset=opset)
    (found,) = Reference(made.SerializeToString()).run({"x": (x := rand(3, 4, 5, 5))})
    s, b, m, v = (one.reshape(-1, 1, 1) if spatial else one for one in weights.values())
    np.testing.assert_allclose(found, s * (x - m) / np.sqrt(v + 1e-5) + b, rtol=1e-5, atol=1e-6)
    node = made.graph.node[0].attribute[0].g.node[0] if inner else made.graph.node[0]
    node.output.append("more")
    if opset < 14:
        with pytest.raises(EngineError, match="BatchNormalization"):
            Reference(made.SerializeToString())


@pytest.mark.parametrize("channels, width", WIDTHS)
@pytest.mark.parametrize("kind", NUMPY)
def test_a_right_fold_passes_and_a_wrong_one_fails(channels: int, width: int, kind: str) -> None:
    made = scaled(channels, width, kind)
    folded = bnfold.fold(made)
    assert kind not in {node.op_type for node in folded.graph.node}
    assert bnfold.verify(made, folded).status == "pass"
    (changed,) = (t for t in folded.graph.initializer if len(t.dims) == 4)
    wrong = numpy_helper.to_array(changed) * np.float32(1)
    wrong[0] *= np.float32(1.01)
    if kind in ("Add", "Sub"):
        (changed,) = (
            t for t in folded.graph.initializer if list(t.dims) == [channels] and t.name != "p"
        )
        wrong = np.roll(numpy_helper.to_array(changed), 1)
    changed.CopyFrom(numpy_helper.from_array(wrong, changed.name))
    assert bnfold.verify(made, folded).status == "fail"


@pytest.mark.parametrize("kind", NUMPY)
def test_the_certificate_counts_a_negative_axis_from_behind(kind: str) -> None:
    (found,) = folded_of(scaled(4, 4, kind, axis=-3)).certificates()
    assert found.holds, found


@pytest.mark.parametrize("opset", [7, 11, 12, 13])
@pytest.mark.parametrize("kind", ["Hardmax", "LogSoftmax", "Softmax"])
def test_the_reference_runs_a_softmax_of_its_opset(kind: str, opset: int) -> None:
    """Below opset 13 it sees a matrix; an axis that is not given is 1 there, and the last later."""
    for axis in (None, 0, 1, 2, *(() if opset < 11 else (-1, -2))):
        given = {} if axis is None else {"axis": axis}
        made = model(op(kind, "x", "y", **given), x=(2, 3, 4), opset=opset)
        session = OnnxRuntime(made.SerializeToString())
        feeds = {"x": rand(2, 3, 4)}
        (wanted,), (found,) = session.run(feeds), Reference(made.SerializeToString()).run(feeds)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
