"""QuantizeLinear and DequantizeLinear of onnxruntime's own domain are those of ONNX.

Its quantizer writes them for 16 and 4 bits ahead of opset 21, and for any where it is told to. What
no cheaper test catches: a place that knows the operators of ONNX alone, on the way from the reading
to the verdict.
"""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

import bnfold
from bnfold._proof.certificate import certify

from .graphs import (
    bn,
    codes,
    const,
    constants,
    conv,
    counts,
    done,
    feeds,
    model,
    op,
    positive,
    rand,
    run,
    subgraph,
)
from .test_quantize_paths import Data, network, trained
from .test_rounded_data import folds_to, gemm_of_integers, operators
from .test_rounded_data import quantized as rounded_data

KINDS = ("QuantizeLinear", "DequantizeLinear")
MS = "com.microsoft"


def contrib(m, *kinds):
    """The model with quantizers of onnxruntime's domain."""
    for node in m.graph.node:
        if node.op_type in (kinds or KINDS):
            node.domain = MS
    m.opset_import.add(domain=MS, version=1)
    return m


def widened(m):
    """The model with integers of 16 bits in the place of those of 8."""
    for stored in m.graph.initializer:
        values = numpy_helper.to_array(stored)
        kind = {"int8": np.int16, "uint8": np.uint16}.get(values.dtype.name)
        if kind is not None:
            stored.CopyFrom(numpy_helper.from_array(values.astype(kind), stored.name))
    return m


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "activations, weights, per_channel",
    [("QUInt8", "QInt8", True), ("QUInt16", "QInt16", False), ("QInt16", "QInt8", True)],
)
def test_static(first, activations, weights, per_channel, tmp_path):
    """Folded first, nothing is left. Norms that were quantized apart stay, and the reason names the
    quantizer in between.
    """
    logging.disable(logging.CRITICAL)
    m = network()
    onnx.save(bnfold.fold(m) if first else m, tmp_path / "model.onnx")
    quantize_static(
        tmp_path / "model.onnx",
        tmp_path / "q.onnx",
        Data(),
        per_channel=per_channel,
        activation_type=QuantType[activations],
        weight_type=QuantType[weights],
        extra_options={"UseQDQContribOps": True},
    )
    logging.disable(logging.NOTSET)
    q = onnx.load(tmp_path / "q.onnx")
    assert {node.domain for node in q.graph.node if node.op_type in KINDS} == {MS}
    kept = {one.node: one for one in bnfold.plan(q).kept}
    if first:
        assert not kept
    else:
        quantizers = {node.name for node in q.graph.node if node.op_type in KINDS}
        for name in ("b1", "b2"):
            assert kept[name].code == "quantizer-between"
            assert kept[name].at in quantizers
            assert "float model" in kept[name].advice
    after = bnfold.fold(q)
    assert after.SerializeToString() == q.SerializeToString()
    assert bnfold.verify(q, after).status == "pass"


@pytest.mark.parametrize(
    "kind, wide, per_channel, rounded",
    [
        (np.int8, False, True, False),
        (np.uint8, False, False, True),
        (np.int8, True, True, True),
        (np.uint8, True, False, False),
    ],
)
def test_trained_with_quantizers(kind, wide, per_channel, rounded):
    """All norms fold, the verdict is a pass, and an error of 1 % in one channel fails."""
    m = contrib(trained(kind, per_channel, rounded))
    m = widened(m) if wide else m
    after = bnfold.fold(m)
    assert "BatchNormalization" not in counts(after)
    assert counts(after)["QuantizeLinear"] == counts(m)["QuantizeLinear"]
    seen = bnfold.verify(m, after, prove=False)
    assert seen.status == "pass"
    assert seen.power and all(planted.noticed for planted in seen.power)
    (node,) = (n for n in after.graph.node if n.output[0] == "w1d")
    values = constants(after)[node.input[1]].copy()
    values[3] *= np.float32(1.01)
    after.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
    node.input[1] = "wrong"
    assert bnfold.verify(m, after).status == "fail"


def weight(shape, scale=(), kind=np.int8, **attrs):
    """A weight ``w`` of stored integers."""
    r = np.random.default_rng(3)
    values = {
        "q": r.integers(-7, 8, shape).astype(kind),
        "s": r.uniform(0.1, 0.2, scale).astype(np.float32),
        "z": np.zeros(scale, kind),
    }
    return op("DequantizeLinear", "q s z", "w", **attrs), values


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("kind", [np.int8, np.int16, ml_dtypes.int4])
def test_one_scale_becomes_several_in_any_opset(kind, opset):
    m = model(
        weight((4, 3, 1, 1), kind=kind),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", rand(4, 1, 1), name="scale"),
        opset=opset,
    )
    folds_to(contrib(m), DequantizeLinear=1, Conv=1)


