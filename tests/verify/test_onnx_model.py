"""The original with weights that can be moved is the original, and they can be."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from bnfold._errors import UsageError
from bnfold._onnx.files.load import load_model
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.drawing import InputSource
from bnfold._run.nodes import reached
from bnfold._run.onnx_model import OnnxModel
from bnfold._run.perturbable import find_weights
from bnfold._run.reference import Reference
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source, Tap

from .. import zoo
from .folding import constants

X = np.random.default_rng(3).normal(size=(2, 3)).astype(np.float32)
HEAD = '<ir_version: {ir}, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,3] y)'
ONE = np.ones(3, np.float32)
W = np.array([1, 2, 3], np.float32)


def written(text: str, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def varied(path: Path, engine: type = OnnxRuntime, taps: tuple[Tap, ...] = (), **w) -> OnnxModel:
    source = Source(path, taps)
    return OnnxModel(source, source.structure(), w, engine, UNBOUNDED)


@pytest.mark.parametrize("engine", [OnnxRuntime, Reference])
@pytest.mark.parametrize(
    "body",
    [
        "<float[3] w = {1, 2, 3}> { y = Mul(x, w) }",
        "{ w = Constant<value = float[3] {1, 2, 3}>() y = Mul(x, w) }",
        """{ s = Constant<value = int64[1] {3}>()
             w = ConstantOfShape<value = float[1] {2}>(s) y = Mul(x, w) }""",
        "<float[3] w = {1, 2, 3}> { u = Identity(w) y = Mul(x, u) }",
        """<float[3] a = {1, 2, 3}, float[3] b = {0, 1, 5}>
           { s = Sin(a) w = Mul(s, b) y = Mul(x, w) }""",
        """<float[3] w = {1, 2, 3}, bool c = {1}>
           { y = If (c) <then_branch = a () => (float[n,3] p) { p = Mul(x, w) },
                         else_branch = b () => (float[n,3] q) { q = Identity(x) }> }""",
        """<bool c = {1}> { w = Constant<value = float[3] {1, 2, 3}>()
           y = If (c) <then_branch = a () => (float[n,3] p) { p = Mul(x, w) },
                       else_branch = b () => (float[n,3] q) { q = Identity(x) }> }""",
    ],
    ids=[
        "initializer",
        "Constant",
        "ConstantOfShape",
        "behind Identity",
        "computed",
        "captured",
        "captured Constant",
    ],
)
def test_weights_are_the_model_s_own_until_they_are_moved(
    body: str, engine: type, tmp_path: Path
) -> None:
    path = written(HEAD.format(ir=8) + body, tmp_path)
    (expected,) = engine(path).run({"x": X})
    model = varied(path, engine, w=W)
    assert set(model.weights) == {"w"}
    assert [port.name for port in model.inputs] == ["x"]
    assert np.array_equal(model.run({"x": X})[0], expected)
    assert np.array_equal(model.run({"x": X}, model.weights)[0], expected)
    moved = model.run({"x": X}, {"w": model.weights["w"] + 1})[0]
    assert np.allclose(moved, expected + X)
    assert reached(model.graph, {"w"}) >= {"y"}


def test_a_weight_that_nodes_make_is_what_the_engine_makes_of_it(tmp_path: Path) -> None:
    """A bug in how bnfold evaluates constants must not come into what is right."""
    text = "<float[3] a = {1, 2, 3}> { w = Sqrt(a) y = Mul(x, w) }"
    path = written(HEAD.format(ir=8) + text, tmp_path)
    model = varied(path, w=W * 100)
    assert np.array_equal(model.weights["w"], np.sqrt(W))
    assert np.array_equal(model.run({"x": X})[0], OnnxRuntime(path).run({"x": X})[0])


@pytest.mark.parametrize("listed", [True, False])
def test_old_files_list_initializers_as_inputs(listed: bool, tmp_path: Path) -> None:
    listing = ", float[3] w" if listed else ""
    text = f"""<ir_version: 3, opset_import: ["" : 9]> g (float[n,3] x{listing}) => (float[n,3] y)
              <float[3] w = {{1, 2, 3}}> {{ y = Mul(x, w) }}"""
    path = written(text, tmp_path)
    model = varied(path, w=W)
    assert [port.name for port in model.inputs] == ["x"]
    assert np.array_equal(model.run({"x": X})[0], X * W)
    assert np.array_equal(model.run({"x": X}, {"w": ONE})[0], X)


def test_a_constant_of_an_old_file_becomes_a_default_beside_a_weight_that_cannot_move(
    tmp_path: Path,
) -> None:
    text = """<ir_version: 3, opset_import: ["" : 9]> g (float[n,3] x, float[3] b) => (float[n,3] y)
              <float[3] b = {4, 5, 6}>
              { w = Constant<value = float[3] {1, 2, 3}>() t = Mul(x, w) y = Add(t, b) }"""
    path = written(text, tmp_path)
    model = varied(path, w=W, b=np.array([4, 5, 6]))
    assert set(model.weights) == {"w"}
    assert np.array_equal(model.run({"x": X})[0], OnnxRuntime(path).run({"x": X})[0])
    assert np.allclose(model.run({"x": X}, {"w": ONE})[0], X + np.array([4, 5, 6], np.float32))


def test_a_node_stays_for_the_outputs_that_are_not_given(tmp_path: Path) -> None:
    body = """<float[6] c = {1, 2, 3, 4, 5, 6}>
              { w, v = Split<axis = 0>(c) t = Mul(x, w) y = Add(t, v) }"""
    path = written(HEAD.format(ir=8) + body, tmp_path)
    model = varied(path, w=W)
    assert np.array_equal(model.run({"x": X})[0], OnnxRuntime(path).run({"x": X})[0])
    moved = model.run({"x": X}, {"w": ONE})[0]
    assert np.array_equal(moved, X + np.array([4, 5, 6], np.float32))


def test_external_data_is_still_found(tmp_path: Path, save: Callable[..., Path]) -> None:
    text = "{ t = Mul(x, w) u = Transpose(v) y = Add(t, u) }"
    path = save(HEAD.format(ir=8) + text, w=(3,), v=(3,))
    values = constants(onnx.load(path))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="data", size_threshold=0)
    for names in ({"w"}, {"w", "u"}):
        model = varied(path, **dict.fromkeys(names, ONE))
        got = model.run({"x": X})[0]
        assert np.array_equal(got, X * values["w"] + values["v"]), names


def test_inputs_outputs_and_unknown_names_are_left_alone(tmp_path: Path) -> None:
    path = written(HEAD.format(ir=8) + "<float[3] b = {1, 2, 3}> { y = Add(x, b) }", tmp_path)
    assert varied(path, x=ONE, y=ONE, nowhere=ONE).weights == {}


def test_what_is_tapped_is_put_out_beside_the_outputs(tmp_path: Path) -> None:
    body = "<float[3] w = {1, 2, 3}> { t = Mul(x, w) y = Neg(t) }"
    path = written(HEAD.format(ir=8) + body, tmp_path)
    model = varied(path, taps=(Tap("t", "ahead"),), w=W)
    assert [port.name for port in model.outputs] == ["y", "ahead"]
    y, t = model.run({"x": X}, {"w": ONE})
    assert np.array_equal(t, X) and np.array_equal(y, -X)


def test_memory_is_given_back_and_taken_again(tmp_path: Path) -> None:
    path = written(HEAD.format(ir=8) + "<float[3] w = {1, 2, 3}> { y = Mul(x, w) }", tmp_path)
    model = varied(path, w=W)
    before = model.run({"x": X})
    model.release()
    assert model._session is None
    assert np.array_equal(model.run({"x": X})[0], before[0])


def test_a_model_that_does_not_load_says_so(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = No(x) }'
    with pytest.raises(EngineError):
        varied(written(text, tmp_path), w=W)


@pytest.mark.parametrize(
    "name", ["digits", *zoo.OCR, *zoo.SILERO, "light-squeezenet", "drawn-shufflenet"]
)
def test_real_models_put_out_the_very_same(name: str, tmp_path: Path) -> None:
    path = zoo.write(name, tmp_path)
    model = onnx.load(path, load_external_data=False)
    weights = dict(find_weights(model, path.parent).values)
    plain, mine = OnnxRuntime(path), varied(path, **weights)
    assert mine.weights.keys() == weights.keys()
    feeds = runnable(plain, model)
    for left, right in zip(plain.run(feeds), mine.run(feeds), strict=True):
        assert np.array_equal(left, right, equal_nan=True)
    if name in ("digits", *zoo.OCR):
        moved = {k: np.asarray(v * np.float32(1.01)) for k, v in mine.weights.items()}
        pairs = zip(plain.run(feeds), mine.run(feeds, moved), strict=True)
        assert not all(np.array_equal(*pair) for pair in pairs)


def runnable(engine: OnnxRuntime, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The first drawn inputs on which a model runs."""
    for proposal in InputSource(model, 0).first():
        with contextlib.suppress(EngineError):
            engine.run(proposal.feeds)
            return dict(proposal.feeds)
    raise AssertionError("the model runs on nothing")


