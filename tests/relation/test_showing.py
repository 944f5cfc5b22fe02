"""Weights that differ refute nothing where no input shows it, and do where one does."""

from __future__ import annotations

import numpy as np
import pytest

from ..graphs import const, conv, model, op, rand
from .pairs import changed, differ, proof

FOUR = (2, 3, 6, 6)
I = np.array  # noqa: E741


def net(*tail, x=FOUR, kernel=1, weights=None, y="y", opset=17, **attributes):
    """A convolution of 4 channels with something behind it."""
    first = conv("one", "x", "t", (4, 3, kernel, kernel), **attributes)
    weights = {"one.b": np.float32([0.5] * 4), **(weights or {})}
    return model(first, *tail, x=x, weights=weights, y=y, opset=opset)


def ahead(*pieces, kernel=1, channels=3, x=FOUR, weights=None, **attributes):
    """A convolution that reads what some operators make of the input."""
    last = conv("one", "d", "y", (4, channels, kernel, kernel), **attributes)
    return model(*pieces, last, x=x, weights=weights)


def first(values):
    values[0] = values[0, ::-1] * np.float32(1.3)
    return values


def column(values):
    values[:, 0] *= I([1.5, 1.25, 0.5, 2.0], np.float32).reshape(-1, *(1,) * (values.ndim - 2))
    return values


def corner(values):
    values[:, :, 0, 0] += I([1.5, 1.25, 0.5, 2.0], np.float32)[:, None]
    return values


def swapped(values):
    return values[[1, 0, 2, 3]]


def moved(values):
    """What one channel loses another one gets."""
    step = rand(*values.shape[1:])
    values[0] += step
    values[1] -= step
    return values


def turned(values):
    """Two channels as a plane that is turned: their lengths stay."""
    one, other = values[0].copy(), values[1].copy()
    values[:2] = (one + other) * np.float32(0.5**0.5), (one - other) * np.float32(0.5**0.5)
    return values


def raised(values):
    return values + rand(1, *values.shape[1:])


def two(data="r", weights=None):
    node, params = conv("two", data, "y", (5, 4, 1, 1))
    if weights is not None:
        params["two.w"] = np.broadcast_to(np.float32(weights), (5, 4)).reshape(5, 4, 1, 1).copy()
    return node, params


def minus(data, out):
    return const("Sub", data, out, I([2, 0.5, 0.5, 0.5], np.float32).reshape(4, 1, 1))


