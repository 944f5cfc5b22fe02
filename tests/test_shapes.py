"""What is known of shapes beyond ONNX's own inference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import moved, regrouped
from bnfold._core.laws import Way
from bnfold._core.parts import Parted
from bnfold._core.reasons import Refusal
from bnfold._onnx.merge.merging import read
from bnfold._onnx.read import hints, shapes
from bnfold._onnx.read.einsum import uneven
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._onnx.read.sizes import dimensions as sizes_of

from .functions import calling
from .graphs import (
    bn,
    const,
    conv,
    folds,
    model,
    op,
    rand,
    sizes,
    stays,
)


def reshape(target, x=("n", 4, 3, 3)):
    return model(op("Reshape", "x t", "y"), x=x, weights={"t": np.array(target, np.int64)})


@pytest.mark.parametrize(
    "target, x, known",
    [
        ((0, 4, -1), ("n", 4, 3, 3), (None, 4, 9)),
        ((0, -1, 6), ("n", 4, 3, 3), (None, 6, 6)),
        ((0, 0, -1), ("n", "c", 3, 3), (None, None, 9)),
        ((0, -1), ("n", "c", 3, 3), (None, None)),
        ((-1, 9), ("n", 4, 3, 3), (None, 9)),
    ],
)
def test_the_size_that_is_left(target, x, known):
    assert sizes(reshape(target, x), "y") == known


@pytest.mark.parametrize("read_from", ["x", "other"])
def test_a_size_asked_for_at_run_time(read_from):
    """The batch of the very tensor that is reshaped keeps its axis; another tensor's proves
    nothing, even where both are called n.
    """
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        op("Shape", read_from, "s"),
        op("Gather", "s zero", "b", axis=0),
        op("Concat", "b four rest", "t", axis=0),
        op("Reshape", "c t", "r"),
        bn("bn", "r", "y", 4),
        x={"x": ("n", 3, 5, 5), "other": ("n", 7)},
        weights={
            "zero": np.array([0], np.int64),
            "four": np.array([4], np.int64),
            "rest": np.array([-1], np.int64),
        },
    )
    if read_from == "x":
        folds(m, Conv=1, Shape=1, Gather=1, Concat=1, Reshape=1)
    else:
        stays(m, {"bn": "unknown-shape"})


def test_a_split_of_unknown_sizes_says_so():
    """A map may go forward to all parts, if it does not vary along them."""
    pieces = [conv("conv", "x", "c", (4, 3, 1, 1)), op("Split", "c", "p q", axis=2)]
    scaled = const("Mul", "p", "s", np.float32(1.5), name="map")
    ends = [op("Tanh", "s", "y"), op("Tanh", "q", "z")]
    shape = ("n", 3, "h", "w")
    made = model(*pieces, scaled, *ends, x=shape, y="y z")
    kept = next(k for k in bnfold.plan(made).kept)
    assert (kept.code, kept.at) == ("unknown-shape", "p_split") and "axis 2" in kept.message
    both = model(
        bn("map", "x", "b", 3),
        op("Split", "b", "p q", axis=2),
        conv("one", "p", "y", (4, 3, 1, 1)),
        conv("two", "q", "z", (4, 3, 1, 1)),
        x=shape,
        y="y z",
    )
    folds(both, {"x": rand(2, 3, 4, 5)}, Split=1, Conv=2)


def test_a_map_along_the_axis_of_a_split_needs_its_sizes():
    law = Parted(1, 2)
    same = AffineMap.of([1.0, 2.0], 0.0, 2)
    assert law.forward({0: same}) == [Way({0: same, 1: same})]
    with pytest.raises(Refusal):
        law.forward({0: AffineMap.of([1.0, 2.0], 0.0, 1)})


def test_a_zero_in_a_target_keeps_the_size_unless_it_is_allowed():
    assert sizes(reshape((0, 0, 9), (2, 4, 3, 3)), "y") == (2, 4, 9)
    m = model(
        op("Reshape", "x t", "y", allowzero=1),
        x=("n", 4),
        weights={"t": np.array([0, 4], np.int64)},
    )
    assert sizes(m, "y") in ((None, 4), (0, 4))


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("ir", [3, 8])
def test_a_target_that_a_caller_may_override_tells_no_size(ir, opset):
    m = model(
        op("Identity", "t", "target"),
        op("Reshape", "x target", "y"),
        x={"x": (2, 4, 3, 3), "t": (3,)},
        weights={"t": np.array([2, 4, 9], np.int64)},
        opset=opset,
        ir=ir,
    )
    assert sizes(m, "y") in ([(2, 4, 9)] if ir == 3 else [None, (None, None, None)])


def test_a_type_that_inference_leaves_open_follows_from_operators():
    """A tensor may be told with a shape and without an element type."""
    m = model(op("Relu", "x", "r"), op("Abs", "r", "y"))
    scopes = read_scopes(m)
    known = infer(m, scopes)
    known.types.pop(("", "r"))
    shapes._note(helper.make_tensor_value_info("r", TensorProto.UNDEFINED, [2]), "", known)
    assert known.type(scopes[0], "r") == TensorProto.FLOAT


def test_an_activation_that_is_dequantized_to_another_type_than_its_scale_takes_no_map():
    pieces = [
        op("QuantizeLinear", "x s z", "q"),
        op("DequantizeLinear", "q s z", "d", output_dtype=TensorProto.FLOAT16),
        op("Mul", "d k", "y", name="mul"),
    ]
    weights = {"s": np.float32(0.1), "z": np.uint8(3), "k": np.float16(2)}
    m = model(*pieces, weights=weights, opset=23)
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "mul" in {kept.node for kept in bnfold.plan(m).kept}
    m.graph.node[1].attribute[0].i = TensorProto.FLOAT
    m.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.float32(2), "k"))
    assert not bnfold.plan(m).kept


def test_bodies_in_two_calls_of_a_function_have_sizes_of_their_own():
    """What one call of it reads is no larger or smaller than what another one reads."""
    scanned = helper.make_graph(
        [op("Relu", "e", "r")],
        "body",
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    scan = op("Scan", "a", "b", body=scanned, num_scan_inputs=1)
    made = calling(scan)
    made.graph.input.add().CopyFrom(made.graph.input[0])
    made.graph.input[1].name = "z"
    for value, size in zip(made.graph.input, "pq", strict=True):
        value.type.tensor_type.shape.dim[1].dim_param = size
    made.graph.node.append(op("F", "z", "w", domain="own"))
    context = read(made, None).graphs[0].context
    first, second = (context.sizes(name) for name in "yw")
    assert first is None or second is None or None in (*first, *second) or first != second


def declared(*sizes):
    """A tensor's shape as ONNX writes it; None for a size that is not known."""
    return helper.make_tensor_type_proto(TensorProto.FLOAT, sizes).tensor_type


