"""Weights behind a DequantizeLinear: its scale takes maps in, the integers stay bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import bnfold

from .graphs import (
    bn,
    codes,
    const,
    constants,
    counts,
    folds,
    model,
    op,
    overridable,
    positive,
    rand,
    stays,
)


def integers(shape, axis, per_channel, zero=True):
    """A weight of int8 with its scales and zero points, one or one for each position of an axis."""
    generator = np.random.default_rng(7)
    count = (shape[axis],) if per_channel else ()
    values = {
        "q": generator.integers(-100, 100, shape).astype(np.int8),
        "s": generator.uniform(0.01, 0.02, count).astype(np.float32),
    }
    if zero:
        values["z"] = generator.integers(-5, 5, count).astype(np.int8)
    attrs = {"axis": axis} if per_channel else {}
    return op("DequantizeLinear", "q s z" if zero else "q s", "w", name="dq", **attrs), values


def scaled(x, y, c):
    return const("Mul", x, y, positive(c, 1, 1), name="scale")


def assert_same_integers(before, after):
    np.testing.assert_array_equal(constants(before)["q"], constants(after)["q"])
    assert constants(after)["q"].dtype == np.int8


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_behind_a_conv(per_channel, zero):
    m = model(
        integers((4, 3, 3, 3), 0, per_channel, zero),
        op("Conv", "x w", "c", name="conv"),
        scaled("c", "d", 4),
        const("Add", "d", "y", rand(4, 1, 1)),
        opset=21,
    )
    assert_same_integers(m, folds(m, DequantizeLinear=1, Conv=1))


def test_axis_from_the_end():
    m = model(
        integers((3, 3, 3, 3), -4, True),
        op("Conv", "x w", "c", name="conv"),
        scaled("c", "y", 3),
        opset=21,
    )
    assert_same_integers(m, folds(m, DequantizeLinear=1, Conv=1))


@pytest.mark.parametrize("opset, left", [(13, 0), (12, 1)])
def test_one_scale_stays_one_before_opset_13(opset, left):
    m = model(
        integers((4, 3, 3, 3), 0, False),
        op("Conv", "x w", "c", name="conv"),
        scaled("c", "y", 4),
        opset=opset,
    )
    after = bnfold.fold(m)
    assert counts(after).get("Mul", 0) == left
    assert bnfold.verify(m, after).status == "pass"
    assert codes(m) == ({"scale": "quantized-weight"} if left else {})


@pytest.mark.parametrize("lowest, goes", [(-127, True), (-128, False)])
def test_a_negative_map_turns_stored_integers(lowest, goes):
    """Of −128 there is no negative in int8; the scale of a runtime is positive."""
    node, values = integers((4, 3, 3, 3), 0, True)
    values["z"][:] = 0
    values["q"][2, 0, 0, 0] = lowest
    m = model(
        (node, values),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", -positive(4, 1, 1), name="scale"),
        opset=21,
    )
    if not goes:
        stays(m, {"scale": "quantized-weight"})
        return
    after = folds(m, DequantizeLinear=1, Conv=1)
    np.testing.assert_array_equal(constants(after)["q"], -values["q"])
    assert (constants(after)["s"] > 0).all()


@pytest.mark.parametrize("per_channel", [True, False])
def test_ahead_of_a_conv(per_channel):
    """Scales along output channels cannot hold a map of the input channels, though Cin = Cout."""
    m = model(
        scaled("x", "a", 3),
        integers((3, 3, 3, 3), 0, per_channel),
        op("Conv", "a w", "y", name="conv"),
        opset=21,
    )
    if per_channel:
        stays(m, {"scale": "quantized-weight"})
    else:
        assert_same_integers(m, folds(m, DequantizeLinear=1, Conv=1))


def test_a_shift_ahead_meets_the_weight_as_it_was():
    """The new bias is made with the scale that the map behind has not yet multiplied."""
    m = model(
        const("Add", "x", "a", rand(3, 1, 1)),
        integers((4, 3, 3, 3), 0, True),
        (op("Conv", "a w b", "c", name="conv"), {"b": rand(4)}),
        bn("bn", "c", "y", 4),
        opset=21,
    )
    folds(m, DequantizeLinear=1, Conv=1)


@pytest.mark.parametrize("group", [1, 2])
def test_behind_a_transposed_conv(group):
    """In groups, output channels do not lie on one axis of the weight."""
    m = model(
        integers((4, 4 // group, 2, 2), 1, False),
        op("ConvTranspose", "x w", "c", name="up", group=group),
        scaled("c", "y", 4),
        x=(2, 4, 5, 5),
        opset=21,
    )
    if group == 1:
        assert_same_integers(m, folds(m, DequantizeLinear=1, ConvTranspose=1))
    else:
        stays(m, {"scale": "quantized-weight"})


def test_behind_a_matmul():
    m = model(
        integers((6, 4), 1, True),
        op("MatMul", "x w", "m", name="mm"),
        const("Add", "m", "a", rand(4)),
        const("Mul", "a", "y", positive(4)),
        x=(5, 6),
        opset=21,
    )
    assert_same_integers(m, folds(m, DequantizeLinear=1, MatMul=1, Add=1))


def test_weight_with_a_second_reader_stays():
    m = model(
        integers((4, 3, 3, 3), 0, True),
        op("Conv", "x w", "c", name="conv"),
        op("Conv", "x w", "u", name="other"),
        scaled("c", "y", 4),
        y="y u",
        opset=21,
    )
    stays(m, {"scale": "quantized-weight"})


def test_scale_that_a_caller_may_override_stays():
    m = overridable(
        model(
            integers((4, 3, 3, 3), 0, True),
            op("Conv", "x w", "c", name="conv"),
            scaled("c", "y", 4),
            opset=21,
        ),
        "s",
    )
    stays(m, {"scale": "overridable-weight"})


def dequantized(name, dtype, shape, scale, zero=None, **attrs):
    """A tensor of integers with scales, and zero points if any, of the shapes given."""
    generator = np.random.default_rng(11)
    values = {
        f"{name}.q": generator.integers(-50, 50, shape).astype(dtype),
        f"{name}.s": generator.uniform(0.01, 0.02, scale).astype(np.float32),
    }
    if zero is not None:
        values[f"{name}.z"] = np.full(zero, 0 if dtype == np.int32 else 3, dtype)
    return op("DequantizeLinear", " ".join(values), name, **attrs), values


def biased(weight, bias, opset=21):
    """A Conv with weight and bias of integers, Cin = Cout, and a map behind it."""
    return model(
        dequantized("w", np.int8, (4, 4, 1, 1), **weight),
        dequantized("b", np.int32, (4,), **bias),
        op("Conv", "x w b", "c", name="conv"),
        scaled("c", "d", 4),
        const("Add", "d", "y", rand(4, 1, 1)),
        x=(2, 4, 5, 5),
        opset=opset,
    )


ONE = {"scale": ()}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize(
    "weight, bias",
    [
        (ONE, {"scale": (1,)}),
        (ONE, {"scale": (1,), "zero": (1,)}),
        (ONE, {"scale": (4,), "zero": (4,), "axis": 0}),
        (ONE, {"scale": (4,), "axis": -1}),
        ({"scale": (1,), "zero": (1,)}, ONE),
        ({"scale": (1,), "zero": ()}, ONE),
        ({"scale": (1,), "axis": 3}, ONE),
        ({"scale": (4,), "zero": (4,), "axis": 0}, {"scale": (1,)}),
        ({"scale": (4,), "axis": -4}, {"scale": (4,), "axis": 0}),
    ],
)
def test_shapes_of_scales_and_zero_points(weight, bias, opset):
    """One number is per tensor whatever its shape is, and whatever ``axis`` says: by its default it
    lies outside of a bias, and on an axis of size 1 the scale may still become one per channel.
    """
    m = biased(weight, bias, opset)
    after = bnfold.fold(m)
    assert counts(after) == {"DequantizeLinear": 1, "Conv": 1}
    assert bnfold.verify(m, after).status == "pass"
    np.testing.assert_array_equal(constants(m)["w.q"], constants(after)["w.q"])


@pytest.mark.parametrize(
    "weight, bias",
    [
        ({"scale": (4,)}, ONE),
        ({"scale": (2, 4, 1, 1), "axis": 0, "block_size": 2}, ONE),
        ({"scale": (2, 4, 1, 1), "axis": 0, "block_size": 3}, ONE),
    ],
    ids=["along input channels", "blocks of output channels", "a last block cut short"],
)
def test_scales_that_cannot_take_a_map_in(weight, bias):
    m = biased(weight, bias)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert set(codes(m).values()) == {"quantized-weight"}


@pytest.mark.parametrize(
    "weight, bias",
    [
        (ONE, {"scale": (4,)}),
        (ONE, {"scale": (4,), "axis": -2}),
        (ONE, {"scale": (3,), "axis": 0}),
        ({"scale": (3,), "axis": 0}, ONE),
        ({"scale": (1, 1)}, ONE),
        ({"scale": (4, 1, 1, 1), "axis": 0}, ONE),
        ({"scale": (1,), "zero": (4,), "axis": 0}, ONE),
        ({"scale": (4, 2, 1, 1), "axis": 1, "block_size": 3, "zero": (4, 1, 1, 1)}, ONE),
        ({"scale": (4, 3, 1, 1), "axis": 1, "block_size": 2}, ONE),
        ({"scale": (4, 2, 1, 1), "axis": 1, "block_size": -2}, ONE),
        ({"scale": (4,), "zero": (1,), "axis": 0}, ONE),
    ],
)
def test_shapes_that_onnx_does_not_allow_are_left_alone(weight, bias):
    """No runtime takes them; a model may still hold them, and a reader must not break down."""
    m = biased(weight, bias)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert set(codes(m).values()) == {"quantized-weight"}


def test_a_wrong_scale_behind_a_bias_of_one_scale_fails():
    m = biased(ONE, {"scale": (1,)})
    after = folds(m, DequantizeLinear=1, Conv=1)
    scale = next(
        t
        for t in after.graph.initializer
        if t.name == next(n.input[1] for n in after.graph.node if n.op_type == "DequantizeLinear")
    )
    wrong = numpy_helper.to_array(scale).copy()
    wrong[2] *= np.float32(1.01)
    scale.CopyFrom(numpy_helper.from_array(wrong, scale.name))
    assert bnfold.verify(m, after).status == "fail"


def test_what_is_put_out_in_another_type_stays():
    """``output_dtype`` and not the scale then says what type the weight has (opset 23)."""
    node, values = dequantized("w", np.int8, (4, 3, 3, 3), (), output_dtype=TensorProto.FLOAT16)
    m = model((node, values), op("Conv", "x w", "c"), scaled("c", "y", 4), opset=23)
    assert "Mul" in counts(bnfold.fold(m))


@pytest.mark.parametrize("size, cells", [(2, 2), (3, 2), (4, 1), (1, 4), (8, 1)])
def test_blocks_along_what_is_summed_over(size, cells):
    """Scales of blocks of input channels lie along the output channels as well: Cin = Cout."""
    blocks = {"scale": (4, cells, 1, 1), "axis": 1, "block_size": size}
    for zero in (None, (4, cells, 1, 1)):
        m = biased(blocks | ({"zero": zero} if zero else {}), {"scale": (2,)} | BIAS_BLOCKS)
        after = bnfold.fold(m)
        assert counts(after) == {"DequantizeLinear": 1, "Conv": 1}
        assert bnfold.verify(m, after).status == "pass"
        np.testing.assert_array_equal(constants(m)["w.q"], constants(after)["w.q"])


BIAS_BLOCKS = {"axis": 0, "block_size": 2}


@pytest.mark.parametrize("even, goes", [(True, True), (False, False)])
def test_blocks_take_what_is_even_in_each(even, goes):
    """A map of what a MatMul reads, K = 6 in blocks of 2: two channels and two alike, or not."""
    map_ = np.repeat(positive(3), 2) if even else positive(6)
    node, values = dequantized("w", np.int8, (6, 4), (3, 4), (3, 4), axis=0, block_size=2)
    m = model(
        const("Mul", "x", "a", map_, name="scale"),
        (node, values),
        op("MatMul", "a w", "y", name="mm"),
        x=(5, 6),
        opset=21,
    )
    if not goes:
        stays(m, {"scale": "quantized-weight"})
        return
    after = folds(m, DequantizeLinear=1, MatMul=1)
    np.testing.assert_array_equal(constants(m)["w.q"], constants(after)["w.q"])
