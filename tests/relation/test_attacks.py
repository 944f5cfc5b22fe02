"""Pairs of models that look alike to a walk that is careless, and are two functions.

Each is run besides, to show that the outputs differ: none may be proved. Each model is proved to be
itself.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from .. import runtimes
from ..graphs import const, model, op, rand, reseed, subgraph
from .pairs import differ, floats, ints, proof, value, with_constant

PAIRS = {}
INT64 = TensorProto.INT64
TINY = np.float32(2.0**-24)


def pair(make):
    PAIRS[make.__name__.replace("_", " ")] = make
    return make


@pair
def branches_that_are_listed_in_another_order():
    def made(order):
        bodies = [subgraph(const("Mul", "x", "b", floats(k), name=f"k{k}"), y="b") for k in (2, 3)]
        names = ("then_branch", "else_branch")
        chosen = helper.make_node("If", ["c"], ["y"])
        for name, body in zip(names[::order], bodies, strict=True):
            chosen.attribute.append(helper.make_attribute(name, body))
        whole = model(chosen, x=(2, 4))
        whole.graph.input.append(value("c", TensorProto.BOOL))
        return whole

    return made(1), made(-1), {"x": rand(2, 4), "c": np.array(True)}


@pair
def integers_that_floats_do_not_tell_apart():
    return *with_constant(ints(2**53), ints(2**53 + 1)), {"x": rand(2)}


@pair
def constants_of_shapes_that_broadcast():
    return *with_constant(np.ones(1, "f"), np.ones(3, "f")), {"x": rand(2)}


@pair
def constants_of_shapes_that_do_not_broadcast():
    return *with_constant(np.ones(2, "f"), np.ones(3, "f")), {"x": rand(2)}


@pair
def a_factor_along_the_batch_of_a_wider_sum():
    """The sum has an axis more than the convolution: its axis 1 is the batch of that."""
    weight, s = rand(4, 4, 1, 1), rand(4, 1, 1, 1)
    shapes = {"x": (4, 4, 2, 2), "z": (2, 4, 4, 2, 2)}
    one = model(
        op("Conv", "x w", "c"),
        op("Add", "c z", "a"),
        op("Mul", "a s", "b"),
        op("Relu", "b", "y"),
        x=shapes,
        weights={"w": weight, "s": s},
    )
    other = model(
        op("Conv", "x w", "c"),
        op("Mul", "z s", "d"),
        op("Add", "c d", "b"),
        op("Relu", "b", "y"),
        x=shapes,
        weights={"w": weight * s, "s": s},
    )
    return one, other, {name: rand(*shape) for name, shape in shapes.items()}


@pair
def a_bias_that_is_an_input_is_no_row():
    weight, shapes = rand(4, 4, 1, 1), {"x": (1, 4, 4, 4), "b": (4,)}
    one = model(op("Conv", "x w b", "c"), op("Relu", "c", "y"), x=shapes, weights={"w": weight})
    other = model(
        op("Conv", "x w", "c"),
        op("Add", "c b", "d"),
        op("Relu", "d", "y"),
        x=shapes,
        weights={"w": weight},
    )
    return one, other, {"x": rand(1, 4, 4, 4), "b": rand(4)}


def cancelling():
    """In the first channel nearly nothing is left; the others are known as well as ever."""
    return const("Mul", "x", "a", floats(TINY - 1, 1, 1, 1)), op("Add", "x a", "b")


@pair
def numbers_that_cancel_in_another_channel():
    one = model(*cancelling(), op("Relu", "b", "y"), x=(2, 4))
    other = model(const("Mul", "x", "a", floats(TINY, 2.02, 2, 2)), op("Relu", "a", "y"), x=(2, 4))
    return one, other, {"x": np.abs(rand(2, 4))}


@pair
def numbers_that_cancel_ahead_of_weights():
    weight = rand(4, 4)
    one = model(*cancelling(), const("MatMul", "b", "y", weight), x=(2, 4))
    wrong = weight * floats([1], [2.5], [2], [2])
    other = model(
        const("Mul", "x", "a", floats(TINY, 1, 1, 1)), const("MatMul", "a", "y", wrong), x=(2, 4)
    )
    return one, other, {"x": rand(2, 4)}


@pair
def sizes_of_inputs_in_another_order():
    """The first input's unknown size is one in the first file, and another in the second."""

    def made(names, read):
        pieces = []
        for n in "xz":
            pieces += [op("Shape", n, f"s{n}"), op("Slice", f"s{n} zero one", f"t{n}")]
            pieces += [op("Concat", f"t{n} rest", f"u{n}", axis=0)]
        stored = {"zero": ints(0), "one": ints(1), "rest": ints(-1)}
        whole = model(
            *pieces,
            op("Reshape", f"w u{read}", "y"),
            x=dict.fromkeys(names, (None, 1)) | {"w": (12,)},
            weights=stored,
        )
        whole.graph.output.extend(value(f"u{n}", TensorProto.INT64, 2) for n in "xz")
        return whole

    return made("xz", "x"), made("zx", "z"), {"x": rand(3, 1), "z": rand(4, 1), "w": rand(12)}


