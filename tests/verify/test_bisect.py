"""Where two models begin to differ: the tensor, and the operators that may have done it."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import bnfold
from bnfold._onnx.read.scopes import label

from ..carry.drawing import drawn
from ..graphs import bn, const, conv, model, op, optimized, positive, rand

LAYERS = ("one", "two", "three")


def net() -> ModelProto:
    """Three convolutions, each with its norm, and a branch around the second."""
    return model(
        conv("one", "x", "a", (4, 3, 3, 3)),
        bn("bn1", "a", "b", 4),
        op("Relu", "b", "c"),
        conv("two", "c", "d", (4, 4, 1, 1)),
        bn("bn2", "d", "e", 4),
        op("Sigmoid", "e", "f"),
        op("Mul", "c f", "g"),
        conv("three", "g", "h", (4, 4, 3, 3)),
        bn("bn3", "h", "i", 4),
        op("Tanh", "i", "y"),
    )


def spoiled(made: ModelProto, node: str, factor: float = 1.3) -> ModelProto:
    """One output channel of a convolution scaled."""
    wrong = ModelProto()
    wrong.CopyFrom(made)
    (writer,) = (n for n in wrong.graph.node if n.name == node)
    (weight,) = (t for t in wrong.graph.initializer if t.name == writer.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return wrong


def renamed(made: ModelProto) -> ModelProto:
    """Every tensor between inputs and outputs under another name, as tools do that rebuild."""
    copy = ModelProto()
    copy.CopyFrom(made)
    ends = {value.name for value in (*copy.graph.input, *copy.graph.output)}
    for node in copy.graph.node:
        for names in (node.input, node.output):
            for n, name in enumerate(names):
                if name not in ends:
                    names[n] = f"t_{name}"
    for tensor in copy.graph.initializer:
        tensor.name = f"t_{tensor.name}"
    del copy.graph.value_info[:]
    return copy


@pytest.mark.parametrize("node", LAYERS)
@pytest.mark.parametrize("names", ["kept", "lost"])
def test_the_layer_that_is_wrong_is_named(node, names):
    made = net()
    wrong = spoiled(bnfold.fold(made), node)
    result = bnfold.verify(made, renamed(wrong) if names == "lost" else wrong)
    assert result.status == "fail"
    found = result.divergence
    number = LAYERS.index(node)
    if names == "kept":
        assert found.tensor == "bei"[number]
        assert found.original == f"bn{number + 1} (BatchNormalization)"
        assert found.suspects == (f"{node} (Conv)",)
        assert found.agrees == ("xcg"[number],)
        assert found.difference > found.tolerance
    else:
        assert found.tensor == "y"
        assert found.suspects[0] == f"{node} (Conv)"
        assert all(f"{other} (Conv)" not in found.suspects for other in LAYERS[:number])
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("factor", [1.01, 1.05])
def test_tensors_of_other_names_agree_within_their_tolerance_alone(factor):
    """A wrong channel whose values are small beside the others', so that few digits differ."""
    weights = {"w": rand(8, 3, 3, 3), "v": rand(8, 8, 3, 3)}
    weights["v"][:, 5] *= np.float32(0.01)
    made = model(
        op("Conv", "x w", "a", name="one"),
        op("Relu", "a", "b"),
        op("Conv", "b v", "c", name="two"),
        op("Relu", "c", "d"),
        op("GlobalAveragePool", "d", "e"),
        op("Flatten", "e", "y"),
        x=(1, 3, 32, 32),
        weights=weights,
    )
    wrong = ModelProto()
    wrong.CopyFrom(made)
    values = weights["w"].copy()
    values[5] *= factor
    wrong.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    found = bnfold.verify(made, renamed(wrong)).divergence
    assert found.suspects[0] == "one (Conv)"
    assert found.agrees == ("x",)


def test_the_first_of_two_is_named():
    made = net()
    wrong = spoiled(spoiled(bnfold.fold(made), "three"), "one")
    assert bnfold.verify(made, wrong).divergence.suspects == ("one (Conv)",)


def test_a_difference_that_no_output_shows_is_looked_for_when_asked():
    """Behind a Relu whose inputs are all negative an error of the layer ahead does not show."""
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        op("Relu", "a", "b"),
        const("Sub", "b", "c", np.float32(1e3), name="sub"),
        op("Relu", "c", "d"),
        conv("two", "x", "e", (4, 3, 1, 1)),
        op("Add", "d e", "y"),
    )
    wrong = spoiled(made, "one")
    assert bnfold.verify(made, wrong).divergence is None
    result = bnfold.verify(made, wrong, bisect=True)
    assert result.status != "fail"
    assert result.divergence.suspects == ("one (Conv)",)


def test_an_output_that_nothing_writes_any_more():
    made = model(conv("one", "x", "a", (3, 3, 1, 1)), op("Relu", "a", "y"), x=(1, 3, 4, 4))
    wrong = model(op("Identity", "k", "z"), x=(1, 3, 4, 4), weights={"k": rand(1, 3, 4, 4)})
    wrong.graph.initializer[0].name = "y"
    wrong.graph.node[0].input[0] = "y"
    result = bnfold.verify(made, wrong)
    assert result.status == "fail"
    assert (result.divergence.tensor, result.divergence.suspects) == ("y", ())


