"""Preprocessing in front of small networks: where it goes, what stays, and that it is the same.

Channels have an order of three that is not its own reverse (gbr), and sizes agree by accident: a
height, width and batch of 3. Pictures reach the border.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import Preprocessing

from ..graphs import bn, const, conv, conv_transpose, i64, model, op, rand, subgraph
from .camera import MEAN, STD, picture, same

CYCLE = "gbr:rgb"


def folded(made, **how):
    result = bnfold.fold(made, preprocessing=Preprocessing(**how))
    onnx.checker.check_model(result, full_check=True)
    return result


def kinds(made):
    return [node.op_type for node in made.graph.node]


def first(*pieces, x=(3, 3, 3, 3), **more):
    return model(*pieces, x=x, **more)


# name: the model, and the operators of the folded one
CASES = {
    "conv": (
        lambda: first(conv("a", "x", "y", (4, 3, 2, 2))),
        ["Cast", "Transpose", "Conv"],
    ),
    "padded conv": (
        lambda: first(conv("a", "x", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1])),
        ["Cast", "Transpose", "Sub", "Conv"],
    ),
    "depthwise, then conv": (
        lambda: first(
            conv("a", "x", "h", (3, 1, 2, 2), group=3), conv("b", "h", "y", (4, 3, 2, 2))
        ),
        ["Cast", "Transpose", "Conv", "Conv"],
    ),
    "depthwise with two outputs for a channel": (
        lambda: first(
            conv("a", "x", "h", (6, 1, 2, 2), group=3),
            op("Relu", "h", "r"),
            conv("b", "r", "y", (4, 6, 2, 2)),
        ),
        ["Cast", "Transpose", "Conv", "Relu", "Conv"],
    ),
    "depthwise, then an output": (
        lambda: first(conv("a", "x", "y", (3, 1, 2, 2), group=3)),
        ["Cast", "Transpose", "Gather", "Conv"],
    ),
    "own normalization": (
        lambda: first(
            const("Sub", "x", "a", rand(3, 1, 1)),
            const("Div", "a", "b", rand(1, 3, 1, 1)),
            conv("c", "b", "y", (4, 3, 2, 2)),
        ),
        ["Cast", "Transpose", "Conv"],
    ),
    "a norm, a nonlinearity, a conv": (
        lambda: first(
            bn("n", "x", "a", 3), op("Relu", "a", "b"), conv("c", "b", "y", (4, 3, 2, 2))
        ),
        ["Cast", "Transpose", "BatchNormalization", "Relu", "Conv"],
    ),
    "two convs": (
        lambda: first(
            conv("a", "x", "y", (4, 3, 2, 2)), conv("b", "x", "z", (5, 3, 1, 1)), y="y z"
        ),
        ["Cast", "Transpose", "Conv", "Conv"],
    ),
    "one weight for two convs": (
        lambda: first(
            op("Conv", "x w", "h"),
            op("Relu", "h", "r"),
            op("Conv", "r w", "y"),
            weights={"w": rand(3, 3, 1, 1)},
        ),
        ["Cast", "Transpose", "Conv", "Relu", "Conv"],
    ),
    "conv transpose": (
        lambda: first(conv_transpose("a", "x", "y", (3, 4, 1, 1))),
        ["Cast", "Transpose", "ConvTranspose"],
    ),
    "a pad of zeros": (
        lambda: first(
            op("Pad", "x p", "h"),
            conv("a", "h", "y", (4, 3, 2, 2)),
            weights={"p": i64(0, 0, 1, 1, 0, 0, 1, 1)},
        ),
        ["Cast", "Transpose", "Sub", "Pad", "Conv"],
    ),
    "a split of channels": (
        lambda: first(
            op("Split", "x", "a b c", axis=1, num_outputs=3), op("Sum", "a b c", "y"), opset=18
        ),
        ["Cast", "Transpose", "Gather", "Sub", "Div", "Split", "Sum"],
    ),
    "its shape is read, too": (
        lambda: first(
            op("Shape", "x", "s"),
            op("Gather", "s i", "n", axis=0),
            conv("a", "x", "h", (4, 3, 2, 2)),
            op("Reshape", "h t", "y"),
            op("Identity", "n", "z"),
            weights={"i": i64(0), "t": i64(3, 16)},
            y="y",
        ),
        None,
    ),
    "an output is what the network gets": (
        lambda: first(op("Identity", "x", "z"), conv("a", "x", "y", (4, 3, 2, 2)), y="y z"),
        None,
    ),
    "a max pool ahead": (
        lambda: first(
            op("MaxPool", "x", "h", kernel_shape=[2, 2]), conv("a", "h", "y", (4, 3, 2, 2))
        ),
        None,
    ),
    "constant minus x": (
        lambda: first(
            const("Sub", "x", "a", rand(3, 1, 1), left=True), conv("c", "a", "y", (4, 3, 2, 2))
        ),
        ["Cast", "Transpose", "Conv"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_picture_gives_what_the_network_gave(name):
    make, wanted = CASES[name]
    made = make()
    for channels in ("rgb:rgb", CYCLE, "bgr:rgb"):
        found = folded(made, mean=MEAN, std=STD, channels=channels, layout="nhwc", dtype="uint8")
        how = {"mean": MEAN, "std": STD, "channels": channels, "layout": "nhwc:nchw"}
        same(made, found, picture(3, 3, 3, 3), **how)
        if wanted is not None and channels != "rgb:rgb":
            assert kinds(found) == wanted
        (info,) = found.graph.input
        assert (info.name, info.type.tensor_type.elem_type) == ("x", onnx.TensorProto.UINT8)


def test_a_uniform_shift_moves_into_a_pad_that_is_there():
    """The pad then puts the number around that the shift would have made a 0 of."""
    made = first(
        op("Pad", "x p", "h"),
        conv("a", "h", "y", (4, 3, 2, 2)),
        weights={"p": i64(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    found = folded(made, mean=127.5, std=63.0)
    assert kinds(found) == ["Pad", "Conv"]
    same(made, found, picture(3, 3, 3, 3, dtype="float32"), mean=127.5, std=63.0)


def test_features_of_a_gemm():
    """The order of features: Gemm either way, and MatMul."""
    for transposed in (0, 1):
        made = model(
            op("Gemm", "x w b", "y", transB=transposed),
            x=(3, 3),
            weights={"w": rand(3, 3), "b": rand(3)},
        )
        found = folded(made, mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0), channels="bca:abc")
        assert kinds(found) == ["Gemm"]
        given = picture(3, 3, dtype="float32")
        how = {"mean": (1.0, 2.0, 3.0), "std": (2.0, 3.0, 4.0), "channels": "bca:abc"}
        same(made, found, given, **how)


def test_a_gemm_that_adds_the_input_keeps_the_order():
    """Its third operand is added to columns, which are no channels of the input."""
    made = model(op("Gemm", "x w x", "y"), x=(3, 3), weights={"w": rand(3, 3)})
    found = folded(made, channels="bca:abc")
    assert kinds(found) == ["Gather", "Gemm"]
    same(made, found, picture(3, 3, dtype="float32"), channels="bca:abc")


def test_a_network_with_channels_last():
    """The layout of both sides is said: the network's axis of channels is the last."""
    made = model(op("MatMul", "x w", "y"), x=(3, 3, 3, 3), weights={"w": rand(3, 3)})
    how = {"mean": MEAN, "std": STD, "channels": CYCLE}
    found = folded(made, layout="nhwc:nhwc", **how)
    assert kinds(found) == ["Sub", "MatMul"]
    same(made, found, picture(3, 3, 3, 3, dtype="float32"), axis=3, **how)
    found = folded(made, layout="nchw:nhwc", **how)
    same(made, found, picture(3, 3, 3, 3, dtype="float32"), axis=3, layout="nchw:nhwc", **how)


