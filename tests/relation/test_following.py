"""Operators that are one with the operator ahead of them, told by onnxruntime.

Rows are the same function; what stands a step outside is not.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto

from ..graphs import model, op, optimized, rand, subgraph
from .pairs import differ, proof

X = (3, 4)
FEEDS = {"x": 3 * rand(*X), "z": 3 * rand(*X)}
TYPES = {n: getattr(TensorProto, n) for n in ("BOOL", "INT8", "UINT8", "INT16", "INT32", "INT64")}
TYPES |= {n: getattr(TensorProto, n) for n in ("FLOAT16", "FLOAT", "DOUBLE")}


def made(*nodes, opset=17, **weights):
    given = {"weights": weights, "opset": opset, "domains": {"com.microsoft": 1}}
    whole = model(*nodes, x={"x": X, "z": X}, **given)
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def same(one, other):
    found = proof(one, other).status, proof(other, one).status
    assert found == ("proved",) * 2 or "proved" not in found
    return found[0] == "proved"


def test_a_where_behind_a_not_takes_its_sides_the_other_way():
    ask, turn = op("Greater", "x z", "c"), op("Not", "c", "n")
    one = made(ask, turn, op("Where", "n x z", "y"))
    other, wrong = (made(ask, op("Where", names, "y")) for names in ("c z x", "c x z"))
    assert not differ(one, other, FEEDS) and differ(one, wrong, FEEDS)
    assert same(one, other) and not same(one, wrong)
    twice = made(ask, turn, op("Not", "n", "m"), op("Where", "m x z", "y"))
    assert same(twice, wrong) and not same(twice, other)


CHAINS = list(itertools.permutations(TYPES, 3))


@pytest.mark.parametrize("first", TYPES)
def test_casts_in_a_row_are_one_where_the_second_type_holds_all(first):
    """Each chain is told by onnxruntime on numbers at the ends of the types."""
    data = np.float32([[-129, -128, -1, 0], [1, 127, 128, 255], [0.5, 1.5, 300, 70000]])
    proved = 0
    for kinds in (chain for chain in CHAINS if chain[0] == first):
        start, middle, last = (TYPES[kind] for kind in kinds)
        ahead = op("Cast", "x", "a", to=start)
        chain = [op("Cast", "a", "b", to=middle), op("Cast", "b", "c", to=last)]
        behind = op("Cast", "c", "y", to=TensorProto.FLOAT)
        one = made(ahead, *chain, behind)
        other = made(ahead, op("Cast", "a", "c", to=last), behind)
        if same(one, other):
            proved += 1
            assert not differ(one, other, {"x": data, "z": data}), kinds
    assert proved or first in ("INT64", "DOUBLE")


def test_an_integer_is_not_made_of_floats_it_may_not_hold():
    ahead, last = op("Cast", "x", "a", to=TensorProto.INT8), TensorProto.UINT8
    behind = op("Cast", "c", "y", to=TensorProto.FLOAT)
    chain = [op("Cast", "a", "b", to=TensorProto.FLOAT), op("Cast", "b", "c", to=last)]
    assert not same(made(ahead, *chain, behind), made(ahead, op("Cast", "a", "c", to=last), behind))


def clip(low, high, data, result):
    if low is None:
        return op("Relu", data, result), {}
    names = f"{data} {result}l {result}h"
    stored = {f"{result}l": np.float32(low), f"{result}h": np.float32(high)}
    return op("Clip", names, result), stored


@pytest.mark.parametrize("first", [(None, None), (-1, 2), (2, -1), (0, 1)])
@pytest.mark.parametrize("second", [(None, None), (-2, 1), (0.5, 1), (3, 5), (1, -1)])
def test_two_clips_are_one(first, second):
    """The bounds of every other pair are another function, as onnxruntime tells."""
    nodes = clip(*first, "x", "a"), clip(*second, "a", "y")
    stored = nodes[0][1] | nodes[1][1]
    one = made(nodes[0][0], nodes[1][0], **stored)
    proved = 0
    for bounds in itertools.product((-1, 0, 0.5, 1, 2, 3, 5, np.inf), repeat=2):
        if bounds[0] > bounds[1]:
            continue
        node, held = clip(*bounds, "x", "y")
        other = made(node, **held)
        if same(one, other):
            proved += 1
            assert not differ(one, other, FEEDS), bounds
    crossed = any(each[0] is not None and each[0] > each[1] for each in (first, second))
    assert proved == (not crossed)


def test_an_if_of_a_constant_is_its_branch():
    branches = {
        "then_branch": subgraph(op("Relu", "x", "t"), y="t"),
        "else_branch": subgraph(op("Neg", "x", "e"), y="e"),
    }
    whole = [op("If", "c", "a", **branches), op("Sigmoid", "a", "y")]
    for condition, kind in ((True, "Relu"), (False, "Neg")):
        one = made(*whole, c=np.bool_(condition))
        for other in ("Relu", "Neg"):
            plain = made(op(other, "x", "a"), op("Sigmoid", "a", "y"))
            assert same(one, plain) is (other == kind)
    asked = made(
        op("ReduceMax", "x", "m", keepdims=0), op("Greater", "m k", "c"), *whole, k=np.float32(0)
    )
    assert not same(asked, made(op("Relu", "x", "a"), op("Sigmoid", "a", "y")))


def gelu(*changed, **numbers):
    held = {"three": 3.0, "k": 0.044715, "r": np.sqrt(2 / np.pi), "one": 1.0, "half": 0.5} | numbers
    nodes = {
        "cube": op("Pow", "x three", "cube"),
        "m": op("Mul", "cube k", "m"),
        "s": op("Add", "x m", "s"),
        "t": op("Mul", "s r", "t"),
        "u": op("Tanh", "t", "u"),
        "v": op("Add", "u one", "v"),
        "w": op("Mul", "x half", "w"),
        "y": op("Mul", "w v", "y"),
    }
    nodes |= {node.output[0]: node for node in changed}
    return made(*nodes.values(), **{name: np.float32(value) for name, value in held.items()})


def test_a_fast_gelu_is_its_parts(tmp_path):
    whole = made(op("FastGelu", "x", "y", domain="com.microsoft"))
    assert not differ(whole, gelu(), FEEDS)
    assert same(whole, gelu())
    assert same(whole, optimized(gelu(), tmp_path / "other.onnx"))
    for name, value in (
        ("three", 2.0),
        ("k", 0.0447),
        ("r", 0.797),
        ("one", 1.001),
        ("half", 0.51),
    ):
        assert not same(whole, gelu(**{name: value})), name
    bias = made(op("FastGelu", "x b", "y", domain="com.microsoft"), b=rand(4))
    assert differ(bias, whole, FEEDS) and not same(bias, gelu())
    products = [op("Mul", "x x", "square"), op("Mul", "square x", "cube")]
    assert same(
        made(*products, op("Tanh", "cube", "y")),
        made(op("Pow", "x three", "cube"), op("Tanh", "cube", "y"), three=np.float32(3)),
    )


def test_a_cube_of_integers_is_left():
    """Products of 32 bits are cut, and a Pow may be computed in floats."""
    ahead = op("Cast", "x", "i", to=TensorProto.INT32)
    behind = op("Cast", "c", "y", to=TensorProto.FLOAT)
    one = made(ahead, op("Pow", "i three", "c"), behind, three=np.float32(3))
    other = made(ahead, op("Mul", "i i", "s"), op("Mul", "s i", "c"), behind)
    assert not same(one, other)


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_where_the_largest_is_behind_a_transpose(kind):
    behind = op("Cast", "a", "y", to=TensorProto.FLOAT)
    turn = op("Transpose", "x", "t", perm=[1, 0])
    for axis, keeps, last in itertools.product((0, 1), (0, 1), (0, 1)):
        given = {"keepdims": keeps, "select_last_index": last}
        one = made(turn, op(kind, "t", "a", axis=axis, **given), behind)
        nodes = [op(kind, "x", "b", axis=1 - axis, **given)]
        nodes.append(op("Transpose", "b", "a", perm=[1, 0]) if keeps else op("Identity", "b", "a"))
        assert same(one, made(*nodes, behind))
        for change in ({"axis": axis}, {"select_last_index": 1 - last}, {"keepdims": 1 - keeps}):
            other = op(kind, "x", "b", **{"axis": 1 - axis, **given, **change})
            if "keepdims" in change and not keeps:
                continue  # A Transpose of a vector.
            assert not same(one, made(other, *nodes[1:], behind)), change