ALIKE = [1.0, 1.0, 0.5, 0.25]
RELU = op("Relu", "t", "r")
LOW = (op("Sigmoid", "t", "s"), minus("s", "m"))
"""Channel 0 lies below 0, the others on both sides."""
NEVER = (op("Sigmoid", "x", "q"), op("ReduceMax", "q", "top", keepdims=0))
HIDDEN = {
    "relu": (net(*LOW, op("Relu", "m", "r"), two()), first),
    "relu behind relu": (
        net(*LOW, op("Relu", "m", "n"), op("Softplus", "n", "o"), op("Relu", "n", "r"), two()),
        first,
    ),
    "leaky relu": (net(*LOW, op("LeakyRelu", "m", "r", alpha=0.0), two()), first),
    "prelu": (net(*LOW, op("PRelu", "m k", "r"), two(), weights={"k": np.float32([0])}), first),
    "clip": (
        net(
            *LOW, op("Clip", "m a b", "r"), two(), weights={"a": np.float32(0), "b": np.float32(9)}
        ),
        first,
    ),
    "relu of minus a square": (
        net(
            op("Mul", "t t", "s"),
            const("Mul", "s", "m", np.float32(-1)),
            op("Relu", "m", "r"),
            two(),
        ),
        first,
    ),
    "relu of what is below itself": (
        net(
            op("Abs", "t", "s"), const("Mul", "s", "m", np.float32(-1)), op("Relu", "m", "r"), two()
        ),
        first,
    ),
    "zeros": (net(RELU, two(weights=[0, 1, 2, 3])), first),
    "product with 0": (
        net(
            *(op("Sigmoid", "x", "s"), const("Sub", "s", "m", np.float32(1)), op("Relu", "m", "n")),
            *(op("ReduceMax", "n", "o", axes=[1]), op("Mul", "t o", "y")),
        ),
        first,
    ),
    "slice": (net(RELU, op("Slice", "r a b a", "y"), weights={"a": I([1]), "b": I([4])}), first),
    "gather": (net(RELU, op("Gather", "r a", "y", axis=1), weights={"a": I([3, 1, 2])}), first),
    "gather of a row": (net(RELU, op("Gather", "r a", "y", axis=1), weights={"a": I(2)}), first),
    "split": (net(RELU, op("Split", "r a", "z y", axis=1), weights={"a": I([1, 3])}), first),
    "where": (
        net(
            *(RELU, op("Where", "a r b", "y")),
            weights={"a": np.arange(4).reshape(4, 1, 1) > 0, "b": np.float32(1)},
        ),
        first,
    ),
    "where of what never holds": (
        net(*NEVER, const("Greater", "top", "c", np.float32(1.5)), op("Where", "c t top", "y")),
        first,
    ),
    "max": (
        net(op("Sigmoid", "t", "s"), *NEVER, op("Exp", "top", "o"), op("Max", "s o", "y")),
        first,
    ),
    "mean of channels": (net(RELU, op("ReduceMean", "r", "y", axes=[1])), swapped),
    "largest of channels": (net(RELU, op("ReduceMax", "r", "y", axes=[1])), swapped),
    "one step of all rows": (net(op("Softmax", "t", "y", axis=1)), raised),
    "one step of all rows, the largest": (
        net(op("ArgMax", "t", "a", axis=1), op("Cast", "a", "y", to=1)),
        raised,
    ),
    "length of channels": (
        net(op("ReduceL2", "t", "y", axes=[1]), weights={"one.b": np.zeros(4, np.float32)}),
        turned,
    ),
    "equal columns": (net(RELU, two(weights=ALIKE)), swapped),
    "equal columns behind pool": (
        net(RELU, op("GlobalAveragePool", "r", "p"), op("Sigmoid", "p", "q"), two("q", ALIKE)),
        swapped,
    ),
    "linear": (net(op("Identity", "t", "r"), two(weights=ALIKE)), moved),
    "linear behind a mean": (net(op("GlobalAveragePool", "t", "r"), two(weights=ALIKE)), moved),
    "softmax of one": (net(op("GlobalMaxPool", "t", "p"), op("Softmax", "p", "y", axis=3)), first),
    "norm of one": (
        net(
            op("GlobalMaxPool", "t", "p"),
            op("InstanceNormalization", "p k l", "y"),
            weights={"k": np.ones(4, np.float32), "l": np.zeros(4, np.float32)},
        ),
        first,
    ),
    "padding": (ahead(op("GlobalAveragePool", "x", "d"), kernel=3, pads=[1] * 4), corner),
    "padding of steps": (
        net(RELU, x=(1, 3, 2, 2), kernel=3, pads=[1, 1, 1, 1], strides=[2, 2], y="r"),
        corner,
    ),
    "padding of a dilation": (
        net(RELU, x=(1, 3, 4, 4), kernel=3, pads=[4] * 4, dilations=[4, 4], y="r"),
        corner,
    ),
    "padding ahead": (
        ahead(
            *(op("GlobalAveragePool", "x", "p"), op("Pad", "p k", "q"), op("Relu", "q", "d")),
            kernel=3,
            weights={"k": I([0, 0, 1, 1, 0, 0, 1, 1])},
        ),
        corner,
    ),
    "relu of what a prelu leaves": (
        net(
            *(op("Relu", "t", "s"), const("Mul", "s", "n", np.float32(-1))),
            *(op("PRelu", "n k", "m"), op("Relu", "m", "r"), two()),
            weights={"k": np.float32([0.5])},
        ),
        first,
    ),
    "zero channel": (
        ahead(
            op("Sigmoid", "x", "s"),
            const("Sub", "s", "m", I([2, 0.5, 0.5], np.float32).reshape(3, 1, 1)),
            op("Relu", "m", "d"),
        ),
        column,
    ),
}
SHOWN = {
    "relu": (
        net(
            op("Sigmoid", "t", "s"),
            const("Sub", "s", "m", np.float32(0.5)),
            op("Relu", "m", "r"),
            two(),
        ),
        first,
    ),
    "plain": (net(RELU, two()), first),
    "slice": (
        net(RELU, op("Slice", "r a b a", "y"), weights={"a": I([1]), "b": I([4])}),
        lambda values: first(values[::-1])[::-1],
    ),
    "gather": (net(RELU, op("Gather", "r a", "y", axis=1), weights={"a": I([3, 0])}), first),
    "columns": (net(RELU, two(weights=[1, 2, 3, 4])), swapped),
    "linear": (net(op("Identity", "t", "r"), two()), moved),
    "mean": (net(RELU, op("ReduceMean", "r", "y", axes=[1])), first),
    "attention": (
        net(
            *(op("Reshape", "t k", "a"), op("Transpose", "a", "b", perm=[0, 2, 1])),
            *(op("MatMul", "b a", "c"), op("Softmax", "c", "d", axis=-1), op("MatMul", "d b", "y")),
            weights={"k": I([2, 4, 36])},
        ),
        first,
    ),
    "gate": (net(op("Sigmoid", "t", "s"), op("Mul", "s t", "y")), first),
    "padding ahead": (
        ahead(op("Pad", "x k", "d"), kernel=3, weights={"k": I([0, 0, 1, 1, 0, 0, 1, 1])}),
        corner,
    ),
    "padding": (net(RELU, x=FOUR, kernel=3, pads=[1] * 4, y="r"), corner),
    "no sizes": (
        net(RELU, two(), x=(1, 3, None, None), kernel=3, pads=[1] * 4, strides=[2, 2]),
        first,
    ),
    "resize": (
        net(
            RELU,
            op("Resize", "r _ k", "u"),
            op("MaxPool", "u", "v", kernel_shape=[2, 2]),
            two("v"),
            weights={"k": np.float32([1, 1, 2, 2])},
        ),
        first,
    ),
    "quantized": (
        net(
            op("QuantizeLinear", "t k z", "q"),
            op("DequantizeLinear", "q k z", "r"),
            two(),
            weights={"k": np.float32(0.01), "z": np.int8(0)},
        ),
        first,
    ),
    "concat": (
        net(RELU, op("Concat", "x r", "c", axis=1), conv("two", "c", "y", (2, 7, 3, 3), group=1)),
        first,
    ),
    "norm": (
        net(
            op("Reshape", "t k", "a"),
            op("Transpose", "a", "b", perm=[0, 2, 1]),
            op("LayerNormalization", "b g", "y", axis=-1),
            weights={"k": I([2, 4, 36]), "g": np.float32([1, 2, 3, 4])},
        ),
        first,
    ),
    "largest of channels": (net(RELU, op("ReduceMax", "r", "y", axes=[1])), first),
    "arg max": (net(RELU, op("ArgMax", "r", "a", axis=1), op("Cast", "a", "y", to=1)), first),
}