@pair
def factors_along_axes_of_what_was_reshaped():
    s = rand(4, 1)
    stored = {"t": ints(2, 4, 4), "f": ints(32)}
    first = op("Reshape", "x t", "o")
    one = model(
        first,
        op("Mul", "x s", "a"),
        op("Reshape", "a f", "y"),
        x=(4, 4, 2),
        y="y o",
        weights=stored | {"s": s},
    )
    other = model(
        first,
        op("Reshape", "o f", "a"),
        op("Mul", "a s", "y"),
        x=(4, 4, 2),
        y="y o",
        weights=stored | {"s": np.broadcast_to(s, (2, 4, 4)).reshape(32).copy()},
    )
    return one, other, {"x": rand(4, 4, 2)}


@pair
def a_crop_that_puts_its_own_numbers():
    given = {
        "mode": "linear",
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 3.0,
    }
    stored = {"k": floats(1, 1, 2, 2), "roi": floats(0, 0, 0.2, 0.2, 1, 1, 1.5, 1.5)}
    scale = const("Mul", "x", "a", floats(2)), const("Mul", "b", "y", floats(2))
    shape = (1, 4, 4, 4)
    one = model(scale[0], op("Resize", "a roi k", "y", **given), x=shape, weights=stored)
    other = model(op("Resize", "x roi k", "b", **given), scale[1], x=shape, weights=stored)
    return one, other, {"x": rand(*shape)}


@pair
def functions_of_another_opset():
    """Nobody inlines these; their names are the same."""

    def made(factor):
        nodes = [
            helper.make_node("Constant", [], ["c"], value_float=factor),
            helper.make_node("Mul", ["a", "c"], ["b"]),
        ]
        own = helper.make_function("f", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 13)])
        call = helper.make_node("F", ["x"], ["y"], domain="f")
        return model(call, x=(2, 4), functions=[own], domains={"f": 1})

    return made(2.0), made(3.0), {"x": rand(2, 4)}


@pair
def overloads_of_a_function():
    def made(overload):
        owns = []
        for name, factor in (("p", 2.0), ("q", 3.0)):
            nodes = [
                helper.make_node("Constant", [], ["c"], value_float=factor),
                helper.make_node("Mul", ["a", "c"], ["b"]),
            ]
            opsets = [helper.make_opsetid("", 13)]
            owns.append(helper.make_function("f", "F", ["a"], ["b"], nodes, opsets, overload=name))
        call = helper.make_node("F", ["x"], ["y"], domain="f", overload=overload)
        return model(call, x=(2, 4), functions=owns, domains={"f": 1}, ir=10)

    return made("p"), made("q"), {"x": rand(2, 4)}


@pair
def an_operator_on_what_is_broadcast():
    """A convolution of the sum is none of its smaller part, which has but one place."""
    shapes = {"x": (1, 4, 5, 5), "z": (1, 4, 1, 1)}
    weight, pads = {"w": rand(4, 4, 3, 3)}, [1, 1, 1, 1]
    one = model(
        op("Add", "x z", "a"),
        op("Conv", "a w", "b", pads=pads),
        op("Relu", "b", "y"),
        x=shapes,
        weights=weight,
    )
    other = model(
        op("Conv", "x w", "a", pads=pads),
        op("Conv", "z w", "b", pads=pads),
        op("Add", "a b", "c"),
        op("Relu", "c", "y"),
        x=shapes,
        weights=weight,
    )
    return one, other, {name: rand(*shape) for name, shape in shapes.items()}


