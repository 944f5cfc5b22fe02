"""Where a law of the proof ends: right on one side of the line, and not proved on the other."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import UsageError

from ..graphs import const, model, op, rand
from .pairs import differ, floats, ints, proof, value, with_constant


def test_a_number_that_a_loop_draws_each_time_is_another():
    """Outside of the loop it is drawn once."""

    def made(is_inside):
        draw = op("RandomUniform", "", "q", shape=[1], dtype=1)
        steps = [op("Identity", "go", "on"), op("Add", "q s", "t")]
        body = helper.make_graph(
            [draw, *steps] if is_inside else steps,
            "body",
            [value("i", 7), value("go", 9), value("s", 1, 1)],
            [value("on", 9), value("t", 1, 1)],
        )
        loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
        return model(*([] if is_inside else [draw]), loop, x=(1,), weights={"n": np.int64(5)})

    assert proof(made(False), made(True)).status != "proved"
    assert proof(made(True), made(True)).status == "proved"


@pytest.mark.parametrize("mode", ["sizes", "scales", "policy"])
def test_an_axis_of_the_same_size_may_be_resized(mode):
    """⌊4 · 1.2⌋ = 4, and each number is a mean. onnxruntime copies such an axis; ONNX does not."""
    s = rand(4, 1, 1)
    given = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    inputs, sizes = "_ k", floats(1, 1.2, 1, 2)
    if mode != "scales":
        inputs, sizes = "_ _ k", ints(1, 4, 4, 8)
    if mode == "policy":
        given["keep_aspect_ratio_policy"] = "not_larger"
    made = [
        model(
            const("Mul", "x", "a", s),
            op("Resize", f"a {inputs}", "y", **given),
            x=(1, 4, 4, 4),
            weights={"k": sizes},
            opset=18,
        ),
        model(
            op("Resize", f"x {inputs}", "a", **given),
            const("Mul", "a", "y", s),
            x=(1, 4, 4, 4),
            weights={"k": sizes},
            opset=18,
        ),
    ]
    assert (proof(*made).status == "proved") is (mode == "sizes")


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", ["Add", "Mul", "MatMul", "output"])
def test_what_is_no_number_refutes_no_model_of_itself(kind, number):
    """An attention mask adds −∞."""
    values = rand(4, 4)
    values[1, 2] = number
    if kind == "output":
        (made,) = with_constant(values)
    else:
        made = model(const(kind, "x", "a", values), op("Relu", "a", "y"), x=(4, 4))
    assert proof(made, made).status == "proved"


@pytest.mark.parametrize("place", ["ahead", "behind"])
def test_what_cancels_refutes_nothing(place):
    """``f(x) − f(x)`` is 0, whatever f reads; what is made of it alone does not depend on x."""

    def made(factor):
        cut = op("Sigmoid", "a", "s"), op("Sub", "s s", "d"), op("Asinh", "d", "t")
        scale = const("Mul", "x", "a", floats(factor)), op("Identity", "t", "y")
        if place == "behind":
            scale = op("Identity", "x", "a"), const("Mul", "t", "y", floats(factor))
        return model(scale[0], *cut, scale[1], x=(2, 4))

    one, other = made(2), made(3)
    assert not differ(one, other, {"x": rand(2, 4)})
    assert proof(one, other).status != "refuted"


def test_constant_channels_along_another_axis():
    one, other = (
        model(const("Mul", "x", "a", v), op("Relu", "a", "y"), x=(8, 4))
        for v in (floats(0, 1, 2, 3), rand(8, 1))
    )
    assert proof(one, other).status != "proved"
    assert proof(other, one).status != "proved"


@pytest.mark.parametrize(
    ("pads", "tap", "is_same"),
    [
        ([1, 1, 1, 1], (1, 1), True),  # The middle of a window of three never leaves the data,
        ([0, 0, 2, 2], (0, 0), True),
        ([1, 1, 1, 1], (1, 2), False),  # but what is next to it does,
        ([0, 0, 2, 2], (0, 1), False),  # on either side.
        ([2, 2, 0, 0], (1, 2), False),
    ],
)
def test_a_shift_passes_padding_that_is_never_read(pads, tap, is_same):
    weight, shift = np.zeros((4, 4, 3, 3), np.float32), rand(4)
    weight[:, :, tap[0], tap[1]] = rand(4, 4)
    ahead = model(
        const("Add", "x", "a", shift.reshape(4, 1, 1)),
        op("Conv", "a w", "y", pads=pads),
        x=(1, 4, 5, 5),
        weights={"w": weight},
    )
    behind = model(
        op("Conv", "x w b", "y", pads=pads),
        x=(1, 4, 5, 5),
        weights={"w": weight, "b": weight.sum(axis=(2, 3)) @ shift},
    )
    assert differ(ahead, behind, {"x": rand(1, 4, 5, 5)}) is not is_same
    assert (proof(ahead, behind).status == "proved") is is_same


def test_a_relation_along_an_axis_of_unknown_size():
    """The parameters of a norm tell what no shape does."""
    stored = {"s": floats(2, 3), "o": floats(0, 0), "v": floats(1, 1), "at": ints(0)}
    given = {"x": (2, None, 3, 3), "weights": stored}
    norm = op("BatchNormalization", "x s o o v", "a", epsilon=0.0)
    one = model(norm, op("Unsqueeze", "a at", "b"), op("Tanh", "b", "y"), **given)
    other = model(op("Unsqueeze", "x at", "b"), op("Tanh", "b", "y"), **given)
    assert proof(one, other).status != "proved"
    assert proof(one, one).status == "proved"


@pytest.mark.parametrize("what", ["norm", "bias", "reference"])
def test_a_model_that_is_none_ends_without_a_traceback(what):
    """ONNX's checker has nothing against some of them."""
    stored = {name: floats(1, 1, 1) for name in "sobv"}
    if what == "norm":
        made = model(op("BatchNormalization", "x s o b v", "y"), x=(2, 4, 3), weights=stored)
    else:
        conv = op("Conv", "x w b", "y", strides=[1])
        made = model(conv, x=(2, 4, 3), weights={"w": rand(4, 4, 1), "b": stored["b"]})
    if what == "reference":
        made.graph.node[0].attribute[-1].ref_attr_name = "strides"
        with pytest.raises(UsageError, match="in no function"):
            proof(made, made)
    else:
        assert proof(made, made).status != "refuted"