def feeds(made):
    found = {}
    for each in made.graph.input:
        shape = [d.dim_value or 6 for d in each.type.tensor_type.shape.dim]
        found[each.name] = 3 * rand(*shape)
    return found


@pytest.mark.parametrize("name", HIDDEN)
def test_what_no_input_shows_is_not_refuted(name):
    made, change = HIDDEN[name]
    other = changed(made, "one.w", change)
    assert not differ(made, other, feeds(made))
    assert proof(made, other).status != "refuted"


@pytest.mark.parametrize("name", SHOWN)
def test_what_an_input_shows_is_refuted(name):
    made, change = SHOWN[name]
    other = changed(made, "one.w", change)
    assert differ(made, other, feeds(made))
    found = proof(made, other)
    assert (found.status, found.at) == ("refuted", "one"), found


SIGNED = {
    "ThresholdedRelu": [op("ThresholdedRelu", "t", "w", alpha=0.1)],
    "Pow": [const("Pow", "t", "w", np.float32(4))],
    "Reciprocal": [op("Exp", "t", "e"), op("Reciprocal", "e", "w")],
    "Div": [op("Exp", "t", "e"), op("Sigmoid", "t", "s"), op("Div", "e s", "w")],
    "LRN": [op("Exp", "t", "e"), op("LRN", "e", "w", size=3)],
    "ReduceLogSumExp": [op("Exp", "t", "e"), op("ReduceLogSumExp", "e", "w", axes=[2])],
    "ReduceSum": [op("Exp", "t", "e"), op("ReduceSum", "e k", "w")],
    "ReduceSum of few": [
        op("Sigmoid", "t", "e"),
        op("ReduceSum", "e k", "s"),
        const("Sub", "s", "w", np.float32(6.5), left=True),
    ],
    "MatMul": [op("Sigmoid", "t", "s"), op("MatMul", "s s", "w")],
    "Cast": [
        op("Sigmoid", "t", "s"),
        const("Mul", "s", "h", np.float32(0.9)),
        op("Cast", "h", "i", to=6),
        op("Cast", "i", "w", to=1),
    ],
}
"""Numbers that cannot be below 0, by what makes them of the convolution's."""