def test_both_quantizers_of_a_weight_must_know_several_scales():
    """ONNX's of opset 12 does not, whatever stands behind it."""
    pieces = [
        (
            op("QuantizeLinear", "f s z", "q"),
            {"f": rand(4, 3, 1, 1), "s": np.float32(0.02), "z": np.int8(0)},
        ),
        op("DequantizeLinear", "q s z", "w"),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", positive(4, 1, 1), name="scale"),
    ]
    for kinds, left in ((("DequantizeLinear",), 1), (KINDS, 0)):
        m = contrib(model(*pieces, opset=12), *kinds)
        after = bnfold.fold(m)
        assert counts(after).get("Mul", 0) == left
        np.testing.assert_allclose(run(after, feeds(m))[0], run(m, feeds(m))[0], rtol=1e-5)
        assert bnfold.verify(m, after).status == "pass"


def test_scales_without_an_axis_lie_along_the_second():
    """As in ONNX, and sizes that agree by accident change nothing."""
    m = model(
        weight((4, 4), (4,)),
        op("MatMul", "x w", "c", name="mm"),
        const("Mul", "c", "y", rand(4), name="scale"),
        x=(3, 4),
        opset=13,
    )
    folds_to(contrib(m), DequantizeLinear=1, MatMul=1)
    m = model(
        weight((4, 4), (4,)),
        op("Gemm", "x w", "c", name="gemm", transB=1),
        const("Mul", "c", "y", positive(4), name="scale"),
        x=(3, 4),
        opset=13,
    )
    assert codes(contrib(m)) == {"scale": "quantized-weight"}
    assert counts(bnfold.fold(m)) == counts(m)


def test_scales_of_data():
    """A positive number goes into the scale ahead, or into the one behind."""
    m = model(
        const("Div", "x", "n", np.float32(255.0)),
        *rounded_data("n", "d", scale=np.float32(0.03 / 255)),
        const("Mul", "d", "m", np.float32(0.5)),
        op("Sigmoid", "m", "y"),
        opset=13,
    )
    once = done(contrib(m))
    after = once.folded
    assert counts(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Sigmoid": 1}
    assert bnfold.verify(m, after).status == "pass"
    assert all(one.holds for one in certify(m, after, once.applied))
    (node,) = (n for n in after.graph.node if n.op_type == "QuantizeLinear")
    right = constants(after)[node.input[1]]
    node.input[1] = "wrong"
    after.graph.initializer.append(
        numpy_helper.from_array(np.asarray(right * np.float32(1.000001)), "wrong")
    )
    assert not all(one.holds for one in certify(m, after, once.applied))


@pytest.mark.parametrize("wide", [True, False])
def test_runtimes_multiply_integers_of_8_bits_alone(wide, tmp_path):
    """With more of them the Gemm is one of floats, and loses nothing by a bias of floats."""
    m = contrib(gemm_of_integers("", False))
    m = widened(m) if wide else m
    after = bnfold.fold(m)
    assert codes(m) == ({} if wide else {"shift": "fused-operator"})
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, after))
    assert before["QGemm"] == now["QGemm"] == (0 if wide else 1)
    assert bnfold.verify(m, after).status == "pass"


def test_in_a_body():
    def branch(name):
        piece, values = weight((4, 3, 1, 1))
        piece.domain = MS
        return subgraph(
            (piece, values),
            op("Conv", "x w", "c", name=f"conv.{name}"),
            bn(f"bn.{name}", "c", "r", 4),
            y="r",
        )

    m = model(
        op("If", "go", "y", then_branch=branch("then"), else_branch=branch("else")),
        x={"x": (2, 3, 8, 8), "go": ()},
        opset=13,
        domains={MS: 1},
    )
    m.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    after = bnfold.fold(m)
    assert counts(after) == {"If": 1, "DequantizeLinear": 2, "Conv": 2}
    assert bnfold.verify(m, after).status == "pass"


def test_a_local_function_of_that_name_is_none():
    """It is whatever its body says."""
    body = helper.make_function(
        MS,
        "DequantizeLinear",
        ["q", "s", "z"],
        ["w"],
        [
            op("Cast", "q", "f", to=1),
            op("Abs", "f", "a"),
            op("Mul", "a s", "w"),
        ],
        [helper.make_opsetid("", 13)],
    )
    m = model(
        weight((4, 3, 1, 1)),
        conv("first", "x", "k", (3, 3, 1, 1)),
        op("Conv", "k w", "c", name="conv"),
        const("Mul", "c", "y", rand(4, 1, 1), name="scale"),
        opset=13,
        functions=[body],
    )
    m = contrib(m)
    after = bnfold.fold(m)
    assert {"Conv": 2, "Abs": 1}.items() <= counts(after).items()
    np.testing.assert_allclose(run(after, feeds(m))[0], run(m, feeds(m))[0], rtol=1e-5)