def test_a_window_that_nobody_has_takes_no_memory():
    made = model(op("Conv", "x w", "y"), x=(1, 1, None), weights={"w": rand(1, 1, 2)})
    made.graph.initializer[0].dims[2] = 1 << 40
    with pytest.raises(UsageError):
        proof(made, made)


def cancelled(kept, weight):
    """``kept``·x in each channel, of numbers near 2²⁴, behind it a sum with x or a product."""
    kept = floats(*kept)
    nodes = [
        const("Mul", "x", "a", np.where(kept > 2, kept, 2**24 + kept).astype(np.float32)),
        const("Mul", "x", "b", np.where(kept > 2, 0, -(2**24)).astype(np.float32)),
        op("Add", "a b", "c"),
    ]
    last = op("Add", "c z", "y") if weight is None else const("MatMul", "c", "y", weight)
    return model(*nodes, last, x={"x": (2, 2), "z": (2, 2)})


def test_numbers_that_cancel_tell_nothing_of_what_is_left():
    """It is neither proved nor refuted. Of another channel all is known."""
    weight = np.float32([[1, 2], [3, 5]])
    sums = [cancelled((2, kept), None) for kept in (2, 0)]
    products = [cancelled((2, 3), weight * k) for k in (floats(1, 1), floats([1.25], [1]))]
    for one, other in (sums, products):
        for first, second in ((one, other), (other, one)):
            assert proof(first, second).status == "not proved"
    other = cancelled((2, 3), weight * floats([1], [1.001]))
    assert proof(products[0], other).status != "proved"


