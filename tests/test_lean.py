"""Large weights that stay in the file of their model are those of the model."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.files import load, wire
from bnfold._onnx.files.external import external_files
from bnfold._onnx.files.lean import LEAST_TENSOR, Place, Reader, read_lean, serialize_whole
from bnfold._onnx.files.load import load_model
from bnfold._onnx.tensors import all_tensors
from bnfold._pipeline.models import fold_file

from . import zoo
from .golden.models import models as golden

BIG = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
SMALL = np.arange(5, dtype=np.float32)


@pytest.fixture(autouse=True)
def _every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold._onnx.files.lean.LEAST_FILE", 0)


def filled(model: ModelProto, folder: Path) -> bytes:
    """A model with the bytes that stayed in the file put back, in a form that can be compared."""
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            location, offset, length = tensors.external_location(tensor)
            assert length is not None
            tensor.raw_data = (folder / location).read_bytes()[offset : offset + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model.SerializeToString(deterministic=True)


def ordered(model: ModelProto) -> bytes:
    """A model as bytes, its initializers in the order of their own bytes."""
    tensors = sorted(t.SerializeToString(deterministic=True) for t in model.graph.initializer)
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.graph.initializer[:]
    return rest.SerializeToString(deterministic=True) + b"".join(tensors)


def same(path: Path) -> int:
    """Hold all ways to read a file against each other; how many tensors stayed in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnfold._system.scratch.may_map", lambda path: True)
        mapped = read_lean(path)
    assert mapped == read_lean(path)
    lean, whole = load_model(path, lean=True), load_model(path)
    stayed = sum(t.data_location == TensorProto.EXTERNAL for t in all_tensors(lean))
    again = ModelProto.FromString(serialize_whole(lean, path))
    assert ordered(again) == ordered(whole)
    assert filled(lean, path.parent) == filled(whole, path.parent)
    return stayed


def graph(*tensors: TensorProto, attribute: TensorProto | None = None) -> GraphProto:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    if attribute is not None:
        nodes.append(helper.make_node("Constant", [], ["c"], value=attribute))
    value = helper.make_tensor_value_info
    return helper.make_graph(nodes, "g", [value("x", 1, [1])], [value("y", 1, [1])], [*tensors])


def written(model: ModelProto | bytes, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "name", ["digits", *zoo.OCR, *zoo.SILERO, *zoo.LIGHT, "drawn-densenet121", "drawn-shufflenet"]
)
def test_real_files_are_read_alike(name: str, tmp_path: Path) -> None:
    stayed = same(zoo.write(name, tmp_path))
    assert stayed or name in ("digits", "cls", *zoo.SILERO, *zoo.LIGHT)


def test_large_data_stay_and_small_ones_do_not(tmp_path: Path) -> None:
    tensors = [numpy_helper.from_array(BIG, "big"), numpy_helper.from_array(SMALL, "small")]
    model = helper.make_model(graph(*tensors, attribute=numpy_helper.from_array(BIG, "attribute")))
    path = written(model, tmp_path)
    assert same(path) == 2
    assert len(read_lean(path) or b"") < 2000


def test_a_small_file_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(helper.make_model(graph(numpy_helper.from_array(BIG, "big"))), tmp_path)
    monkeypatch.setattr("bnfold._onnx.files.lean.LEAST_FILE", path.stat().st_size + 1)
    assert read_lean(path) is None


def test_messages_that_follow_each_other_are_merged_as_ever(tmp_path: Path) -> None:
    first = helper.make_model(graph(numpy_helper.from_array(BIG, "big")))
    more = ModelProto()
    more.graph.initializer.append(numpy_helper.from_array(BIG * 2, "other"))
    path = written(first.SerializeToString() + more.SerializeToString(), tmp_path)
    assert same(path) == 2


def test_data_given_twice_or_elsewhere_are_left_to_the_library(tmp_path: Path) -> None:
    twice = numpy_helper.from_array(BIG, "w").SerializeToString()
    twice += TensorProto(raw_data=(BIG * 2).tobytes()).SerializeToString()
    told = numpy_helper.from_array(BIG, "w")
    told.data_location = TensorProto.DEFAULT
    for tensor in (twice, told.SerializeToString()):
        model = helper.make_model(graph(numpy_helper.from_array(SMALL, "s")))
        whole = model.SerializeToString()
        held = ModelProto()
        held.graph.initializer.append(TensorProto.FromString(tensor))
        length = bytearray()
        _append(length, 5, tensor)
        outer = bytearray()
        _append(outer, 7, bytes(length))
        path = written(whole + bytes(outer), tmp_path)
        assert read_lean(path) is None
        same(path)


def _append(buffer: bytearray, number: int, content: bytes) -> None:
    buffer += bytes([number << 3 | 2])
    size = len(content)
    while size > 127:
        buffer.append(size & 127 | 128)
        size >>= 7
    buffer.append(size)
    buffer += content