@pair
def a_reduction_that_keeps_its_axes():
    """No number but 1 keeps them."""
    axes = {"axes": ints(1)}
    one, other = (
        model(op("ReduceSum", "x axes", "y", keepdims=k), x=("n", 4), weights=axes) for k in (1, 2)
    )
    for made in (one, other):
        made.graph.output[0].type.tensor_type.ClearField("shape")
    return one, other, {"x": rand(2, 4)}


@pair
def a_weight_that_is_infinite():
    weight = rand(4, 4)
    wrong = weight.copy()
    wrong[1, 2] = np.inf
    return *(model(const("MatMul", "x", "y", w), x=(2, 4)) for w in (weight, wrong)), {
        "x": rand(2, 4)
    }


def undeclared(*nodes, x, opset=18, **weights):
    """A model whose output has no declared shape."""
    made = model(*nodes, x=x, weights=weights, opset=opset)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


@pair
def zeros_of_both_signs():
    one, other = (model(const("Div", "x", "y", floats(0, last)), x=(3, 2)) for last in (0, -0.0))
    return one, other, {"x": np.ones((3, 2), np.float32)}


@pair
def an_integer_of_more_digits_than_a_float64():
    one, other = (
        model(const("Add", "x", "y", np.full((2, 2), 2**53 + k)), x=(2, 2), elem=INT64)
        for k in (0, 1)
    )
    return one, other, {"x": np.zeros((2, 2), np.int64)}


@pair
def a_power_that_adds_an_axis():
    one = undeclared(const("Pow", "x", "y", floats(2)), x=())
    return one, undeclared(op("Mul", "x x", "y"), x=()), {"x": np.array(3, np.float32)}


@pair
def an_integer_that_is_cut():
    """The end of a Slice does not fit into an int32, and wraps around."""

    def made(*nodes):
        ahead = [op("Shape", "x", "s"), op("Add", "s k", "n")]
        weights = {"k": ints(2**32 - 5), "i": ints(0)}
        return undeclared(*ahead, *nodes, op("Slice", "x i e i", "y"), x=("n",), **weights)

    cut = op("Cast", "n", "c", to=TensorProto.INT32), op("Cast", "c", "e", to=INT64)
    return made(*cut), made(op("Identity", "n", "e")), {"x": rand(6)}


@pair
def a_product_over_no_axes():
    def made(**attrs):
        nodes = op("Shape", "x", "s"), op("ReduceProd", "s", "p", **attrs)
        return undeclared(*nodes, op("Reshape", "x p", "y"), x=("n", 4))

    return made(noop_with_empty_axes=1), made(), {"x": rand(2, 4)}


@pair
def a_norm_whose_epsilon_half_precision_does_not_hold():
    """The norm itself adds it in float32; its parts divide zeros by zero."""
    half = {"g": np.ones(4, np.float16), "b": np.zeros(4, np.float16)}
    whole = op("LayerNormalization", "x g b", "y", epsilon=1e-12)
    nodes = [
        op("ReduceMean", "x k", "m"),
        op("Sub", "x m", "d"),
        op("Mul", "d d", "p"),
        op("ReduceMean", "p k", "v"),
        op("Add", "v e", "a"),
        op("Sqrt", "a", "q"),
        op("Div", "d q", "n"),
        op("Mul", "n g", "s"),
        op("Add", "s b", "y"),
    ]
    parts = half | {"k": ints(-1), "e": np.float16(1e-12)}
    one = model(whole, x=(2, 4), weights=half, elem=TensorProto.FLOAT16, opset=18)
    other = model(*nodes, x=(2, 4), weights=parts, elem=TensorProto.FLOAT16, opset=18)
    return one, other, {"x": np.ones((2, 4), np.float16)}