@pytest.mark.parametrize("kind", ["Clip", "Pad"])
def test_an_infinite_number_is_no_rounding_of_another(kind):
    def made(number):
        nodes = const("Mul", "x", "a", np.float32(2)), op("Relu", "a", "r")
        if kind == "Clip":
            return model(
                *nodes,
                op("Clip", "r k v", "y"),
                x=(2, 3),
                weights={"k": floats(-1)[0], "v": number},
            )
        return model(
            *nodes, op("Pad", "r k v", "y"), x=(2, 3), weights={"k": ints(0, 1, 0, 0), "v": number}
        )

    one, other, turned = (made(np.float32(number)) for number in (np.inf, 1, -np.inf))
    assert differ(one, other, {"x": 1 + np.abs(rand(2, 3))})
    for first, second in itertools.permutations((one, other, turned), 2):
        assert proof(first, second).status != "proved"
    assert proof(one, one).status == "proved"


@pytest.mark.parametrize("kind", ["LayerNormalization", "InstanceNormalization"])
def test_an_infinite_shift_of_a_norm_is_no_rounding_of_another(kind):
    def made(number):
        weights = {"g": np.ones(3, np.float32), "b": floats(1, number, 2)}
        return model(op(kind, "x g b", "y"), x=(1, 3, 3), weights=weights)

    one, other = made(np.inf), made(5)
    assert differ(one, other, {"x": rand(1, 3, 3)})
    assert "proved" not in (proof(one, other).status, proof(other, one).status)


@pytest.mark.parametrize("left", [False, True])
def test_an_infinite_factor_of_a_gemm_hides_no_weights(left):
    def made(weight):
        node = op("Gemm", "w x" if left else "x w", "y", alpha=np.inf)
        return model(node, x=(2, 2), weights={"w": floats([1, -1], [1, weight])})

    assert proof(made(2), made(3)).status != "proved"
    assert proof(made(2), made(2)).status == "proved"


def test_numbers_in_float64_are_told_apart_beyond_float32():
    def clip(high):
        nodes = op("Relu", "x", "r"), op("Clip", "r low high", "y")
        bounds = {"low": np.float64(0.01), "high": np.float64(high)}
        return model(*nodes, x=(2, 4), weights=bounds, elem=TensorProto.DOUBLE)

    def product(weight, *ahead, of="x", **weights):
        nodes = *ahead, op("MatMul", f"{of} w", "y")
        weights["w"] = weight
        return model(*nodes, x=(3, 2), weights=weights, elem=TensorProto.DOUBLE)

    turn, weight = op("Gather", "x i", "g", axis=1), np.float64([[1, 2], [3, 5]])
    turned = product(weight, turn, of="g", i=ints(1, 0))
    off = 1 + 2.0**-26
    assert proof(clip(0.1), clip(0.1)).status == "proved"
    assert proof(clip(0.1), clip(0.1 * off)).status != "proved"
    assert proof(turned, product(weight[::-1])).status == "proved"
    assert proof(turned, product(weight[::-1] * (1, off))).status != "proved"


def test_an_output_that_is_named_twice_is_two_outputs():
    one = model(op("Relu", "x", "y"), x=(6,), y="y y")
    other = model(op("Relu", "x", "y"), op("Neg", "x", "z"), x=(6,), y="y z")
    assert differ(one, other, {"x": rand(6)})
    assert proof(one, other).status != "proved"
    assert proof(other, one).status != "proved"
    assert proof(one, one).status == "proved"


@pytest.mark.parametrize(("kind", "factor"), [(np.int32, 2**29), (np.int64, 2**62)])
def test_integers_that_are_cut_where_sizes_are_not_large(kind, factor):
    def made(number):
        to = TensorProto.INT32 if kind == np.int32 else TensorProto.INT64
        nodes = op("Shape", "x", "s", end=1), op("Cast", "s", "n", to=to)
        nodes += op("Mul", "n c", "m"), op("Div", "m c", "q"), op("Cast", "q", "y", to=1)
        return model(*nodes, x=("n", 3), weights={"c": kind([number])})

    assert differ(made(factor), made(1), {"x": rand(8, 3)})
    assert proof(made(factor), made(1)).status != "proved"
    assert proof(made(3), made(1)).status == "proved"