def test_old_files_keep_the_shapes_they_compute_with(tmp_path: Path) -> None:
    """In IR version 3 all initializers are inputs, so that all can be overridden from 4 on."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["t"]),
        helper.make_node("Reshape", ["t", "s"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(np.array([3, 2]), "s")]
    inputs = [
        helper.make_tensor_value_info("x", 1, [2, 3]),
        helper.make_tensor_value_info("w", 1, [3]),
        helper.make_tensor_value_info("s", 7, [2]),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, [3, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 9)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=3), path)
    model = varied(path, w=W)
    assert np.array_equal(model.run({"x": X})[0], (X * W).reshape(3, 2))


@pytest.mark.parametrize("shape, places", [([3, 3], [0, 4, 8]), ([3], [0, 1, 2])])
def test_a_sparse_constant_is_a_weight_like_any_other(
    shape: list[int], places: list[int], tmp_path: Path
) -> None:
    stored = numpy_helper.from_array(np.array([1000, 1000, 1], np.float32), "v")
    sparse = helper.make_sparse_tensor(stored, numpy_helper.from_array(np.array(places)), shape)
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "s"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["n", 3])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    weights = find_weights(onnx.load(path), tmp_path).values
    model = varied(path, **weights)
    assert np.array_equal(model.weights["s"], weights["s"])
    assert np.array_equal(model.run({"x": X})[0], OnnxRuntime(path).run({"x": X})[0])


def test_a_weight_that_the_data_have_a_part_in_stays_as_it_is(tmp_path: Path) -> None:
    """Its value follows from a type or a shape that is known; the model says what it is."""
    body = """<float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}>
              { w = CastLike(a, x) t = Mul(x, w) y = Mul(t, b) }"""
    path = written(HEAD.format(ir=8) + body, tmp_path)
    model = varied(path, w=W * 100, b=W)
    assert set(model.weights) == {"b"}
    assert np.array_equal(model.run({"x": X})[0], OnnxRuntime(path).run({"x": X})[0])


def test_a_file_without_a_version_does_not_load(tmp_path: Path) -> None:
    path = written(HEAD.format(ir=8) + "<float[3] w = {1, 2, 3}> { y = Mul(x, w) }", tmp_path)
    model = onnx.load(path)
    model.ClearField("ir_version")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError):
        varied(path, w=W)


def lean_pair(tmp_path: Path, ir: int = 8, also_out: bool = False) -> tuple[Path, onnx.ModelProto]:
    """A file that is read without its large tensors, w and v, and what is read of it."""
    rng = np.random.default_rng(5)
    w, v = (rng.normal(size=(900, 900)).astype(np.float32) for _ in range(2))
    stored = [numpy_helper.from_array(*pair) for pair in ((w, "w"), (v, "v"), (w[0], "c"))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("Add", ["t", "c"], ["u"]),
        helper.make_node("MatMul", ["u", "v"], ["y"]),
    ]
    shapes = {"x": ["n", 900], "w": [900, 900], "v": [900, 900], "c": [900]}
    inputs = [helper.make_tensor_value_info(k, 1, s) for k, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", 1, None)]
    outputs += [helper.make_tensor_value_info("v", 1, [900, 900])] if also_out else []
    graph = helper.make_graph(nodes, "g", inputs[: 1 if ir > 3 else None], outputs, stored)
    opsets = [helper.make_opsetid("", 9)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir), path)
    return path, load_model(path, lean=True)


@pytest.mark.parametrize("ir", [3, 8])
def test_large_weights_are_in_memory_once_and_as_the_file_has_them(
    ir: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session copies them, and what bnfold reads as their numbers is not what runs."""
    path, model = lean_pair(tmp_path, ir)
    stored = constants(onnx.load(path))
    wrong, sizes = {name: np.ones_like(array) for name, array in stored.items()}, list[int]()
    load = ort.InferenceSession.__init__

    def seen(session: ort.InferenceSession, content: bytes, *given: object, **more: object) -> None:
        sizes.append(len(content))
        load(session, content, *given, **more)

    monkeypatch.setattr(ort.InferenceSession, "__init__", seen)
    mine = OnnxModel(Source(path), model, wrong, OnnxRuntime, UNBOUNDED)
    monkeypatch.undo()
    assert [port.name for port in mine.inputs] == ["x"]
    x = np.random.default_rng(0).normal(size=(2, 900)).astype(np.float32)
    expected = OnnxRuntime(path).run({"x": x})[0]
    assert np.array_equal(mine.run({"x": x})[0], expected)
    assert len(sizes) == 1 and sizes[0] < 20_000
    assert all(array.flags.aligned for array in mine._read.values())
    moved = mine.run({"x": x}, {"v": np.zeros_like(stored["v"])})[0]
    assert not moved.any()
    mine.release()
    assert not mine._read
    assert np.array_equal(mine.run({"x": x})[0], expected)