@pytest.mark.parametrize(
    "perm, layout, wanted",
    [
        ([0, 3, 1, 2], "nchw:nhwc", ["Cast", "Conv"]),
        ([0, 3, 1, 2], "nwhc:nhwc", ["Cast", "Transpose", "Conv"]),
        ([0, 3, 2, 1], "nchw:nhwc", ["Cast", "Transpose", "Conv"]),
    ],
)
def test_a_transpose_that_the_network_begins_with(perm, layout, wanted):
    """It becomes one with that of the layout, and both go where they undo each other."""
    made = model(
        op("Transpose", "x", "t", perm=perm), conv("a", "t", "y", (4, 3, 2, 2)), x=(3, 3, 3, 3)
    )
    how = {"mean": MEAN, "std": STD, "channels": CYCLE}
    found = folded(made, layout=layout, dtype="uint8", **how)
    assert kinds(found) == wanted
    same(made, found, picture(3, 3, 3, 3), axis=3, layout=layout, **how)


def test_a_transpose_that_others_see_stays():
    made = model(
        op("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        conv("a", "t", "y", (4, 3, 2, 2)),
        x=(3, 3, 3, 3),
        y="y t",
    )
    found = folded(made, layout="nchw:nhwc", mean=MEAN)
    same(
        made,
        found,
        picture(3, 3, 3, 3, dtype="float32"),
        axis=3,
        layout="nchw:nhwc",
        mean=MEAN,
    )


def test_a_body_that_reads_the_input():
    """What a branch captures is in the network's order: the Gather stays."""
    yes = subgraph(op("Relu", "x", "y"))
    no = subgraph(op("Neg", "x", "y"))
    made = model(
        op("If", "on", "h", then_branch=yes, else_branch=no),
        conv("a", "h", "y", (4, 3, 2, 2)),
        x=(3, 3, 3, 3),
        weights={"on": np.array(True)},
    )
    found = folded(made, mean=MEAN, std=STD, channels=CYCLE)
    assert "Gather" in kinds(found)
    same(
        made,
        found,
        picture(3, 3, 3, 3, dtype="float32"),
        mean=MEAN,
        std=STD,
        channels=CYCLE,
    )


def test_weights_that_a_caller_may_override_keep_their_order():
    from ..graphs import overridable

    made = overridable(first(op("Conv", "x w", "y"), weights={"w": rand(4, 3, 2, 2)}), "w")
    found = folded(made, channels=CYCLE)
    assert kinds(found) == ["Gather", "Conv"]


def test_groups_that_mix_channels_keep_their_order():
    made = model(conv("a", "x", "y", (4, 2, 1, 1), group=2), x=(2, 4, 3, 3))
    found = folded(made, channels="dabc:abcd")
    assert kinds(found) == ["Gather", "Conv"]
    same(made, found, picture(2, 4, 3, 3, dtype="float32"), channels="dabc:abcd")


def test_several_inputs_and_free_sizes():
    """Each input has its own, and the other one stays as it is."""
    made = model(
        conv("a", "x", "g", (4, 3, 1, 1)),
        conv("b", "z", "h", (4, 3, 1, 1)),
        op("Add", "g h", "y"),
        x={"x": ("n", 3, "h", "w"), "z": ("n", 3, "h", "w")},
    )
    both = {"z": Preprocessing(mean=MEAN, std=STD, channels=CYCLE, layout="nhwc", dtype="uint8")}
    found = bnfold.fold(made, preprocessing=both)
    from ..graphs import run
    from .camera import seen

    x, z = rand(2, 3, 5, 4), picture(2, 5, 4, 3)
    how = {"mean": MEAN, "std": STD, "channels": CYCLE, "layout": "nhwc:nchw"}
    (wanted,) = run(made, {"x": x, "z": seen(z, **how)})
    (got,) = run(found, {"x": x, "z": z})
    assert np.abs(got - wanted).max() < 1e-5
    shape = [d.dim_param or d.dim_value for d in found.graph.input[1].type.tensor_type.shape.dim]
    assert shape == ["n", "h", "w", 3]


@pytest.mark.parametrize("ir", [3, 8])
def test_old_files(ir):
    """Before IR version 4 every initializer had to be an input."""
    made = first(conv("a", "x", "y", (4, 3, 2, 2)), opset=8)
    if ir < 4:
        made.ir_version = ir
        for each in made.graph.initializer:
            value = onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims)
            made.graph.input.append(value)
    how = {"mean": MEAN, "std": STD, "channels": CYCLE}
    found = bnfold.fold(made, preprocessing=Preprocessing(layout="nhwc", dtype="uint8", **how))
    same(made, found, picture(3, 3, 3, 3), layout="nhwc:nchw", **how)


