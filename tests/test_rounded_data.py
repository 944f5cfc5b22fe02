"""Data that is rounded at run time: what its scales take in, and what stays behind a quantizer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from . import graphs
from .graphs import (
    FLOAT,
    bn,
    codes,
    const,
    constants,
    conv,
    counts,
    done,
    model,
    op,
    overridable,
    positive,
    rand,
    subgraph,
)

U8, STEP = np.uint8(128), np.float32(0.03)


def quantized(x, y, scale=STEP, zero=U8, **attrs):
    """A tensor behind QuantizeLinear and DequantizeLinear, which share scale and zero point."""
    values = {f"{y}.s": scale, f"{y}.z": zero}
    names = f"{y}.s {y}.z"
    return [
        (op("QuantizeLinear", f"{x} {names}", f"{y}.q", name=f"{y}.quantize", **attrs), values),
        op("DequantizeLinear", f"{y}.q {names}", y, name=f"{y}.dequantize", **attrs),
    ]


def run(m, level="DISABLE_ALL"):
    session = graphs.session(m, level)
    generator = np.random.default_rng(3)
    feeds = {
        i.name: generator.standard_normal([n if isinstance(n, int) else 2 for n in i.shape])
        for i in session.get_inputs()
    }
    return session.run(None, {name: a.astype(np.float32) for name, a in feeds.items()})


def folds_to(m, **left):
    """The model folds to these operators, computes the same, and the check agrees."""
    after = bnfold.fold(m)
    assert counts(after) == left
    for before, now in zip(run(m), run(after), strict=True):
        np.testing.assert_allclose(now, before, rtol=2e-6, atol=2e-6 * np.abs(before).max())
    assert bnfold.verify(m, after).status == "pass"
    return after


def test_a_uniform_scale_goes_into_the_dequantizer_alone():
    """The quantizer shares its scale, and keeps it."""
    m = model(*quantized("x", "d"), const("Mul", "d", "y", np.float32(0.5)), opset=13)
    after = folds_to(m, QuantizeLinear=1, DequantizeLinear=1)
    first, second = after.graph.node
    assert constants(after)[first.input[1]] == np.float32(0.03)
    assert constants(after)[second.input[1]] == np.float32(0.03) * np.float32(0.5)


def test_carried_back_to_the_dequantizer():
    m = model(
        *quantized("x", "d"),
        op("MaxPool", "d", "p", kernel_shape=[2, 2]),
        op("Relu", "p", "r"),
        const("Mul", "r", "s", np.float32(0.5)),
        op("Sigmoid", "s", "y"),
        opset=13,
    )
    folds_to(m, QuantizeLinear=1, DequantizeLinear=1, MaxPool=1, Relu=1, Sigmoid=1)


def test_along_the_axis_of_its_own_scales():
    scales, zeros = np.float32([0.03, 0.02, 0.01]), np.zeros(3, np.uint8)
    pieces = quantized("x", "d", scales, zeros, axis=1)
    m = model(*pieces, const("Mul", "d", "y", positive(3, 1, 1)), x=(2, 3, 3, 4), opset=13)
    folds_to(m, QuantizeLinear=1, DequantizeLinear=1)
    m = model(*pieces, const("Mul", "d", "y", positive(3, 1), name="s"), x=(2, 3, 3, 4), opset=13)
    assert codes(m) == {"s": "axis-mismatch"}


@pytest.mark.parametrize(
    "value, code",
    [
        (np.float32(-0.5), "not-carried"),
        (np.float32(0.0), "not-carried"),
        (positive(3, 1, 1), "quantizer-between"),
    ],
)
def test_what_its_scale_cannot_hold(value, code):
    m = model(*quantized("x", "d"), const("Mul", "d", "y", value, name="s"), opset=13)
    assert codes(m) == {"s": code}
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_what_its_scale_cannot_hold_goes_forward():
    m = model(
        *quantized("x", "d"),
        const("Mul", "d", "a", np.float32(-0.5)),
        conv("conv", "a", "y", (4, 3, 3, 3)),
        opset=13,
    )
    folds_to(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)


@pytest.mark.parametrize("reader", ["node", "output"])
def test_others_that_read_what_it_puts_out(reader):
    more = [op("Relu", "d", "u")] if reader == "node" else []
    m = model(
        *quantized("x", "d"),
        const("Mul", "d", "e", np.float32(0.5), name="s"),
        op("Sigmoid", "e", "y"),
        *more,
        y="y u" if more else "y d",
        opset=13,
    )
    assert set(codes(m)) == {"s"}
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
def test_the_reason_names_the_quantizer(opset):
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        *quantized("c", "d"),
        bn("bn", "d", "y", 4),
        opset=opset,
    )
    (kept,) = bnfold.plan(m).kept
    assert (kept.code, kept.at) == ("quantizer-between", "d.quantize")
    assert "conv" in kept.message and "float model" in kept.advice


def test_the_reason_names_a_quantizer_ahead_of_the_linear_operator():
    """As where the norm comes first. In the float model it would go into the Conv."""
    m = model(
        bn("bn", "x", "n", 3),
        *quantized("n", "d"),
        conv("conv", "d", "y", (4, 3, 3, 3)),
        opset=13,
    )
    (kept,) = bnfold.plan(m).kept
    assert (kept.code, kept.at) == ("quantizer-between", "d.quantize")


def test_integers_from_outside():
    """An image of bytes: its scale takes in what divides it, not what shifts it."""
    m = model(
        (op("DequantizeLinear", "x s", "d", name="dq"), {"s": np.float32(1)}),
        const("Div", "d", "a", np.float32(255)),
        const("Sub", "a", "b", np.float32(0.5), name="shift"),
        conv("conv", "b", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        opset=13,
    )
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    after = bnfold.fold(m)
    assert counts(after) == {"DequantizeLinear": 1, "Sub": 1, "Conv": 1}
    assert set(codes(m).values()) == {"zero-padding"}
    assert bnfold.verify(m, after).status == "pass"


def test_a_wrong_scale_of_a_dequantizer_fails():
    m = model(
        *quantized("x", "d"),
        const("Mul", "d", "e", np.float32(0.5)),
        conv("conv", "e", "y", (4, 3, 3, 3)),
        opset=13,
    )
    after = bnfold.fold(m)
    (scale,) = (t for t in after.graph.initializer if t.name == after.graph.node[1].input[1])
    wrong = numpy_helper.to_array(scale) * np.float32(1.01)
    scale.CopyFrom(numpy_helper.from_array(wrong, scale.name))
    assert bnfold.verify(m, after).status == "fail"


def gemm_of_integers(bias, tail):
    """Data and weight of integers; onnxruntime runs it as QGemm, whatever follows."""
    generator = np.random.default_rng(2)
    scale = generator.uniform(0.001, 0.01, 6).astype(np.float32)
    values = {
        "wq": generator.integers(-99, 99, (6, 5)).astype(np.int8),
        "ws": scale,
        "wz": np.zeros(6, np.int8),
    }
    pieces = [
        *quantized("x", "d"),
        (op("DequantizeLinear", "wq ws wz", "w", axis=0), values),
    ]
    if bias == "integers":
        given = {"bq": np.arange(6, dtype=np.int32), "bs": scale * STEP}
        pieces.append((op("DequantizeLinear", "bq bs", "b", axis=0), given))
    params = {"b": rand(6)} if bias == "floats" else {}
    names = "d w b" if bias else "d w"
    pieces.append((op("Gemm", names, "g", transB=1, name="gemm"), params))
    pieces.append(const("Mul", "g", "m", positive(6), name="scale"))
    pieces.append(const("Add", "m", "a", rand(6), name="shift"))
    pieces += quantized("a", "y") if tail else [op("Sigmoid", "a", "y")]
    return model(*pieces, x=(7, 5), opset=13)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(
    "bias, left", [("", {"shift"}), ("integers", {"scale", "shift"}), ("floats", set())]
)
def test_a_gemm_of_integers_gets_no_bias_of_floats(bias, left, tail, tmp_path):
    """Without a quantizer behind it onnxruntime would run it on floats."""
    m = gemm_of_integers(bias, tail)
    after = bnfold.fold(m)
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, after))
    kept = {one.node: one.code for one in bnfold.plan(m).kept}
    assert now["QGemm"] >= before["QGemm"]
    assert kept.keys() == (set() if tail else left)
    assert set(kept.values()) <= {"fused-operator"}
    assert bnfold.verify(m, after).status == "pass"


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5)])
@pytest.mark.parametrize(
    "between, tail, goes",
    [
        ("Mul Add", False, False),
        ("Mul Add", True, True),
        ("Mul", False, True),
        ("Add Mul", False, True),
        ("Mul Relu Add", False, False),
        ("Relu Mul", False, True),
        ("BatchNormalization", False, False),
    ],
)
def test_a_matmul_of_integers_keeps_what_parts_it_from_an_add(between, tail, goes, shape, tmp_path):
    """onnxruntime would make the two a Gemm of floats, unless a quantizer follows."""
    generator = np.random.default_rng(2)
    values = {
        "wq": generator.integers(-99, 99, (5, 6)).astype(np.int8),
        "ws": generator.uniform(0.001, 0.01, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
    }
    pieces = [
        *quantized("x", "d"),
        (op("DequantizeLinear", "wq ws wz", "w", axis=1), values),
        op("MatMul", "d w", "t0", name="mm"),
    ]
    for number, kind in enumerate(between.split()):
        source, name = f"t{number}", f"t{number + 1}"
        if kind == "BatchNormalization":
            pieces.append(bn("bn", source, name, shape[1] if len(shape) == 3 else 6))
        elif kind == "Relu":
            pieces.append(op("Relu", source, name))
        else:
            pieces.append(const(kind, source, name, positive(6)))
    pieces += quantized(name, "y") if tail else [op("Sigmoid", name, "y")]
    m = model(*pieces, x=shape, opset=13)
    after = bnfold.fold(m)
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, after))
    if len(shape) == 2 or "Batch" not in between:
        assert (after.SerializeToString() != m.SerializeToString()) == goes
    integers = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")
    assert sum(now[kind] for kind in integers) >= sum(before[kind] for kind in integers)
    assert bnfold.verify(m, after).status == "pass"


@pytest.mark.parametrize(
    "shape, other, goes",
    [
        ((2, 7, 5), (2, 7, 6), True),
        ((2, 7, 5), (7, 6), True),
        ((2, 7, 5), (6,), False),
        ((7, 5), (7, 6), False),
        ((6, 5), (6, 6), False),
    ],
)
def test_a_residual_is_no_bias(shape, other, goes, tmp_path):
    """onnxruntime makes a Gemm of two matrices and anything, and of batches and a vector alone."""
    generator = np.random.default_rng(2)
    values = {
        "wq": generator.integers(-99, 99, (5, 6)).astype(np.int8),
        "ws": generator.uniform(0.001, 0.01, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
    }
    m = model(
        *quantized("x", "d"),
        (op("DequantizeLinear", "wq ws wz", "w", axis=1), values),
        op("MatMul", "d w", "t", name="mm"),
        const("Mul", "t", "s", positive(6), name="scale"),
        op("Add", "s other", "u"),
        op("Sigmoid", "u", "y"),
        x={"x": shape, "other": other},
        opset=13,
    )
    after = bnfold.fold(m)
    assert codes(m) == ({} if goes else {"scale": "fused-operator"})
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, after))
    assert before["MatMulIntegerToFloat"] == now["MatMulIntegerToFloat"] == 1
    assert bnfold.verify(m, after).status == "pass"


def test_a_gemm_of_integers_keeps_what_parts_it_from_a_relu(tmp_path):
    m = gemm_of_integers("", False)
    for node in m.graph.node:  # Gemm → Mul → Relu
        if node.name == "shift":
            node.op_type = "Relu"
            del node.input[1:]
    after = bnfold.fold(m)
    assert codes(m)["scale"] == "fused-operator"
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, after))
    assert now["QGemm"] == before["QGemm"] == 1


def residual(m):
    """What is computed is added to other data ahead of the quantizer."""
    (tail,) = (n for n in m.graph.node if n.name == "y.quantize")
    at = list(m.graph.node).index(tail)
    m.graph.node.insert(at, op("Add", "a other", "sum"))
    tail.input[0] = "sum"
    m.graph.input.append(helper.make_tensor_value_info("other", FLOAT, (7, 6)))
    return m


def captured(m):
    """The body of an If reads it as well as the quantizer."""
    body = subgraph(op("Relu", "a", "r"), y="r")
    other = subgraph(op("Neg", "a", "s"), y="s")
    m.graph.node.append(op("If", "go", "u", then_branch=body, else_branch=other))
    m.graph.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, ()))
    m.graph.output.append(helper.make_tensor_value_info("u", FLOAT, None))
    return m


def overridden(m):
    """A caller may set the scale of the data; they are no weight for that."""
    return overridable(m, "d.s")


@pytest.mark.parametrize("tail, change", [(True, residual), (True, captured), (False, overridden)])
def test_a_gemm_of_integers_stays_one_a_step_outside(tail, change, tmp_path):
    m = change(gemm_of_integers("", tail))
    before, now = (operators(each, tmp_path / "optimized.onnx") for each in (m, bnfold.fold(m)))
    assert before["QGemm"] == 1
    assert now["QGemm"] == 1


def test_data_with_a_scale_that_is_computed_are_no_weight(tmp_path):
    m = gemm_of_integers("", False)
    data = next(n for n in m.graph.node if n.name == "d.dequantize")
    data.input[1] = "now"
    m.graph.node.insert(0, op("Identity", "given", "now"))
    m.graph.input.append(helper.make_tensor_value_info("given", FLOAT, ()))
    assert codes(m)["shift"] == "fused-operator"


def test_a_quantizer_of_another_domain_is_none():
    """Nothing is known of it: the Gemm reads no integers, and takes a bias of floats."""
    m = gemm_of_integers("", False)
    data = next(n for n in m.graph.node if n.name == "d.dequantize")
    data.domain = "mine"
    m.opset_import.append(helper.make_opsetid("mine", 1))
    assert "shift" not in codes(m)


# --- dynamic quantization ------------------------------------------------------------------------


def product(shape=(6, 4), scale=(), left=False, kind="MatMulInteger", **attrs):
    """``y = Cast(n)·(x·s)`` as onnxruntime's quantize_dynamic writes it."""
    generator = np.random.default_rng(7)
    values = {
        "w": generator.integers(-99, 99, shape).astype(np.int8),
        "ws": generator.uniform(0.01, 0.02, scale).astype(np.float32),
        "wz": np.int8(0),
    }
    return [
        op("DynamicQuantizeLinear", "x", "xq xs xz"),
        (op(kind, "xq w xz wz", "n", **attrs), values),
        op("Cast", "n", "f", to=TensorProto.FLOAT),
        op("Mul", "ws xs" if left else "xs ws", "s", name="scales"),
        op("Mul", "s f" if left else "f s", "p", name="rescale"),
    ]