def test_a_tensor_of_an_attribute_that_stands_twice_is_left_to_the_library(tmp_path: Path) -> None:
    name = AttributeProto(name="value", type=AttributeProto.TENSOR).SerializeToString()
    attribute, node, inner, outer = bytearray(name), bytearray(), bytearray(), bytearray()
    _append(attribute, 5, numpy_helper.from_array(BIG, "w").SerializeToString())
    _append(attribute, 5, TensorProto(raw_data=bytes(BIG.nbytes)).SerializeToString())
    _append(node, 5, bytes(attribute))
    constant = NodeProto(op_type="Constant", output=["w"]).SerializeToString()
    _append(inner, 1, constant + bytes(node))
    _append(outer, 7, bytes(inner))
    path = written(helper.make_model(graph()).SerializeToString() + bytes(outer), tmp_path)
    assert read_lean(path) is None
    same(path)


def _attributes(*contents: bytes) -> bytes:
    """A model whose Constant has an attribute, given as parts of its bytes."""
    node, inner, outer = bytearray(), bytearray(), bytearray()
    name = AttributeProto(name="value", type=AttributeProto.TENSOR).SerializeToString()
    _append(node, 5, name + b"".join(contents))
    constant = NodeProto(op_type="Constant", output=["w"]).SerializeToString()
    _append(inner, 1, constant + bytes(node))
    _append(outer, 7, bytes(inner))
    return helper.make_model(graph()).SerializeToString() + bytes(outer)


