"""A second look at outputs that differ: indices where values tie, and float64 as the judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._judge.ties import Choice, choices, tied
from bnfold._run import reference

from ..graphs import const, conv, model, op, rand
from .conftest import Compare


def chosen(choose: str, weight: np.ndarray, **attributes: int) -> ModelProto:
    """A linear layer, and the index of its largest output."""
    made = model((op("MatMul", "x w", "a", name="scores"), {"w": weight}), x=(256, 8))
    made.graph.node.append(helper.make_node(choose, ["a"], ["y"], "choice", **attributes))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    return made


def twins() -> np.ndarray:
    """Five columns, two of which are the same: whoever is the largest of them is so twice."""
    weight = rand(8, 5)
    weight[:, 3] = weight[:, 1]
    return weight


def nudged(weight: np.ndarray) -> np.ndarray:
    """The second of the twins one rounding step away, as a fold may leave it."""
    other = weight.copy()
    other[:, 3] = np.nextafter(other[:, 3], np.float32(9) * np.sign(other[:, 3]))
    return other


@pytest.mark.parametrize("choose", ["ArgMax", "ArgMin"])
def test_other_indices_of_the_same_value_pass(choose: str) -> None:
    """Where both models choose by the same operator, what they choose from is compared instead."""
    first = twins()
    second = nudged(first)
    result = bnfold.verify(chosen(choose, first, axis=1), chosen(choose, second, axis=1))
    assert result.status == "pass"
    assert all("compared at a" in check.note for check in result.checks)
    other = chosen(choose, second, axis=1, keepdims=1)  # the default, but written
    result = bnfold.verify(chosen(choose, first, axis=1), other)
    assert result.status == "pass"
    assert any("values tie" in check.note for check in result.checks)


def test_other_indices_of_other_values_fail() -> None:
    weight = rand(8, 5)
    wrong = weight.copy()
    wrong[:, 3] *= np.float32(1.2)
    result = bnfold.verify(chosen("ArgMax", weight, axis=1), chosen("ArgMax", wrong, axis=1))
    assert result.status == "fail"
    tied = twins()
    wrong = tied.copy()
    wrong[:, 3] *= np.float32(1.2)
    result = bnfold.verify(chosen("ArgMax", tied, axis=1), chosen("ArgMax", wrong, axis=1))
    assert result.status != "pass"  # where rounding alone decides, nothing is proved


def test_another_choice_from_the_same_values_fails() -> None:
    """The values agree to the last digit; it is the indices that are wrong."""
    weight = rand(8, 5)
    for other in (chosen("ArgMin", weight, axis=1), chosen("ArgMax", weight, axis=0, keepdims=1)):
        assert bnfold.verify(chosen("ArgMax", weight, axis=1), other).status == "fail"


def test_values_that_tie_excuse_no_other_values() -> None:
    """All of the original's scores are the same, so any index is as good; the scores are not."""
    weight = np.repeat(rand(8, 1), 5, axis=1)
    result = bnfold.verify(chosen("ArgMax", weight, axis=1), chosen("ArgMax", rand(8, 5), axis=1))
    assert result.status == "inconclusive"


