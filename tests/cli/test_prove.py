"""``bnfold verify --prove``: what it says and how it ends."""

from __future__ import annotations

import json
import re
import sys

import onnx
import pytest
from onnx import TensorProto

import bnfold as library

from ..graphs import model as graph
from ..graphs import op
from . import examples
from .command import TOO_LARGE, bnfold, process, refused, tree


@pytest.fixture
def wrong(model, tmp_path):
    target = tmp_path / "wrong.onnx"
    assert bnfold(model, "-o", target, "--no-verify", factor=TOO_LARGE).code == 0
    return target


def test_a_model_and_its_fold(model, folded, tmp_path):
    before = tree(tmp_path)
    run = bnfold("verify", model, folded, "--prove")
    assert (run.code, run.err) == (0, "")
    assert run.lines[0].startswith("proved: 2 of 2 layers agree within ")
    assert run.lines[0].endswith("in the last place")
    lines = bnfold("verify", model, folded, "--prove", "-v").lines
    assert [line.partition(":")[0] for line in lines] == ["proved", "  conv1", "  conv2"]
    assert tree(tmp_path) == before


def test_a_wrong_fold_is_refuted_by_its_layer(model, wrong):
    run = bnfold("verify", model, wrong, "--prove")
    assert (run.code, run.err) == (1, "")
    told = r"channel \d of what it puts out is 1\.01 times what it was, (plus|minus) \d"
    assert re.match("refuted at conv1: " + told, run.lines[0])
    assert run.lines[1:] == ["  1 other layer agrees"]  # of two, as many as where both agree


def test_what_is_not_seen_is_not_proved(model, settled):
    run = bnfold("verify", model, settled, "--prove")
    assert run.code == 3
    assert run.lines[0].startswith("not proved at ")


def test_a_model_without_layers(tmp_path):
    path = examples.save(graph(op("Relu", "x", "y")), tmp_path / "relu.onnx")
    run = bnfold("verify", path, path, "--prove")
    assert (run.code, run.lines) == (
        0,
        ["proved: the two are the same, and have no linear layer"],
    )


def test_no_runtime_is_loaded(model, folded):
    """Nothing is run: the proof holds for models that no runtime takes."""
    code = "import sys\nfrom bnfold._command.cli import main\n"
    code += "try:\n    main(sys.argv[1:], 'bnfold')\n"
    code += "finally:\n    print('onnxruntime' in sys.modules, file=sys.stderr)\n"
    run = process("verify", model, folded, "--prove", command=(sys.executable, "-c", code))
    assert run.code == 0 and run.err.strip() == "False"


@pytest.mark.parametrize(
    "option", [["--inputs", "a.npz"], ["--power"], ["--seed", "1"], ["--bisect"], ["--trust"]]
)
def test_options_of_a_run_are_refused(model, folded, option):
    refused(bnfold("verify", model, folded, "--prove", *option), "--prove runs nothing", option[0])


def test_files_that_are_none(model, tmp_path):
    refused(bnfold("verify", model, tmp_path / "none.onnx", "--prove"), "none.onnx")
    (tmp_path / "a.pt2").write_bytes(b"PK")
    refused(bnfold("verify", model, tmp_path / "a.pt2", "--prove"), "a.pt2")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:-40])
    refused(bnfold("verify", model, damaged, "--prove"), "damaged.onnx")


def test_forms_for_programs(model, folded, wrong):
    run = bnfold("verify", model, folded, "--prove", "--output-format", "json")
    told = json.loads(run.out)
    assert (told["status"], told["at"], len(told["layers"])) == ("proved", "", 2)
    run = bnfold("verify", model, wrong, "--prove", "--output-format", "junit")
    assert run.code == 1 and 'failures="1"' in run.out and 'name="conv1"' in run.out
    run = bnfold("verify", model, wrong, "--prove", "--output-format", "github")
    assert run.code == 1 and run.out.startswith("::error") and "conv1" in run.out


def test_frozen_initializers(model, folded, tmp_path):
    """Listed as inputs, a caller may override them: they are weights only if nobody does."""
    listed = []
    for path in (model, folded):
        made = onnx.load(path)
        for tensor in made.graph.initializer:
            value = onnx.helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            made.graph.input.append(value)
        listed.append(examples.save(made, tmp_path / f"listed-{path.name}"))
    assert bnfold("verify", *listed, "--prove").code == 3
    assert bnfold("verify", *listed, "--prove", "--freeze-initializers").code == 0


def test_the_python_api(model, folded, wrong):
    assert library.prove(model, folded).status == "proved"
    found = library.prove(onnx.load(model), str(wrong))
    assert (found.status, found.at) == ("refuted", "conv1")
    assert str(found).startswith("refuted at conv1: ")
    assert library.prove(onnx.load(model), onnx.load(folded)).distance < 3
    with pytest.raises(TypeError, match="not a list"):
        library.prove([], model)
    with pytest.raises(library.UsageError, match="no such file"):
        library.prove(model, "none.onnx")