def operators(m, path):
    """What onnxruntime runs, its optimizations on."""
    return Counter(node.op_type for node in graphs.optimized(m, path).graph.node)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("scale", [(), (1,), (4,)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_scale_of_a_dynamic_product(scale, left, sign, tmp_path):
    """It may be of any sign, as a factor; the runtime still runs the whole as one operator."""
    m = model(
        *product(scale=scale, left=left),
        const("Add", "p", "a", rand(4)),
        const("Mul", "a", "y", sign * positive(4)),
        x=(2, 5, 6),
        opset=13,
    )
    after = folds_to(m, DynamicQuantizeLinear=1, MatMulInteger=1, Cast=1, Mul=2, Add=1)
    for before, now in zip(run(m), run(after, "ENABLE_ALL"), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-5)
    assert codes(m)["scales"] == "fused-operator"
    left_over = operators(m, tmp_path / "optimized.onnx")
    assert left_over.pop("Mul") == 1
    assert operators(after, tmp_path / "optimized.onnx") == left_over


@pytest.mark.parametrize("scale", [(), (4, 1, 1), (1, 4, 1, 1)])
def test_the_scale_of_a_dynamic_convolution(scale):
    """Channels lie on axis 1, though W = 4 as well."""
    m = model(
        *product((4, 3, 3, 3), scale, kind="ConvInteger", pads=[1, 1, 1, 1]),
        const("Add", "p", "a", rand(1, 4, 1, 1)),
        bn("bn", "a", "y", 4),
        x=(2, 3, 4, 4),
        opset=13,
    )
    folds_to(m, DynamicQuantizeLinear=1, ConvInteger=1, Cast=1, Mul=2, Add=1)


@pytest.mark.parametrize("change", ["scales read", "sums read", "output", "other axis", "along W"])
def test_a_step_outside_of_a_dynamic_product(change):
    more = {"scales read": [op("Relu", "s", "u")], "sums read": [op("Relu", "f", "u")]}
    factor = positive(5, 1) if change == "other axis" else positive(4)
    kind, shape, x = "MatMulInteger", (6, 4), (2, 5, 6)
    if change == "along W":
        kind, shape, x = "ConvInteger", (4, 3, 1, 1), (2, 3, 4, 4)
    m = model(
        *product(shape, kind=kind),
        const("Mul", "p", "y", factor, name="c"),
        *more.get(change, ()),
        x=x,
        y="y u" if change in more else "y s" if change == "output" else "y",
        opset=13,
    )
    after = bnfold.fold(m)
    assert "c" in codes(m) or counts(after)["Mul"] == counts(m)["Mul"] - 1
    for before, now in zip(run(m), run(after), strict=True):
        np.testing.assert_allclose(now, before, rtol=2e-6, atol=2e-5)
    assert bnfold.verify(m, after).status == "pass"
    if change in ("other axis", "along W"):
        assert after.SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "scale", "factor"),
    [("MatMulInteger", (1, 1, 4), (4, 1)), ("ConvInteger", (1, 1, 4, 1, 1), (4, 1, 1, 1))],
)
def test_scales_of_a_higher_rank_move_the_channels(kind, scale, factor):
    """Rows, or the batch, then lie on the axis that channels had, and are as many."""
    shape, x = ((6, 4), (4, 6)) if kind == "MatMulInteger" else ((4, 3, 1, 1), (4, 3, 5, 5))
    m = model(
        *product(shape, scale, kind=kind),
        const("Mul", "p", "y", positive(*factor)),
        x=x,
        opset=13,
    )
    folds_to(m, DynamicQuantizeLinear=1, **{kind: 1}, Cast=1, Mul=3)