@pytest.mark.parametrize(
    "told, known",
    [
        (("size", 7), (5, 7)),
        (("unk__3", 7), (5, 7)),
        ((4, 7), (5, 7)),
        ((None, "size"), (5, "size")),
    ],
    ids=str,
)
def test_a_number_stays_whatever_else_is_told_of_a_shape(told, known):
    """ONNX has found out a size, and not that of the other axis; an operator tells the latter."""
    assert sizes_of(hints._joined(declared(5, None), declared(*told))) == known


@pytest.mark.parametrize("old, new, better", [("unk__1", "n", "n"), ("n", "m", "n"), ("n", 3, 3)])
def test_a_word_gives_way_to_a_number_and_one_that_is_made_up_to_any(old, new, better):
    assert sizes_of(hints._joined(declared(old), declared(new))) == (better,)


def test_sizes_that_contradict_each_other_let_no_map_pass():
    """A file may say another shape of its output than there is: runtimes warn, and go on."""
    map_ = AffineMap.of([2.0, 3.0], 0.0, 1)
    steps = (regrouped((4, 1, 3), (4, 3)),)
    assert moved(map_, steps) is None
    assert moved(AffineMap.of(2.0, 1.0, None), steps) is not None
    fits = (regrouped((4, 2, 3), (4, 6)),)
    assert moved(map_, fits) is not None


def test_an_einsum_in_a_body_is_told_to_inference() -> None:
    """A size of 1 that broadcasts is what ONNX's inference gets wrong, wherever the Einsum is."""
    value = helper.make_tensor_value_info
    made = helper.make_node("Einsum", ["x", "y"], ["e"], equation="ij,ij->ij")
    plain = helper.make_graph([made], "body", [], [value("e", 1, None)])
    deeper = helper.make_graph(
        [helper.make_node("If", ["c"], ["o"], then_branch=plain, else_branch=plain)],
        "outer",
        [value("x", 1, [2, 1]), value("y", 1, [2, 3]), value("c", 9, [])],
        [value("o", 1, None)],
    )
    (told,) = uneven(deeper, {}).values()
    assert [dim.dim_value for dim in told.type.tensor_type.shape.dim] == [2, 3]
