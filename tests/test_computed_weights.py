"""Weights that operators compute from constants, where float32 evaluations are apart.

A sum that cancels differs from engine to engine, so what is folded is rounded once at the end, as
float64 has it. Where that is not enough to tell what a network has, the weight is no constant.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold._core.reasons import Reason
from bnfold._onnx.merge.merging import read
from bnfold._onnx.read import evaluation
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.engines import others
from bnfold._onnx.read.evaluation import evaluated, rounds, widened
from bnfold._onnx.read.scopes import read_scopes

from .graphs import (
    bn,
    codes,
    constants,
    counts,
    model,
    op,
    positive,
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


def both(node, *inputs):
    """What an operator makes of constants in their own type and in float64."""

    def made(one, read):
        return evaluated(one, read, 17)

    stepwise = made(node, inputs)
    elsewhere = others(node, inputs, [None] * len(inputs), stepwise, rounds(node, stepwise), made)
    return stepwise, widened(node, inputs, [None] * len(inputs), stepwise, elsewhere, 17)


@pytest.mark.parametrize("number", [100.0, -100.0])
def test_numbers_that_float32_does_not_hold(number):
    """exp(100) is infinite in the network, and exp(−100) has few bits: so they are when read on."""
    with np.errstate(over="ignore"):
        stepwise, wide = both(op("Exp", "k", "e"), np.float32([number]))
    np.testing.assert_array_equal(stepwise if wide is None else wide, stepwise)


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


def test_numbers_rounded_alike_everywhere_are_not_carried():
    """Then what the network computes is known to the last digit, and it is folded as it is."""
    values = [rand(4, 3), positive(4, 3)]
    for kind in ("Add", "Sub", "Mul", "Div", "Max"):
        piece = op(kind, "a b", "k"), dict(zip("ab", values))
        made = model(piece, op("Add", "x k", "y"), x=(4, 3))
        found, wide = both(made.graph.node[0], *values)
        assert wide is None
        zero = {"x": np.zeros((4, 3), np.float32)}
        np.testing.assert_array_equal(run(made, zero)[0], found)


def test_other_types_are_not_carried():
    for kind in (np.float16, np.float64):
        values, wide = both(op("ReduceSum", "k", "s"), rand(4).astype(kind))
        assert values.dtype == kind and wide is None


def test_what_the_reference_knows_in_float32_alone_is_evaluated_in_float32():
    values, wide = both(op("MeanVarianceNormalization", "k", "y"), rand(2, 3, 4, 4))
    assert values.dtype == np.float32 and wide is None


NARROW = {
    "ReduceL1": op("ReduceL1", "x", "y", axes=[1]),
    "ReduceL2": op("ReduceL2", "x", "y", axes=[1]),
    "ReduceLogSumExp": op("ReduceLogSumExp", "x", "y", axes=[1]),
    "ReduceMean": op("ReduceMean", "x", "y", axes=[1]),
    "ReduceSum": op("ReduceSum", "x", "y"),
    "ReduceSumSquare": op("ReduceSumSquare", "x", "y", axes=[1]),
    "Softmax": op("Softmax", "x", "y", axis=1),
    "Sum": op("Sum", "x x x", "y"),
    "Exp": op("Exp", "x", "y"),
    "Sigmoid": op("Sigmoid", "x", "y"),
    "Tanh": op("Tanh", "x", "y"),
    "Pow": op("Pow", "x x", "y"),
    "MatMul": op("MatMul", "x x", "y"),
    "LayerNormalization": op("LayerNormalization", "x g", "y", axis=1),
}


@pytest.mark.parametrize("size", [1e-4, 1, 40])
@pytest.mark.parametrize("name", NARROW)
def test_half_precision_is_rounded_once(name, size):
    """A sum of squares leaves its range, though the root does not; a long sum loses its digits.
    onnxruntime adds up in float32 and rounds then.
    """
    if name == "LayerNormalization" and size < 1:
        pytest.skip("its epsilon is what remains")
    node = NARROW[name]
    values = (np.abs(rand(64, 64)) * size).astype(np.float16)
    given = {each: values if each == "x" else values[0] for each in node.input}
    infos = [helper.make_tensor_value_info(k, HALF, v.shape) for k, v in given.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info("y")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (right,) = run(made, given)
    found = evaluated(node, [given[each] for each in node.input], 17)
    assert found.dtype == right.dtype
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - right.astype(np.float64))
        spacing = np.spacing(np.abs(right)).astype(np.float64)
    assert ((found == right) | (off <= spacing)).all()


def test_bfloat16_is_rounded_once():
    """A sum of 4096 ones is 256 there, if it is added up one by one."""
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    ones = np.ones(4096, kind)
    for name, right in ("ReduceSum", 4096), ("ReduceL2", 64), ("ReduceMean", 1):
        found = evaluated(op(name, "k", "s"), [ones], 17)
        assert found.dtype == kind and float(found.reshape(())) == right
    assert float(evaluated(op("MatMul", "k k", "s"), [ones, ones], 17)) == 4096


def test_a_norm_of_weights_of_half_precision():
    """As weight normalization writes it. The sum of squares is far below what float16 holds."""
    values = {"v": (rand(*SHAPE) * 1e-4).astype(np.float16), "g": positive(4, 1, 1, 1)}
    values["g"] = values["g"].astype(np.float16)
    made = model(
        (op("ReduceL2", "v", "n", axes=[1, 2, 3]), values),
        op("Div", "v n", "unit"),
        op("Mul", "unit g", "w"),
        op("Conv", "x w", "c", name="conv"),
        (op("Mul", "c s", "y"), {"s": positive(4, 1, 1).astype(np.float16)}),
        x=(1, 8, 6, 6),
        elem=HALF,
    )
    folded = bnfold.fold(made)
    assert counts(folded) == {"Conv": 1}
    given = {"x": rand(1, 8, 6, 6).astype(np.float16)}
    (before,), (after,) = (run(one, given)[0].astype(np.float64) for one in (made, folded))
    assert np.abs(before - after).max() <= 4e-3 * np.abs(before).max()


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


def test_erf_of_a_double_is_one():
    values = np.linspace(-2, 2, 9)
    found = evaluated(op("Erf", "k", "e"), [values], 17)
    np.testing.assert_array_equal(found, [math.erf(value) for value in values])


def test_what_many_numbers_are_elsewhere_is_not_followed(monkeypatch):
    """What is made counts as what is read: an outer product is small in what it reads."""
    made = model(
        (op("MatMul", "column row", "product"), {"column": rand(64, 1), "row": rand(1, 64)}),
        op("Sign", "product", "step"),
        op("Add", "x step", "y"),
        x=(64, 64),
    )
    for most, is_constant in ((8200, True), (4100, False)):
        monkeypatch.setattr(evaluation, "_MOST", most)
        found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "step")
        assert isinstance(found, Constant) == is_constant


def test_integers_are_evaluated_once(monkeypatch):
    """No engine has others."""
    made = model(
        (op("ReduceProd", "k", "p", keepdims=0), {"k": np.array([2, 3, 5])}),
        op("Cast", "p", "f", to=FLOAT),
        op("Add", "x f", "y"),
        x=(4,),
    )
    seen = []

    def counted(node, *rest):
        seen.append(node.op_type)
        return evaluate(node, *rest)

    evaluate = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", counted)
    assert read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "f").is_float
    assert sorted(seen) == ["Cast", "ReduceProd"]


def test_a_sum_of_scattered_numbers_is_one_of_an_engine():
    """A border and two small addends at one place."""
    little = np.float32(0.375) * np.spacing(np.float32(3))
    values = {"zero": np.float32([0]), "at": np.zeros((3, 1), np.int64)}
    values["parts"] = np.float32([3, -little, -little])
    made = model(
        (op("ScatterND", "zero at parts", "total", reduction="add"), values),
        op("Floor", "total", "step"),
        op("Add", "x step", "y"),
        x=(4,),
    )
    found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "step")
    assert isinstance(found, Reason)


def test_half_as_long_numbers_are_kept_twice_as_many():
    """Of many numbers fewer sets are followed; a sum of them has no more."""
    made = model(
        (op("Exp", "raw", "e"), {"raw": rand(600, 600).astype(np.float16)}),
        op("ReduceMean", "e", "m", axes=[1]),
        op("Add", "x m", "y"),
        x=(600, 600),
        elem=HALF,
    )
    found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "m")
    assert isinstance(found, Constant) and found.is_free


def test_digits_that_are_split_off_stay_off():
    """As (65·x) − (65·x − x) leaves the upper bits of x, whichever engine has made that."""
    made = model(
        (op("Exp", "raw", "e"), {"raw": rand(64, 64), "factor": np.float32(65)}),
        op("Mul", "e factor", "c"),
        op("Sub", "c e", "large"),
        op("Sub", "c large", "high"),
        op("Add", "x high", "y"),
        x=(64, 64),
    )
    found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "high")
    bits = found.load().view(np.int32)
    assert (bits % 16 == 0).mean() > 0.5


KEPT = {
    "a sum that rounds": [op("Add", "k large", "a"), op("Sub", "a large", "w")],
    "a step behind it": [op("Div", "k third", "a"), op("Floor", "a", "w")],
    "too large": [op("Exp", "k", "a"), op("Mul", "a a", "b"), op("Sqrt", "b", "w")],
    "too small": [op("Mul", "k small", "a"), op("Div", "a small", "w")],
    "too small for a sign": [op("Softmax", "k", "a", axis=1), op("Sign", "a", "w")],
}


@pytest.mark.parametrize("name", KEPT)
def test_half_precision_that_not_every_engine_rounds_between_operators(name):
    """onnxruntime computes such a chain in float32 on a CPU, and rounds at its end."""
    consts = {
        "k": np.float16([[0.3, 1.4, 9.9, 7.7]]) * np.float16(3 if "sign" in name else 1),
        "large": np.float16(1536),
        "third": np.float16(1.1),
        "small": np.float16(1e-6),
    }
    if name == "a step behind it":
        consts["k"] = np.float16([[1.1, 2.2, 3.3, 4.4]])
    first, *more = KEPT[name]
    made = model((first, consts), *more, op("Add", "x w", "y"), x=(1, 4), elem=HALF)
    zero = {"x": np.zeros((1, 4), np.float16)}
    (right,) = run(made, zero)
    found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "w")
    if isinstance(found, Constant):
        off = np.abs(right.astype(np.float64) - found.load().astype(np.float64))
        assert off.max() <= 2e-2 * np.abs(right).max()
    else:
        assert found.code == "dynamic-weight"


@pytest.mark.parametrize(
    "name, numbers, to, is_constant",
    [
        ("Cast", [3.7, -128.9], TensorProto.INT8, True),
        ("Cast", [3.7, 128.0], TensorProto.INT8, False),
        ("Cast", [-1.0], TensorProto.UINT8, False),
        ("Cast", [-0.5, 255.9], TensorProto.UINT8, True),
        ("Cast", [2.0**31], TensorProto.INT32, False),
        ("Cast", [2.0**31], TensorProto.INT64, True),
        ("Cast", [np.nan], TensorProto.INT64, False),
        ("Cast", [np.inf], TensorProto.INT64, False),
        ("Cast", [np.nan], TensorProto.DOUBLE, False),
        ("Relu", [np.nan], None, False),
        ("Relu", [np.inf], None, True),
    ],
    ids=str,
)
def test_what_onnx_does_not_define_is_no_constant(name, numbers, to, is_constant):
    attributes = {} if to is None else {"to": to}
    made = model(
        (op(name, "k", "w", **attributes), {"k": np.float32(numbers)}),
        op("Shape", "w", "y"),
        x=(4,),
    )
    found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "w")
    assert isinstance(found, Constant) == is_constant


def test_a_step_behind_a_function_that_engines_approximate():
    """onnxruntime's tanh is 1 from some number on, that of others from another one."""
    values = np.linspace(7.5, 8.5, 201, dtype=np.float32)
    for value in values:
        made = model(
            (op("Tanh", "k", "t"), {"k": value}),
            op("Floor", "t", "w"),
            op("Add", "x w", "y"),
            x=(1,),
        )
        found = read(made, None).graphs[0].context.constants.find(read_scopes(made)[0], "w")
        if isinstance(found, Constant):
            (right,) = run(made, {"x": np.zeros(1, np.float32)})
            assert right[0] == found.load()
