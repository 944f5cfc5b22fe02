"""Float weights that a quantizer rounds at every run, as quantization-aware training writes them.

The oracle of the integers is onnxruntime: it runs the quantizers of both models.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
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
    positive,
    rand,
    session,
    stays,
)

INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)
LIMITS = {INT8: 127, UINT8: 255}


def rounded(
    shape, axis=None, kind=INT8, zero=0, shared=True, between=(), scale_shape=None, attrs=None
):
    """A weight ``w`` behind QuantizeLinear and DequantizeLinear, a third of it at borders.

    Where the quotient of weight and scale lies between two integers, the rounding of a fold decides
    to which one it goes.
    """
    generator = np.random.default_rng(5)
    count = scale_shape if scale_shape is not None else ((shape[axis],) if axis is not None else ())
    s = generator.uniform(0.01, 0.02, count).astype(np.float32)
    laid = s.reshape([-1 if k == axis else 1 for k in range(len(shape))]) if s.size > 1 else s
    steps = generator.integers(-100, 100, shape) + generator.choice([0.0, 0.25, 0.5], shape)
    values = {"wf": (steps * laid).astype(np.float32), "s": s, "z": np.full(count, zero, kind)}
    names = "s z"
    if not shared:
        values |= {"s2": s, "z2": values["z"]}
        names = "s2 z2"
    given = {"axis": axis} if axis is not None else {}
    given |= attrs or {}
    quantize = op("QuantizeLinear", "wf s z", "wq", name="q", **given)
    source, middle = "wq", []
    for number, (kind_of, inputs, more) in enumerate(between):
        middle.append((op(kind_of, f"{source} {inputs}", f"wq{number}"), more))
        source = f"wq{number}"
    dequantize = op("DequantizeLinear", f"{source} {names}", "w", name="dq", **given)
    return [(quantize, values), *middle, dequantize]


def integers(m, name="wq"):
    """What the quantizer puts out in onnxruntime, its optimizations off."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(m)
    tapped.graph.output.add(name=name)
    opened = session(tapped)
    shapes = {
        v.name: [n if isinstance(n, int) else 1 for n in v.shape] for v in opened.get_inputs()
    }
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return opened.run([name], feeds)[0]


def same_integers(before, after, sign=1):
    was, now = integers(before).astype(int), integers(after).astype(int)
    np.testing.assert_array_equal(now, was * sign)


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_behind_a_conv(axis, shared, opset):
    """One scale for all becomes one for each channel, at both ends."""
    m = model(
        *rounded((6, 3, 3, 3), axis, shared=shared),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "d", positive(6, 1, 1)),
        const("Add", "d", "y", rand(6, 1, 1)),
        opset=opset,
    )
    same_integers(m, folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1))


@pytest.mark.parametrize("seed", range(8))
def test_no_integer_moves_at_a_border(seed):
    """Halves and their neighbours, at scales and maps of all kinds: every quotient stays where it
    was, though product and scale are rounded on their own.
    """
    generator = np.random.default_rng(seed)
    s = generator.uniform(1e-3, 1.0, 64).astype(np.float32)
    halves = (generator.integers(-120, 120, (64, 40)) + 0.5).astype(np.float32)
    w = (halves * s[:, None]).astype(np.float32)
    w = np.nextafter(w, np.float32(generator.choice([-1e9, 0, 1e9])))
    pieces = rounded((64, 40, 1, 1), 0)
    pieces[0][1].update(wf=w.reshape(64, 40, 1, 1), s=s, z=np.zeros(64, np.int8))
    m = model(
        *pieces,
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", generator.uniform(0.01, 50, (64, 1, 1)).astype(np.float32)),
        x=(1, 40, 2, 2),
        opset=13,
    )
    after = bnfold.fold(m)
    assert "Mul" not in counts(after)
    same_integers(m, after)


def test_opset_12_has_one_scale():
    m = model(
        *rounded((4, 3, 3, 3)),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "d", np.full((4, 1, 1), 0.7, np.float32), name="even"),
        const("Mul", "d", "y", positive(4, 1, 1), name="uneven"),
        opset=12,
    )
    assert counts(bnfold.fold(m))["Mul"] == 1
    pieces = rounded((4, 3, 3, 3))
    even = model(
        *pieces,
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", np.full((4, 1, 1), 0.7, np.float32)),
        opset=10,
    )
    same_integers(even, folds(even, QuantizeLinear=1, DequantizeLinear=1, Conv=1))


