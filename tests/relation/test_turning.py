"""Transposes on either side of an operator: the same function, told by onnxruntime.

All axes have the same size, so an order or an axis that is another one shows in the numbers alone.
Rows are the same function; what a row puts out with another order or axis is not.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold

from ..graphs import const, model, op, optimized, rand, reseed
from .pairs import differ, ints, proof

BOOL, INT8, INT32, INT64 = (getattr(TensorProto, n) for n in ("BOOL", "INT8", "INT32", "INT64"))
FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
X = (3, 3, 3)
ORDER, BACK = (2, 0, 1), (1, 2, 0)
ALL = list(itertools.permutations(range(3)))
CHANNELS = rand(3)
W = {
    "w": rand(3, 3),
    "k": rand(3),
    "c": CHANNELS.reshape(3, 1, 1),
    "c1": CHANNELS.reshape(1, 3, 1),
    "one": ints(1),
    "a": ints(0),
    "b": np.bool_(True),
    "two": np.float32(2),
    "place": np.int64(1),
    **{f"axes{n}": ints(*axes) for n, axes in enumerate(([0], [1], [2], [0, 2]))},
}


def made(*nodes, x=X, opset=17, **weights):
    domains = {"com.microsoft": 1}
    weights = {**W, **weights}
    whole = model(*nodes, x={"x": x, "z": x}, weights=weights, opset=opset, domains=domains)
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def turn(data, result, order=ORDER):
    return op("Transpose", data, result, perm=list(order))


def pointwise(kind, names="t", **given):
    """An operator on ``t``, which is x transposed, and on x ahead of the Transpose."""
    ahead = " ".join("x" if name == "t" else name for name in names.split())
    one = [turn("x", "t"), op(kind, names, "y", **given)]
    return one, [op(kind, ahead, "u", **given), turn("u", "y")]


def of_two(kind, **given):
    """An operator on x transposed and on z, and on x and z transposed the other way."""
    data = "t z", "x s"
    changed = {name: ORDER[axis] for name, axis in given.items()}
    one = [turn("x", "t"), op(kind, data[0], "y", **given)]
    return one, [turn("z", "s", BACK), op(kind, data[1], "u", **changed), turn("u", "y")]


def along(kind, axis, **given):
    one = [turn("x", "t"), op(kind, "t", "y", axis=axis, **given)]
    return one, [op(kind, "x", "u", axis=ORDER[axis], **given), turn("u", "y")]


def reduced(kind, number, keepdims):
    axes = W[f"axes{number}"].tolist()
    one = [turn("x", "t"), op(kind, "t", "y", axes=axes, keepdims=keepdims)]
    whole = [op(kind, "x", "u", axes=[ORDER[axis] for axis in axes]), turn("u", "v")]
    last = op("Identity", "v", "y") if keepdims else op("Squeeze", f"v axes{number}", "y")
    return one, [*whole, last]


def cut(axis, start, step):
    ranges = [f"Slice_{n}" for n in range(3)]
    stored = dict(zip(ranges, (ints(start), ints(9), ints(step)), strict=True))
    names = f"{ranges[0]} {ranges[1]} axes{{}} {ranges[2]}"
    one = [turn("x", "t"), op("Slice", f"t {names.format(axis)}", "y")]
    return one, [op("Slice", f"x {names.format(ORDER[axis])}", "u"), turn("u", "y")], stored


ROWS = [
    *(pointwise(kind) for kind in ("Relu", "Sigmoid", "Exp", "Abs", "Neg", "HardSwish", "Elu")),
    *(pointwise(kind, "t two") for kind in ("Pow", "Max", "Min")),
    pointwise("Pow", "two t"),
    pointwise("Clip", "t _ two"),
    pointwise("Mul", "t t"),
    pointwise("Where", "b t two"),
    *(along("Softmax", axis) for axis in (-1, 0, 1)),
    along("LogSoftmax", 2),
    *(reduced("ReduceMean", n, keeps) for n in range(4) for keeps in (0, 1)),
    reduced("ReduceMax", 1, 1),
    *(of_two(kind) for kind in ("Add", "Mul", "Sub", "Max")),
    of_two("Concat", axis=1),
    # Scales and shifts lie along an axis of what they are behind.
    (
        [op("Mul", "x c", "s"), op("Add", "s c1", "v"), turn("v", "t"), op("Relu", "t", "y")],
        [turn("x", "t"), op("Mul", "t c1", "s"), op("Add", "s k", "v"), op("Relu", "v", "y")],
        {"k": CHANNELS},
    ),
    *(cut(*row) for row in ((0, 1, 1), (1, 0, 2), (2, -1, 1), (1, 1, -1))),
    (
        [turn("x", "t"), op("Gather", "t place", "y", axis=1)],
        [op("Gather", "x place", "u", axis=0), turn("u", "y", (1, 0))],
    ),
    # Axes of one number.
    (
        [turn("x", "t"), op("Unsqueeze", "t one", "y")],
        [op("Unsqueeze", "x one", "u"), turn("u", "y", (3, 1, 0, 2))],
    ),
    (
        [turn("x", "t"), op("Unsqueeze", "t one", "u"), op("Relu", "u", "y")],
        [op("Unsqueeze", "x one", "u"), op("Relu", "u", "v"), turn("v", "y", (3, 1, 0, 2))],
    ),
    # Products.
    (
        [turn("x", "t", (0, 2, 1)), op("MatMul", "t w", "y")],
        [op("FusedMatMul", "x w", "y", domain="com.microsoft", transA=1)],
    ),
    (
        [turn("z", "t", (0, 2, 1)), op("MatMul", "x t", "m"), op("Mul", "m two", "y")],
        [op("FusedMatMul", "x z", "y", domain="com.microsoft", transB=1, alpha=2.0)],
    ),
]


def mistaken(nodes):
    """The nodes with each order, axis and range changed to each other one."""
    for number, node in enumerate(nodes):
        for place, attribute in enumerate(node.attribute):
            others = {
                "perm": itertools.permutations(range(len(attribute.ints))),
                "axis": range(3),
                "axes": ([0], [1], [2]),
                "transA": [0],
                "transB": [0],
            }
            for value in others.get(attribute.name, ()):
                changed = type(node).FromString(node.SerializeToString())
                changed.attribute[place].CopyFrom(helper.make_attribute(attribute.name, value))
                yield [*nodes[:number], changed, *nodes[number + 1 :]]


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda n: f"{ROWS[n][0][-1].op_type}-{n}")
def test_a_transpose_stands_on_either_side_and_no_other_does(number):
    reseed(number)
    ahead, behind, *more = ROWS[number]
    stored = more[0] if more else {}
    feeds = {"x": rand(*X), "z": rand(*X)}
    one, other = (made(*nodes, **stored) for nodes in (ahead, behind))
    assert not differ(one, other, feeds)
    assert proof(one, other).status == proof(other, one).status == "proved"
    for nodes in mistaken(behind):
        wrong = made(*nodes, **stored)
        try:
            is_wrong = differ(one, wrong, feeds)
        except Exception:  # No valid model.
            continue
        if is_wrong:
            assert "proved" not in (proof(one, wrong).status, proof(wrong, one).status), nodes


LEFT = [
    (op("LayerNormalization", "t k", "y", axis=-1), 17),
    (op("CumSum", "t a", "y"), 17),
    (op("Trilu", "t", "y"), 17),
    (op("Add", "t v", "y"), 17),
    (op("PRelu", "t k", "y"), 17),
    (op("Softmax", "t", "y", axis=1), 11),
]


@pytest.mark.parametrize(("node", "opset"), LEFT, ids=lambda each: getattr(each, "op_type", ""))
def test_what_is_left_as_it_is(node, opset):
    """Operators that do not go number by number, of old opsets, and data of fewer axes."""
    ahead = op("ReduceMean", "z", "v", axes=[0, 1], keepdims=0)
    inner = type(node).FromString(node.SerializeToString())
    inner.input[0], inner.output[0] = "x", "u"
    if opset < 13:
        inner.attribute[0].i = ORDER[inner.attribute[0].i]
    one = made(ahead, turn("x", "t"), node, opset=opset)
    other = made(ahead, inner, turn("u", "y"), opset=opset)
    assert differ(one, other, {"x": rand(*X), "z": rand(*X)})
    assert "proved" not in (proof(one, other).status, proof(other, one).status)


@pytest.mark.parametrize(("names", "is_same"), [("x k", False), ("x v", False), ("k x", True)])
def test_a_product_with_a_vector(names, is_same):
    """Ahead of a vector onnxruntime leaves the matrix as it is, whatever transA says."""
    ahead, key = (
        op("ReduceMean", "z", "v", axes=[0, 1], keepdims=0),
        "transB" if is_same else "transA",
    )
    turned = [turn("x", "t", (0, 2, 1)), op("MatMul", names.replace("x", "t"), "y")]
    one = made(ahead, *turned)
    other = made(ahead, op("FusedMatMul", names, "y", domain="com.microsoft", **{key: 1}))
    assert differ(one, other, {"x": rand(*X), "z": rand(*X)}) is not is_same
    expected = {"proved"} if is_same else {"not proved"}
    assert {proof(one, other).status, proof(other, one).status} == expected


@pytest.mark.parametrize(
    ("narrow", "wide", "is_same"),
    [
        (BOOL, INT64, True),
        (BOOL, FLOAT, True),
        (INT8, HALF, True),
        (INT32, DOUBLE, True),
        (INT32, FLOAT, False),  # 2²⁴ + 1 is none there.
        (INT64, INT32, False),
        (FLOAT, BOOL, False),
    ],
)
def test_a_cast_to_a_wider_type_and_back_is_none(narrow, wide, is_same):
    first, last = op("Cast", "x", "n", to=narrow), op("Cast", "e", "y", to=FLOAT)
    between = [op("Cast", "n", "i", to=wide), op("Cast", "i", "e", to=narrow)]
    one = made(first, op("Cast", "n", "y", to=FLOAT))
    other = made(first, *between, last)
    assert (proof(one, other).status == "proved") is is_same
    assert (proof(other, one).status == "proved") is is_same


def test_a_scale_between_casts_of_integers_is_cut():
    """Twice the half of 3 is 2 there."""
    halves = [
        op("Cast", "x", "n", to=INT8),
        op("Cast", "n", "i", to=FLOAT),
        op("Div", "i two", "d"),
        op("Cast", "d", "e", to=INT8),
        op("Cast", "e", "f", to=FLOAT),
        op("Mul", "f two", "g"),
        op("Cast", "g", "h", to=INT8),
        op("Cast", "h", "y", to=FLOAT),
    ]
    pair = made(op("Cast", "x", "n", to=INT8), op("Cast", "n", "y", to=FLOAT)), made(*halves)
    assert differ(*pair, {"x": np.full(X, 3, np.float32), "z": rand(*X)})
    assert "proved" not in (proof(*pair).status, proof(*pair[::-1]).status)


def test_a_part_that_is_all_is_no_part():
    bounds = {"s": ints(0), "e": ints(2**63 - 1), "i": ints(1)}
    nodes = op("Slice", "x s e i", "u"), op("Relu", "u", "y")
    for x in (X, ("n", "m", 3)):
        plain = made(op("Relu", "x", "y"), x=x)
        assert proof(plain, made(*nodes, **bounds, x=x)).status == "proved"
        for name, wrong in (("s", 1), ("e", 2), ("e", -1)):
            part = made(*nodes, **bounds | {name: ints(wrong)}, x=x)
            assert proof(plain, part).status == "not proved"


@pytest.mark.parametrize(("opset", "bias"), [(11, "k"), (17, "k"), (17, "")])
def test_a_turned_product_of_any_opset(opset, bias):
    """Below opset 12 no operator of ONNX stands in for it; a bias needs the shape."""
    stored = {"w": rand(4, 5), "k": rand(5)}
    given = {"x": {"x": ("n", 4, "t")}, "weights": stored, "opset": opset}
    add = op("Add", "m k", "y") if bias else op("Relu", "m", "y")
    parts = model(turn("x", "t", (0, 2, 1)), op("MatMul", "t w", "m"), add, **given)
    parts.graph.output[0].type.tensor_type.ClearField("shape")
    for turns, is_same in (("transA", True), ("transA transBatchA", False), ("", False)):
        held = dict.fromkeys(turns.split(), 1)
        product = op("FusedMatMul", "x w", "m", domain="com.microsoft", **held)
        whole = model(product, add, **given, domains={"com.microsoft": 1})
        whole.graph.output[0].type.tensor_type.ClearField("shape")
        assert (proof(parts, whole).status == "proved") is is_same, turns


def test_a_product_whose_batch_is_turned_is_another_one():
    given = {"transA": 1, "transBatchA": 1}
    one = made(turn("x", "t", (0, 2, 1)), op("MatMul", "t z", "y"))
    other = made(op("FusedMatMul", "x z", "y", domain="com.microsoft", **given))
    assert differ(one, other, {"x": rand(*X), "z": rand(*X)})
    assert "proved" not in (proof(one, other).status, proof(other, one).status)


def drawn(seed):
    """A graph of Transposes and what is carried through them."""
    rng = np.random.default_rng(seed)
    nodes, names, stored = [], ["x", "z"], {"sizes": ints(1, 2)}
    for number in range(rng.integers(4, 9)):
        data, other, result = (*(str(rng.choice(names)) for _ in range(2)), f"t{number}")
        kind = rng.choice(["turn", "turn", "one", "two", "axis", "mean", "scale", "cut"])
        if kind == "turn":
            node = turn(data, result, ALL[rng.integers(1, 6)])
        elif kind == "one":
            node = op(str(rng.choice(["Relu", "Sigmoid", "Tanh"])), data, result)
        elif kind == "two":
            node = op(str(rng.choice(["Add", "Mul", "Sub", "Max"])), f"{data} {other}", result)
        elif kind == "axis":
            node = op("Softmax", data, result, axis=int(rng.integers(3)))
        elif kind == "mean":
            nodes.append(op("ReduceMean", data, f"m{number}", axes=[int(rng.integers(3))]))
            node = op("Sub", f"{data} m{number}", result)
        elif kind == "scale":
            shape = [1, 1, 1]
            shape[rng.integers(3)] = 3
            stored[f"k{number}"] = rand(*shape)
            node = op("Mul", f"{data} k{number}", result)
        else:
            axis, parts = int(rng.integers(3)), (f"p{number}", f"q{number}")
            nodes.append(op("Split", f"{data} sizes", " ".join(parts), axis=axis))
            node = op("Concat", f"{parts[1]} {parts[0]}", result, axis=axis)
        nodes.append(node)
        names.append(result)
    return made(*nodes, op("Identity", names[-1], "y"), **stored)


@pytest.mark.parametrize("seed", range(24))
def test_what_onnxruntime_makes_of_drawn_graphs_is_proved(seed, tmp_path):
    reseed(seed)
    whole = drawn(seed)
    for level in ("ENABLE_BASIC", "ENABLE_EXTENDED"):
        other = optimized(whole, tmp_path / "other.onnx", level)
        assert str(bnfold.prove(whole, other)) == "proved"


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("perm", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_a_shift_of_turned_data_that_is_added_up_over_open_sizes(axis, perm):
    """So many times it is in the sum as the axis is long, which nobody knows."""

    def shifted(shift):
        return model(
            *(op("Relu", "x", "r"), const("Add", "r", "a", np.float32(shift))),
            *(turn("a", "b", perm), op("ReduceSum", "b k", "y")),
            x=("n", "c", 4),
            weights={"k": ints(axis)},
        )

    assert proof(shifted(1.0), shifted(1.0)).status == "proved"
    assert proof(shifted(1.0), shifted(2.0)).status != "proved"