def test_a_wrong_scale_of_a_dynamic_product_fails():
    m = model(*product(scale=(4,)), const("Mul", "p", "y", positive(4)), x=(2, 5, 6), opset=13)
    after = folds_to(m, DynamicQuantizeLinear=1, MatMulInteger=1, Cast=1, Mul=2)
    names = {name for node in after.graph.node if node.op_type == "Mul" for name in node.input}
    (scale,) = (t for t in after.graph.initializer if t.name in names)
    wrong = numpy_helper.to_array(scale).copy()
    wrong[1] *= np.float32(1.01)
    scale.CopyFrom(numpy_helper.from_array(wrong, scale.name))
    assert bnfold.verify(m, after).status == "fail"


@pytest.mark.parametrize("wrong", ["read by another", "an output", "another domain", "other data"])
def test_a_dynamic_product_whose_scales_others_read_fails(wrong):
    """The certificate looks at the Mul of the two scales, not only at the one behind it."""
    m = model(
        *product(scale=(4,)),
        op("Neg", "x", "other"),
        const("Mul", "p", "y", positive(4)),
        x=(2, 5, 6),
        opset=13,
    )
    once = done(m)
    after, applied = once.folded, once.applied
    assert all(c.holds for c in certify(m, after, applied))
    inner = next(n for n in after.graph.node if n.name == "scales")
    (data,) = (k for k, name in enumerate(inner.input) if name == "xs")
    if wrong == "read by another":
        after.graph.node.append(op("Relu", inner.output[0], "u"))
    elif wrong == "an output":
        after.graph.output.append(helper.make_tensor_value_info(inner.output[0], FLOAT, None))
    elif wrong == "another domain":
        inner.domain = "mine"
    else:
        inner.input[data] = "other"
    assert not any(c.holds for c in certify(m, after, applied) if c.law == "absorb")