@pytest.mark.parametrize("scale, std", [(1 / 255, STD), (0.01, STD), (1 / 255, 1.0)])
def test_a_shift_that_stays_comes_first(scale, std):
    """What stays is one Sub by the mean in the picture's units, and it is called by its name."""
    made = first(conv("a", "x", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]))
    how = {"mean": (0.485, 0.456, 0.406), "std": std, "scale": scale, "channels": CYCLE}
    wanted = Preprocessing(**how)
    (kept,) = bnfold.plan(made, preprocessing=wanted).kept
    assert (kept.node, kept.op) == ("x/preprocessing/mean", "Sub")
    found = folded(made, **how)
    assert kinds(found) == ["Sub", "Conv"]
    same(made, found, picture(3, 3, 3, 3, dtype="float32"), **how)


def test_numbers_that_do_not_fit_together_stay_as_they_are():
    """The mean in the picture's units would be infinite in float16."""
    from ..graphs import HALF

    made = first(conv("a", "x", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]), elem=HALF)
    how = {"mean": 8.0, "std": 0.25, "scale": 2.0**-14}
    found = folded(made, **how)
    given = picture(3, 3, 3, 3).astype(np.float16)
    same(made, found, given, dtype=np.float16, bound=4e-3, **how)


def test_half_precision():
    from ..graphs import HALF

    made = first(conv("a", "x", "y", (4, 3, 2, 2)), elem=HALF)
    found = folded(made, mean=MEAN, std=STD, dtype="uint8")
    same(
        made,
        found,
        picture(3, 3, 3, 3),
        mean=MEAN,
        std=STD,
        dtype=np.float16,
        bound=4e-3,
    )


def test_twice():
    """Names of the first time are taken; the second one goes on from there."""
    made = first(conv("a", "x", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]))
    once = folded(made, mean=MEAN, std=STD, channels=CYCLE)
    twice = folded(once, mean=1.0, std=(2.0, 3.0, 4.0), scale=3.0, channels=CYCLE)
    given = picture(3, 3, 3, 3, dtype="float32")
    from .camera import seen

    between = seen(given, mean=1.0, std=(2.0, 3.0, 4.0), scale=3.0, channels=CYCLE)
    from ..graphs import run

    (wanted,), (got,) = run(once, {"x": between}), run(twice, {"x": given})
    assert np.abs(got - wanted).max() < 3e-6 * (np.abs(wanted).max() + 1)