@pytest.mark.parametrize("name", SIGNED)
def test_what_is_cut_off_for_its_sign_is_not_refuted(name):
    """A Relu of the same numbers times -1 puts out 0. Without it the difference shows."""
    stored = {"k": I([2])}
    tail = [op("Neg", "w", "n"), op("Relu", "n", "y")]
    made = net(*SIGNED[name], *tail, weights=stored)
    assert proof(made, changed(made, "one.w", first)).status != "refuted"
    if name != "Cast":
        made = net(*SIGNED[name], weights=stored, y="w")
        assert proof(made, changed(made, "one.w", first)).status == "refuted"


def test_what_is_cut_to_a_whole_number_does_not_choose():
    """``int(0.25 + sigmoid(x) / 2)`` is 0, and 0 is not above 0.1."""
    ahead = (
        op("Sigmoid", "x", "s"),
        const("Mul", "s", "h", np.float32(0.5)),
        const("Add", "h", "f", np.float32(0.25)),
        op("Cast", "f", "i", to=6),
        op("Cast", "i", "g", to=1),
        const("Greater", "g", "c", np.float32(0.1)),
    )
    chosen = op("ReduceMean", "x", "m", axes=[1]), op("Where", "c1 t m", "y")
    ahead += (op("Slice", "c a b a", "c1"),)
    made = net(*ahead, *chosen, weights={"a": I([1]), "b": I([2])})
    other = changed(made, "one.w", first)
    assert not differ(made, other, feeds(made))
    assert proof(made, other).status != "refuted"


def test_a_quantizer_that_rounds_all_to_one_number_hides_what_differs():
    tail = (
        op("Sigmoid", "t", "s"),
        op("QuantizeLinear", "s q z", "i"),
        op("DequantizeLinear", "i q z", "y"),
    )
    for scale, status in ((10, "not proved"), (0.1, "refuted")):
        made = net(*tail, weights={"q": np.float32(scale), "z": np.uint8(3)})
        assert proof(made, changed(made, "one.w", first)).status == status


UNIT = {"k": np.ones(4, np.float32), "l": np.zeros(4, np.float32)}


def between(*tail, bias=0.0, gain=1.0):
    """A Sigmoid, whose numbers are scaled and shifted ahead of what does not mind."""
    stored = {"g": np.float32(gain), "h": np.float32(bias), **UNIT}
    pieces = op("Sigmoid", "t", "s"), op("Mul", "s g", "m"), op("Add", "m h", "n")
    return net(*pieces, *tail, weights=stored)


INNER = op("InstanceNormalization", "r k l", "y", epsilon=1e-12)
TAKEN = {
    "shift": ((op("Relu", "n", "r"), INNER), {"bias": 2.0}, {"bias": 1.0}),
    "scale": ((op("Clip", "n", "q"), op("Relu", "q", "r"), INNER), {"bias": 1.0}, {"bias": 3.0}),
    "sign": ((op("Mul", "n n", "y"),), {}, {"gain": -1.0}),
    "size": ((op("Abs", "n", "y"),), {}, {"gain": -1.0}),
    "period": ((op("Relu", "n", "r"), op("Cos", "r", "y")), {}, {"bias": 2 * np.pi}),
    "softmax": ((op("Relu", "n", "r"), op("Softmax", "r", "y", axis=1)), {}, {"bias": 1.0}),
    "largest": (
        (op("Relu", "n", "r"), op("ArgMax", "r", "a", axis=1), op("Cast", "a", "y", to=1)),
        {},
        {"gain": 2.0},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_map_that_is_taken_away_later_is_not_refuted(name):
    tail, one, other = TAKEN[name]
    first, second = between(*tail, **one), between(*tail, **other)
    for tensor in second.graph.initializer:
        if tensor.name == "one.w":
            tensor.CopyFrom(next(t for t in first.graph.initializer if t.name == "one.w"))
    assert not differ(first, second, feeds(first))
    assert proof(first, second).status != "refuted"


@pytest.mark.parametrize("kind", ["Clip", "MaxPool", "HardSwish", "Softmax", "Sigmoid"])
def test_a_channel_that_is_scaled_is_refuted(kind):
    """By what reads it, and makes no map of a map."""
    given = {"MaxPool": {"kernel_shape": [2, 2]}, "Softmax": {"axis": 1}}.get(kind, {})
    names, stored = "t", {}
    if kind == "Clip":
        names, stored = "t a b", {"a": np.float32(0), "b": np.float32(6)}
    made = net(op(kind, names, "y", **given), weights=stored)
    other = changed(made, "one.w", lambda values: values * I([1, 1.5, 1, 1]).reshape(4, 1, 1, 1))
    other = changed(other, "one.w", lambda values: values.astype(np.float32))
    assert differ(made, other, feeds(made))
    found = proof(made, other)
    assert (found.status, found.at) == ("refuted", "one"), found
