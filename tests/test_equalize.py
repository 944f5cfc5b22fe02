"""Positive scales that move between linear operators: alike ranges, and the same function."""

from __future__ import annotations

import random

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from bnfold._onnx.equalize import equalize_model

from .carry import drawing
from .carry.holding import Unrunnable, same
from .graphs import HALF, const, constants, conv, feeds, i64, model, op, rand, tensor


def equalized(made: ModelProto) -> tuple[ModelProto, dict[str, tuple[float, float]]]:
    """The model with its channels equalized, and the layers that changed. It is the same function,
    by the operators' definitions in float64 and in onnxruntime.
    """
    new = ModelProto()
    new.CopyFrom(made)
    lost = dict(equalize_model(new, None).lost)
    same(made, new, feeds(made))
    return new, lost


def uneven(*shape: int) -> np.ndarray:
    """A weight whose rows and columns differ by powers of ten."""
    grown = rand(*shape)
    for axis in (0, 1):
        powers = 10.0 ** np.linspace(-1.5, 1.5, shape[axis])
        along = [1] * len(shape)
        along[axis] = shape[axis]
        grown = grown * np.roll(powers, axis).reshape(along)
    return grown.astype(np.float32)


def layer(name: str, x: str, y: str, w: tuple[int, ...], **attrs):
    node, params = conv(name, x, y, w, **attrs)
    return node, {**params, f"{name}.w": uneven(*w)}


def between(*pieces, x=(2, 3, 8, 8), kernel=(4, 4, 1, 1), **more) -> ModelProto:
    """Two layers, and what is given between ``a`` and ``b``."""
    return model(
        layer("first", "x", "a", (4, 3, 1, 1)), *pieces, layer("second", "b", "y", kernel),
        x=x, **more,
    )  # fmt: skip