@pair
def rows_of_a_product_that_are_laid_out_otherwise():
    def made(*sizes):
        nodes = [
            op("Reshape", "x to", "r"),
            op("MatMul", "r w", "m"),
            op("Softmax", "m", "p", axis=1),
            op("Reshape", "p back", "y"),
        ]
        weights = {"to": ints(*sizes), "back": ints(-1, 6), "w": rand(4, 6)}
        return undeclared(*nodes, x=("n", 2, 6), **weights)

    one, other = made(-1, 3, 4), made(-1, 2, 4)
    other.graph.initializer[2].CopyFrom(one.graph.initializer[2])
    return one, other, {"x": rand(2, 2, 6)}


@pair
def ranges_that_go_back_to_no_end():
    """onnxruntime takes all of the first one, and nothing of the second one."""

    def made(end):
        weights = {"s": ints(-1), "e": ints(end), "a": ints(1)}
        return undeclared(op("Slice", "x s e a s", "y"), x=(2, 4), **weights)

    return made(2**63 - 1), made(3), {"x": rand(2, 4)}


@pair
def weights_behind_numbers_that_cancel():
    """``(2²⁴ + 2)·x − 2²⁴·x`` is 2·x, but for the rounding of either number."""

    def made(factor):
        weight = np.float32([[1, 2], [3, 5 * factor]])
        nodes = (
            const("Mul", "x", "a", np.float32(2**24 + 2)),
            const("Mul", "x", "b", -floats(2**24)),
        )
        nodes += op("Add", "a b", "c"), const("MatMul", "c", "y", weight)
        return model(*nodes, x=(2, 2))

    return made(1), made(1.25), {"x": np.ones((2, 2), np.float32)}


@pair
def a_sum_over_an_axis_that_is_named_twice():
    """It adds up 4 numbers, not 16."""
    weights = {"k": ints(2, -2)}
    total, add = op("ReduceSum", "x k", "a"), const("Add", "a", "y", floats(16))
    one = model(total, add, x=(2, 3, 4, 4), weights=weights)
    add, total = const("Add", "x", "a", floats(1)), op("ReduceSum", "a k", "y")
    other = model(add, total, x=(2, 3, 4, 4), weights=weights)
    return one, other, {"x": rand(2, 3, 4, 4)}


@pair
def windows_with_gaps_that_read_padding_alone():
    """A window at -1 and 2 of an axis of two numbers puts out 0, whatever these are."""
    given = {"kernel_shape": [2, 2], "pads": [1] * 4, "dilations": [3, 3]}
    shape = (1, 3, 2, 2)
    pool, add = op("AveragePool", "x", "a", **given), const("Add", "a", "y", floats(1))
    one = model(pool, add, x=shape, opset=19)
    add, pool = const("Add", "x", "a", floats(1)), op("AveragePool", "a", "y", **given)
    return one, model(add, pool, x=shape, opset=19), {"x": rand(*shape)}


@pair
def other_bounds_behind_many_layers_in_half_precision():
    """Each of them may be off by rounding, and so by a part of a hundredth in the end at most."""

    def made(factor, high):
        eye = np.eye(4, dtype=np.float16)
        stored = {"k": factor * eye, "e": eye, "l": eye / factor}
        stored |= {"low": np.float16(0), "high": np.float16(high)}
        names = ["x", *(f"r{k}" for k in range(60))]
        nodes = []
        for number, (before, after) in enumerate(itertools.pairwise(names)):
            weight = "e" if number else "k"
            nodes.append(op("MatMul", f"{before} {weight}", f"m{number}"))
            nodes.append(op("Relu", f"m{number}", after))
        nodes.append(op("Clip", f"{names[-1]} low high", "c"))
        nodes.append(op("MatMul", "c l", "y"))
        return model(*nodes, x=(2, 4), weights=stored, elem=TensorProto.FLOAT16)

    factor = np.float16(2)
    return made(np.float16(1), 6), made(factor, 12.6), {"x": np.full((2, 4), 20, np.float16)}


@pytest.mark.parametrize("name", PAIRS)
def test_two_functions_are_not_proved_to_be_one(name):
    reseed(7)
    one, other, feeds = PAIRS[name]()
    mixed = name == "overloads of a function" and runtimes.mixes_overloads()
    assert differ(one, other, feeds) or mixed
    for first, second in ((one, other), (other, one)):
        found = proof(first, second)
        assert found.status != "proved", found
    for made in (one, other):
        assert proof(made, made).status == "proved"
