"""onnxruntime's products of integers, as its optimizer writes them: the scale and the bias behind
the sums take maps in.

The oracle is onnxruntime, and NumPy in float64 for what a scale of each column means.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from .graphs import (
    bn,
    codes,
    const,
    constants,
    counts,
    done,
    feeds,
    model,
    op,
    optimized,
    overridable,
    positive,
    rand,
    run,
)

MS = "com.microsoft"
KINDS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")


def product(
    kind, *behind, shape=(7, 5), matrix=(5, 6), scale=(), bias=True, given=None, y="y", **attrs
):
    """A product that writes ``p``, and what is behind it. Data of integers are made of ``x``."""
    r = np.random.default_rng(7)
    values = {
        "B": r.integers(-99, 99, matrix).astype(np.int8),
        "bs": r.uniform(0.01, 0.03, scale).astype(np.float32),
        "bz": np.zeros(scale, np.int8),
        "as": np.float32(0.02),
        "az": np.uint8(120),
        "b": rand(matrix[-1]),
        **(given or {}),
    }
    last = " b" if bias else ""
    quantize = op("QuantizeLinear", "x as az", "q")
    if kind == "MatMulIntegerToFloat":
        pieces = [quantize, op(kind, f"q B as bs az bz{last}", "p", name="mm", domain=MS)]
    elif kind == "DynamicQuantizeMatMul":
        pieces = [op(kind, f"x B bs bz{last}", "p", name="mm", domain=MS)]
    else:
        values["b"] = r.integers(-99, 99, matrix[-1]).astype(np.int32)
        pieces = [quantize, op(kind, f"q as az B bs bz{last}", "p", name="mm", domain=MS, **attrs)]
    used = {name for node in pieces for name in node.input}
    pieces[-1] = pieces[-1], {name: v for name, v in values.items() if name in used}
    return model(*pieces, *behind, x=shape, y=y, opset=13, domains={MS: 1})


def folds_to(m, **left):
    after = bnfold.fold(m)
    assert counts(after) == left
    for before, now in zip(run(m, feeds(m)), run(after, feeds(m)), strict=True):
        np.testing.assert_allclose(now, before, rtol=3e-6, atol=3e-6 * np.abs(before).max())
    assert bnfold.verify(m, after).status == "pass"
    return after


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [(), (1,), (6,)])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (6, 5)])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_scale_and_shift(kind, shape, scale, bias):
    """Of any sign, 0 as well; as many rows as columns change nothing."""
    m = product(
        kind,
        const("Mul", "p", "m", np.float32([-2, 0.5, 0, 1, 3, -1])),
        const("Add", "m", "y", rand(6)),
        shape=shape,
        scale=scale,
        bias=bias,
    )
    folds_to(m, **{node.op_type: 1 for node in m.graph.node[:-2]})


@pytest.mark.parametrize("kind", KINDS)
def test_other_axes_stay(kind):
    """A map of rows has no numbers of its own, however many columns there are."""
    m = product(kind, const("Mul", "p", "y", positive(6, 1), name="rows"), shape=(6, 5))
    assert codes(m) == {"rows": "axis-mismatch" if kind != "QGemm" else "quantized-weight"}
    assert counts(bnfold.fold(m)) == counts(m)
    if kind != "QGemm":
        m = product(kind, bn("bn", "p", "y", 7), shape=(2, 7, 5))
        assert codes(m) == {"bn": "axis-mismatch"}


@pytest.mark.parametrize("kind", KINDS[:2])
def test_of_data_without_a_shape(kind):
    """The columns are on the last axis, whatever the rank."""
    m = product(kind, const("Mul", "p", "m", rand(6)), const("Add", "m", "y", rand(6)))
    m.graph.input[0].type.tensor_type.ClearField("shape")
    m.graph.output[0].type.tensor_type.ClearField("shape")
    after = bnfold.fold(m)
    assert "Mul" not in counts(after) and "Add" not in counts(after)
    data = {"x": np.random.default_rng(3).standard_normal((7, 5)).astype(np.float32)}
    np.testing.assert_allclose(run(after, data)[0], run(m, data)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("bias", [True, False])
def test_batches_of_matrices_have_one_scale(kind, bias):
    """onnxruntime multiplies with the scale of another column where there are several."""
    batches = {"shape": (2, 7, 5), "matrix": (2, 5, 6), "bias": bias}
    m = product(kind, const("Mul", "p", "y", rand(6), name="columns"), **batches)
    assert codes(m) == {"columns": "quantized-weight"}
    assert counts(bnfold.fold(m)) == counts(m)
    m = product(
        kind,
        const("Mul", "p", "m", np.float32(-0.5), name="all"),
        const("Add", "m", "y", np.float32(2), name="shift"),
        **batches,
    )
    left = {"Add": 1} if not bias else {}
    folds_to(m, **{node.op_type: 1 for node in m.graph.node[:-2]}, **left)


def test_two_products_of_data():
    """Neither factor is constant, as in attention: the number by which it is divided goes in."""
    stored = {"s": np.float32(0.02), "z": np.uint8(128)}
    m = model(
        (op("QuantizeLinear", "x s z", "q"), stored),
        op("QuantizeLinear", "k s z", "kq"),
        op("MatMulIntegerToFloat", "q kq s s z z", "p", name="mm", domain=MS),
        const("Div", "p", "y", np.float32(8), name="root"),
        x={"x": (2, 3, 4, 5), "k": (2, 3, 5, 4)},
        opset=13,
        domains={MS: 1},
    )
    after = folds_to(m, QuantizeLinear=2, MatMulIntegerToFloat=1)
    (node,) = (n for n in after.graph.node if n.name == "mm")
    assert node.input[2] == "s" and constants(after)[node.input[3]] == np.float32(0.02) / 8


@pytest.mark.parametrize("matrix", [(5, 6), (2, 5, 6)])
def test_a_scale_that_is_computed_leaves_the_other_one(matrix):
    """That of A is one for all, so that it takes no map of columns."""

    def multiplied(behind):
        m = product(KINDS[0], behind, shape=(2, 7, 5), matrix=matrix)
        for node in m.graph.node:
            if node.name == "mm":
                node.input[3] = "computed"
        ahead = op("ReduceMax", "x", "computed", keepdims=0)
        m.graph.node.insert(0, ahead)
        return m

    m = multiplied(const("Mul", "p", "y", np.float32(-0.5), name="all"))
    after = folds_to(m, ReduceMax=1, QuantizeLinear=1, MatMulIntegerToFloat=1)
    (node,) = (n for n in after.graph.node if n.name == "mm")
    assert constants(after)[node.input[2]] == np.float32(-0.5) * np.float32(0.02)
    once = done(m)
    assert all(one.holds for one in certify(m, once.folded, once.applied))
    m = multiplied(const("Mul", "p", "y", rand(6), name="columns"))
    assert codes(m) == {"columns": "quantized-weight"}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("scale", [(), (6,)])
def test_a_gemm_of_integers(scale, transposed):
    """Its bias is of integers: the scale goes in, the shift stays. A lone one for each column does
    not, where zero points are no vector.
    """
    m = product(
        "QGemm",
        const("Mul", "p", "m", rand(6) if scale else np.float32(-0.3), name="scale"),
        const("Add", "m", "y", rand(6), name="shift"),
        scale=scale,
        matrix=(5, 6),
        transB=transposed,
        alpha=0.5,
        given={"B": np.arange(30).reshape((6, 5) if transposed else (5, 6)).astype(np.int8)},
    )
    folds_to(m, QuantizeLinear=1, QGemm=1, Add=1)


def test_maps_behind_a_gemm_of_integers_that_stay():
    """Of rows, of a norm and of columns, as many as rows: the certificate knows the rank."""
    m = product(
        "QGemm",
        const("Mul", "p", "m", positive(6, 1), name="rows"),
        bn("bn", "m", "n", 6),
        const("Add", "n", "y", rand(6), name="shift"),
        shape=(6, 5),
    )
    assert codes(m) == {"rows": "quantized-weight"}
    folds_to(m, QuantizeLinear=1, QGemm=1, Mul=1, BatchNormalization=1)
    once = done(m)
    assert all(one.holds for one in certify(m, once.folded, once.applied))


def test_a_gemm_that_rounds_what_it_puts_out():
    m = product("QGemm", op("DequantizeLinear", "p ys yz", "d"), bn("bn", "d", "y", 6))
    (gemm,) = (n for n in m.graph.node if n.name == "mm")
    gemm.input.extend(["ys", "yz"])
    for name, value in {"ys": np.float32(0.1), "yz": np.uint8(9)}.items():
        m.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    run(m, feeds(m))
    (kept,) = bnfold.plan(m).kept
    assert (kept.code, kept.at) == ("quantizer-between", "mm")


def test_what_rounds_its_data_says_so():
    m = product("DynamicQuantizeMatMul")
    m.graph.node.insert(0, op("Mul", "x half", "n", name="ahead"))
    m.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    m.graph.node[1].input[0] = "n"
    m.graph.output[0].name = "p"
    (kept,) = bnfold.plan(m).kept
    assert (kept.node, kept.code, kept.at) == ("ahead", "quantizer-between", "mm")


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_outside(kind):
    """A scale or a bias that a caller sets or that is computed, an output, and other readers."""
    behind = const("Mul", "p", "y", np.float32(0.5), name="scale")
    assert codes(overridable(product(kind, behind), "bs")) == {"scale": "overridable-weight"}
    m = product(kind, behind, y="p y")
    assert codes(m) == {"scale": "graph-output"}
    m = product(kind, behind)
    for node in m.graph.node:
        scales = ("as", "bs") if node.name == "mm" else ()
        node.input[:] = ["given" if name in scales else name for name in node.input]
    m.graph.input.append(helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, ()))
    assert codes(m) == {"scale": "dynamic-weight"}
    if kind != "QGemm":
        assert codes(overridable(product(kind, behind), "b")) == {"scale": "overridable-weight"}


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("which", ["scale", "bias", "zero", "factor"])
def test_the_certificate_sees_a_wrong_number(kind, which):
    m = product(kind, const("Mul", "p", "m", rand(6)), const("Add", "m", "y", rand(6)))
    once = done(m)
    after = once.folded
    assert all(one.holds for one in certify(m, after, once.applied))
    (node,) = (n for n in after.graph.node if n.name == "mm")
    place = {"scale": 3, "bias": 6, "zero": 5, "factor": 1}[which]
    place -= {"scale": 1, "bias": 2, "zero": 2}.get(which, 0) if kind != KINDS[0] else 0
    values = constants(after)[node.input[place]].copy()
    values.reshape(-1)[-1:] += np.asarray(
        np.spacing(values.reshape(-1)[-1]) * 8 if which in ("scale", "bias") else 1
    ).astype(values.dtype)
    node.input[place] = "wrong"
    after.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
    assert not all(one.holds for one in certify(m, after, once.applied))


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_as_onnxruntime_saves_it(kind, tmp_path):
    """A quantized MatMul, a norm ahead of what follows, and a second product: all norms fold, an
    error of 1 % in a scale fails.
    """
    r = np.random.default_rng(11)
    pieces, tensor = [], "x"
    for i, (inputs, outputs) in enumerate([(5, 6), (6, 4)]):
        values = {
            f"B{i}": r.integers(-99, 99, (inputs, outputs)).astype(np.int8),
            f"bs{i}": r.uniform(0.01, 0.03, outputs).astype(np.float32),
            f"bz{i}": np.zeros(outputs, np.int8),
            f"as{i}": np.float32(0.03),
            f"az{i}": np.uint8(128),
        }
        if kind == "static":
            pieces += [
                op("QuantizeLinear", f"{tensor} as{i} az{i}", f"q{i}"),
                op("DequantizeLinear", f"q{i} as{i} az{i}", f"d{i}"),
                (op("DequantizeLinear", f"B{i} bs{i} bz{i}", f"w{i}", axis=1), values),
                op("MatMul", f"d{i} w{i}", f"p{i}"),
            ]
        else:
            names = f"{tensor} B{i} bs{i} bz{i}"
            pieces.append((op("DynamicQuantizeMatMul", names, f"p{i}", domain=MS), values))
        pieces += [bn(f"bn{i}", f"p{i}", f"n{i}", outputs), op("Sigmoid", f"n{i}", f"r{i}")]
        tensor = f"r{i}"
    pieces.append(op("Identity", tensor, "y"))
    m = model(*pieces, x=(7, 5), opset=13, domains={MS: 1})
    saved = optimized(m, tmp_path / "saved.onnx", "ENABLE_EXTENDED")
    product = "MatMulIntegerToFloat" if kind == "static" else "DynamicQuantizeMatMul"
    assert counts(saved)[product] == counts(saved)["BatchNormalization"] == 2
    after = bnfold.fold(saved)
    assert "BatchNormalization" not in counts(after)
    seen = bnfold.verify(saved, after)
    assert seen.status == "pass", str(seen)
    (node,) = [n for n in after.graph.node if n.op_type == product][-1:]
    at = 3 if kind == "static" else 2
    values = constants(after)[node.input[at]].copy()
    values[2] *= np.float32(1.01)
    node.input[at] = "wrong"
    after.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
    assert bnfold.verify(saved, after).status == "fail"