@pytest.mark.parametrize("kind", ["NonZero", "Slice", "derived"])
def test_a_size_that_may_be_0_tells_no_reshape(kind):
    """A 0 stands for the size that is there: 24 behind one Reshape, 4 without it."""
    count = {
        "NonZero": [op("NonZero", "m", "o"), op("Shape", "o", "n", start=1)],
        "Slice": [op("Slice", "m k6 k9", "o"), op("Shape", "o", "n")],
        "derived": [op("NonZero", "m", "o"), op("Trilu", "o", "t")],
    }[kind]
    weights = {"k6": ints(6), "k9": ints(9), "back": ints(-1, 1), "rest": ints(-1)}
    if kind == "derived":
        count.append(op("Shape", "t", "n", start=1))

    def made(*nodes, of):
        target = op("Concat", "n rest", "to", axis=0)
        x = {"x": (4, 6, 5), "m": ("m",)}
        last = op("Reshape", f"{of} to", "z"), op("Relu", "z", "y")
        return model(*count, *nodes, target, *last, x=x, weights=weights)

    ahead = [op("Concat", "back n", "first", axis=0), op("Reshape", "x first", "w")]
    one, other = made(*ahead, of="w"), made(of="x")
    assert differ(one, other, {"x": rand(4, 6, 5), "m": np.zeros(6, np.float32)})
    assert proof(one, other).status != "proved"
    assert proof(one, one).status == "proved"


def test_what_differs_for_one_output_is_not_believed_for_another():
    """A part of the other data, in reverse, is no part of x for the next output either."""
    ranges = {"begin": ints(-1), "end": ints(-99), "a": ints(1), "back": ints(-1)}
    weights = {
        "c": floats(1, 2, 3, 4),
        "zero": ints(0),
        "two": ints(2),
        "third": ints(-3),
        **ranges,
    }
    scaled, cut = op("Mul", "x c", "s"), "{} begin end a back"
    ones = [scaled, op("Slice", cut.format("s"), "b"), op("Relu", "b", "y")]
    ones.append(op("Slice", "x begin third a back", "z"))
    others = [op("Slice", cut.format("x"), "b"), op("Relu", "b", "y"), scaled]
    others += [op("Slice", cut.format("s"), "d"), op("Slice", "d zero two a", "z")]
    one, other = (model(*n, x=(3, 4), y="y z", weights=weights) for n in (ones, others))
    assert differ(one, other, {"x": rand(3, 4)})
    assert [each.status for each in proof(one, one).outputs] == ["proved"] * 2
    assert "proved" not in [each.status for each in proof(one, other).outputs]


def test_a_default_value_tells_no_sizes():
    """A caller may set what has one: here the target of a Reshape."""

    def made(is_input, *behind):
        nodes = op("Reshape", "x to", "z"), *(behind or [op("Shape", "z", "s")])
        held = model(*nodes, op("Cast", "s", "y", to=1), x=("a", "b"), weights={"to": ints(3, 2)})
        held.graph.initializer.extend([numpy_helper.from_array(ints(3, 2), "k")])
        if is_input:
            held.graph.input.append(value("to", TensorProto.INT64, 2))
        return held

    feeds = {"x": rand(2, 3), "to": ints(6, 1)}
    one, other = made(True), made(True, op("Identity", "k", "s"))
    assert differ(one, other, feeds)
    assert proof(one, other).status != "proved"
    assert proof(one, one).status == "proved"
    assert proof(made(False), made(False, op("Identity", "k", "s"))).status == "proved"


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_sizes_that_nobody_can_write_out_take_no_time(kind):
    """(a + b + …)² thirty times over, and a quotient of quotients."""
    nodes = [op("Shape", "x", "s"), *(op("Gather", f"s i{k}", f"n{k}") for k in range(8))]
    weights = {f"i{k}": np.int64(k) for k in range(8)} | {"one": np.int64(1)}
    nodes += [op("Add", "n0 n1", "v1")]
    nodes += [op("Add", f"v{k - 1} n{k}", f"v{k}") for k in range(2, 8)]
    for k in range(8, 38):
        nodes.append(op("Add", f"v{k - 1} one", f"w{k}"))
        nodes.append(op(kind, f"v{k - 1} w{k}", f"v{k}"))
    made = model(*nodes, op("Cast", "v37", "y", to=1), x=tuple("abcdefgh"), weights=weights)
    start = time.monotonic()
    assert proof(made, made).status == "proved"
    assert time.monotonic() - start < 20
