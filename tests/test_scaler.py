"""Scaler of ai.onnx.ml: an affine map whose numbers are attributes, along the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

import bnfold

from . import graphs
from .functions import function, refers
from .graphs import DOUBLE, Piece, const, conv, counts, op, rand

ML = "ai.onnx.ml"


def scaler(x: str, y: str, features: int, name: str = "map", **attrs: Any) -> Piece:
    given = {"offset": rand(features).tolist(), "scale": rand(features).tolist(), **attrs}
    return op("Scaler", x, y, name=name, domain=ML, **given)


def gemm(x: str, y: str, k: int = 4, n: int = 4, **attrs: Any) -> Piece:
    return op("Gemm", f"{x} W b", y, name="gemm", **attrs), {"W": rand(k, n), "b": rand(n)}


def matmul(x: str, y: str, k: int = 4, n: int = 4) -> list[Piece]:
    return [
        (op("MatMul", f"{x} W", "h", name="matmul"), {"W": rand(k, n)}),
        const("Add", "h", y, rand(n), name="add"),
    ]


def model(*pieces: Piece, **options: Any) -> ModelProto:
    return graphs.model(*pieces, domains={ML: 3, **options.pop("domains", {})}, **options)


def holds(made: ModelProto) -> graphs.Done:
    """The same numbers in onnxruntime, whose Scaler is not ours, and certificates that hold."""
    once = graphs.done(made)
    graphs.check(made, once.folded, once.plan)
    graphs.certified(made, once)
    data = graphs.feeds(made)
    for was, now in zip(graphs.run(made, data), graphs.run(once.folded, data), strict=True):
        assert was.dtype == now.dtype
        assert np.allclose(was, now, rtol=1e-5, atol=1e-5 * np.abs(was).max(initial=1.0))
    return once


def goes(made: ModelProto, **left: int) -> ModelProto:
    folded = holds(made).folded
    assert counts(folded) == left
    return folded


def stays(made: ModelProto, code: str, says: str) -> None:
    once = graphs.done(made)
    kept = {k.node: k for k in once.plan.kept}
    assert kept["map"].code == code and says in kept["map"].message, kept
    assert once.folded.SerializeToString() == made.SerializeToString()


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("n", [4, 3])
def test_ahead_of_a_product(features, n):
    """K = N by accident, and not."""
    made = model(scaler("x", "s", features), gemm("s", "y", n=n), x=("n", 4))
    goes(made, Gemm=1)
    made = model(scaler("x", "s", features), *matmul("s", "y", n=n), x=(4, 4))
    goes(made, Gemm=1)


@pytest.mark.parametrize("features", [1, 4])
def test_behind_a_product(features):
    goes(model(gemm("x", "h", transB=1), scaler("h", "y", features), x=("n", 4)), Gemm=1)


def test_one_number_for_all_on_every_axis():
    made = model(conv("c", "x", "h", (4, 4, 1, 1)), scaler("h", "y", 1), x=(4, 4, 4, 4))
    goes(made, Conv=1)
    made = model(scaler("x", "h", 1), conv("c", "h", "y", (4, 4, 3, 3)), x=(4, 4, 4, 4))
    goes(made, Conv=1)
    made = model(op("Tanh", "x", "t"), scaler("t", "s", 1), *matmul("s", "y"), x={"x": None})
    assert counts(graphs.done(made).folded) == {"Tanh": 1, "MatMul": 1, "Add": 1}


def test_a_row_of_features():
    made = model(scaler("x", "h", 4), const("Mul", "h", "y", rand(4), name="mul"), x=(4,))
    goes(made, Mul=1, Add=1)  # two operators of one step each, for a Scaler of two and a Mul


def test_what_stays_of_it_is_of_the_default_domain():
    """Only the scale has a place: the shift becomes an Add where the Scaler was."""
    made = model(
        op("MatMul", "x W", "h", name="matmul"), scaler("h", "s", 4),
        op("Tanh", "s", "y"), x=(2, 3, 4), weights={"W": rand(4, 4)},
    )  # fmt: skip
    stays(made, "not-per-channel", "no matrix")  # and of a tensor of three axes it is no map
    made = model(
        op("MatMul", "x W", "h", name="matmul"), scaler("h", "s", 1),
        op("Tanh", "s", "y"), x=(2, 3, 4), weights={"W": rand(4, 4)},
    )  # fmt: skip
    folded = goes(made, MatMul=1, Add=1, Tanh=1)
    assert all(node.domain == "" for node in folded.graph.node)


def test_where_it_is_no_map_of_channels():
    """onnxruntime counts features of [N, C, L] through the whole tensor, modulo C."""
    for shape in ((4, 4, 4), (2, 4, 3)):
        made = model(op("Tanh", "x", "t"), scaler("t", "y", 4), x=shape)
        stays(made, "not-per-channel", "4 features")
    made = model(op("Tanh", "x", "t"), scaler("t", "y", 3), x=(2, 4))
    stays(made, "not-per-channel", "3 features")
    made = model(op("Tanh", "x", "t"), scaler("t", "y", 4), x={"x": None})
    stays(made, "unknown-shape", "the rank of t is not known")
    made = model(scaler("x", "y", 4, offset=[1.0]), x=(2, 4))
    stays(made, "not-per-channel", "1 offsets and 4 scales")
    made = model(scaler("x", "y", 2, scale=[np.inf, 1.0]), x=(2, 2))
    stays(made, "non-finite", "not finite")


@pytest.mark.parametrize("elem, told", [(TensorProto.INT64, "int64"), (DOUBLE, "double")])
def test_another_type_is_a_cast_too(elem, told):
    made = model(scaler("x", "s", 4), gemm("s", "y"), x=(2, 4))
    made.graph.input[0].type.tensor_type.elem_type = elem
    stays(made, "unsupported-dtype", f"reads {told} and puts out float32")


def test_a_weight_of_another_type_behind_a_cast():
    """Its output has a type, whatever it reads: nothing behind it is misread."""
    made = model(scaler("x", "s", 1, name="first"), scaler("s", "h", 1), gemm("h", "y"), x=(2, 4))
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    once = graphs.done(made)
    assert counts(once.folded) == {"Scaler": 1, "Gemm": 1}
    data = {"x": np.arange(8, dtype=np.int32).reshape(2, 4)}
    was, now = graphs.run(made, data)[0], graphs.run(once.folded, data)[0]
    assert np.allclose(was, now, rtol=1e-4, atol=1e-4)


def test_without_the_default_domain():
    """ONNX's inference says nothing there. No Mul can be written, and none is needed."""
    made = model(scaler("x", "s", 4, name="first"), scaler("s", "y", 4), x=(2, 4))
    del made.opset_import[0]
    once = graphs.done(made)
    assert {k.code for k in once.plan.kept} == {"no-linear-operator", "no-gain"}
    assert once.folded.SerializeToString() == made.SerializeToString()


