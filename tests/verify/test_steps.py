"""Models that round data to integers: a step of a quantizer is no error, and an error no step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold._judge import between_quantizers
from bnfold._judge.deployment import Deployment
from bnfold._judge.onnx_bench import OnnxBench
from bnfold._judge.verdict import Cause
from bnfold._run.quantizers import quantizers

from ..graphs import const, conv, model, op, optimized, session

STEP = np.float32(0.05)


def network(seed=0, dynamic=False, behind=True, step=STEP):
    """Conv → BatchNormalization → quantizer → DequantizeLinear, and a Conv behind it."""
    r = np.random.default_rng(seed)
    values = {name: r.uniform(0.5, 1.5, 4).astype(np.float32) for name in "gbmv"}
    pieces = [
        conv("conv", "x", "c", (4, 3, 1, 1)),
        (op("BatchNormalization", "c g b m v", "n", name="bn"), values),
    ]
    if dynamic:
        pieces += [
            op("DynamicQuantizeLinear", "n", "q s z", name="quantize"),
            op("DequantizeLinear", "q s z", "d", name="dequantize"),
        ]
    else:
        names = {"s": step, "z": np.uint8(100)}
        pieces += [
            (op("QuantizeLinear", "n s z", "q", name="quantize"), names),
            op("DequantizeLinear", "q s z", "d", name="dequantize"),
        ]
    last = conv("last", "d", "y", (2, 4, 1, 1)) if behind else op("Identity", "d", "y")
    return model(*pieces, last, x=(1, 3, 40, 40), opset=13)


def at_borders(before, after, tensor="q"):
    """An input at which some numbers are rounded to another integer by the second model."""
    sessions = []
    for m in (before, after):
        tapped = onnx.ModelProto()
        tapped.CopyFrom(m)
        tapped.graph.output.add(name=tensor)
        sessions.append(session(tapped))
    r = np.random.default_rng(1)
    for _ in range(400):
        x = r.standard_normal((1, 3, 40, 40)).astype(np.float32)
        one, other = (s.run([tensor], {"x": x})[0].astype(int) for s in sessions)
        if (one != other).any():
            assert abs(one - other).max() == 1
            return x
    raise AssertionError("no number lies at a border")


def wrong(m, initializer, factor=1.01, channel=1):
    made = onnx.ModelProto()
    made.CopyFrom(m)
    (tensor,) = (t for t in made.graph.initializer if t.name == initializer)
    values = numpy_helper.to_array(tensor).copy()
    values[channel] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, initializer))
    return made


def weight_of(m, label):
    return next(node.input[1] for node in m.graph.node if node.name == label)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("behind", [True, False])
def test_a_step_at_a_border_is_no_failure(dynamic, behind):
    m = network(dynamic=dynamic, behind=behind)
    after = bnfold.fold(m)
    x = {"x": at_borders(m, after)}
    seen = bnfold.verify(m, after, inputs=x)
    assert seen.status == "pass"
    (check,) = seen.checks
    assert check.difference > 10 * check.tolerance or check.note
    assert seen.power and all(planted.noticed for planted in seen.power)
    for label in ("conv", "last") if behind else ("conv",):
        bad = wrong(after, weight_of(after, label))
        assert bnfold.verify(m, bad, inputs=x).status == "fail"


def test_parts_that_settle_nothing_excuse_no_more_than_steps(monkeypatch):
    """A difference of a step is open then. One that steps do not explain is a failure."""
    m = network()
    after = bnfold.fold(m)
    x = {"x": at_borders(m, after)}
    parts = between_quantizers._parts

    def open_parts(*given):
        found, checks = parts(*given)
        return found, [replace(one, status="inconclusive", cause=Cause.CONSTANT) for one in checks]

    def status(model):
        (check,) = bnfold.verify(m, model, inputs=x).checks
        return check.status

    monkeypatch.setattr(between_quantizers, "_parts", open_parts)
    assert status(after) == "inconclusive"
    for label in ("conv", "last"):
        assert status(wrong(after, weight_of(after, label), 3.0)) == "fail"
    monkeypatch.setattr(OnnxBench, "moved_by_steps", lambda *given: {})
    assert status(wrong(after, weight_of(after, "last"), 3.0)) == "inconclusive"


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("both", [True, False])
def test_a_wrong_quantizer_does_not_pass(number, both):
    """Scale or zero point, at both ends or ahead alone. Where the models round by other numbers
    they cannot be cut.
    """
    m = network()
    bad = bnfold.fold(m)
    x = {"x": at_borders(m, bad)}
    for node in bad.graph.node:
        if node.op_type == "QuantizeLinear" or (both and node.op_type == "DequantizeLinear"):
            node.input[number] = "wrong"
    value = np.uint8(101) if number == 2 else STEP * np.float32(1.01)
    bad.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "wrong"))
    assert bnfold.verify(m, bad, inputs=x).status != "pass"


def test_a_scale_that_went_into_the_quantizer():
    """Then the two round other numbers by other scales: they are compared in steps."""
    m = network()
    r = np.random.default_rng(2)
    m.graph.node[1].output[0] = "before"
    m.graph.node.insert(2, onnx.helper.make_node("Relu", ["before"], ["relu"]))
    m.graph.node.insert(3, onnx.helper.make_node("Sigmoid", ["relu"], ["gate"]))
    m.graph.node.insert(4, onnx.helper.make_node("Mul", ["gate", "factor"], ["n"], name="scale"))
    m.graph.initializer.append(numpy_helper.from_array(np.float32(r.uniform(3, 4)), "factor"))
    after = bnfold.fold(m)
    assert "Mul" not in {node.op_type for node in after.graph.node}
    x = {"x": at_borders(m, after)}
    seen = bnfold.verify(m, after, inputs=x)
    assert seen.status == "pass"
    (scale,) = (n.input[1] for n in after.graph.node if n.op_type == "QuantizeLinear")
    bad = wrong(after, scale, 1.01, ())
    assert bnfold.verify(m, bad, inputs=x).status == "fail"


def test_an_output_of_integers():
    """It is compared ahead of its quantizer: integers differ by a step, or they do not."""
    m = network(behind=False)
    del m.graph.output[:]
    m.graph.output.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, None))
    del m.graph.node[-2:]
    after = bnfold.fold(m)
    x = {"x": at_borders(m, after)}
    assert bnfold.verify(m, after, inputs=x).status == "pass"
    bad = wrong(after, weight_of(after, "conv"))
    assert bnfold.verify(m, bad, inputs=x).status == "fail"


def test_what_is_too_large_to_be_cut(monkeypatch):
    """Then steps explain a difference, which is no pass, and no failure."""
    m = network()
    after = bnfold.fold(m)
    x = {"x": at_borders(m, after)}
    monkeypatch.setattr("bnfold._judge.rounded_pair._LARGEST", 10)
    seen = bnfold.verify(m, after, inputs=x)
    assert seen.status == "inconclusive"
    assert "steps" in seen.checks[0].note
    bad = wrong(after, weight_of(after, "last"), 2.0)
    assert "fail" in {check.status for check in bnfold.verify(m, bad, inputs=x).checks}


def deployed_network(seed):
    """Its Conv and quantizers become one QLinearConv once the BatchNormalization is gone."""
    r = np.random.default_rng(seed)
    numbers = {"xs": np.float32(0.03), "xz": np.uint8(128), "s": STEP, "z": np.uint8(0)}
    weight = {
        "w": r.integers(-60, 60, (6, 4, 3, 3)).astype(np.int8),
        "ws": r.uniform(0.005, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
    }
    values = {name: r.uniform(0.5, 1.5, 6).astype(np.float32) for name in "gbmv"}
    return model(
        (op("QuantizeLinear", "x xs xz", "xq"), numbers),
        op("DequantizeLinear", "xq xs xz", "xd"),
        (op("DequantizeLinear", "w ws wz", "wd", axis=0), weight),
        (op("Conv", "xd wd cb", "c", name="conv"), {"cb": r.standard_normal(6).astype("f4")}),
        (op("BatchNormalization", "c g b m v", "n", name="bn"), values),
        op("Relu", "n", "r"),
        op("QuantizeLinear", "r s z", "q"),
        op("DequantizeLinear", "q s z", "y"),
        x=(1, 4, 16, 16),
        opset=13,
    )


@pytest.mark.parametrize("seed", range(4))
def test_as_deployed(seed, tmp_path):
    """onnxruntime computes with the integers, and is off by a step in some places."""
    m = deployed_network(seed)
    after = bnfold.fold(m)
    kinds = {node.op_type for node in optimized(after, tmp_path / "saved.onnx").graph.node}
    assert "QLinearConv" in kinds
    assert bnfold.verify(m, after).status == "pass"


def test_as_deployed_where_integers_saturate(monkeypatch):
    """A stand-in for a CPU whose sums of products saturate, unless a session avoids that."""
    m = deployed_network(1)
    after = bnfold.fold(m)
    right = Deployment._excess

    def saturating(self, source, provider, optimized, expected):
        found = right(self, source, provider, optimized, expected)
        off = optimized and source is self.folded and not self.precise
        return type(found)(1e6, "saturated") if off else found

    monkeypatch.setattr(Deployment, "_excess", saturating)
    seen = bnfold.verify(m, after)
    assert seen.status == "inconclusive"
    assert "x64quantprecision" in seen.providers[0].note
    monkeypatch.setattr(
        Deployment,
        "_excess",
        lambda self, source, provider, optimized, expected: type(
            right(self, source, provider, optimized, expected)
        )(1e6 if optimized and source is self.folded else 0.0, "wrong"),
    )
    assert bnfold.verify(m, after).status == "fail"


def test_what_a_runtime_has_fused_is_no_failure_and_an_error_is_one(tmp_path):
    """The file that onnxruntime saves rounds elsewhere: steps explain a difference, or not."""
    m = bnfold.fold(deployed_network(1))
    saved = optimized(m, tmp_path / "saved.onnx")
    assert quantizers(m, saved).others
    assert bnfold.verify(m, saved).status != "fail"
    scale = next(n.input[4] for n in saved.graph.node if n.op_type == "QLinearConv")
    seen = bnfold.verify(m, wrong(saved, scale, 2.0))
    assert "fail" in {check.status for check in seen.checks}


def reading(first, second, held=None):
    """Two inputs that are rounded; the sum tells them apart."""
    pieces = [
        (op("QuantizeLinear", f"{x} s z", f"q{k}"), {"s": STEP, "z": np.uint8(100)} if k else {})
        for k, x in enumerate((first, second))
    ]
    pieces += [op("DequantizeLinear", f"q{k} s z", f"d{k}") for k in range(2)]
    pieces += [const("Mul", "d0", "m", np.float32(3)), op("Add", "m d1", "y")]
    shapes = {"a": (2, 3), "b": (2, 3)}
    made = model(*pieces, x=shapes, opset=13)
    if held is not None:
        made.graph.initializer.append(numpy_helper.from_array(held, "a"))
    return made


def test_quantizers_of_other_stored_values_do_not_pass():
    values = np.float32([[1, 2, 3], [4, 5, 6]]) / 8
    one, other = (reading("a", "b", held) for held in (values, values + np.float32(STEP)))
    assert bnfold.verify(one, other).status != "pass"
    assert bnfold.verify(one, one).status == "pass"
