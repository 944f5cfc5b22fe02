"""A weight behind DequantizeLinear that several operators read: it changes for all or for none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnfold

from .graphs import (
    bn,
    codes,
    const,
    constants,
    counts,
    feeds,
    folds,
    model,
    op,
    positive,
    rand,
    run,
    subgraph,
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


@pytest.mark.parametrize(
    "kinds",
    [
        ("norm", "none"),
        ("norm", positive(4, 1, 1)),
        (np.float32([1, 2, 3, 4]).reshape(4, 1, 1), np.float32([1, 2, 3, 5]).reshape(4, 1, 1)),
        (np.float32(2), np.float32([2, 2, 2, 3]).reshape(4, 1, 1)),
    ],
)
def test_other_maps_stay(kinds):
    """The reason names who does not take it; the shift of a norm goes into its bias."""
    m = made(*weight((4, 3, 3, 3)), *twins(*kinds))
    after = bnfold.fold(m)
    kept = {one.node: one for one in bnfold.plan(m).kept}
    assert kept["na"].code == "quantized-weight" and "convb" in kept["na"].message
    names = ("q", "s", "z")
    assert all((constants(after)[name] == constants(m)[name]).all() for name in names)
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
