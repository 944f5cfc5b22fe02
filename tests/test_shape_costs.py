"""What it costs to learn shapes: nothing large is copied, and inference runs a few times."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from bnfold._onnx.read import shapes
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer

from .functions import calling
from .graphs import (
    bn,
    conv,
    model,
    op,
    sizes,
    subgraph,
)


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
