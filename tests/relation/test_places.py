"""Operators that move numbers: the same however they are written, and no two of them confused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ..graphs import model, op
from .pairs import proof

INT = np.int64


def made(*nodes, x=("n", 4, 2, 6), **weights):
    whole = model(*nodes, x={"x": x}, weights=weights)
    del whole.graph.output[0].type.tensor_type.shape.dim[:]
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def reshaped(*sizes):
    return made(op("Reshape", "x to", "y"), to=INT(sizes))


def computed():
    """As exporters write ``x.flatten(1)`` of a free batch."""
    return made(
        op("Shape", "x", "s"),
        op("Gather", "s zero", "n", axis=0),
        op("Concat", "n rest", "to", axis=0),
        op("Reshape", "x to", "y"),
        zero=INT([0]),
        rest=INT([-1]),
    )


def sliced(start, end, axis=1, step=1):
    values = {"s": INT([start]), "e": INT([end]), "a": INT([axis]), "k": INT([step])}
    return made(op("Slice", "x s e a k", "y"), **values)


def reduced(axes, **attrs):
    return made(op("ReduceMean", "x", "y", axes=axes, **attrs))


# Rows of models that are the same function; no two rows are.
SAME = [
    [reshaped(0, -1), reshaped(-1, 48), made(op("Flatten", "x", "y")), computed()],
    [reshaped(-1, 8, 6), reshaped(0, 8, 6)],
    [reshaped(-1, 6, 8)],
    [reshaped(0, 4, 12), reshaped(-1, 4, 12)],
    [reshaped(0, 0, 0, 6, 1), made(op("Unsqueeze", "x a", "y"), a=INT([4]))],
    [
        reshaped(0, 0, 1, 2, 6),
        made(op("Unsqueeze", "x a", "y"), a=INT([-3])),
        made(
            op("Reshape", "x t", "z"),
            op("Reshape", "z u", "y"),
            t=INT([-1]),
            u=INT([-1, 4, 1, 2, 6]),
        ),
    ],
    [made(op("Transpose", "x", "z", perm=[0, 2, 1, 3]), op("Flatten", "z", "y"))],
    [sliced(1, 3), sliced(-3, -1), sliced(1, 3, -3)],
    [sliced(2, 4), sliced(2, 2**40), sliced(-2, 9)],
    [sliced(0, 2), sliced(-9, 2)],
    [sliced(0, 4, step=2), sliced(0, 3, step=2)],
    [sliced(3, -9, step=-1)],
    [sliced(1, 3, axis=0)],  # of a size that is not known
    [sliced(1, 2, axis=0)],
    [sliced(2, 3, axis=0)],
    [reduced([2, 3]), reduced([-1, -2]), reduced([3, 2], keepdims=1)],
    [reduced([2, 3], keepdims=0)],
    [reduced([1, 3])],
]


@pytest.mark.parametrize("number", range(len(SAME)))
def test_one_function_however_it_is_written(number):
    for one, other in itertools.permutations(SAME[number], 2):
        assert proof(one, other).status == "proved"


def test_no_two_functions_are_confused():
    for one, other in itertools.permutations(range(len(SAME)), 2):
        assert proof(SAME[one][0], SAME[other][-1]).status != "proved", (one, other)


def test_inputs_may_stand_in_another_order():
    """A size that nobody knows is told by the input that has it."""

    def two(names):
        whole = model(
            op("Reshape", "z to", "a"),
            op("Add", "x a", "y"),
            x={name: ("n", 4, 2) if name == "x" else ("m", 8) for name in names},
            weights={"to": INT([-1, 4, 2])},
        )
        return whole

    assert proof(two("xz"), two("zx")).status == "proved"


def test_a_split_takes_ranges_however_it_is_told():
    by_sizes = made(op("Split", "x s", "a y", axis=1), s=INT([2, 2]))
    by_number = made(op("Split", "x", "a y", axis=1, num_outputs=2))
    by_number.opset_import[0].version = by_sizes.opset_import[0].version = 18
    uneven = made(op("Split", "x s", "a y", axis=1), s=INT([1, 3]))
    uneven.opset_import[0].version = 18
    assert proof(by_sizes, by_number).status == "proved"
    assert proof(by_sizes, uneven).status != "proved"


def test_an_operator_without_a_name_is_told_by_what_it_writes():
    """Not by a part of it, which has no name that a user knows."""

    def unnamed(kind, axis, **attrs):
        nodes = op("Mul", "x k", "m"), op(kind, "m", "y", name="", **attrs)
        return made(*nodes, k=np.float32(axis))

    for kind, attrs in (("ReduceL2", {"axes": [1], "keepdims": 0}), ("Gelu", {})):
        one, other = unnamed(kind, 2, **attrs), unnamed(kind, 3, **attrs)
        two = made(op("Relu", "x", "r"), op("Erf", "r", "y"))
        for whole in (one, other, two):
            whole.opset_import[0].version = 20 if kind == "Gelu" else 17
        for first, second in ((one, other), (two, one)):
            found = proof(first, second)
            assert found.status != "proved"
            assert "\0" not in f"{found}" and found.at == f"{kind} → y", found
