"""What `plan` and `fold` take and give: paths, protos, GraphSurgeon graphs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold

from .graphs import bn, check, const, conv, counts, done, model, op, rand


def block():
    return model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "b", 4), op("Relu", "b", "y"))


def test_proto_in_new_proto_out():
    m = block()
    after = bnfold.fold(m)
    assert isinstance(after, onnx.ModelProto)
    assert after is not m


def merging():
    """Something that merges, a map that goes far, and one that stays."""
    return model(
        conv("a", "x", "b", (4, 3, 3, 3)),
        conv("c", "x", "d", (4, 3, 3, 3)),
        op("Add", "b d", "e"),
        op("Relu", "e", "f"),
        bn("bn", "f", "g", 4),
        op("MaxPool", "g", "h", kernel_shape=[2, 2]),
        conv("last", "h", "i", (4, 4, 1, 1)),
        op("Relu", "i", "j"),
        bn("stays", "j", "y", 4),
    )


@pytest.mark.parametrize("made", [block, merging])
def test_what_other_tests_take_in_one_reading_is_what_the_functions_give(made):
    """And they give the same each time."""
    m = made()
    before, once = m.SerializeToString(), done(m)
    for _ in range(2):
        assert bnfold.plan(m) == once.plan
        assert bnfold.fold(m).SerializeToString() == once.folded.SerializeToString()
    assert m.SerializeToString() == before
    assert once.plan.folds


def test_proto_that_does_not_fold_is_a_new_proto_too():
    m = model(op("Relu", "x", "y"))
    after = bnfold.fold(m)
    after.graph.name = "changed"
    assert m.graph.name == "g"


@pytest.mark.parametrize("kind", [str, Path], ids=["str", "Path"])
def test_path_in_proto_out(tmp_path, kind):
    source = tmp_path / "m.onnx"
    source.write_bytes(block().SerializeToString())
    after = bnfold.fold(kind(source))
    assert isinstance(after, onnx.ModelProto)
    assert counts(after) == {"Conv": 1, "Relu": 1}
    assert bnfold.plan(kind(source)) == bnfold.plan(block())


@pytest.mark.parametrize("kind", [str, Path], ids=["str", "Path"])
def test_path_in_path_out(tmp_path, kind):
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    source.write_bytes(block().SerializeToString())
    written = bnfold.fold(kind(source), kind(target))
    assert isinstance(written, Path)
    assert written == target
    assert counts(onnx.load(target)) == {"Conv": 1, "Relu": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.onnx", "m.onnx"]


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX here")
def test_written_file_has_ordinary_permissions(tmp_path):
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    source.write_bytes(block().SerializeToString())
    bnfold.fold(source, target)
    assert target.stat().st_mode & 0o777 == source.stat().st_mode & 0o777


def test_input_without_permission_to_change_is_enough(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(block().SerializeToString())
    source.chmod(0o444)
    bnfold.fold(source, tmp_path / "f.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x08\x07"], ids=["empty", "text", "no-graph"]
)
def test_unreadable_file_leaves_nothing_behind(tmp_path, content):
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    source.write_bytes(content)
    with pytest.raises(Exception, match=r"m\.onnx"):
        bnfold.fold(source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_truncated_file_leaves_nothing_behind(tmp_path):
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    source.write_bytes(block().SerializeToString()[:-100])
    with pytest.raises(Exception, match=r"m\.onnx"):
        bnfold.fold(source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_missing_file_names_itself(tmp_path):
    with pytest.raises(Exception, match=r"absent\.onnx"):
        bnfold.plan(tmp_path / "absent.onnx")


def test_graphsurgeon_graph_in_graph_out():
    gs = pytest.importorskip("onnx_graphsurgeon")
    m = block()
    graph = gs.import_onnx(m)
    before = [(n.name, n.op, [t.name for t in n.inputs]) for n in graph.nodes]
    after = bnfold.fold(graph)
    assert isinstance(after, gs.Graph)
    assert after is not graph
    assert [(n.name, n.op, [t.name for t in n.inputs]) for n in graph.nodes] == before
    assert [n.op for n in after.nodes] == ["Conv", "Relu"]
    assert [f.nodes for f in bnfold.plan(graph).folds] == [("bn",)]
    check(m, gs.export_onnx(after))


def test_graphsurgeon_constant_that_is_also_read_elsewhere():
    gs = pytest.importorskip("onnx_graphsurgeon")
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)), const("Mul", "c", "y", rand(4, 1, 1), name="mul")
    )
    after = bnfold.fold(gs.import_onnx(m))
    assert [n.op for n in after.nodes] == ["Conv"]


def test_empty_graph_is_a_clear_error():
    with pytest.raises(bnfold.BnfoldError, match="no operators"):
        bnfold.fold(model(x={"y": (1,)}, y="y"))


def test_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        bnfold.fold(42)


def test_long_chain_of_nodes_is_no_recursion():
    pieces = [op("Relu", "x" if i == 0 else f"r{i}", f"r{i + 1}") for i in range(3000)]
    m = model(*pieces, conv("conv", "r3000", "c", (4, 3, 1, 1)), bn("bn", "c", "y", 4))
    assert counts(bnfold.fold(m))["Conv"] == 1
    assert "BatchNormalization" not in counts(bnfold.fold(m))


def test_long_chain_of_affine_nodes_is_no_recursion():
    pieces = [
        const("Mul", "c" if i == 0 else f"t{i}", f"t{i + 1}", np.sign(rand(4, 1, 1)))
        for i in range(2000)
    ]
    m = model(conv("conv", "x", "c", (4, 3, 1, 1)), *pieces, op("Relu", "t2000", "y"))
    assert counts(bnfold.fold(m)) == {"Conv": 1, "Relu": 1}


def test_long_chain_of_constants_is_no_recursion():
    pieces = [op("Identity", "k" if i == 0 else f"k{i}", f"k{i + 1}") for i in range(3000)]
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        *pieces,
        op("Mul", "c k3000", "y"),
        weights={"k": rand(4, 1, 1)},
    )
    assert counts(bnfold.fold(m)) == {"Conv": 1}


MALFORMED = {
    "bias-of-another-size": lambda: model(
        conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), weights={"conv.b": rand(3)}
    ),
    "batchnorm-of-another-size": lambda: model(
        conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 5)
    ),
    "conv-without-weight": lambda: model(op("Conv", "x", "c", name="conv"), bn("bn", "c", "y", 4)),
    "mul-of-one-operand": lambda: model(
        conv("conv", "x", "c", (4, 3, 3, 3)), op("Mul", "c", "y", name="mul")
    ),
    "batchnorm-without-statistics": lambda: model(
        op("BatchNormalization", "x s b", "y", name="bn"), weights={"s": rand(3), "b": rand(3)}
    ),
    "value-nobody-makes": lambda: model(
        conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "nowhere", "y", 4)
    ),
    "cycle": lambda: model(
        op("Identity", "b", "a"), op("Identity", "a", "b"), bn("bn", "b", "y", 3)
    ),
    "constant-without-value": lambda: model(
        conv("conv", "x", "c", (4, 3, 3, 3)), op("Constant", "", "k"), op("Mul", "c k", "y")
    ),
    "nodes-out-of-order": lambda: model(
        bn("bn", "c", "y", 4), conv("conv", "x", "c", (4, 3, 3, 3))
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_model_is_kept_or_refused_in_one_sentence(what):
    m, said = MALFORMED[what](), ""
    try:
        bnfold.plan(m)
        bnfold.fold(m)
    except bnfold.BnfoldError as error:
        said = str(error)
    assert "\n" not in said
