import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold._onnx.tensors import is_own
from bnfold._run.session import OnnxRuntime
from bnfold._run.source import Source, Tap, saturations
from bnfold._system import scratch


def ending(body: str, opset: int = 17) -> onnx.ModelProto:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,3] x) => (float[2,3] y) '
    return onnx.parser.parse_model(head + "<int64[2] s = {2, 3}>" + body)


SOFTMAX = ending("{ y = Softmax<axis = 1>(x) }")


@pytest.mark.parametrize(
    "other, found",
    [
        (ending("{ y = Softmax<axis = 1>(x) }"), {"y": "Softmax"}),
        (ending("{ a = Abs(x) y = Softmax<axis = 1>(a) }"), {"y": "Softmax"}),
        (ending("{ a = Softmax<axis = 1>(x) y = Reshape(a, s) }"), {}),
        (ending("{ y = Softmax<axis = 0>(x) }"), {}),
        (ending("{ y = Softmax<axis = 1>(x) }", opset=12), {}),
        (ending("{ y = Sigmoid(x) }"), {}),
        (ending("{ a = Softmax<axis = 1>(x) y = Abs(a) }"), {}),
    ],
    ids=["same", "other input", "reshaped in one", "axis", "opset", "function", "not last"],
)
def test_only_the_same_last_function_may_be_left_out(
    other: onnx.ModelProto, found: dict[str, str]
) -> None:
    ahead = saturations(SOFTMAX, other)
    assert {output: each.function for output, each in ahead.items()} == found


def test_a_function_may_do_anything_whatever_its_name() -> None:
    """Both put out the same ahead of the Softmax, and then a function of theirs is another one."""

    def calling(factor: float) -> onnx.ModelProto:
        return onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[2,3] x) => (float[2,3] y) '
            "{ a = Softmax<axis = 1>(x) y = my.Identity(a) } "
            '<domain: "my", opset_import: ["" : 17]> Identity (a) => (b) '
            f"{{ k = Constant<value_float = {factor}>() b = Mul(a, k) }}"
        )

    assert not saturations(calling(1.0), calling(2.0))


@pytest.mark.parametrize("watched, linked", [(False, False), (True, False), (True, True)])
def test_what_is_put_out_besides_needs_the_weights_in_memory_once(
    watched: bool, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session maps the weights of a file that it only puts out more of, as external data are.

    But not where a file that gets shorter would end the process of whoever calls, nor behind a link
    to another folder, which a session refuses. A session reads external data of the main graph
    alone: what a body and a node hold stays in them.
    """
    rng = np.random.default_rng(0)
    w, v, u = (rng.normal(size=(800, 800)).astype(np.float32) for _ in range(3))
    held = numpy_helper.from_array(u, "u")
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["s", "u"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, 1, None)],
            [held],
        )
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(v)),
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["s"]),
        helper.make_node("If", ["c"], ["y"], **branches),
    ]
    ports = [helper.make_tensor_value_info(name, 1, [2, 800]) for name in "xy"]
    stored = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array(True), "c")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    path = tmp_path / "models" / "a model.onnx"
    path.parent.mkdir()
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    if linked:
        path.symlink_to(path.rename(tmp_path / "blob"))
    mapped = watched and not linked
    with tempfile.TemporaryFile() as report:
        monkeypatch.setattr(scratch, "_reports", [report.fileno()] if watched else [])
        content = Source(path, (Tap("t", "more"),)).content()
    assert isinstance(content, bytes)
    whole = path.read_bytes()
    assert content.startswith(whole) != mapped
    outside = [
        t.name for t in onnx.ModelProto.FromString(content).graph.initializer if t.external_data
    ]
    assert outside == (["w"] if mapped else [])
    assert not any(map(is_own, onnx.ModelProto.FromString(content).graph.initializer))
    x = np.ones((2, 800), np.float32)
    found = OnnxRuntime(content, path.parent).run({"x": x})
    assert np.array_equal(found[0], OnnxRuntime(path).run({"x": x})[0])
    np.testing.assert_allclose(found[1], x @ w, rtol=1e-4, atol=1e-3)
