"""Sizes that a graph computes of shapes, by arithmetic of sizes that may not be known."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold._onnx.merge.merging import read
from bnfold._onnx.read.shapes import infer

from .graphs import (
    const,
    counts,
    fold,
    model,
    op,
    rand,
    sizes,
)

SIZES = {
    "gather-scalar": [op("Shape", "x", "s"), op("Gather", "s one", "g"), "unsqueeze g u"],
    "gather-vector": [op("Shape", "x", "s"), op("Gather", "s ones", "u", axis=0)],
    "slice": [op("Shape", "x", "s"), op("Slice", "s ones two", "u")],
    "negative-slice": [op("Shape", "x", "s"), op("Slice", "s minus3 minus2 zero", "u")],
    "cast": [
        op("Shape", "x", "s"),
        op("Gather", "s ones", "g"),
        op("Cast", "g", "h", to=6),
        op("Cast", "h", "u", to=7),
    ],
    "squeezed": [
        op("Shape", "x", "s"),
        op("Gather", "s ones", "g"),
        "squeeze g h",
        op("Identity", "h", "i"),
        "unsqueeze i u",
    ],
    "computed": [
        op("Shape", "x", "s"),
        op("Gather", "s ones", "g"),
        op("Mul", "g two", "h"),
        op("Div", "h two", "i"),
        op("Add", "i ones", "j"),
        op("Sub", "j ones", "u"),
    ],
    "constant": [op("Constant", "", "u", value_ints=[4])],
}


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 14, 17])
@pytest.mark.parametrize("written", SIZES)
def test_sizes_computed_from_shapes(written, opset):
    """The batch, a symbol, and the channels, which are asked for at run time in every way."""
    if written == "constant" and opset < 12:
        pytest.skip("Constant has value_ints since opset 12")
    made = []
    for node in SIZES[written]:
        if isinstance(node, str):
            kind, x, y = node.split()
            axes = {"axes": [0]} if opset < 13 else {}
            node = op(kind.capitalize(), x if axes else f"{x} zero", y, **axes)
        made.append(node)
    made += [
        op("Shape", "x", "batches"),
        op("Gather", "batches zero", "batch"),
        op("Concat", "batch u minus1", "t", axis=0),
        op("Reshape", "x t", "y"),
    ]
    numbers = {"zero": [0], "one": 1, "ones": [1], "two": [2]}
    numbers |= {"minus1": [-1], "minus2": [-2], "minus3": [-3]}
    m = model(
        *made,
        x=("n", 4, 3, 3),
        opset=opset,
        weights={name: np.array(value, np.int64) for name, value in numbers.items()},
    )
    graph = read(m, None).graphs[0]
    if opset < 11:  # Below opset 11 sizes have no symbols.
        assert graph.context.shape("y") == (None, 4, None)
        return
    assert graph.context.shape("y") == (None, 4, 9)
    shapes = infer(m, [graph.scope])
    assert shapes.sizes(graph.scope, "y")[0] == shapes.sizes(graph.scope, "x")[0]


ROWS = {
    "rest": (["batch", "length"], [-1]),
    "given": (["batch", "length"], [5]),
    "product": (["both"], [-1]),
    "turned": (["turned"], [-1]),
    "twice": (["batch"], [2, -1, 5]),
}


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("form", ROWS)
def test_rows_laid_flat_and_stood_up_again(form, kind):
    """[N, T, 6] as rows of 6, a product, and [N, T, 5] again, or what else has that many elements:
    the map of the 5 goes back to the product, and one of the 6 forward to it.
    """
    names, rest = ROWS[form]
    x = ("n", "t" if form != "twice" else 2, 6)
    bias = {"bias": rand(5)} if kind == "Gemm" else {}
    m = model(
        op("Shape", "x", "s"),
        op("Slice", "s zero one", "batch"),
        op("Slice", "s one two", "length"),
        op("Mul", "batch length", "both"),
        op("Mul", "length batch", "turned"),
        op("Concat", " ".join([*names, "rest"]), "t", axis=0),
        const("Mul", "x", "m", rand(6)),
        op("Reshape", "m flat", "f"),
        (op(kind, " ".join(["f w", *bias]), "g"), {"w": rand(6, 5)}),
        op("Reshape", "g t", "r"),
        const("Add", "r", "a", rand(5)),
        op("Tanh", "a", "y"),
        x=x,
        weights={
            **{name: np.array([k], np.int64) for k, name in enumerate(("zero", "one", "two"))},
            "flat": np.array([-1, 6], np.int64),
            "rest": np.array(rest, np.int64),
            **bias,
        },
    )
    after = counts(fold(m))
    assert after["Gemm"] == 1 and not after.keys() & {"Add", "MatMul"}
    assert after["Mul"] == 2, "those of the sizes"


@pytest.mark.parametrize("other, x", [("other", ("n", "t", 6)), ("x", ("n", None, 9))])
def test_rows_of_another_tensor_or_that_do_not_come_out_even(other, x):
    """A batch that has the same name, and rows of 6 of 9: nothing is known of the last axis."""
    m = model(
        op("Shape", other, "s"),
        op("Slice", "s zero two", "both"),
        op("Concat", "both minus1", "t", axis=0),
        op("Reshape", "x flat", "f"),
        op("Reshape", "f t", "y"),
        x={"x": x, "other": ("n", "t", 6)} if other == "other" else x,
        weights={
            "zero": np.array([0], np.int64),
            "two": np.array([2], np.int64),
            "minus1": np.array([-1], np.int64),
            "flat": np.array([-1, 6], np.int64),
        },
    )
    assert sizes(m, "y") == (None, None, None)


def computed(*nodes, sizes):
    """A Reshape of x to sizes that nodes compute of its own, n and t, and what is left."""
    weights = {name: np.array([k], np.int64) for k, name in enumerate(("zero", "one", "two"))}
    return model(
        op("Shape", "x", "s"),
        op("Gather", "s zero", "n"),
        op("Gather", "s one", "t"),
        *(op(node.split()[0], " ".join(node.split()[1:3]), node.split()[3]) for node in nodes),
        op("Concat", f"{sizes} rest", "target", axis=0),
        op("Reshape", "x target", "y"),
        x=("n", "t", 6),
        weights={**weights, "rest": np.array([-1], np.int64)},
    )


@pytest.mark.parametrize(
    "nodes, target, known",
    [
        (["Mul n t p", "Div p t q"], "q t", 6),
        (["Mul t two p", "Div p two q"], "n q", 6),
        (["Mul t two p"], "n p", 3),
        (["Div n t q"], "q t", None),
        (["Mul t t p"], "n p", None),
        (["Add t one p"], "n p", None),
    ],
)
def test_arithmetic_of_sizes_that_are_not_known(nodes, target, known):
    assert sizes(computed(*nodes, sizes=target), "y")[-1] == known


@pytest.mark.parametrize(
    "start, end, step, size",
    [
        ("third", "ten", "one", 7),
        ("zero", "third", "two", 2),
        ("minus", "ten", "one", 3),
        ("ten", "third", "one", None),
    ],
)
def test_the_size_of_a_slice_with_computed_bounds(start, end, step, size):
    """Of ten columns: a third, as integers are divided, is 3."""
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3, "seven": 7}
    m = model(
        op("Shape", "x", "s"),
        op("Gather", "s one", "columns"),
        op("Div", "columns three", "third"),
        op("Add", "third seven", "ten"),
        op("Sub", "zero third", "minus"),
        op("Slice", f"x {start} {end} one {step}", "y"),
        x=("n", 10),
        weights={name: np.array([number], np.int64) for name, number in numbers.items()},
    )
    assert sizes(m, "y") == (None, size)


def thirds(x, axis, scaled=0):
    """Queries, keys and values as exporters cut them: thirds of a size that is asked for."""
    shape = [op("Shape", "p", "s"), op("Gather", "s last", "size"), op("Add", "size two", "more")]
    third = [op("Div", "more three", "third"), op("Mul", "third two", "second")]
    cut = [
        op("Slice", "p zero third axis", "q0"),
        op("Slice", "p third second axis", "k0"),
        op("Slice", "p second most axis", "v0"),
    ]
    names = ("q0", "k0", "v0")
    ends = [
        const("Mul", name, name[0], np.float32(0.3))
        if k == scaled
        else op("Identity", name, name[0])
        for k, name in enumerate(names)
    ]
    numbers = {"zero": 0, "two": 2, "three": 3, "last": axis, "axis": axis, "most": 1 << 40}
    return model(
        (op("MatMul", "x w", "p0"), {"w": rand(6, 12)}),
        const("Add", "p0", "p", rand(12)),
        *(shape + third + cut + ends),
        op("Tanh", "q", "y0"),
        op("Sigmoid", "k", "y1"),
        op("Sigmoid", "v", "y2"),
        x=x,
        y="y0 y1 y2",
        weights={name: np.array([number], np.int64) for name, number in numbers.items()},
    )


@pytest.mark.parametrize("scaled", range(3))
def test_bounds_of_a_slice_that_follow_from_a_known_size(scaled):
    after = counts(fold(thirds(("n", "t", 6), 2, scaled)))
    assert after["Mul"] == 1, "that of the bounds alone"
    assert after["Slice"] == 3


def test_bounds_that_follow_from_an_unknown_size():
    """Thirds of the rows: nobody knows how many there are."""
    m = thirds(("n", "t", 6), 1)
    assert counts(fold(m))["Mul"] == 2
