from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold._verify._session import OnnxRuntime
from bnfold._verify._skeleton import feed_weights, reached

from .folding import constants

X = np.random.default_rng(3).normal(size=(2, 3)).astype(np.float32)


def both_ways(model: onnx.ModelProto, folder: Path, *names: str) -> set[str]:
    """Run a model with its weights inside and fed; return the names that were fed."""
    expected = OnnxRuntime(model.SerializeToString(), folder).run({"x": X})
    values = {name: array for name, array in constants(model).items() if name in names}
    fed = feed_weights(model, values)
    onnx.checker.check_model(model)
    session = OnnxRuntime(model.SerializeToString(), folder)
    assert np.array_equal(session.run({"x": X, **fed})[0], expected[0])
    changed = {name: array + 1 for name, array in fed.items()}
    assert not np.array_equal(session.run({"x": X, **changed})[0], expected[0])
    return set(fed)


HEAD = '<ir_version: {ir}, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,3] y)'


@pytest.mark.parametrize(
    "body",
    [
        "<float[3] w = {1, 2, 3}> { y = Mul(x, w) }",
        "{ w = Constant<value = float[3] {1, 2, 3}>() y = Mul(x, w) }",
        """{ s = Constant<value = int64[1] {3}>()
             w = ConstantOfShape<value = float[1] {2}>(s) y = Mul(x, w) }""",
        "<float[3] w = {1, 2, 3}> { u = Identity(w) y = Mul(x, u) }",
    ],
    ids=["initializer", "Constant", "ConstantOfShape", "behind Identity"],
)
def test_fed_weights_replace_what_produced_them(body: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD.format(ir=8) + body)
    assert both_ways(model, tmp_path, "w") == {"w"}
    assert not {node.op_type for node in model.graph.node} & {"Constant", "ConstantOfShape"}


def test_old_files_list_initializers_as_inputs(tmp_path: Path) -> None:
    text = """<ir_version: 3, opset_import: ["" : 9]> g (float[n,3] x, float[3] w) => (float[n,3] y)
              <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"""
    model = onnx.parser.parse_model(text)
    assert both_ways(model, tmp_path, "w") == {"w"}
    assert [value.name for value in model.graph.input] == ["x", "w"]


def test_a_node_stays_for_the_outputs_that_are_not_fed(tmp_path: Path) -> None:
    body = """<float[6] c = {1, 2, 3, 4, 5, 6}, float[3] w = {1, 2, 3}>
              { w, v = Split<axis = 0>(c) t = Mul(x, w) y = Add(t, v) }"""
    model = onnx.parser.parse_model(
        HEAD.format(ir=8) + body.replace(", float[3] w = {1, 2, 3}", "")
    )
    expected = OnnxRuntime(model.SerializeToString()).run({"x": X})
    fed = feed_weights(model, {"w": np.array([1, 2, 3], np.float32)})
    got = OnnxRuntime(model.SerializeToString()).run({"x": X, **fed})
    assert np.array_equal(got[0], expected[0])


def test_weights_that_a_subgraph_captures_are_fed(tmp_path: Path) -> None:
    body = """<float[3] w = {1, 2, 3}, bool c = {1}>
              { y = If (c) <then_branch = a () => (float[n,3] p) { p = Mul(x, w) },
                            else_branch = b () => (float[n,3] q) { q = Identity(x) }> }"""
    model = onnx.parser.parse_model(HEAD.format(ir=8) + body)
    assert both_ways(model, tmp_path, "w") == {"w"}
    assert reached(model.graph, {"w"}) == {"w", "y"}


def test_external_data_of_other_tensors_is_still_found(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    path = save(HEAD.format(ir=8) + "{ t = Mul(x, w) y = Add(t, v) }", w=(3,), v=(3,))
    values = constants(onnx.load(path))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    fed = feed_weights(model, {"w": values["w"]})
    got = OnnxRuntime(model.SerializeToString(), tmp_path).run({"x": X, **fed})
    assert np.array_equal(got[0], X * values["w"] + values["v"])


def test_inputs_outputs_and_unknown_names_are_left_alone() -> None:
    body = "<float[3] y = {1, 2, 3}> { }"
    model = onnx.parser.parse_model(HEAD.format(ir=8) + body)
    one = numpy_helper.to_array(model.graph.initializer[0])
    assert feed_weights(model, {"x": one, "y": one, "nowhere": one}) == {}
    assert len(model.graph.input) == 1
