"""Weights that operators compute from constants, where float32 evaluations are apart.

A sum that cancels differs from engine to engine, so what is folded is rounded once at the end, as
float64 has it. What jumps between steps takes the step that the network takes.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold._onnx.read.evaluation import evaluated, widened

from .graphs import bn, constants, counts, model, op, positive, rand, reseed, run, within_ulps

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


@pytest.mark.parametrize("name", JUMPS)
def test_a_step_is_the_one_that_the_network_takes(name):
    """The weight is what is stored, times a step that float32 takes otherwise than float64.

    A border and two addends too small for float32 are added up: the sum is the border in the
    network, and the next number of float32 if it is rounded once.
    """
    at, side, steps = JUMPS[name]
    border = np.float32(at)
    little = np.float32(0.375 * side) * np.spacing(border)
    parts = np.array([border, little, little], np.float32)
    assert np.float32(parts.astype(np.float64).sum()) != border == run_alone(parts)
    consts = {"parts": parts, "border": border, "one": np.float32(1), "raw": rand(*SHAPE)}
    made = model(
        (op("ReduceSum", "parts", "total", keepdims=0), consts),
        *steps,
        op("Mul", "raw step", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    taken_in(made)


def test_a_weight_is_quantized_as_the_network_does_it():
    """Each number of it is a sum as above, half way between two integers."""
    half = (np.float32(2.5) * np.sign(rand(*SHAPE))).astype(np.float32)
    little = (0.375 * np.spacing(half)).astype(np.float32)
    parts = np.stack([half, little, little])
    made = model(
        (op("ReduceSum", "parts axes", "total", keepdims=0), {"parts": parts, "axes": [0]}),
        (
            op("QuantizeLinear", "total one zero", "whole"),
            {"one": np.float32(1), "zero": np.int8(0)},
        ),
        op("DequantizeLinear", "whole one zero", "w"),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x=(1, 8, 6, 6),
    )
    assert set(np.unique(np.abs(run_alone(parts, [0])))) == {2.5}
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


def both(node, *inputs, wide=None):
    """What an operator makes of constants in their own type and in float64."""
    stepwise = evaluated(node, inputs, 17)
    return stepwise, widened(node, inputs, wide or [None] * len(inputs), stepwise, 17)


@pytest.mark.parametrize("number", [100.0, -100.0])
def test_numbers_that_float32_does_not_hold(number):
    """exp(100) is infinite in the network, and exp(−100) has few bits: so they are when read on."""
    with np.errstate(over="ignore"):
        stepwise, wide = both(op("Exp", "k", "e"), np.float32([number]))
    np.testing.assert_array_equal(wide, stepwise)


def test_what_float32_does_not_tell_is_what_the_network_has():
    """Its sum is 0, and not 1: nobody knows whether a network was trained with that."""
    _, wide = both(op("ReduceSum", "k", "s"), ONE_MORE)
    np.testing.assert_array_equal(wide, [0])


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
