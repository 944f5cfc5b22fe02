"""Shapes behind operators of other domains, which ONNX's inference knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer

from . import graphs
from .graphs import const, counts, model, op, rand

MS, ML = "com.microsoft", "ai.onnx.ml"
Array = Any


class Case(NamedTuple):
    """An operator: its inputs by name, ``x`` first, and what is constant of them."""

    kind: str
    inputs: str
    x: Array
    weights: dict[str, Array]
    attrs: Mapping[str, Any] = MappingProxyType({})
    domain: str = MS


ONE, ZERO = np.float32(0.1), np.uint8(3)
STEP = {"s": ONE, "z": ZERO}
BYTES = np.arange(2 * 4 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 4)
FLOATS = rand(2, 4, 4, 4)
ROW = BYTES[:1, :, :1, :1]
POOL = {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0], "strides": [2, 2]}
CASES = {
    "QLinearAdd": Case("QLinearAdd", "x s z w s z s z", BYTES, {**STEP, "w": ROW}),
    "QLinearAdd that broadcasts": Case(
        "QLinearAdd", "x s z w s z s z", BYTES[:, :, :1], {**STEP, "w": BYTES[:1]}
    ),
    "QLinearMul": Case("QLinearMul", "w s z x s z s z", BYTES, {**STEP, "w": ROW}),
    "QLinearSigmoid": Case("QLinearSigmoid", "x s z s z", BYTES, STEP),
    "QLinearLeakyRelu": Case("QLinearLeakyRelu", "x s z s z", BYTES, STEP, {"alpha": 0.1}),
    "QLinearSoftmax": Case("QLinearSoftmax", "x s z s z", BYTES, STEP, {"opset": 13, "axis": 1}),
    "QLinearConcat": Case(
        "QLinearConcat", "s z x s z w s z", BYTES, {**STEP, "w": BYTES[:, :3]}, {"axis": 1}
    ),
    "QLinearAveragePool": Case("QLinearAveragePool", "x s z s z", BYTES, STEP, POOL),
    "QLinearGlobalAveragePool": Case("QLinearGlobalAveragePool", "x s z s z", BYTES, STEP),
    "QLinearWhere": Case(
        "QLinearWhere", "c x s z w s z s z", BYTES, {**STEP, "w": BYTES[:1], "c": BYTES[0] > 9}
    ),
    "QuantizeLinear": Case("QuantizeLinear", "x s z", FLOATS, STEP),
    "DequantizeLinear": Case("DequantizeLinear", "x s z", BYTES, STEP),
    "RotaryEmbedding": Case(
        "RotaryEmbedding", "x p c c", rand(2, 3, 8),
        {"p": np.zeros((2, 3), np.int64), "c": rand(3, 4)}, {"num_heads": 1},
    ),
    "RotaryEmbedding of heads": Case(
        "RotaryEmbedding", "x p c c", rand(2, 4, 3, 8),
        {"p": np.zeros((2, 3), np.int64), "c": rand(3, 4)},
    ),
    "DynamicQuantizeMatMul": Case(
        "DynamicQuantizeMatMul", "x w s z", rand(2, 3, 4),
        {"w": BYTES[0, 0], "s": ONE, "z": ZERO},
    ),
    "MatMulNBits": Case(
        "MatMulNBits", "x w s", rand(2, 3, 32),
        {"w": np.ones((5, 1, 16), np.uint8), "s": np.ones(5, np.float32)},
        {"K": 32, "N": 5, "bits": 4, "block_size": 32},
    ),
    "Inverse": Case("Inverse", "x", rand(2, 4, 4) + 9 * np.eye(4, dtype=np.float32), {}),
    "Trilu": Case("Trilu", "x", rand(2, 4, 4), {}),
    "FastGelu": Case("FastGelu", "x", FLOATS, {}),
    "Normalizer": Case("Normalizer", "x", rand(3, 4), {}, {"norm": "L2"}, ML),
    "Scaler of integers": Case(
        "Scaler", "x", np.ones((3, 4), np.int64), {}, {"offset": [1.0], "scale": [2.0]}, ML
    ),
    "Imputer": Case(
        "Imputer", "x", rand(3, 4), {},
        {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}, ML,
    ),
    "Binarizer": Case("Binarizer", "x", rand(3, 4), {}, {"threshold": 0.5}, ML),
}  # fmt: skip


def made(case: Case) -> ModelProto:
    node = op(case.kind, case.inputs, "y", domain=case.domain, **case.attrs)
    versions = {MS: 1, ML: 3}
    found = model(node, x=case.x.shape, weights=case.weights, domains=versions)
    elem = helper.np_dtype_to_tensor_dtype(case.x.dtype)
    found.graph.input[0].type.tensor_type.elem_type = elem
    found.graph.output[0].type.Clear()
    return found


@pytest.mark.parametrize("name", CASES)
def test_shape_and_type_are_those_that_the_runtime_makes(name):
    proto = made(CASES[name])
    scopes = read_scopes(proto)
    known = infer(proto, scopes)
    (ran,) = graphs.run(proto, {"x": CASES[name].x})
    assert known.shape(scopes[0], "y") == ran.shape
    assert known.type(scopes[0], "y") == helper.np_dtype_to_tensor_dtype(ran.dtype)


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("Imputer", {"imputed_value_int64s": [-1], "replaced_value_int64": 4}),
        ("Scaler", {"offset": [0.0] * 3, "scale": [1.0, 0.5, 2.0]}),
    ],
)
def test_sizes_that_one_computes_are_not_those_that_it_reads(kind, attrs):
    """Sizes of a shape that an operator of numbers changes, as the target of a Reshape. Before,
    the shape behind it was said to be the one ahead.
    """
    ahead = op("Shape", "x", "s"), op(kind, "s", "n", domain=ML, **attrs)
    proto = model(
        *ahead,
        op("Cast", "n", "t", to=TensorProto.INT64),
        op("Reshape", "x t", "y"),
        x=(1, 4, 2), domains={ML: 3},
    )  # fmt: skip
    scopes = read_scopes(proto)
    known = infer(proto, scopes)
    (ran,) = graphs.run(proto, {"x": rand(1, 4, 2)})
    said = known.shape(scopes[0], "y")
    assert said is None or all(n in (None, m) for n, m in zip(said, ran.shape, strict=True))
    assert known.numbers.keys() == {("", "s")}


@pytest.mark.parametrize("kind", ["QLinearAveragePool", "QLinearGlobalAveragePool"])
def test_where_channels_come_last_nothing_is_said(kind):
    case = CASES[kind]
    attrs = {**case.attrs, "channels_last": 1}
    proto = made(case._replace(attrs=attrs))
    scopes = read_scopes(proto)
    assert infer(proto, scopes).shape(scopes[0], "y") is None


def test_a_function_of_that_name_is_no_such_operator():
    body = helper.make_function(
        MS, "Trilu", ["a"], ["b"], [op("ReduceMean", "a", "b")], [helper.make_opsetid("", 17)]
    )
    proto = model(
        op("Trilu", "x", "y", domain=MS), x=(2, 4, 4), functions=[body], domains={MS: 1}
    )  # fmt: skip
    scopes = read_scopes(proto)
    assert infer(proto, scopes).shape(scopes[0], "y") != (2, 4, 4)


def test_a_map_behind_one_finds_its_axis():
    """Its scale goes into the rows of the weight ahead of it."""
    case = CASES["RotaryEmbedding"]
    proto = model(
        op("RotaryEmbedding", case.inputs, "r", domain=MS, num_heads=1),
        const("Mul", "r", "s", rand(8)),
        op("MatMul", "s W", "y", name="matmul"),
        x=(2, 3, 8), weights={**case.weights, "W": rand(8, 8)}, domains={MS: 1},
    )  # fmt: skip
    once = graphs.done(proto)
    assert counts(once.folded) == {"RotaryEmbedding": 1, "MatMul": 1}
    graphs.certified(proto, once)
    data = {"x": case.x}
    was, now = graphs.run(proto, data)[0], graphs.run(once.folded, data)[0]
    assert np.allclose(was, now, rtol=1e-5, atol=1e-5)


def test_types_of_what_is_quantized_are_integers():
    """A Cast of them to float is none to the type that they have."""
    proto = model(
        op("QuantizeLinear", "x s z", "q", domain=MS),
        op("Cast", "q", "f", to=TensorProto.FLOAT),
        const("Mul", "f", "y", rand(4, 1, 1), name="map"),
        x=(2, 4, 4, 4), weights=STEP, domains={MS: 1},
    )  # fmt: skip
    assert counts(graphs.done(proto).folded) == {"QuantizeLinear": 1, "Cast": 1, "Mul": 1}
