"""Sizes that a graph computes, and what they are for: the same in both files, or told apart.

Rows are the same function, and no two of them are. Sizes of the inputs are not known.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from ..graphs import const, model, op, rand
from .pairs import changed, floats, ints, proof

WEIGHT, BIAS = rand(8, 4, 3, 3), rand(8)
ROWS_WEIGHT, ROWS_BIAS = rand(4, 6), rand(6)
GATES, RECURRENT = rand(1, 20, 4), rand(1, 20, 5)
SHAPE = ("n", 4, "h", "w")


def made(*nodes, x=SHAPE, opset=17, **weights):
    whole = model(*nodes, x={"x": x}, weights=weights, opset=opset)
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def behind_conv(*nodes, **weights):
    """Behind a convolution whose output has sizes that nothing names."""
    conv = op("Conv", "x w b", "c", strides=[2, 2])
    return made(conv, *nodes, w=WEIGHT, b=BIAS, **weights)


def sizes_of(of, *take):
    """The sizes of some axes of a tensor, each as exporters write it."""
    found = [op("Shape", of, "s")]
    for axis in take:
        found.append(op("Gather", f"s i{axis}", f"g{axis}", axis=0))
        found.append(op("Unsqueeze", f"g{axis} zero", f"u{axis}"))
    return found


INDICES = {f"i{k}": np.int64(k) for k in range(4)} | {"zero": ints(0)}
FLAT = [
    op("Mul", "g2 g3", "m"),
    op("Unsqueeze", "m zero", "um"),
    op("Concat", "u0 k um", "to", axis=0),
    op("Reshape", "c to", "y"),
]


def flat(of):
    """``c`` with its positions on one axis, as many as another tensor has."""
    return behind_conv(*sizes_of(of, 0, 2, 3), *FLAT, k=ints(8), **INDICES)


def lstm(state, *nodes, x=("t", "n", 4), **weights):
    """With the initial states ``state``; the second of three outputs is put out."""
    read = f"x w r _ _ {state}".split()
    while read[-1] == "_":
        read.pop()
    node = op("LSTM", " ".join(read), "_ y", hidden_size=5)
    node.output[:] = ["", "y"]
    return made(*nodes, node, x=x, w=GATES, r=RECURRENT, **weights)


def expanded(number):
    """A state of one number, as large as the batch of ``x``."""
    steps = [op("Concat", "k u1 f", "to", axis=0), op("Expand", "v to", "h")]
    given = {"k": ints(1), "f": ints(5), "v": floats(number).reshape(1, 1, 1)}
    return lstm("h h", *sizes_of("x", 1), *steps, **given, **INDICES)


def filled():
    steps = [op("Concat", "k u1 f", "to", axis=0), op("ConstantOfShape", "to", "h")]
    return lstm("h _", *sizes_of("x", 1), *steps, k=ints(1), f=ints(5), **INDICES)


def cut(*steps):
    """Slices, each of ``(axis, start, end, step)``, one behind the other."""
    nodes, weights, name = [], {}, "x"
    for number, (axes, starts, ends, strides) in enumerate(steps):
        last = "y" if number == len(steps) - 1 else f"z{number}"
        names = [f"{kind}{number}" for kind in "seak"]
        nodes.append(op("Slice", " ".join([name, *names]), last))
        weights |= dict(zip(names, map(ints_of, (starts, ends, axes, strides)), strict=True))
        name = last
    return made(*nodes, x=("n", 9, "h", 7), **weights)


def ints_of(values):
    return np.int64(np.atleast_1d(values))


def norm(*, epsilon=1e-5, parts=True, power=2.0):
    scale, shift = floats(1, 2, 3, 4), floats(4, 3, 2, 1)
    if not parts:
        node = op("LayerNormalization", "x g b", "y", epsilon=epsilon)
        return made(node, x=("n", 3, 4), g=scale, b=shift)
    return made(
        op("ReduceMean", "x", "m", axes=[-1]),
        op("Sub", "x m", "d"),
        const("Pow", "d", "p", np.float32(power)),
        op("ReduceMean", "p", "v", axes=[2]),
        const("Add", "v", "e", np.float32(epsilon)),
        op("Sqrt", "e", "q"),
        op("Div", "d q", "n"),
        const("Mul", "n", "s", scale),
        const("Add", "s", "y", shift),
        x=("n", 3, 4),
    )


def one_of(*nodes, **weights):
    return made(*nodes, x=("n", 3, "h", 5), **weights)


def square(*nodes, **weights):
    return made(*nodes, x=("n", 1, 4, 4), **weights)


def reshaped(*sizes):
    return behind_conv(op("Reshape", "c to", "y"), to=ints(*sizes))


def by_product(second):
    """Two axes as one, of a size that is a product."""
    return behind_conv(
        *sizes_of("c", 0, second),
        op("Mul", f"u0 u{second}", "m"),
        op("Concat", "m k", "to", axis=0),
        op("Reshape", "c to", "y"),
        k=ints(-1),
        **INDICES,
    )


def spread(sizes):
    """As exporters write ``x.expand(sizes)``: a −1 stands for the size that is there."""
    nodes = [
        *sizes_of("x", 0, 2, 3),
        op("Concat", f"{sizes} u2 u3", "asked", axis=0),
        op("ConstantOfShape", "l", "ones", value=helper.make_tensor("v", 7, [1], [1])),
        op("Equal", "asked minus", "e"),
        op("Where", "e ones asked", "to"),
        op("Expand", "x to", "y"),
    ]
    held = {"l": ints(4), "minus": ints(-1), "four": ints(4), "below": ints(-1)}
    return made(*nodes, x=("n", 1, "h", "w"), **held, **INDICES)


def product(*nodes, shape=("n", 4, 4), **weights):
    """The rows of ``x`` times a matrix, with a bias."""
    return made(*nodes, x=shape, w=ROWS_WEIGHT, b=ROWS_BIAS, **weights)


def by_gemm(first, last, *ahead, shape=("n", 4, 4)):
    nodes = [op("Reshape", f"{'t' if ahead else 'x'} k", "f"), op("Gemm", "f w b", "g")]
    nodes.append(op("Reshape", "g l", "y"))
    return product(*ahead, *nodes, shape=shape, k=ints(*first), l=ints(*last))


def by_matmul(*ahead, shape=("n", 4, 4)):
    nodes = [op("MatMul", f"{'t' if ahead else 'x'} w", "m"), op("Add", "m b", "y")]
    return product(*ahead, *nodes, shape=shape)


TURN = op("Transpose", "x", "t", perm=[0, 2, 1])


def picked(axis, place):
    return one_of(op("Gather", "x k", "y", axis=axis), k=np.int64(place))


def split(used, **attrs):
    outputs = [name if k != used else "y" for k, name in enumerate("pqr")]
    return one_of(
        op("Split", "x", " ".join(outputs), name="s", **attrs),
        op("Squeeze", "y a", "z"),
        op("Identity", "z", "o"),
        a=ints(1),
    )


def fixed(kind, inputs, outputs, **weights):
    return made(op(kind, inputs, outputs), x=("n", 3, 4, 5), **weights)


def with_result(whole, name):
    whole.graph.output[0].name = name
    return whole


ROWS = {
    "conv": [
        [flat("c"), reshaped(0, 8, -1), reshaped(0, 0, -1)],
        [reshaped(0, -1, 8)],
        [by_product(2)],
        [by_product(3)],
    ],
    "cut": [
        [
            cut(([1, 3], [1, 2], [8, 6], [1, 2])),
            cut((1, 1, 8, 1), (3, 2, 6, 2)),
            cut((3, 2, 6, 2), (1, 1, 8, 1)),
            cut((3, 2, 7, 1), (1, 1, 8, 1), (3, 0, 4, 2)),
        ],
        [cut((1, 1, 9, 2), (1, 1, 3, 1), (3, 2, 6, 2)), cut((1, 3, 6, 2), (3, 2, 6, 2))],
        [cut((1, 1, 9, 2), (1, 2, 4, 1), (3, 2, 6, 2))],
        [cut((2, 1, 4, 1), (2, 1, 2, 1))],  # of a size that is not known
        [cut((2, 1, 4, 1))],
    ],
    "split": [
        [with_result(split(1, axis=1), "o"), with_result(picked(1, 1), "y"), picked(1, -2)],
        [picked(1, 2), picked(1, -1)],
        [picked(3, 1)],
    ],
    "state": [
        [lstm("_ _"), expanded(0.0), filled()],
        [expanded(1.0)],
    ],
    "norm": [
        [norm(), norm(parts=False)],
        [norm(epsilon=1e-3), norm(epsilon=1e-3, parts=False)],
        [norm(power=3.0)],
    ],
    "turn": [
        [
            square(op("Transpose", "x", "y", perm=[1, 0, 2, 3])),
            square(op("Reshape", "x to", "y"), to=ints(1, -1, 4, 4)),
        ],
        [square(op("Transpose", "x", "y", perm=[1, 0, 3, 2]))],
    ],
    "rows": [
        [by_matmul(), by_gemm([-1, 4], [-1, 4, 6])],
        [product(op("Reshape", "x k", "f"), op("Gemm", "f w b", "y"), k=ints(-1, 4))],
        [by_matmul(TURN), by_gemm([-1, 4], [-1, 4, 6], TURN)],
    ],
    "other rows": [
        [
            by_gemm([-1, 4], [-1, 6], shape=("n", 2, 6)),
            made(
                op("Reshape", "x k", "t"),
                op("MatMul", "t w", "m"),
                op("Add", "m b", "a"),
                op("Reshape", "a l", "y"),
                x=("n", 2, 6),
                w=ROWS_WEIGHT,
                b=ROWS_BIAS,
                k=ints(-1, 3, 4),
                l=ints(-1, 6),
            ),
        ],
        [
            by_gemm([-1, 4], [-1, 6], op("Transpose", "x", "t", perm=[1, 0, 2]), shape=("n", 2, 6)),
        ],
    ],
    "reduced": [
        [
            one_of(op("ReduceMean", "x", "y", axes=[1, -1])),
            one_of(
                op("ReduceMean", "x", "r", axes=[3, 1], keepdims=0),
                op("Unsqueeze", "r a", "y"),
                a=ints(1, 3),
            ),
        ],
        [
            one_of(
                op("ReduceMean", "x", "r", axes=[1, 3], keepdims=0),
                op("Unsqueeze", "r a", "y"),
                a=ints(0, 1),
            )
        ],
    ],
    "turned": [
        [
            one_of(
                op("Transpose", "x", "t", perm=[0, 2, 3, 1]),
                op("Transpose", "t", "y", perm=[0, 3, 1, 2]),
            ),
            one_of(op("Identity", "x", "y")),
        ],
        [
            one_of(
                op("Transpose", "x", "t", perm=[0, 2, 3, 1]),
                op("Transpose", "t", "y", perm=[0, 2, 3, 1]),
            ),
            one_of(op("Transpose", "x", "y", perm=[0, 3, 1, 2])),
        ],
        [one_of(op("Transpose", "x", "y", perm=[0, 2, 3, 1]))],
        [
            one_of(
                op("Transpose", "x", "t", perm=[0, 2, 3, 1]),
                op("Transpose", "t", "y", perm=[0, 1, 3, 2]),
            ),
            one_of(op("Transpose", "x", "y", perm=[0, 2, 1, 3])),
        ],
        [one_of(op("Transpose", "x", "y", perm=[0, 3, 2, 1]))],
    ],
    "whole": [
        [fixed("Identity", "x", "y"), fixed("Reshape", "x k", "y", k=ints(0, 3, -1, 5))],
        [fixed("Reshape", "x k", "y", k=ints(0, 5, 4, 3))],
    ],
    "wide": [
        [spread("u0 four"), spread("below four")],
        [spread("four u0")],
    ],
}


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_the_same_is_proved_and_nothing_else(kind):
    rows = ROWS[kind]
    for row in rows:
        for one, other in itertools.permutations(row, 2):
            assert proof(one, other).status == "proved", (rows.index(row), row.index(other))
    for row, another in itertools.permutations(rows, 2):
        for one, other in itertools.product(row, another):
            assert proof(one, other).status != "proved", (rows.index(row), rows.index(another))


def test_a_channel_is_no_better_known_for_another_one():
    """In channel 0 large numbers cancel: its scale is vague. That of channel 1 is not."""
    big = floats(2**14, 1).reshape(1, 2, 1, 1)
    rest = floats(-(2**14) + 3, 2).reshape(1, 2, 1, 1)
    scale = floats(2, 3).reshape(1, 2, 1, 1)
    one = model(
        const("Mul", "x", "a", big),
        const("Mul", "x", "b", rest),
        op("Add", "a b", "s"),
        op("Relu", "s", "r"),
        const("Mul", "r", "y", scale),
        x=(1, 2, 3, 3),
    )
    other = model(
        const("Mul", "x", "a", big * scale),
        const("Mul", "x", "b", rest * scale),
        op("Add", "a b", "s"),
        op("Relu", "s", "r"),
        const("Mul", "r", "y", np.ones_like(scale)),
        x=(1, 2, 3, 3),
    )
    assert proof(one, other).status == "proved"
    for channel, status in ((0, "proved"), (1, "refuted")):

        def moved(values, channel=channel):
            values[0, channel] *= np.float32(1 + 1e-4)
            return values

        assert proof(one, changed(other, "y_mul.k", moved)).status == status
