"""Weights that operators compute from constants, where float32 evaluations are apart.

A sum that cancels differs from engine to engine, so what is folded is rounded once at the end, as
float64 has it. Where that is not enough to tell what a network has, the weight is no constant.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import bnfold

from .graphs import (
    bn,
    codes,
    constants,
    counts,
    model,
    op,
    rand,
    reseed,
    run,
    within_ulps,
)

SHAPE = (4, 8, 3, 3)
ONE_MORE = np.array([2.0**24, 1, -(2.0**24)], np.float32)
"""Their sum is 0 in float32, because 2²⁴ + 1 is 2²⁴ there, and 1 in float64."""


def spectral(seed):
    """A Conv whose weight is divided by ``u·W·v``, and a norm behind it."""
    draw = np.random.default_rng(seed)
    values = {"raw": SHAPE, "u": (4,), "v": (72,)}
    values = {name: draw.standard_normal(of).astype(np.float32) for name, of in values.items()}
    values["u"][3] = -(values["u"][:3] @ (values["raw"].reshape(4, -1) @ values["v"])[:3])
    values["u"][3] /= (values["raw"].reshape(4, -1) @ values["v"])[3] * np.float32(1 - 1e-3)
    reseed(seed)
    made = model(
        (op("Reshape", "raw rows", "matrix"), values | {"rows": np.array([4, -1])}),
        op("MatMul", "matrix v", "product"),
        op("Mul", "u product", "terms"),
        op("ReduceSum", "terms", "sigma", keepdims=0),
        op("Div", "raw sigma", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "b", 4),
        op("Relu", "b", "y"),
        x=(1, 8, 6, 6),
    )
    return made, values


def new_weight(made, folded, weight):
    """The name of a fold's weight, and what it is in float64: the original's, scaled."""
    scale, variance = (
        constants(made)[f"bn.{part}"].astype(np.float64) for part in ("scale", "var")
    )
    (name,) = (n.input[1] for n in folded.graph.node if n.op_type == "Conv")
    return name, weight * (scale / np.sqrt(variance + 0.01)).reshape(-1, 1, 1, 1)


def in_float64(values):
    raw, u, v = (values[name].astype(np.float64) for name in ("raw", "u", "v"))
    return raw / (u @ (raw.reshape(4, -1) @ v))


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_behind_a_sum_that_cancels(seed):
    """The fold is right to the last digit, is called right, and 1 % in a channel is noticed."""
    made, values = spectral(seed)
    folded = bnfold.fold(made)
    name, right = new_weight(made, folded, in_float64(values))
    within_ulps(constants(folded)[name], right, 1.5)
    assert bnfold.verify(made, folded).status == "pass"
    (tensor,) = (one for one in folded.graph.initializer if one.name == name)
    wrong = constants(folded)[name].copy()
    wrong[2] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(wrong, name))
    assert bnfold.verify(made, folded).status == "fail"


def taken_in(made):
    """The fold, which has no norm and computes in onnxruntime what the original does."""
    folded = bnfold.fold(made)
    assert counts(folded).get("BatchNormalization", 0) == 0
    given = {"x": rand(1, 8, 6, 6)}
    (before,), (after,) = run(made, given), run(folded, given)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    return folded


FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
JUMPS = {
    "Round": (2048.5, 1, [op("Round", "total", "step")]),
    "Floor": (3, -1, [op("Floor", "total", "step")]),
    "Ceil": (3, 1, [op("Ceil", "total", "step")]),
    "Cast to integers": (
        3,
        -1,
        [
            op("Cast", "total", "whole", to=TensorProto.INT32),
            op("Cast", "whole", "step", to=FLOAT),
        ],
    ),
    "Cast to half precision": (
        2049,
        1,
        [
            op("Cast", "total", "short", to=HALF),
            op("Cast", "short", "long", to=FLOAT),
            op("Sub", "long border", "step"),
        ],
    ),
    "Where": (
        3,
        1,
        [op("Greater", "total border", "larger"), op("Where", "larger one total", "step")],
    ),
    "Less": (
        3,
        1,
        [op("Less", "border total", "less"), op("Cast", "less", "step", to=FLOAT)],
    ),
    "Equal": (
        3,
        1,
        [op("Equal", "border total", "same"), op("Cast", "same", "step", to=FLOAT)],
    ),
}
"""Operators that jump, with a number where they do, and the side of it that they tell from it."""


def steps_of(name, parts, border):
    """The weight is what is stored, times a step that is taken behind a sum."""
    consts = {"parts": parts, "border": border, "one": np.float32(1), "raw": rand(*SHAPE)}
    return model(
        (op("ReduceSum", "parts", "total", keepdims=0), consts),
        *JUMPS[name][2],
        op("Mul", "raw step", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )


@pytest.mark.parametrize("name", JUMPS)
def test_a_step_that_engines_may_take_otherwise_is_no_constant(name):
    """A border and two addends too small for float32 are added up: the sum is the border in
    onnxruntime, and the next number of float32 where the small ones are added up first.
    """
    at, side, _ = JUMPS[name]
    border = np.float32(at)
    little = np.float32(0.375 * side) * np.spacing(border)
    parts = np.array([border, little, little], np.float32)
    assert np.float32(parts.astype(np.float64).sum()) != border == run_alone(parts)
    assert codes(steps_of(name, parts, border))["bn"] == "dynamic-weight"


@pytest.mark.parametrize("name", JUMPS)
def test_a_step_that_all_engines_take_is_a_constant(name):
    at, side, _ = JUMPS[name]
    parts = np.array([at, 0.2 * side, 0.1 * side], np.float32)
    if name in ("Round", "Cast to half precision"):
        parts[0] = np.round(at) + 3.3
    taken_in(steps_of(name, parts, np.float32(at)))


SUMS = {
    "ReduceSum": op("ReduceSum", "k last", "sum", keepdims=0),
    "ReduceMean": op("ReduceMean", "k", "sum", keepdims=0, axes=[1]),
    "MatMul": op("MatMul", "k ones", "sum"),
    "Gemm": op("Gemm", "k column", "sums"),
    "Gemm's bias": op("Gemm", "little column large", "sums"),
    "Einsum": op("Einsum", "k", "sum", equation="ij->i"),
    "LayerNormalization": op("LayerNormalization", "little unit larges", "sums", axis=1),
}
LARGE = np.float32(1.5 * 2**23)


@pytest.mark.parametrize(
    "numbers", [(2.007, 300.4, 1.0035, 500.499), (2000.4, 9000.2, 7000.3, 3000.45)]
)
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_rounds_is_not_undone(name, numbers):
    """A large number is added in a sum of several, and taken away: that leaves whole numbers. How
    they are rounded is up to the engine, so they are none of float64, whatever they are.
    """
    little = np.float32(numbers) * (2 if name == "ReduceMean" else 1)
    large = np.float32(LARGE * (2 if name == "ReduceMean" else 1))
    consts = {
        "k": np.stack([little, np.full(4, large)], 1),
        "last": np.array([1]),
        "ones": np.ones(2, np.float32),
        "column": np.ones((1 if "bias" in name else 2, 1), np.float32),
        "little": little.reshape(4, 1),
        "large": LARGE,
        "unit": np.ones(1, np.float32),
        "larges": np.full(1, LARGE),
        "rows": np.array([4, 1, 1, 1]),
        "raw": rand(*SHAPE),
    }
    if name == "LayerNormalization":
        consts["little"] = np.stack([little, -little, 3 * little], 1)
        consts["unit"], consts["larges"] = np.float32([1.7, 2.3, 1.1]), np.full(3, LARGE)
    pieces = [SUMS[name]]
    if SUMS[name].output[0] == "sums":
        width = 3 if name == "LayerNormalization" else 1
        consts["pick"] = np.array(0)
        pieces += [op("Gather", "sums pick", "sum", axis=1)] if width else []
    made = model(
        (pieces[0], consts),
        *pieces[1:],
        op("Sub", "sum large", "whole"),
        op("Reshape", "whole rows", "factor"),
        op("Mul", "raw factor", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    folded = bnfold.fold(made)
    given = {"x": rand(1, 8, 6, 6)}
    (before,), (after,) = run(made, given), run(folded, given)
    for one, other in zip(before[0], after[0], strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * np.abs(one).max())


@pytest.mark.parametrize("parts, stays_so", [((2.5, 0, 0), True), ((2.5, 0.3, 0.1), False)])
def test_a_weight_is_quantized_where_all_engines_do_it_alike(parts, stays_so):
    """Each number of it is a sum: half way between two integers, or not."""
    signs = np.sign(rand(*SHAPE)).astype(np.float32)
    made = model(
        (
            op("ReduceSum", "parts axes", "total", keepdims=0),
            {"parts": np.stack([np.float32(part) * signs for part in parts]), "axes": [0]},
        ),
        (op("Mul", "total third", "part"), {"third": np.float32(1 if stays_so else 1 / 3)}),
        (
            op("QuantizeLinear", "part one zero", "whole"),
            {"one": np.float32(1), "zero": np.int8(0)},
        ),
        op("DequantizeLinear", "whole one zero", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    if stays_so:
        assert codes(made)["bn"] == "dynamic-weight"
    else:
        taken_in(made)


def run_alone(parts, axes=None):
    """Their sum in onnxruntime."""
    axes = list(range(parts.ndim)) if axes is None else axes
    pieces = op("ReduceSum", "x axes", "y", keepdims=0), {"axes": np.array(axes)}
    return run(model(pieces, x=parts.shape), {"x": parts})[0]


def test_a_weight_that_a_sum_rounds_stays_rounded():
    """1.5·2²³ is added and taken away behind a root of squares: that leaves whole numbers."""
    raw = rand(*SHAPE)
    consts = {"raw": raw, "large": np.float32(1.5 * 2**23), "steps": np.float32(70)}
    made = model(
        (op("ReduceL2", "raw", "norm", keepdims=0, axes=[0, 1, 2, 3]), consts),
        op("Div", "norm steps", "one"),
        op("Div", "raw one", "counted"),
        op("Add", "large counted", "low"),
        op("Sub", "low large", "whole"),
        op("Conv", "x whole", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    folded = taken_in(made)
    exact = raw.astype(np.float64)
    whole = np.rint(exact / (np.linalg.norm(exact) / 70))
    assert len(np.unique(whole)) > 2
    name, right = new_weight(made, folded, whole)
    within_ulps(constants(folded)[name], right, 1.5)


def test_what_float32_does_not_tell_is_no_constant():
    """Its sum is 0, and not 1: nobody knows whether a network was trained with that."""
    made = model(
        (op("ReduceSum", "k", "s"), {"k": ONE_MORE, "raw": rand(*SHAPE)}),
        op("Reshape", "s shape", "t"),
        op("Add", "raw t", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
        weights={"shape": np.array([1, 1, 1, 1])},
    )
    assert codes(made)["bn"] == "dynamic-weight"


@pytest.mark.parametrize("is_small", [True, False])
def test_small_whole_numbers_add_up_alike_everywhere(is_small):
    """A step behind their sum is a constant, and none behind a sum that float32 does not hold."""
    parts = np.float32([3, 5, -7, 2**11 if is_small else 2**24])
    assert (codes(steps_of("Floor", parts, np.float32(1))) == {}) == is_small


def test_a_large_weight_that_jumps_is_no_constant():
    """What other engines have is not kept of it."""
    made = model(
        (op("ReduceMean", "raw", "mean"), {"raw": rand(80, 80, 7, 7), "axes": [0]}),
        op("Sub", "raw mean", "centred"),
        op("Sign", "centred", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 80),
        x=(1, 80, 8, 8),
    )
    assert codes(made)["bn"] == "dynamic-weight"
    for node in made.graph.node:
        if node.op_type == "Sign":
            node.op_type = "Relu"
    assert counts(bnfold.fold(made)) == {"Conv": 1}


def test_numbers_near_0_in_a_weight_that_is_centred():
    """One weight is its row's mean, and a row is centred: what engines differ by shows in neither
    next to the others.
    """
    raw = rand(*SHAPE)
    raw -= raw.mean((1, 2, 3), keepdims=True)
    made = model(
        (op("ReduceMean", "raw", "mean", axes=[1, 2, 3]), {"raw": raw}),
        op("Sub", "raw mean", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    taken_in(made)
