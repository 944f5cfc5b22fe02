"""``--simplify``: what another tool makes is taken where it is seen to change nothing.

A stand-in for onnxslim does what is asked of it: the work of the tool, or one of its mistakes.
"""

from __future__ import annotations

import contextlib
import json
from importlib import resources
from pathlib import Path

import onnx
import pytest

from .. import graphs
from ..graphs import assert_same
from ..page.test_page import document
from . import examples
from .command import bnfold as run
from .command import refused, tree

RIGHT = """
def slim(model):
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        graph.node.remove(node)
        for reader in graph.node:
            for at, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[at] = node.input[0]
    {more}
    return model
"""
WRONG = {
    "weights": "graph.initializer[0].raw_data = bytes(len(graph.initializer[0].raw_data))",
    "operator": 'next(n for n in graph.node if n.op_type == "Sigmoid").op_type = "Tanh"',
    "shape": "graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1",
    "type": "graph.output[0].type.tensor_type.elem_type = 11",
    "name": 'graph.output[0].name = graph.node[-1].output[0] = "other"',
    "raises": 'raise ValueError("no such luck")',
    "crashes": "import os; os.abort()",
    "leaves": "import os; os._exit(0)",
    "garbage": 'del graph.node[:]; graph.node.add(op_type="Conv", input=["nowhere"], output=["y"])',
}
SAID = {
    "weights": "the result is refuted at",
    "operator": "Tanh",
    "shape": "output y has the shape",
    "type": "output y has another type",
    "name": "it changes the outputs of the model",
    "raises": "it failed: ValueError: no such luck",
    "crashes": "it crashed (signal 6)",
    "leaves": "it made no file",
    "garbage": "",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model that folds in part, with two operators that do nothing, and with notes."""
    made = graphs.model(
        graphs.op("Identity", "x", "i"),
        graphs.conv("conv1", "i", "c1", (8, 3, 3, 3)),
        graphs.bn("bn1", "c1", "b1", 8),
        graphs.op("Sigmoid", "b1", "s"),
        graphs.op("Identity", "s", "j"),
        graphs.conv("conv2", "j", "y", (4, 8, 3, 3)),
    )
    made = graphs.typed(made)
    made.metadata_props.add(key="labels", value="cat,dog")
    made.doc_string, made.producer_name, made.graph.name = "notes", "maker", "network"
    return examples.save(made, tmp_path / "m.onnx")


@pytest.fixture
def tool(tmp_path: Path, monkeypatch):
    """Installs the stand-in, right but for what is asked."""

    def install(more: str = "") -> None:
        place = tmp_path / "site"
        (place / "onnxslim-0.0.1.dist-info").mkdir(parents=True)
        metadata = "Metadata-Version: 2.1\nName: onnxslim\nVersion: 0.0.1\n"
        (place / "onnxslim-0.0.1.dist-info" / "METADATA").write_text(metadata)
        (place / "onnxslim.py").write_text(RIGHT.format(more=more or "pass"))
        monkeypatch.syspath_prepend(str(place))

    return install


def test_a_page_shows_the_simplified_network(file, tool, tmp_path):
    pytest.importorskip("fast_sugiyama", reason="pages need bnfold[report]")
    tool()
    assert run(file, "--simplify", "--html", tmp_path / "r.html").code == 0
    told = document(tmp_path / "r.html")
    left = {op: after for op, _, after in told["head"]["counts"] if after}
    assert left == {"Conv": 2, "Sigmoid": 1}
    assert told["extras"][0].startswith("simplified by onnxslim 0.0.1: 3 operators")
    gone = {told["ops"][kind] for kind, _, side, *_ in told["nodes"] if side == 1}
    assert gone == {"Identity", "BatchNormalization"} and told["altered"] == []


def test_it_is_taken_where_nothing_changes(file, tool, tmp_path):
    """With all that the file says besides its graph, whatever the tool does with it."""
    lost = 'model.ClearField("metadata_props"); model.producer_name = graph.name = "slim"'
    tool(f'{lost}; model.ClearField("ir_version")')
    report = tmp_path / "r.json"
    done = run(file, "-o", tmp_path / "o.onnx", "--simplify", "--report", report)
    assert done.code == 0
    assert "simplified by onnxslim 0.0.1: 3 operators, 5 without; proved" in done.lines
    assert examples.operators(tmp_path / "o.onnx") == ["Conv", "Sigmoid", "Conv"]
    before, after = onnx.load(file), onnx.load(tmp_path / "o.onnx")
    assert_same(before, after)
    for name in ("metadata_props", "doc_string", "producer_name", "opset_import", "ir_version"):
        assert getattr(after, name) == getattr(before, name)
    assert after.graph.name == "network" and after.graph.output == before.graph.output
    told = json.loads(report.read_bytes())
    with contextlib.suppress(ImportError):
        import jsonschema

        schema = resources.files("bnfold") / "schemas" / "report-1.json"
        jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(told)
    assert told["simplification"] == {
        "by": "onnxslim 0.0.1",
        "applied": True,
        "refused": "",
        "operators": {"before": 5, "after": 3},
        "proof": "proved",
    }


@pytest.mark.parametrize(
    "mistake, verify", [*((mistake, True) for mistake in WRONG), ("weights", False)]
)
def test_what_it_gets_wrong_is_refused(mistake, verify, file, tool, tmp_path):
    """The fold alone is written, and it is said why."""
    tool(WRONG[mistake])
    words = () if verify else ("--no-verify",)
    (tmp_path / "out").mkdir()
    (tmp_path / "plain").mkdir()
    assert run(file, "-o", tmp_path / "plain" / "o.onnx", *words).code == 0
    done = run(file, "-o", tmp_path / "out" / "o.onnx", "--simplify", *words)
    assert done.code == 0
    (said,) = [line for line in done.lines if line.startswith("not simplified, onnxslim 0.0.1: ")]
    assert SAID[mistake] in said
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


@pytest.mark.parametrize("what", ["training", "notes"])
def test_what_knows_tensors_by_their_names_is_not_lost(what, file, tool, tmp_path):
    """A tool that brings neither back is not used."""
    made = onnx.load(file)
    if what == "training":
        made.training_info.add().update_binding.add(key="conv2_w", value="conv2_w")
    else:
        note = made.graph.quantization_annotation.add(tensor_name="i")
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="conv2_w")
    onnx.save(made, file)
    tool('model.ClearField("training_info"); graph.ClearField("quantization_annotation")')
    done = run(file, "-o", tmp_path / "o.onnx", "--simplify")
    assert "it would lose the model's training information or quantization notes" in done.out
    after = onnx.load(tmp_path / "o.onnx")
    assert after.training_info == made.training_info
    assert after.graph.quantization_annotation == made.graph.quantization_annotation


def test_a_shape_that_was_never_known(file, tool, tmp_path):
    """Paddle's exporter says that an output has no axes where it has some; that stays as it is."""
    made = onnx.load(file)
    made.graph.output[0].type.tensor_type.shape.ClearField("dim")
    onnx.save(made, file)
    tool("graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)")
    done = run(file, "-o", tmp_path / "o.onnx", "--simplify")
    assert any(line.startswith("simplified by onnxslim") for line in done.lines)
    assert onnx.load(tmp_path / "o.onnx").graph.output == made.graph.output


def test_nothing_to_take_away(tool, tmp_path):
    """The file stays as it is, byte for byte, also in place."""
    made = graphs.model(
        graphs.conv("conv", "x", "c", (8, 3, 3, 3)),
        graphs.op("Relu", "c", "r"),
        graphs.op("Relu", "r", "q"),
        graphs.conv("more", "q", "y", (4, 8, 3, 3)),
    )
    file = examples.save(made, tmp_path / "m.onnx")
    tool()
    done = run(file, "-o", tmp_path / "o.onnx", "--simplify")
    assert "not simplified: onnxslim 0.0.1 finds nothing to take away" in done.lines
    assert (tmp_path / "o.onnx").read_bytes() == file.read_bytes()
    done = run(file, "--in-place", "--simplify")
    assert done.code == 0 and file.read_bytes() == (tmp_path / "o.onnx").read_bytes()


def test_a_settled_file_is_simplified_in_place(file, tool):
    tool()
    assert run(file, "--in-place").code == 0
    assert run(file, "--in-place", "--simplify").code == 0
    assert examples.operators(file) == ["Conv", "Sigmoid", "Conv"]


def test_external_data_stay_where_they_are(external, tool, tmp_path):
    tool()
    (tmp_path / "out").mkdir()
    done = run(external, "-o", tmp_path / "out" / "o.onnx", "--simplify")
    assert any("its data lie in files of their own" in line for line in done.lines)
    assert sorted(tree(tmp_path / "out")) == ["o.onnx", "one.bin", "two.bin"]


def test_a_tool_takes_no_module_of_the_current_folder(file, tool, tmp_path):
    """Whoever folds a stranger's folder runs no code of it."""
    tool()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "onnx.py").write_text("open('ran', 'w')")
    done = run(file, "-o", tmp_path / "o.onnx", "--simplify", cwd=tmp_path / "theirs")
    assert done.code == 0 and not (tmp_path / "theirs" / "ran").exists()
    assert any(line.startswith("simplified by") for line in done.lines)


def test_where_it_cannot_be(file, model, tmp_path, monkeypatch):
    from bnfold._pipeline import simplifying

    monkeypatch.setattr(simplifying, "TOOLS", ("no_such_tool",))
    refused(run(file, "-o", tmp_path / "o.onnx", "--simplify"), "pip install 'bnfold[simplify]'")
    assert not (tmp_path / "o.onnx").exists()
    refused(run(file, "--check", "--simplify"), "--check writes nothing")
    refused(run(tmp_path / "m.pt2", "--simplify"), "only files of ONNX are simplified")