def test_the_axis_of_a_choice() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4,4] x) => (int64[k,4] y) {
        v, i = TopK(x, k)
        y = Identity(i)
        }"""
    for operator, axis in (("v, i = TopK(x, k)", -1), ("i = ArgMax(x)", 0), ("i = ArgMin(x)", 0)):
        graph = onnx.parser.parse_model(text.replace("v, i = TopK(x, k)", operator)).graph
        assert choices(graph) == {"y": Choice("x", axis, operator.startswith("v"))}
    values = onnx.parser.parse_model(text.replace("Identity(i)", "Identity(v)")).graph
    assert choices(values) == {}


def test_where_values_tie() -> None:
    data = np.array([[[1.0, 2.0, 2.0], [5.0, 5.5, 5.0]]])
    one, other = np.array([[1], [0]]), np.array([[2], [2]])
    choice = Choice("data", 2, many=False)
    assert tied(choice, data, one, other, 0.0)
    assert not tied(choice, data, np.array([[1], [1]]), other, 0.25)
    assert tied(choice, data, np.array([[1], [1]]), other, 0.5)
    assert not tied(choice, data, one, np.array([[3], [2]]), 9.0)  # outside
    assert not tied(choice, data, np.array([[1]]), np.array([[2]]), 9.0)  # too few
    assert tied(
        Choice("data", -2, many=False), data, np.array([[[1, 1, 1]]]), np.array([[[1, 1, 1]]]), 0
    )


def test_several_indices_tie_one_by_one() -> None:
    data = np.array([[3.0, 1.0, 3.0, 2.0]])
    choice = Choice("data", -1, many=True)
    assert tied(choice, data, np.array([[0, 2]]), np.array([[2, 0]]), 0.0)
    assert not tied(choice, data, np.array([[0, 2]]), np.array([[2, 3]]), 0.5)


def summed(scale: float, offset: float) -> ModelProto:
    """``(x + offset − offset)·w``: the larger the offset, the less is left of x."""
    pieces = (
        []
        if not offset
        else [
            const("Add", "x", "a", np.float32(offset), name="up"),
            const("Sub", "a", "b", np.float32(offset), name="down"),
        ]
    )
    start = "b" if offset else "x"
    weight = np.array([0.7, -1.3, 0.9, 1.1], np.float32) * np.float32(scale)
    last = (op("Mul", f"{start} w", "y", name="last"), {"w": weight})
    return model(*pieces, last, x=(16, 4))


def compared(judge: Compare, tmp_path: Path, original: ModelProto, folded: ModelProto):
    """Only w counts as a weight, so that the tolerance knows nothing of the offset."""
    paths = []
    for name, made in (("original", original), ("folded", folded)):
        onnx.save(made, tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    (weight,) = (numpy_helper.to_array(t) for t in original.graph.initializer if t.name == "w")
    return judge(*paths, parameters={"w": weight})


def test_the_original_may_be_the_inaccurate_one(judge: Compare, tmp_path: Path) -> None:
    result = compared(judge, tmp_path, summed(1, 1e4), summed(1, 0))
    assert result.status == "pass"
    (note,) = {check.note.partition(":")[0] for check in result.checks if "float64" in check.note}
    assert note == "the original is the inaccurate one"
    assert [check.status for check in result.providers] == ["pass"]


def test_the_folded_model_may_not(judge: Compare, tmp_path: Path) -> None:
    result = compared(judge, tmp_path, summed(1, 0), summed(1, 1e4))
    assert result.status == "fail"
    assert "next to float64 the original is off by" in result.checks[0].note


def test_an_inaccurate_original_excuses_nothing(judge: Compare, tmp_path: Path) -> None:
    """Nearer to the truth than the original, and still wrong by more than rounding."""
    result = compared(judge, tmp_path, summed(1, 1e4), summed(1 + 1e-5, 0))
    assert result.status == "fail"


def residual(gain: float, *, wrong: float = 1.0) -> tuple[ModelProto, ModelProto]:
    """Two blocks of ``x + γ·conv(x)``, and the convolutions that they merge into."""
    pieces, value = [], "x"
    for n in range(2):
        pieces += [
            conv(f"conv{n}", value, f"c{n}", (8, 8, 3, 3), pads=[1, 1, 1, 1]),
            const("Mul", f"c{n}", f"m{n}", np.full((8, 1, 1), gain, np.float32), name=f"gain{n}"),
            op("Add", f"{value} m{n}", f"t{n}" if n == 0 else "y"),
        ]
        value = f"t{n}"
    made = model(*pieces, x=(1, 8, 24, 24))
    folded = bnfold.fold(made)
    for tensor in folded.graph.initializer:
        if wrong != 1.0 and len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor) * np.float32(wrong)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            break
    return made, folded


@pytest.mark.parametrize("gain", [1.0, 1e-3, 1e-5])
def test_arithmetic_that_rounds_more_often_is_no_wrong_fold(gain: float) -> None:
    """A skip has no weights that noise could move; inside a kernel every sum is rounded at it."""
    made, folded = residual(gain)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Conv"]
    for seed in range(4):
        assert bnfold.verify(made, folded, seed=seed).status == "pass"


@pytest.mark.parametrize("gain", [1.0, 1e-3])
@pytest.mark.parametrize("wrong", [1 + 2e-6, 1.001])
def test_weights_that_are_off_are_a_wrong_fold(gain: float, wrong: float) -> None:
    """By a few units in the last place of the skip, all in one direction, or by more."""
    assert bnfold.verify(*residual(gain, wrong=wrong)).status == "fail"


def of_opset(opset: int) -> ModelProto:
    """A Softmax, which sees a matrix below opset 13."""
    nodes = conv("conv", "x", "c", (4, 3, 1, 1), bias=False), op("Softmax", "c", "y")
    weights = {"conv.w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3, 1, 1)}
    made = model(*nodes, x=(1, 3, 4, 4), opset=opset)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights["conv.w"], "conv.w"))
    return made


@pytest.mark.parametrize("knows", [True, False])
def test_an_evaluator_with_a_bug_excuses_nothing(knows, monkeypatch) -> None:
    """It takes the original for what the second model is. Its own float32 does not round so far."""
    if not knows:
        monkeypatch.setattr(reference, "_replaced", lambda opset: [])
    for old in (11, 12):
        assert bnfold.verify(of_opset(old), of_opset(13), prove=False).status == "fail"