def test_equal_models_have_no_first_difference():
    made = net()
    result = bnfold.verify(made, bnfold.fold(made), bisect=True)
    assert (result.status, result.divergence) == ("pass", None)


def test_a_tensor_of_another_shape():
    made = model(
        conv("one", "x", "a", (4, 3, 3, 3)),
        op("Relu", "a", "b"),
        op("Size", "b", "c"),
        op("Cast", "c", "y", to=onnx.TensorProto.FLOAT),
    )
    wrong = ModelProto()
    wrong.CopyFrom(made)
    (node,) = (n for n in wrong.graph.node if n.name == "one")
    node.attribute.add(name="pads", type=onnx.AttributeProto.INTS).ints.extend([1] * 4)
    found = bnfold.verify(made, wrong).divergence
    assert (found.tensor, found.suspects) == ("a", ("one (Conv)",))
    assert "shape" in found.note


def test_a_body_that_differs_is_found_in_the_operator_that_holds_it():
    def branch(scale):
        body = model(const("Mul", "c", "t", np.float32(scale), name="scale"), x={}, y="t").graph
        del body.input[:]
        return body

    def whole(scale):
        return model(
            op("ReduceSum", "x", "s", keepdims=0),
            op("Greater", "s zero", "yes"),
            op("Relu", "x", "c"),
            op("If", "yes", "z", name="if", then_branch=branch(scale), else_branch=branch(scale)),
            op("Relu", "z", "y"),
            weights={"zero": np.float32(0)},
        )

    found = bnfold.verify(whole(2.0), whole(2.5)).divergence
    assert (found.tensor, found.suspects, found.agrees) == ("z", ("if (If)",), ("yes", "c"))


def test_a_wrong_optimization_of_onnxruntime_is_named(tmp_path):
    """MatMul [5, 4]·[4, 5] → Transpose → BatchNormalization: scaled along the wrong axis."""
    made = model(
        (op("MatMul", "x w", "a", name="product"), {"w": rand(4, 5)}),
        op("Transpose", "a", "b", perm=[1, 0]),
        bn("bn", "b", "c", 5),
        op("Relu", "c", "y"),
        x=(5, 4),
    )
    source, target = tmp_path / "made.onnx", tmp_path / "optimized.onnx"
    onnx.save(made, source)
    left = [node.op_type for node in optimized(made, target, "ENABLE_BASIC").graph.node]
    if "BatchNormalization" in left:
        pytest.skip(f"this onnxruntime no longer merges the norm: {left}")
    result = bnfold.verify(source, target)
    assert result.status == "fail"
    assert any("MatMul" in suspect or "Gemm" in suspect for suspect in result.divergence.suspects)


def test_a_wrong_fold_of_onnxslim_is_named(tmp_path):
    """Conv → Mul by a vector along W, as many as channels: taken for one along the channels."""
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed")
    made = model(
        conv("conv", "x", "a", (4, 3, 1, 1)),
        const("Mul", "a", "b", positive(4), name="scale"),
        op("Relu", "b", "y"),
        x=(1, 3, 4, 4),
    )
    slim = onnxslim.slim(made)
    if any(node.op_type == "Mul" for node in slim.graph.node):
        pytest.skip("this onnxslim no longer takes the vector in")
    result = bnfold.verify(made, slim)
    assert result.status == "fail"
    assert any("Conv" in suspect for suspect in result.divergence.suspects)


LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Mul", "Add")


def wrong_number(made: ModelProto, source: random.Random) -> onnx.NodeProto | None:
    """Change a stored number that one operator alone reads, and say which operator."""
    stored = {t.name: t for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    uses = Counter(name for node in made.graph.node for name in node.input)
    found = [
        (node, name)
        for node in made.graph.node
        if node.op_type in LINEAR
        for name in node.input
        if name in stored and uses[name] == 1
    ]
    if not found:
        return None
    node, name = source.choice(found)
    values = numpy_helper.to_array(stored[name]).copy()
    values.reshape(-1)[source.randrange(values.size)] += 1
    stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return node


def test_a_wrong_number_in_drawn_graphs():
    """Wherever an output shows it, the operator that reads it is among those at fault, and mostly
    it is the only one.
    """
    counts = []
    for seed in range(300, 330):
        source = random.Random(seed)
        made, data = drawn(source, 10, 40)
        wrong = bnfold.fold(made)
        node = wrong_number(wrong, source)
        if node is None:
            continue
        result = bnfold.verify(made, wrong, inputs=data)
        if result.status != "fail":
            continue
        assert f"{label(node)} ({node.op_type})" in result.divergence.suspects, seed
        counts.append(len(result.divergence.suspects))
    assert len(counts) > 20
    assert counts.count(1) > len(counts) // 2