def test_a_large_weight_that_is_put_out_stays_in_the_model(tmp_path: Path) -> None:
    path, model = lean_pair(tmp_path, also_out=True)
    stored = constants(onnx.load(path))
    mine = OnnxModel(Source(path), model, stored, OnnxRuntime, UNBOUNDED)
    assert set(mine.weights) == {"w", "c"}
    x = np.ones((1, 900), np.float32)
    for left, right in zip(mine.run({"x": x}), OnnxRuntime(path).run({"x": x}), strict=True):
        assert np.array_equal(left, right)


def test_a_file_that_changes_between_two_runs_is_not_read_as_the_same(tmp_path: Path) -> None:
    path, model = lean_pair(tmp_path)
    stored = constants(onnx.load(path))
    mine = OnnxModel(Source(path), model, stored, OnnxRuntime, UNBOUNDED)
    x = np.ones((1, 900), np.float32)
    mine.run({"x": x})
    mine.release()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 4000)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UsageError, match="was changed while it was read"):
        mine.run({"x": x})


@pytest.mark.parametrize("where", ["file", "constant", "computed"])
def test_layers_that_share_a_weight_through_identities_hold_it_once(
    where: str, tmp_path: Path
) -> None:
    """A network whose layers share their parameters took as much memory as one that has them all.

    They move one by one all the same, and each product is with the numbers of the file.
    """
    rng = np.random.default_rng(4)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((1100, 1100), (2, 1100)))
    begins = {"file": [], "constant": [], "computed": [helper.make_node("Neg", ["w"], ["m"])]}[
        where
    ]
    if where == "constant":
        begins = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w))]
    root = "m" if where == "computed" else "w"
    nodes = [
        *begins,
        helper.make_node("Identity", [root], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("MatMul", ["x", "a"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["u"]),
        helper.make_node("MatMul", ["u", root], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, 1, [2, 1100]) for name in "xtuy"]
    stored = [] if where == "constant" else [numpy_helper.from_array(w, "w")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    model, folder = load_model(path, lean=True), tmp_path
    weights = find_weights(model, folder).values
    mine = OnnxModel(Source(path), model, weights, OnnxRuntime, UNBOUNDED)
    assert set(mine.weights) == {"a", "b", root}
    assert len({id(array) for array in mine.weights.values()}) == 1
    usual = OnnxRuntime(path).run({"x": x})
    assert all(map(np.array_equal, mine.run({"x": x}), usual))
    matrix = -w if where == "computed" else w
    for place, name in enumerate(("a", "b", root)):
        found = mine.run({"x": x}, {name: np.zeros_like(w)})
        assert [not values.any() for values in found] == [n >= place for n in range(3)]
        assert all(map(np.array_equal, found[:place], usual))
    others = mine.run({"x": x}, {"a": matrix, root: matrix})
    assert all(map(np.array_equal, others, usual))


def test_a_run_with_other_numbers_for_all_large_weights_reads_none(tmp_path: Path) -> None:
    path, model = lean_pair(tmp_path)
    stored = constants(onnx.load(path))
    mine = OnnxModel(Source(path), model, stored, OnnxRuntime, UNBOUNDED)
    x = np.ones((1, 900), np.float32)
    expected = mine.run({"x": x})
    assert set(mine._read) == {"w", "v"}
    assert np.array_equal(mine.run({"x": x}, stored)[0], expected[0]) and not mine._read
    assert np.array_equal(mine.run({"x": x}, {"w": stored["w"]})[0], expected[0])
    assert set(mine._read) == {"v"}
    mine.set_aside()
    assert not mine._read
    assert np.array_equal(mine.run({"x": x})[0], expected[0])


def test_large_weights_of_another_size_than_their_shape_do_not_load(tmp_path: Path) -> None:
    path, model = lean_pair(tmp_path)
    model.graph.initializer[0].dims[0] = 901
    weights = {"w": np.ones((901, 900), np.float32)}
    with pytest.raises(EngineError, match="the data of w are not of its shape"):
        OnnxModel(Source(path), model, weights, OnnxRuntime, UNBOUNDED)