def test_of_another_domain_it_is_any_operator():
    made = model(op("Scaler", "x", "s", domain="my"), gemm("s", "y"), x=(2, 4), domains={"my": 1})
    assert not graphs.done(made).plan.folds


def test_in_a_function_whose_call_sets_its_numbers():
    node = op("Scaler", "a", "b", name="map", domain=ML)
    node.attribute.extend([refers("offset", [1.0], "o"), refers("scale", [1.0], "s")])
    called = function("F", "a", "b", [node], ["o", "s"])
    called.opset_import.add(domain=ML, version=3)
    calls = [op("F", "x", f"s{k}", domain="my", o=[1.0 * k], s=[2.0 + k]) for k in (0, 1)]
    made = model(
        *calls, op("Add", "s0 s1", "y"), x=(2, 4), functions=[called], domains={"my": 1}
    )  # fmt: skip
    folded = graphs.done(made).folded
    data = graphs.feeds(made)
    assert np.allclose(graphs.run(made, data)[0], graphs.run(folded, data)[0], rtol=1e-6)


def test_it_verifies():
    made = model(scaler("x", "s", 4), gemm("s", "h"), op("Tanh", "h", "y"), x=("n", 4))
    assert bnfold.verify(made, bnfold.fold(made)).status == "pass"


def test_several_features_of_a_single_number_are_none():
    made = model(scaler("x", "y", 2), x=())
    stays(made, "not-per-channel", "is no matrix of so many columns")