def signed(pieces, channels, opset=13, name="scale"):
    values = positive(channels, 1, 1)
    values[1] *= -1
    m = model(
        *pieces,
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", values, name=name),
        opset=opset,
    )
    return m, np.sign(values)[:, None]


@pytest.mark.parametrize("axis", [0, None])
def test_a_negative_map_turns_the_integers(axis):
    m, sign = signed(rounded((4, 3, 3, 3), axis), 4)
    after = folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)
    same_integers(m, after, sign.astype(int))
    assert all((v > 0).all() for k, v in constants(after).items() if k.startswith("s"))


def test_the_smallest_integer_has_no_negative():
    pieces = rounded((4, 3, 3, 3), 0)
    pieces[0][1]["wf"][1, 0, 0, 0] = -128 * pieces[0][1]["s"][1]
    m, _ = signed(pieces, 4)
    stays(m, {"scale": "quantized-weight"})
    pieces = rounded((4, 3, 3, 3), 0)
    pieces[0][1]["wf"][0, 0, 0, 0] = -128 * pieces[0][1]["s"][0]  # in a channel that stays
    m, _ = signed(pieces, 4)
    folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)


def test_a_saturated_integer_stays_saturated():
    """127 stands for 300 steps; its negative is −127, not −128 as for −300 steps."""
    pieces = rounded((4, 3, 3, 3), 0)
    pieces[0][1]["wf"][1, 0, 0, 0] = 300 * pieces[0][1]["s"][1]
    m, sign = signed(pieces, 4)
    after = folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)
    same_integers(m, after, sign.astype(int))


@pytest.mark.parametrize("zero, goes", [(128, True), (100, False)])
def test_a_zero_point_mirrors_what_fits(zero, goes):
    """``2z − q`` of integers from 28 to 228; for z = 100 the largest lies below 0."""
    pieces = rounded((4, 3, 3, 3), 0, UINT8, zero)
    pieces[0][1]["wf"][1, 0, 0, 0] = 120 * pieces[0][1]["s"][1]
    m, _ = signed(pieces, 4)
    if not goes:
        stays(m, {"scale": "quantized-weight"})
        return
    after = folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)
    was, now = (integers(one).astype(int)[1] for one in (m, after))
    np.testing.assert_array_equal(now, 2 * zero - was)


def test_a_channel_times_zero_keeps_its_scale():
    m = model(
        *rounded((4, 3, 3, 3), 0, UINT8, 7),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", np.float32([1.5, 0, 0.5, 2]).reshape(4, 1, 1)),
        opset=13,
    )
    after = folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)
    assert (integers(after)[1] == 7).all()
    assert all((v > 0).all() for k, v in constants(after).items() if k.startswith("s"))


BOUNDS = [("Clip", "low high", {"low": np.int8(-127), "high": np.int8(127)})]


def test_a_clip_between_the_two():
    """As Brevitas writes narrow ranges."""
    pieces = rounded((4, 3, 3, 3), 0, between=BOUNDS)
    pieces[0][1]["wf"][1, 0, 0, 0] = -300 * pieces[0][1]["s"][1]
    m, sign = signed(pieces, 4)
    after = folds(m, QuantizeLinear=1, Clip=1, DequantizeLinear=1, Conv=1)
    was, now = (integers(one, "wq0").astype(int) for one in (m, after))
    np.testing.assert_array_equal(now, was * sign)


def test_behind_a_transpose():
    """As exporters write a Linear: the weight is [out, in], and N = K by accident."""
    for axis in (0, None):
        m = model(
            *rounded((5, 5), axis),
            op("Transpose", "w", "wt", perm=[1, 0]),
            op("MatMul", "x wt", "m", name="mm"),
            const("Mul", "m", "y", positive(5)),
            x=(3, 5),
            opset=13,
        )
        same_integers(m, folds(m, QuantizeLinear=1, DequantizeLinear=1, Transpose=1, MatMul=1))
    m = model(
        *rounded((5, 5), 1),
        op("Transpose", "w", "wt"),
        op("MatMul", "x wt", "m", name="mm"),
        const("Mul", "m", "y", positive(5), name="scale"),
        x=(3, 5),
        opset=13,
    )
    stays(m, {"scale": "quantized-weight"})


