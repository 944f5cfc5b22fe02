"""A weight behind DequantizeLinear that several operators read: changed, copied, or left alone."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from .graphs import (
    bn,
    codes,
    const,
    constants,
    conv,
    counts,
    done,
    feeds,
    folds,
    model,
    op,
    positive,
    rand,
    run,
    subgraph,
    tensor,
)


def weight(shape, axis=0, per_channel=True, rounded=False):
    """A weight ``w``, stored as integers or rounded to them at every run."""
    r = np.random.default_rng(7)
    count = (shape[axis],) if per_channel else ()
    q = r.integers(-99, 100, shape)
    s = r.uniform(0.01, 0.02, count).astype(np.float32)
    values, along = {"s": s, "z": np.zeros(count, np.int8)}, {"axis": axis} if per_channel else {}
    dequantize = op("DequantizeLinear", "q s z", "w", name="dq", **along)
    if not rounded:
        return [(dequantize, {**values, "q": q.astype(np.int8)})]
    laid = s.reshape([-1 if k == axis else 1 for k in range(len(shape))]) if per_channel else s
    floats = ((q + r.uniform(-0.4, 0.4, shape)) * laid).astype(np.float32)
    return [(op("QuantizeLinear", "f s z", "q", **along), {**values, "f": floats}), dequantize]


def twins(*kinds, shared=True, biases=True, channels=4):
    """Convs of one weight, each with its own data, bias and map, which may be the same."""
    pieces = []
    for name, kind in zip("abc", kinds, strict=False):
        params = {f"b{name}": rand(channels)} if biases else {}
        inputs = f"x{name} w b{name}" if biases else f"x{name} w"
        pieces.append((op("Conv", inputs, f"c{name}", name=f"conv{name}"), params))
        if not isinstance(kind, str):
            pieces.append(const("Mul", f"c{name}", f"y{name}", kind, name=f"n{name}"))
        elif kind == "norm":
            node, values = bn(f"n{name}", f"c{name}", f"y{name}", channels)
            if shared:
                node.input[1:] = ["g", "h", "m", "v"]
                values = {}
            pieces.append((node, values))
        else:
            pieces.append(op("Identity", f"c{name}", f"y{name}"))
    return pieces


NORM = {"g": rand(4), "h": rand(4), "m": rand(4), "v": positive(4)}


def made(*pieces, count=2, **more):
    names = "abc"[:count]
    more.setdefault("x", {f"x{name}": (2, 3, 6, 6) for name in names})
    more.setdefault("weights", NORM)
    more.setdefault("y", " ".join(f"y{name}" for name in names))
    return model(*pieces, opset=13, **more)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_all_take_the_same_map(count, per_channel, rounded):
    """One weight is left, and its scale is multiplied once. Biases are their own."""
    m = made(*weight((4, 3, 3, 3), 0, per_channel, rounded), *twins(*["norm"] * count), count=count)
    left = {"DequantizeLinear": 1, "Conv": count} | ({"QuantizeLinear": 1} if rounded else {})
    after = folds(m, **left)
    assert bnfold.verify(m, after).status == "pass"


def test_signs_turn_once():
    m = made(
        *weight((4, 3, 3, 3)),
        *twins(*[np.float32([-1, 2, 0, -0.5]).reshape(4, 1, 1)] * 2),
    )
    after = folds(m, DequantizeLinear=1, Conv=2)
    turned = constants(m)["q"] * np.array([-1, 1, 0, -1]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(constants(after)["q"], turned)


def test_a_shift_ahead_and_a_norm_behind():
    """Each bias is made with the weight as it was."""
    ahead = [const("Add", f"d{name}", f"x{name}", rand(3, 1, 1)) for name in "ab"]
    m = made(
        *ahead,
        *weight((4, 3, 3, 3)),
        *twins("norm", "norm"),
        x={"da": (2, 3, 6, 6), "db": (2, 3, 6, 6)},
    )
    folds(m, DequantizeLinear=1, Conv=2)


TURNS = np.float32([-1, 2, 0, -0.5]).reshape(4, 1, 1)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "kinds, copies",
    [
        (("norm", positive(4, 1, 1)), 1),
        ((positive(4, 1, 1), "norm", np.float32(2)), 2),
        (("norm", TURNS, "norm"), 1),
        ((TURNS, "norm", TURNS), 1),
        ((TURNS, TURNS * np.float32([1, 2, 1, 1]).reshape(4, 1, 1)), 1),
        ((np.float32(2), np.float32([2, 2, 2, 3]).reshape(4, 1, 1)), 1),
    ],
)
def test_each_takes_its_own(kinds, copies, per_channel, domain):
    """In copies, one for each map: fewer operators than the maps that go."""
    m = made(
        *weight((4, 3, 3, 3), 0, per_channel),
        *twins(*kinds),
        count=len(kinds),
        domains={"com.microsoft": 1},
    )
    for node in m.graph.node:
        if node.op_type == "DequantizeLinear":
            node.domain = domain
    after = bnfold.fold(m)
    left = {"DequantizeLinear": 1 + copies, "Conv": len(kinds)}
    assert counts(after) == left == bnfold.plan(m).after
    if not domain:
        folds(m, **left)
    for before, now in zip(run(m, feeds(m)), run(after, feeds(m)), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
    assert bnfold.verify(m, after).status == "pass"
    stored = {node.input[0] for node in after.graph.node if node.op_type == "DequantizeLinear"}
    if all(not isinstance(kind, str) and (kind > 0).all() for kind in kinds):
        assert len(stored) == 1


def test_the_certificate_sees_a_copy_that_is_wrong():
    m = made(*weight((4, 3, 3, 3)), *twins(positive(4, 1, 1), positive(4, 1, 1)))
    once = done(m)
    assert all(one.holds for one in certify(m, once.folded, once.applied))
    for name in "ab":
        wrong = ModelProto.FromString(once.folded.SerializeToString())
        (reader,) = (n for n in wrong.graph.node if n.name == f"conv{name}")
        (node,) = (n for n in wrong.graph.node if n.output[0] == reader.input[1])
        values = constants(wrong)[node.input[1]].copy()
        values[2] *= np.float32(1.00001)
        node.input[1] = "wrong"
        wrong.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
        assert not all(one.holds for one in certify(m, wrong, once.applied))


def test_in_bodies_and_functions():
    """Constants of a function are operators, too."""
    pieces = [*weight((4, 3, 3, 3)), *twins("norm", TURNS, shared=False), op("Add", "ya yb", "t")]
    body = subgraph(*pieces, y="t")
    other = subgraph(conv("conv", "xa", "e", (4, 3, 3, 3)), y="e")
    m = made(
        op("If", "go", "y", then_branch=body, else_branch=other),
        x={"xa": (2, 3, 6, 6), "xb": (2, 3, 6, 6), "go": ()},
        y="y",
        weights={},
    )
    m.graph.input[2].type.tensor_type.elem_type = TensorProto.BOOL
    after = bnfold.fold(m)
    assert counts(after) == {"If": 1, "DequantizeLinear": 2, "Conv": 3, "Add": 1}
    np.testing.assert_allclose(run(after, feeds(m))[0], run(m, feeds(m))[0], rtol=1e-4, atol=1e-4)
    assert bnfold.verify(m, after).status == "pass"
    nodes = []
    for piece in pieces:
        node, values = piece if isinstance(piece, tuple) else (piece, {})
        nodes += [
            helper.make_node("Constant", [], [name], value=tensor(value, name))
            for name, value in values.items()
        ]
        nodes.append(node)
    body = helper.make_function(
        "mine", "Twin", ["xa", "xb"], ["t"], nodes, [helper.make_opsetid("", 13)]
    )
    m = made(
        op("Twin", "xa xb", "y", domain="mine"),
        functions=[body],
        domains={"mine": 1},
        y="y",
        weights={},
    )
    after = bnfold.fold(m)
    left = {k: n for k, n in counts(after).items() if k not in ("Constant", "Twin")}
    assert left == {"DequantizeLinear": 2, "Conv": 2, "Add": 1}
    np.testing.assert_allclose(run(after, feeds(m))[0], run(m, feeds(m))[0], rtol=1e-4, atol=1e-4)
    assert bnfold.verify(m, after).status == "pass"


@pytest.mark.parametrize("kind", ["none", "rounded", "ahead", "left", "turned"])
def test_a_step_outside_of_copies(kind):
    """One that takes nothing in, a weight of two operators, a map ahead, an Add that is left."""
    pieces = weight((4, 3, 3, 3), rounded=kind == "rounded")
    kinds = [positive(4, 1, 1), "none" if kind == "none" else positive(4, 1, 1)]
    pieces += twins(*kinds)
    more = {}
    if kind == "ahead":
        pieces.insert(0, const("Mul", "d", "xa", np.float32(2), name="ahead"))
        more["x"] = {"d": (2, 3, 6, 6), "xb": (2, 3, 6, 6)}
    elif kind == "left":
        pieces = [*weight((5, 4), 1), *products()]
        more["x"] = {"xa": (3, 5), "xb": (3, 5)}
    elif kind == "turned":
        pieces = [
            *weight((4, 5), 0),
            op("Transpose", "w", "wt", perm=[1, 0]),
            *(products("wt")),
        ]
        more["x"] = {"xa": (3, 5), "xb": (3, 5)}
    m = made(*pieces, **more)
    after = bnfold.fold(m)
    assert counts(after)["DequantizeLinear"] == 1
    np.testing.assert_array_equal(constants(after)["s"], constants(m)["s"])
    for before, now in zip(run(m, feeds(m)), run(after, feeds(m)), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
    kept = [one.code for one in bnfold.plan(m).kept]
    assert "quantized-weight" in kept and set(kept) <= {"quantized-weight", "no-linear-operator"}


def products(matrix="w"):
    """Two MatMuls of one matrix; a MatMul has no bias, so that the shift of a norm is an Add."""
    pieces = []
    for name in "ab":
        pieces.append(op("MatMul", f"x{name} {matrix}", f"c{name}", name=f"mm{name}"))
        pieces.append(bn(f"n{name}", f"c{name}", f"y{name}", 4))
    return pieces


def test_others_stay():
    """The reason names who does not take it."""
    m = made(*weight((4, 3, 3, 3)), *twins("norm", "none"))
    after = bnfold.fold(m)
    (kept,) = bnfold.plan(m).kept
    assert kept.code == "quantized-weight" and "convb" in kept.message
    assert counts(after) == counts(m)
    np.testing.assert_array_equal(constants(after)["s"], constants(m)["s"])
    for before, now in zip(run(m, feeds(m)), run(after, feeds(m)), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
    assert bnfold.verify(m, after).status == "pass"


def test_one_of_three_is_enough_to_stop_it():
    m = made(*weight((4, 3, 3, 3)), *twins("norm", "norm", "none"), count=3)
    assert {one.code for one in bnfold.plan(m).kept} == {"quantized-weight"}
    folded = bnfold.fold(m)
    np.testing.assert_array_equal(constants(folded)["s"], constants(m)["s"])


def test_numbers_that_agree_on_other_axes():
    """One map is of what a Conv reads, the other of what the other one puts out: Cin = Cout."""
    numbers = np.float32([1, 2, 3, 4]).reshape(4, 1, 1)
    m = made(
        *weight((4, 4, 1, 1), per_channel=False),
        const("Mul", "d", "xa", numbers, name="ahead"),
        op("Conv", "xa w", "ya", name="conva"),
        op("Conv", "xb w", "cb", name="convb"),
        const("Mul", "cb", "yb", numbers, name="behind"),
        x={"d": (2, 4, 3, 3), "xb": (2, 4, 3, 3)},
    )
    kept = {one.node: one.message for one in bnfold.plan(m).kept}
    assert "also read by convb" in kept["ahead"] and "also read by conva" in kept["behind"]
    assert counts(bnfold.fold(m)) == counts(m)


@pytest.mark.parametrize("who", ["operator", "output", "body", "twice"])
def test_who_else_reads_it(who):
    """Somebody who takes no map in, an output, a body; an operator that reads it as data."""
    pieces = [*weight((4, 4, 1, 1)), *twins("norm", "norm")]
    more = {"x": {f"x{name}": (2, 4, 6, 6) for name in "ab"}, "y": "ya yb u"}
    if who == "operator":
        pieces.append(op("Relu", "w", "u"))
    elif who == "output":
        more["y"] = "ya yb w"
    elif who == "body":
        bodies = {
            name: subgraph(op(kind, "w", kind), y=kind)
            for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
        }
        condition = {"go": np.array(True)}
        pieces.append((op("If", "go", "u", **bodies), condition))
    else:
        pieces.append(op("Conv", "w w", "u"))
    m = made(*pieces, **more)
    after = bnfold.fold(m)
    np.testing.assert_array_equal(constants(after)["s"], constants(m)["s"])
    for before, now in zip(run(m, feeds(m)), run(after, feeds(m)), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
    assert {codes(m)[name] for name in ("na", "nb")} == {"quantized-weight"}


def test_what_one_of_them_cannot_hold():
    """The bias of one would overflow: neither takes the scale in."""
    m = made(*weight((4, 3, 3, 3)), *twins(np.float32(1e10), np.float32(1e10)))
    for stored in m.graph.initializer:
        if stored.name == "bb":
            stored.CopyFrom(numpy_helper.from_array(np.full(4, 1e30, np.float32), "bb"))
    assert codes(m).keys() == {"na", "nb"}
    np.testing.assert_array_equal(constants(bnfold.fold(m))["s"], constants(m)["s"])


def test_products_of_one_matrix():
    m = made(
        *weight((5, 6), 1),
        op("MatMul", "xa w", "ca", name="mm"),
        const("Mul", "ca", "ya", np.float32([1, 2, 3, 4, 5, 6])),
        (op("Gemm", "xb w b", "cb", name="gemm"), {"b": rand(6)}),
        const("Mul", "cb", "yb", np.float32([1, 2, 3, 4, 5, 6])),
        x={"xa": (3, 5), "xb": (4, 5)},
    )
    folds(m, DequantizeLinear=1, MatMul=1, Gemm=1)
