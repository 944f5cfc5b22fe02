"""Constants that operators compute: what engines may differ by, and how long that is kept.

The networks that have such weights are in ``test_computed_weights``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold._core.reasons import Reason
from bnfold._onnx.merge.merging import read
from bnfold._onnx.read import evaluation
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.engines import others
from bnfold._onnx.read.evaluation import evaluated, rounds, widened
from bnfold._onnx.read.scopes import read_scopes

from .graphs import counts, model, op, positive, rand, run

SHAPE = (4, 8, 3, 3)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


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