def test_ahead_and_behind_a_gemm():
    m = model(
        const("Mul", "x", "a", np.float32(0.25)),
        *rounded((4, 6), 0),
        ((op("Gemm", "a w b", "g", name="gemm", transB=1)), {"b": rand(4)}),
        const("Mul", "g", "y", positive(4)),
        x=(3, 6),
        opset=13,
    )
    same_integers(m, folds(m, QuantizeLinear=1, DequantizeLinear=1, Gemm=1))


@pytest.mark.parametrize(
    "change",
    ["scale", "zero", "half", "second reader", "reader of integers", "output", "other axis"],
)
def test_one_step_outside(change):
    pieces = rounded((4, 4, 1, 1), 0, shared=False)
    values, more, outputs = pieces[0][1], [], "y"
    if change == "scale":
        values["s2"] = values["s2"] * np.float32(1.5)
    elif change == "zero":
        values["z2"] = np.full(4, 1, np.int8)
    elif change == "half":
        for name in ("wf", "s", "s2"):
            values[name] = values[name].astype(np.float16)
    elif change == "second reader":
        more, outputs = [op("Conv", "x w", "u")], "y u"
    elif change == "reader of integers":
        more = [op("Cast", "wq", "u", to=TensorProto.FLOAT)]
        outputs = "y u"
    elif change == "output":
        outputs = "y w"
    else:
        (attribute,) = pieces[1].attribute
        attribute.i = 1
    half = change == "half"
    m = model(
        *pieces,
        op("Conv", "x w", "c", name="conv"),
        const(
            "Mul", "c", "y", positive(4, 1, 1).astype(np.float16 if half else np.float32), name="s"
        ),
        *more,
        x=(2, 4, 3, 3),
        y=outputs,
        opset=19,
        elem=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
    )
    assert codes(m) == {"s": "quantized-weight"}
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_a_weight_and_scale_that_others_read_are_copied():
    m = model(
        *rounded((4, 4, 1, 1), 0),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "d", positive(4, 1, 1)),
        op("Conv", "d wf", "e"),
        ((op("QuantizeLinear", "e s z", "eq", axis=1)), {}),
        op("DequantizeLinear", "eq s z", "y", axis=1),
        x=(2, 4, 3, 3),
        opset=13,
    )
    after = bnfold.fold(m)
    assert counts(after) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Conv": 2}
    same_integers(m, after)
    for name in ("wf", "s", "z"):
        np.testing.assert_array_equal(constants(after)[name], constants(m)[name])


def test_batch_normalization_and_a_wrong_scale():
    m = model(
        *rounded((4, 3, 3, 3), 0),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        opset=13,
    )
    after = folds(m, QuantizeLinear=1, DequantizeLinear=1, Conv=1)
    assert bnfold.verify(m, after).status == "pass"
    for node in after.graph.node:
        if node.op_type == "DequantizeLinear":
            node.input[1] = "wrong"
        elif node.op_type == "QuantizeLinear":
            right = constants(after)[node.input[1]]
    wrong = right.copy()
    wrong[2] *= np.float32(1.01)
    after.graph.initializer.append(numpy_helper.from_array(wrong, "wrong"))
    assert bnfold.verify(m, after).status == "fail"


def test_four_bits():
    """Turned integers of four bits are packed two to a byte."""
    generator = np.random.default_rng(3)
    values = {
        "q": generator.integers(-7, 8, (4, 3)).astype(ml_dtypes.int4),
        "s": generator.uniform(0.1, 0.2, 4).astype(np.float32),
        "z": np.zeros(4, ml_dtypes.int4),
    }
    m = model(
        (op("DequantizeLinear", "q s z", "w", axis=0), values),
        op("Gemm", "x w", "g", name="gemm", transB=1),
        const("Mul", "g", "y", np.float32([1, -2, 0.5, 0])),
        x=(2, 3),
        opset=21,
    )
    after = folds(m, DequantizeLinear=1, Gemm=1)
    wanted = values["q"].astype(int) * np.array([1, -1, 1, 0])[:, None]
    np.testing.assert_array_equal(constants(after)["q"].astype(int), wanted)
