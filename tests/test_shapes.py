"""What is known of shapes beyond ONNX's own inference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._core.affine import AffineMap
from bnfold._core.joins import Parted
from bnfold._core.laws import Way
from bnfold._core.reasons import Refusal
from bnfold._onnx.merge.merging import read
from bnfold._onnx.read import hints, shapes
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._onnx.read.sizes import dimensions as sizes_of

from .graphs import (
    assert_same,
    bn,
    const,
    conv,
    counts,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
    stays,
    subgraph,
)


def sizes(made, name):
    return read(made, None).graphs[0].context.shape(name)


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


def test_a_zero_in_a_target_keeps_the_size_unless_it_is_allowed():
    assert sizes(reshape((0, 0, 9), (2, 4, 3, 3)), "y") == (2, 4, 9)
    m = model(
        op("Reshape", "x t", "y", allowzero=1),
        x=("n", 4),
        weights={"t": np.array([0, 4], np.int64)},
    )
    assert sizes(m, "y") in ((None, 4), (0, 4))


def test_a_target_that_is_not_known_tells_the_rank():
    m = model(op("Reshape", "x t", "y"), x={"x": (2, 4, 3), "t": (2,)})
    assert sizes(m, "y") == (None, None)


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


@pytest.mark.parametrize("kind, columns", [("Regressor", 2), ("Classifier", 3)])
def test_a_tree_ensemble_is_not_copied_to_learn_its_shapes(kind, columns, monkeypatch):
    """Its lists took more than twice the memory of the model; the shape needs none of them."""
    count = 5000
    ids, leaves = list(range(count)), "target" if kind == "Regressor" else "class"
    lists = {
        "nodes_treeids": [0] * count,
        "nodes_nodeids": ids,
        "nodes_featureids": [0] * count,
        "nodes_modes": ["BRANCH_LEQ"] * (count // 2) + ["LEAF"] * (count // 2),
        "nodes_values": [0.5] * count,
        "nodes_truenodeids": ids,
        "nodes_falsenodeids": ids,
        f"{leaves}_treeids": [0] * count,
        f"{leaves}_nodeids": ids,
        f"{leaves}_ids": [0] * count,
        f"{leaves}_weights": [0.5] * count,
    }
    own = {"n_targets": 2} if kind == "Regressor" else {"classlabels_int64s": [4, 5, 6]}
    outputs = ["y"] if kind == "Regressor" else ["label", "y"]
    tree = helper.make_node(
        f"TreeEnsemble{kind}", ["x"], outputs, domain="ai.onnx.ml", **lists, **own
    )
    relu = helper.make_node("Relu", ["y"], ["z"])
    made = helper.make_model(
        helper.make_graph(
            [tree, relu],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    seen = []
    real = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        onnx.shape_inference,
        "infer_shapes",
        lambda m, **options: seen.append(m.ByteSize()) or real(m, **options),
    )
    before = made.SerializeToString()
    assert sizes(made, "z") == (None, columns)
    assert seen and max(seen) < 1000 < len(before)
    assert made.SerializeToString() == before


def test_the_rank_of_a_weight_that_is_reshaped_to_computed_sizes():
    """onnxruntime leaves the γ of a norm of Paddle so: the length of the target is the rank."""
    made = model(
        op("Shape", "x", "s"),
        op("Abs", "s", "t"),
        op("Reshape", "g t", "y"),
        x=("n", 4, 3),
        weights={"g": np.zeros(12, np.float32)},
        opset=12,  # from 13 on ONNX's own inference tells
    )
    assert len(sizes(made, "y")) == 3


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("ReduceMax", {"axes": [2]}),
        ("Split", {"axis": 2}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
    ],
)
def test_a_map_that_has_channels_does_not_go_where_the_rank_is_not_known(kind, attributes):
    """What a Conv puts out has the rank of its weight; what follows has none, as far as is known.
    The number behind goes to the map instead, except out of one of two parts.
    """
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        const("Mul", "c", "m", rand(4, 1, 1), name="map"),
        op(kind, "m", "o rest" if kind == "Split" else "o", **attributes),
        const("Mul", "o", "y", np.float32(3)),
        x={"x": None},
        y="c y",
        opset=12,
    )
    assert sizes(m, "m") == (None, 4, None, None)
    left = {"Conv": 1, "Mul": 2 if kind == "Split" else 1, kind: 1}
    folded = bnfold.fold(m)
    assert counts(folded) == left
    assert_same(m, folded, {"x": rand(4, 3, 4, 4)})


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


@pytest.mark.parametrize("known", [None, ["n", 3, 8, 8]])
def test_norms_of_tensors_of_unknown_rank_become_one_norm(known):
    """As where the rank is known: all that is left is written as the last norm."""
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    pieces, value = [], "x"
    for n in range(3):
        (node, stored), name = bn(f"bn{n}", value, f"v{n}", 3), f"bn{n}"
        stored[f"{name}.scale"] = positive(3)
        if n < 2:  # A shift would not pass the Relu.
            stored |= {f"{name}.bias": zero, f"{name}.mean": zero, f"{name}.var": one}
        pieces += [(node, stored), op("Relu", f"v{n}", f"r{n}")]
        value = f"r{n}"
    m = model(*pieces, x={"x": known}, y="r2")
    folded = bnfold.fold(m)
    assert counts(folded) == {"Relu": 3, "BatchNormalization": 1}
    assert_same(m, folded, {"x": rand(2, 3, 8, 8)})


@pytest.mark.parametrize("count", [12, 48_000])
def test_a_long_row_is_as_well_known_as_a_short_one(count):
    """Inference is kept from following the numbers of long rows; shapes stay known, sizes too."""
    made = model(
        op("Add", "x x", "a"),
        op("Cast", "a", "h", to=TensorProto.FLOAT16),
        op("Cast", "h", "f", to=TensorProto.FLOAT),
        op("Shape", "f", "n"),
        (op("Concat", "one one n", "s", axis=0), {"one": np.array([1], np.int64)}),
        op("Reshape", "f s", "r"),
        conv("c", "r", "p", (4, 1, 3)),
        (op("Slice", "f from to", "e"), {"from": np.array([0]), "to": np.array([count - 2])}),
        op("Unsqueeze", "e axes", "u"),
        op("Add", "p u", "y"),
        x=(count,),
        weights={"axes": np.array([0, 1])},
    )
    scopes = read_scopes(made)
    known = infer(made, scopes)
    wanted = {"a": (count,), "f": (count,), "r": (1, 1, count), "e": (count - 2,)}
    wanted |= {"u": (1, 1, count - 2), "y": (1, 4, count - 2)}
    assert {name: known.shape(scopes[0], name) for name in wanted} == wanted


def reshaped(count, between, opset=17):
    """Blocks that each reshape to the batch that they see and to sizes, with operators in between;
    a norm behind a Conv at the very end."""
    pieces, weights, value = [], {"zero": np.array([0], np.int64)}, "x"
    weights["u"] = np.array([4, 3, -1], np.int64)
    weights["start"], weights["end"] = np.array([0], np.int64), np.array([-1], np.int64)
    weights["axis"] = np.array([3], np.int64)
    for n in range(count):
        pieces += [op("Shape", value, f"s{n}"), op("Gather", f"s{n} zero", f"b{n}")]
        pieces += [op("Concat", f"b{n} u", f"t{n}", axis=0)]
        pieces += [op("Reshape", f"{value} t{n}", f"r{n}"), *between(f"r{n}", f"e{n}", n)]
        value = f"e{n}"
    pieces += [conv("conv", value, "c", (4, 4, 1, 1)), bn("bn", "c", "y", 4)]
    return model(*pieces, x=("n", 4, 3, "w"), weights=weights, opset=opset)


BETWEEN = {
    "Relu": lambda x, y, n: [op("Relu", x, y)],
    "norm": lambda x, y, n: [bn(f"bn{n}", x, y, 4)],
    "Conv": lambda x, y, n: [conv(f"conv{n}", x, y, (4, 4, 3, 3), pads=[1, 1, 1, 1])],
    "Slice": lambda x, y, n: [op("Slice", f"{x} start end axis", y)],
    "two ways": lambda x, y, n: [op("Tanh", x, f"q{n}"), op("Add", f"{x} q{n}", y)],
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("between", BETWEEN)
def test_inference_runs_as_often_for_a_long_chain_of_reshapes(between, opset, monkeypatch):
    """A run for each of them takes time by the square of the number of nodes."""
    runs, run = [], shapes.run
    monkeypatch.setattr(shapes, "run", lambda skeleton: runs.append(skeleton) or run(skeleton))
    made = reshaped(12, BETWEEN[between], opset)
    last = sizes(made, "e11")
    assert len(runs) <= 5, len(runs)
    assert last is not None and last[1] == 4


def test_long_rows_of_numbers_are_not_copied_to_learn_shapes(monkeypatch):
    """Those of an operator that inference does not know, and of a Constant, whose length is read;
    the call of a local function hands its own on.
    """
    numbers = [0.5] * 5000
    inner = helper.make_node("Constant", [], ["k"])
    inner.attribute.add(name="value_floats", type=1 + 5, ref_attr_name="row")
    body = [inner, helper.make_node("Add", ["a", "k"], ["b"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Added", ["a"], ["b"], body, imports[:1], ["row"])
    made = model(
        op("Table", "x", "t", domain="own", row=numbers),
        op("Added", "x", "f", domain="own", row=numbers),
        op("Constant", "", "k", value_floats=numbers),
        op("Add", "x k", "y"),
        x=(1, 1),
        y="t f y",
        opset=17,
    )
    made.opset_import.append(imports[1])
    made.functions.append(function)
    runs, run = [], shapes.run
    monkeypatch.setattr(shapes, "run", lambda skeleton: runs.append(skeleton) or run(skeleton))
    assert sizes(made, "y") == (1, 5000)
    table, call, constant, _ = runs[0].graph.node
    assert table.ByteSize() < 200 and constant.ByteSize() < 200 and call.ByteSize() > 20_000


LARGE = numpy_helper.from_array(np.ones((1, 5000), np.float32), "k")


def calling(*body, attributes=(), **given):
    """A model that calls a local function, whose output is its own."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "F", ["a"], ["b"], body, imports[:1], [*attributes])
    made = model(op("F", "x", "y", domain="own", **given), x=(3, 1), opset=17)
    made.opset_import.append(imports[1])
    made.functions.append(inner)
    return made


def test_large_constants_of_functions_are_not_copied_to_learn_shapes(monkeypatch):
    """In a body of theirs, too. What a call sets is handed on, a tensor like all else."""
    add = op("Add", "a k", "b")
    inner = subgraph(op("Constant", "", "k", value=LARGE), op("Add", "a k", "t"), y="t")
    chosen = op("If", "c", "b", then_branch=inner, else_branch=inner)
    compared = op("Greater", "a a", "g"), op("ReduceMax", "g", "c", keepdims=0)
    set_by_call = helper.make_node("Constant", [], ["k"])
    set_by_call.attribute.add(name="value", type=AttributeProto.TENSOR, ref_attr_name="row")
    runs, run = [], shapes.run
    monkeypatch.setattr(shapes, "run", lambda skeleton: runs.append(skeleton) or run(skeleton))
    for made in (
        calling(op("Constant", "", "k", value=LARGE), add),
        calling(*compared, chosen),
        calling(set_by_call, add, attributes=["row"], row=LARGE),
    ):
        runs.clear()
        assert sizes(made, "y") == (3, 5000)
        assert runs[0].ByteSize() < 2000 < made.ByteSize()


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
