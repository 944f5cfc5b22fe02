"""Whole paths: fold, and quantize with onnxruntime's tools, in either order; then check."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import bnfold

from .graphs import bn, const, conv, counts, feeds, folds, model, op, positive, rand, run

X = (2, 3, 8, 8)
U8, S8 = QuantType.QUInt8, QuantType.QInt8


class Data(CalibrationDataReader):
    def __init__(self):
        r = np.random.default_rng(0)
        self.sets = iter([{"x": r.standard_normal(X).astype(np.float32)} for _ in range(3)])

    def get_next(self):
        return next(self.sets, None)


def network():
    """Two Convs with norms and a shortcut, and a head with a scale between two products."""
    return model(
        conv("c1", "x", "a", (8, 3, 3, 3), pads=[1, 1, 1, 1]),
        bn("b1", "a", "b", 8),
        op("Relu", "b", "r"),
        op("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        conv("c2", "p", "d", (8, 8, 3, 3), pads=[1, 1, 1, 1]),
        bn("b2", "d", "e", 8),
        op("Add", "e p", "f"),
        op("Relu", "f", "g"),
        op("GlobalAveragePool", "g", "h"),
        op("Flatten", "h", "i"),
        (op("Gemm", "i w bb", "j", name="fc"), {"w": rand(8, 6), "bb": rand(6)}),
        op("Relu", "j", "k"),
        const("Mul", "k", "m", positive(6), name="scale"),
        (op("MatMul", "m w2", "y", name="mm"), {"w2": rand(6, 5)}),
        x=X,
        opset=13,
    )


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", params=["as it is", "folded first"])
def source(request, tmp_path_factory):
    """The file of the float model, and whether it was folded."""
    first = request.param == "folded first"
    m = network()
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    onnx.save(bnfold.fold(m) if first else m, path)
    return path, first


@pytest.mark.parametrize("form", list(QuantFormat), ids=lambda form: form.name)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations, weights", [(U8, U8), (U8, S8), (S8, S8)])
def test_static(source, form, per_channel, activations, weights, tmp_path):
    """Without its norms nothing is left. With them, each was quantized apart from its Conv: no fold
    is exact, and the reason names the quantizer between the two.
    """
    path, first = source
    quantize_static(
        path,
        tmp_path / "q.onnx",
        Data(),
        quant_format=form,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=weights,
    )
    q = onnx.load(tmp_path / "q.onnx")
    kept = {one.node: one for one in bnfold.plan(q).kept}
    if first:
        assert "BatchNormalization" not in counts(q)
        assert not kept
    else:
        assert kept.keys() >= {"b1", "b2"}
        for name in ("b1", "b2"):
            assert kept[name].code == "quantizer-between"
            assert kept[name].at in {
                n.name
                for n in q.graph.node
                if "Quant" in n.op_type or n.op_type.startswith("QLinear")
            }
            assert "float model" in kept[name].advice
    after = bnfold.fold(q)
    assert after.SerializeToString() == q.SerializeToString()
    assert bnfold.verify(q, after).status == "pass"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weights", [U8, S8])
def test_dynamic(source, per_channel, weights, tmp_path):
    """The scales of norms and of the head go into those of the weights."""
    path, first = source
    quantize_dynamic(path, tmp_path / "q.onnx", per_channel=per_channel, weight_type=weights)
    q = onnx.load(tmp_path / "q.onnx")
    after = bnfold.fold(q)
    assert "BatchNormalization" not in counts(after)
    assert counts(after)["Mul"] == counts(after)["Cast"] * 2
    if first:
        assert after.SerializeToString() == q.SerializeToString()
    run(q, feeds(q))  # an old onnxruntime has no such kernel, and says so
    assert bnfold.verify(q, after).status == "pass"


def trained(kind, per_channel, rounded, layers=2):
    """As quantization-aware training leaves it: a norm behind each Conv, ahead of its quantizer."""
    r = np.random.default_rng(4)
    zero = 0 if kind == np.int8 else 128
    pieces, tensor, inputs = [], "x", 3
    for i in range(layers):
        shape = (8, inputs, 3, 3)
        s = r.uniform(0.002, 0.006, 8 if per_channel else ()).astype(np.float32)
        q = r.integers(-100, 100, shape)
        values = {f"s{i}": s, f"z{i}": np.full(s.shape, zero, kind)}
        along = {"axis": 0} if per_channel else {}
        step = {f"as{i}": np.float32(0.04), f"az{i}": np.uint8(120)}
        pieces += [
            (op("QuantizeLinear", f"{tensor} as{i} az{i}", f"xq{i}"), step),
            op("DequantizeLinear", f"xq{i} as{i} az{i}", f"xd{i}"),
        ]
        if rounded:
            steps = q + r.uniform(-0.5, 0.5, shape)
            weight = {f"w{i}": (steps * s.reshape(-1, 1, 1, 1)).astype(np.float32)}
            pieces.append((op("QuantizeLinear", f"w{i} s{i} z{i}", f"wq{i}", **along), weight))
        else:
            values[f"wq{i}"] = (q + zero).astype(kind)
        pieces += [
            (op("DequantizeLinear", f"wq{i} s{i} z{i}", f"w{i}d", **along), values),
            (op("Conv", f"xd{i} w{i}d b{i}", f"c{i}", name=f"conv{i}"), {f"b{i}": rand(8)}),
            bn(f"bn{i}", f"c{i}", f"n{i}", 8),
            op("LeakyRelu", f"n{i}", f"r{i}"),
        ]
        tensor, inputs = f"r{i}", 8
    pieces += [
        (
            op("QuantizeLinear", f"{tensor} os oz", "oq"),
            {"os": np.float32(0.05), "oz": np.uint8(9)},
        ),
        op("DequantizeLinear", "oq os oz", "y"),
    ]
    return model(*pieces, x=X, opset=13)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_trained_with_quantizers(kind, per_channel, rounded):
    """All norms fold, the verdict is a pass, and an error of 1 % in one channel of any layer fails,
    though every output is rounded.
    """
    m = trained(kind, per_channel, rounded)
    after = bnfold.fold(m)
    assert "BatchNormalization" not in counts(after)
    assert counts(after)["QuantizeLinear"] == counts(m)["QuantizeLinear"]
    seen = bnfold.verify(m, after, prove=False)
    assert seen.status == "pass"
    assert seen.power and all(planted.noticed for planted in seen.power)
    scales = [
        node.input[1]
        for node in after.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0].startswith("w")
    ]
    biases = [node.input[2] for node in after.graph.node if node.op_type == "Conv"]
    for name in (*scales, *biases):
        bad = onnx.ModelProto()
        bad.CopyFrom(after)
        for node in bad.graph.node:  # the quantizer ahead of it shares the scale, and keeps it
            if node.op_type == "DequantizeLinear" and node.input[1] == name:
                node.input[1] = "wrong"
            elif node.op_type == "Conv" and node.input[2] == name:
                node.input[2] = "wrong"
        (tensor,) = (t for t in after.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[3] *= np.float32(1.01)
        bad.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
        assert bnfold.verify(m, bad).status == "fail"


def test_a_norm_whose_scale_is_stored_as_integers():
    """It is as constant as any, and folds where no quantizer is in between."""
    node, values = bn("bn", "c", "y", 4)
    values["q"], values["qs"] = np.int8([90, -50, 30, 127]), np.float32(0.01)
    node.input[1] = "g"
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("DequantizeLinear", "q qs", "g"),
        (node, values),
        x=X,
        opset=13,
    )
    folds(m, Conv=1)