@pytest.mark.parametrize("type_", [AttributeProto.UNDEFINED, AttributeProto.FLOAT])
def test_a_tensor_of_an_attribute_that_is_none_stays_in_the_model(
    type_: AttributeProto.AttributeType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would put its data back: a copy would refer to a file that is not its own.

    Such a model is refused, but not by whoever reads it.
    """
    monkeypatch.setattr(load, "refuse_unsound", lambda _: None)
    node = NodeProto(op_type="Own", domain="own", input=["x"], output=["z"])
    held = node.attribute.add(name="table", t=numpy_helper.from_array(BIG, "w"))
    if type_:
        held.type = type_
    model = helper.make_model(graph())
    model.graph.node.append(node)
    path = written(model, tmp_path)
    assert load_model(path, lean=True) == load_model(path)
    assert same(path) == 0


def _as_attribute(tensor: TensorProto) -> bytes:
    held = bytearray()
    _append(held, 5, tensor.SerializeToString())
    return bytes(held)


def test_a_tensor_among_many_numbers_of_an_attribute_is_left_to_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind the numbers is not looked for; it may be merged with what is ahead."""
    monkeypatch.setattr(load, "refuse_unsound", lambda _: None)
    numbers = AttributeProto(ints=range(100)).SerializeToString()
    one = _as_attribute(numpy_helper.from_array(BIG, "w"))
    other = _as_attribute(TensorProto(raw_data=(BIG * 2).tobytes()))
    for contents in ((numbers, one), (one, numbers), (one, numbers, other), (numbers, one, other)):
        assert same(written(_attributes(*contents), tmp_path)) == 0
    few = AttributeProto(ints=range(9)).SerializeToString()
    assert same(written(_attributes(one, few), tmp_path)) == 1


def test_numbers_and_strings_are_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree ensemble of 200 MB took minutes, number by number."""
    seen = []
    walk = wire.fields
    monkeypatch.setattr(
        "bnfold._onnx.files.lean.fields",
        lambda *given: (seen.append(field) or field for field in walk(*given)),
    )
    words = numpy_helper.from_array(np.array([f"word {n}" for n in range(20_000)], object), "w")
    made = graph(words, attribute=words)
    made.node.add(op_type="Constant", output=["d"]).attribute.add(
        name="value_ints", type=AttributeProto.INTS, ints=range(1 << 17)
    )
    made.node.add(op_type="Constant", output=["e"]).attribute.add(
        name="value_floats", type=AttributeProto.FLOATS, floats=BIG
    )
    path = written(helper.make_model(made), tmp_path)
    assert same(path) == 0
    assert 0 < len(seen) < 2000


@pytest.mark.parametrize("kind", ["int4", "uint4", "float8_e4m3fn"])
def test_numbers_that_share_bytes_stay_in_the_model(kind: str, tmp_path: Path) -> None:
    values = np.abs(np.arange(-7, 8)).repeat(20_000).astype(getattr(ml_dtypes, kind))
    stored = numpy_helper.from_array(values, "w")
    assert len(stored.raw_data) > LEAST_TENSOR
    path = written(helper.make_model(graph(stored)), tmp_path)
    assert same(path) == 0
    lean = load_model(path, lean=True).graph.initializer[0]
    assert np.array_equal(tensors.read(lean, tmp_path), values)


def test_its_own_data_are_not_taken_for_a_file_beside_it(tmp_path: Path) -> None:
    """A model may name itself as the file of its external data; that reference is a real one."""
    path = written(helper.make_model(graph(numpy_helper.from_array(BIG, "w"))), tmp_path)
    model = load_model(path, lean=True)
    assert external_files(model) == set()
    told = model.graph.initializer.add(name="v", data_type=1, dims=[1])
    told.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path.name), ("offset", "0"), ("length", "4")):
        told.external_data.add(key=key, value=value)
    assert external_files(model) == {path.name}


def test_a_file_that_is_cut_off_is_refused_as_ever(tmp_path: Path) -> None:
    whole = helper.make_model(graph(numpy_helper.from_array(BIG, "big"))).SerializeToString()
    for end in (1, 7, 1000, len(whole) // 2, len(whole) - 1):
        path = written(whole[:end], tmp_path)
        with pytest.raises(UsageError):
            load_model(path, lean=True)


def twice_read(factor: int) -> ModelProto:
    """Two Gemms of one weight; behind the second one stands a BatchNormalization."""
    weights = factor * BIG[:40_000].reshape(200, 200)
    norm = [np.full(200, factor, np.float32), *(np.ones(200, np.float32),) * 3]
    held = [numpy_helper.from_array(v, f"n{k}") for k, v in enumerate((weights, *norm))]
    nodes = [
        helper.make_node("Gemm", ["x", "n0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "n0"], ["k"]),
        helper.make_node("BatchNormalization", ["k", "n1", "n2", "n3", "n4"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, 1, [2, 200]) for name in "xy"]
    return helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], held),
        opset_imports=[helper.make_opsetid("", 17)],
    )


def test_a_weight_that_another_reads_is_not_made_later(tmp_path: Path) -> None:
    """The other reader needs the old one: the new one is a tensor of its own."""
    path, out = written(twice_read(3), tmp_path), tmp_path / "out.onnx"
    fold_file(path, out, verify=False, inputs=None, progress=lambda _: None)
    weights = {t.name: numpy_helper.to_array(t) for t in load_model(out).graph.initializer}
    scale = 3 / np.sqrt(1 + 1e-5)
    old = weights.pop("n0")
    (new,) = (values for values in weights.values() if values.shape == old.shape)
    assert np.array_equal(old, 3 * BIG.reshape(200, 200))
    assert np.allclose(new, old * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("how", ["replaced", "written over", "cut off", "removed"])
def test_a_file_that_changes_meanwhile_is_refused(how: str, tmp_path: Path) -> None:
    """Small weights are in memory, large ones in the file: both have to be of one model."""
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    for target, factor in ((path, 1), (other, 2)):
        target.write_bytes(twice_read(factor).SerializeToString())

    class Meanwhile:
        def planned(self, planned: object) -> None:
            """Change the file after it is read and before its large weights are."""
            if how == "replaced":
                other.rename(path)
            elif how == "written over":
                path.write_bytes(other.read_bytes())
            elif how == "cut off":
                path.write_bytes(path.read_bytes()[:1000])
            else:
                path.unlink()

        def written(self, path: Path) -> None:
            """Nothing may be."""

    out = tmp_path / "out.onnx"
    with pytest.raises(
        UsageError, match=r"changed while it was read|ends before|m.onnx.* cannot be read"
    ):
        fold_file(
            path,
            out,
            verify=False,
            inputs=None,
            progress=lambda _: None,
            observer=Meanwhile(),
        )
    assert not out.exists()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    """It is the one that cannot be read, not the one that is written."""
    with Reader(tmp_path) as reader, pytest.raises(UsageError, match=r"cannot read .*gone.onnx"):
        list(reader.blocks(Place("gone.onnx", 0, 4)))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), at=st.integers(0, 1 << 20))
def test_any_bytes_are_read_as_the_library_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    """Noise written over a file of a model never makes for another model."""
    whole = bytearray(
        helper.make_model(graph(numpy_helper.from_array(BIG, "b"))).SerializeToString()
    )
    places = [*range(60), *range(len(whole) - 120, len(whole))]
    for shift, byte in enumerate(data[:3]):
        whole[places[(at + shift) % len(places)]] = byte
    path = written(bytes(whole), tmp_path_factory.mktemp("noise"))
    results = []
    for lean in (True, False):
        try:
            results.append(filled(load_model(path, lean=lean), path.parent))
        except UsageError:
            results.append(b"refused")
    assert results[0] == results[1]


GIVEN = dict(golden())
SMALL_MODELS = [name for name in GIVEN if name.startswith(("own/", "command/"))]
SMALL_MODELS += [name for name in GIVEN if name.startswith(("folds/", "stored/"))][::8]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_fold_is_that_of_the_whole_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that a fold touches are read, the others are copied from file to file: in graphs,
    bodies, functions and Constants, whatever shares them.
    """
    given = GIVEN[name]()
    path = tmp_path / "m.onnx"
    path.write_bytes(given.model.SerializeToString())
    monkeypatch.setattr("bnfold._onnx.files.lean._WHOLE", {TensorProto.FLOAT})
    found = []
    for least in (1 << 30, 100):
        monkeypatch.setattr("bnfold._onnx.files.lean.LEAST_TENSOR", least)
        target = tmp_path / f"{least}.onnx"
        fold_file(path, target, verify=False, inputs=None, progress=lambda _: None)
        found.append(ModelProto.FromString(target.read_bytes()))
    assert found[0] == found[1]
    assert not any(t.data_location for t in all_tensors(found[1]))