def peaks(weight: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(k for k in range(weight.ndim) if k != axis)
    found = np.abs(weight.astype(np.float64)).max(axis=others)
    return found / found.max()


def test_what_is_written_and_read_of_a_channel_gets_one_range():
    """The published update, equation 11: no other test knows what the scales should be."""
    made = between(op("Relu", "a", "b"))
    new, lost = equalized(made)
    assert list(lost) == ["first", "second"]
    stored = constants(new)
    rows, columns = peaks(stored["first.w"], 0), peaks(stored["second.w"], 1)
    np.testing.assert_allclose(rows, columns, rtol=1e-2)
    assert sum(after for _, after in lost.values()) < sum(before for before, _ in lost.values())


def slopes(*shape: int) -> np.ndarray:
    return np.linspace(-1, 2, int(np.prod(shape))).reshape(shape).astype(np.float32)


PASS = {
    "nothing": [op("Identity", "a", "b")],
    "Relu": [op("Relu", "a", "b")],
    "LeakyRelu": [op("LeakyRelu", "a", "b", alpha=0.1)],
    "PRelu": [const("PRelu", "a", "b", slopes(4, 1, 1))],
    "MaxPool": [op("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2])],
    "AveragePool": [op("AveragePool", "a", "b", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
    "padding of zeros": [(op("Pad", "a p", "b"), {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)})],
    "Resize": [
        (op("Resize", "a _ s", "b", mode="linear"), {"s": np.array([1, 1, 2, 2], np.float32)})
    ],
    "Mul by a constant": [const("Mul", "a", "b", slopes(4, 1, 1))],
    "Transpose and back": [
        op("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        op("Relu", "t", "r"),
        op("Transpose", "r", "b", perm=[0, 3, 1, 2]),
    ],
    "its own sum": [op("Relu", "a", "r"), op("Add", "a r", "b")],
    "a gate": [
        op("GlobalAveragePool", "x", "p"),
        layer("gate", "p", "g", (4, 3, 1, 1)),
        op("Sigmoid", "g", "s"),
        op("Mul", "a s", "b"),
    ],
}
STAY = {
    "Clip": [(op("Clip", "a l h", "b"), {"l": np.float32(0), "h": np.float32(6)})],
    "Sigmoid": [op("Sigmoid", "a", "b")],
    "HardSwish": [op("HardSwish", "a", "b")],
    "its own gate": [op("HardSigmoid", "a", "h"), op("Mul", "a h", "b")],
    "a square": [op("Mul", "a a", "b")],
    "a shift": [const("Add", "a", "b", slopes(4, 1, 1))],
    "padding of ones": [
        (op("Pad", "a p v", "b"), {"p": i64(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(1)})
    ],
    "padding of channels": [(op("Pad", "a p", "b"), {"p": i64(0, 1, 0, 0, 0, -1, 0, 0)})],
    "an input is added": [op("Add", "a z", "b")],
    "Softmax": [op("Softmax", "a", "b", axis=1)],
    "channels become columns": [op("Transpose", "a", "b", perm=[0, 2, 1, 3])],
}


@pytest.mark.parametrize("name", PASS)
def test_scales_pass(name):
    """Each kind of operator that a positive scale passes, by the laws."""
    _, lost = equalized(between(*PASS[name]))
    assert {"first", "second"} <= lost.keys()


@pytest.mark.parametrize("name", STAY)
def test_scales_do_not_pass(name):
    """One step outside each law. Sizes agree by accident: C = H = W."""
    made = between(*STAY[name], x={"x": (4, 3, 4, 4), "z": (4, 4, 4, 4)})
    assert "first" not in equalized(made)[1]


def test_an_output_keeps_its_values():
    made = between(op("Relu", "a", "b"), y="y a")
    assert equalized(made)[1] == {}


def test_a_product_reads_channels_only_along_their_axis():
    """C = W: the product sums over columns, not over channels."""
    made = model(
        layer("first", "x", "a", (4, 3, 1, 1)),
        (op("MatMul", "a m", "y", name="second"), {"m": uneven(4, 4)}),
        x=(4, 3, 4, 4),
    )
    assert equalized(made)[1] == {}
    moved = model(
        layer("first", "x", "a", (4, 3, 1, 1)),
        op("Transpose", "a", "b", perm=[0, 2, 3, 1]),
        (op("MatMul", "b m", "y", name="second"), {"m": uneven(4, 4).T.copy()}),
        x=(4, 3, 4, 4),
    )
    assert list(equalized(moved)[1]) == ["first", "second"]


def test_terms_of_a_sum_have_one_scale():
    """A residual block: three layers write the sum, two read it."""
    made = model(
        layer("stem", "x", "a", (4, 3, 1, 1)),
        layer("up", "a", "b", (4, 4, 3, 3), pads=[1, 1, 1, 1]),
        op("Relu", "b", "c"),
        layer("down", "c", "d", (4, 4, 1, 1)),
        op("Add", "a d", "e"),
        layer("head", "e", "y", (2, 4, 1, 1)),
    )
    new, lost = equalized(made)
    assert list(lost) == ["stem", "up", "down", "head"]
    old, now = constants(made), constants(new)
    (stem, down) = (now[f"{name}.b"] / old[f"{name}.b"] for name in ("stem", "down"))
    np.testing.assert_allclose(stem, down, rtol=1e-6)
    assert np.ptp(np.log(stem)) > 0.1


def test_parts_of_a_concat_and_groups_keep_their_own():
    made = model(
        layer("left", "x", "a", (4, 3, 1, 1)),
        layer("right", "x", "b", (4, 3, 1, 1)),
        op("Concat", "a b", "c", axis=1),
        layer("depthwise", "c", "d", (8, 1, 3, 3), group=8),
        op("Relu", "d", "e"),
        layer("grouped", "e", "f", (4, 4, 1, 1), group=2),
        op("ConvTranspose", "f t", "y", name="transposed", group=2),
        weights={"t": uneven(4, 2, 2, 2)},
    )
    assert len(equalized(made)[1]) == 5


def test_dense_layers_behind_a_flatten():
    """Each channel becomes 64 columns of one scale."""
    made = model(
        layer("first", "x", "a", (4, 3, 1, 1)),
        op("Relu", "a", "r"),
        op("Flatten", "r", "f"),
        (op("Gemm", "f m", "y", name="second", transB=1, alpha=0.5), {"m": uneven(5, 256)}),
    )
    assert list(equalized(made)[1]) == ["first", "second"]


@pytest.mark.parametrize("side", ["first.w", "second.w"])
def test_a_dead_channel_stays(side):
    """Nothing is divided by 0, and what is dead stays dead."""
    made = between(op("Relu", "a", "b"))
    for held in made.graph.initializer:
        if held.name == side:
            weight = numpy_helper.to_array(held).copy()
            weight[1 if side == "first.w" else slice(None), 1 if side == "second.w" else 0] = 0
            if side == "first.w":
                weight[1] = 0
            held.CopyFrom(numpy_helper.from_array(weight, side))
    new, lost = equalized(made)
    assert list(lost) == ["first", "second"]
    assert all(np.isfinite(value).all() for value in constants(new).values())


def test_weights_that_others_read_stay():
    made = between(op("Relu", "a", "b"), op("Mul", "second.w second.w", "q"), y="y q")
    assert equalized(made)[1] == {}


def test_a_weight_that_a_caller_may_set_stays():
    made = between(op("Relu", "a", "b"))
    made.graph.input.append(helper.make_tensor_value_info("second.w", 1, (4, 4, 1, 1)))
    assert equalized(made)[1] == {}


def test_half_precision_stays():
    """A scale below 1 ahead of a sum could let it overflow, and int8 is made of float32."""
    made = between(op("Relu", "a", "b"), elem=HALF)
    new = ModelProto()
    new.CopyFrom(made)
    assert dict(equalize_model(new, None).lost) == {}
    assert new.SerializeToString() == made.SerializeToString()


def test_alike_channels_stay():
    """What gains nothing is not touched: the file stays as it is, byte for byte."""
    made = between(op("Relu", "a", "b"))
    for held in made.graph.initializer:
        if held.name.endswith(".w"):
            held.CopyFrom(tensor(np.ones(held.dims, np.float32), held.name))
    new, lost = equalized(made)
    assert lost == {}
    assert new.SerializeToString() == made.SerializeToString()


def test_bodies_are_graphs_like_any_other():
    """What a body captures keeps its values; what it makes itself does not have to."""
    inner = helper.make_graph(
        [
            op("Conv", "a w1", "p"),
            op("Relu", "p", "q"),
            op("Conv", "q w2", "out"),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("out", 1, None)],
        [tensor(uneven(4, 4, 1, 1), "w1"), tensor(uneven(4, 4, 1, 1), "w2")],
    )
    made = model(
        layer("first", "x", "a", (4, 3, 1, 1)),
        op("If", "c", "y", name="if", then_branch=inner, else_branch=inner),
        x={"x": (2, 3, 4, 4)},
        weights={"c": np.array(True)},
    )
    new = ModelProto()
    new.CopyFrom(made)
    lost = equalize_model(new, None).lost
    assert len(lost) == 4
    assert not any(name == "first" for name in lost)


def of_layers(self: drawing.Drawing) -> None:
    """A step of a drawing with many layers and few maps."""
    kinds = (drawing.LINEAR, drawing.AFFINE, drawing.CROSSED, drawing.OTHER)
    kind = self.source.choice(self.source.choices(kinds, (35, 4, 60, 1))[0])
    getattr(self, {"add": "add_"}.get(kind, kind))()


def hold(seeds: range) -> int:
    """How many layers are equalized in graphs drawn from seeds; each is the same function."""
    layers = 0
    for seed in seeds:
        made, data = drawing.drawn(random.Random(seed), 6, 40)
        new = ModelProto()
        new.CopyFrom(made)
        lost = equalize_model(new, None).lost
        try:
            same(made, new, data)
        except Unrunnable:
            continue
        layers += len(lost)
    return layers


def test_drawn_graphs(monkeypatch):
    """Every operator that maps cross, in every order."""
    monkeypatch.setattr(drawing.Drawing, "step", of_layers)
    assert hold(range(200)) > 100


@pytest.mark.slow
def test_many_drawn_graphs(monkeypatch):
    monkeypatch.setattr(drawing.Drawing, "step", of_layers)
    assert hold(range(1000, 6000)) > 3000
