"""Models that other packages hold in memory come back as what they were, folded."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx.external_data_helper import convert_model_to_external_data

import bnfold

from .graphs import bn, check, conv, feeds, model, op, run

ir = pytest.importorskip("onnx_ir")


def block() -> ModelProto:
    made = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        op("Relu", "b", "r"),
        conv("last", "r", "y", (2, 4, 1, 1)),
    )
    made.metadata_props.add(key="classes", value="a,b")
    made.doc_string = "a text"
    return made


def external(proto: ModelProto, folder: Any) -> Any:
    """A model of onnx_ir that has not read its external data."""
    folder.mkdir()
    made = copy.deepcopy(proto)
    convert_model_to_external_data(made, location="weights.data", size_threshold=0)
    onnx.save(made, folder / "model.onnx")
    return ir.load(folder / "model.onnx")


def kinds(made: Any) -> list[str]:
    return [node.op_type for node in made.graph]


def test_a_model_of_onnx_ir():
    proto = block()
    given = ir.from_proto(proto)
    given.meta["mine"] = 1
    made = bnfold.fold(given)
    assert isinstance(made, ir.Model)
    assert kinds(made) == ["Conv", "Relu", "Conv"] and len(kinds(given)) == 4
    assert made.metadata_props == {"classes": "a,b"} and made.doc_string == "a text"
    assert made.meta["mine"] == 1
    check(proto, ir.to_proto(made))
    assert [fold.nodes for fold in bnfold.plan(given).folds] == [("bn",)]
    for pair in ((given, made), (given, ir.to_proto(made)), (proto, made)):
        assert bnfold.verify(*pair).status == "pass"
        assert bnfold.prove(*pair).status == "proved"
    other = ir.from_proto(block())
    assert bnfold.prove(given, other).status != "proved"
    assert bnfold.verify(given, other).status == "fail"  # other weights


def test_it_can_be_written_to_a_file(tmp_path):
    path = bnfold.fold(ir.from_proto(block()), tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "Relu", "Conv"]


def test_external_data_are_found_and_stay(tmp_path, monkeypatch):
    proto = block()
    given = external(proto, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    made = bnfold.fold(given)
    tensors = [value.const_value for value in made.graph.initializers.values()]
    assert any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    assert bnfold.verify(given, made).status == "pass"
    given_feeds = feeds(proto)
    whole = ir.to_proto(ir.external_data.load_to_model(made))
    for a, b in zip(run(proto, given_feeds), run(whole, given_feeds), strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_external_data_in_several_folders(tmp_path):
    given, other = external(block(), tmp_path / "a"), external(block(), tmp_path / "b")
    given.graph.initializers["last.w"].const_value = other.graph.initializers["last.w"].const_value
    for act in (bnfold.plan, bnfold.fold, lambda it: bnfold.verify(it, it)):
        with pytest.raises(bnfold.UsageError, match=r"2 folders.*load_to_model\(model\)"):
            act(given)
    ir.external_data.load_to_model(given)
    assert kinds(bnfold.fold(given)) == ["Conv", "Relu", "Conv"]


def test_a_model_without_operators():
    with pytest.raises(bnfold.UsageError, match="no operators"):
        bnfold.fold(ir.from_proto(model(x={"y": (1,)}, y="y")))


def test_options_of_modules_are_not_for_it():
    given = ir.from_proto(block())
    with pytest.raises(bnfold.UsageError, match=r"keep: .*torch.nn.Module"):
        bnfold.fold(given, keep=["conv"])
    with pytest.raises(TypeError, match="expected a path"):
        bnfold.fold(given, (np.zeros(1),))


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_onnx():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    ).eval()
    with torch.no_grad():
        net[1].running_mean.uniform_()
    x = torch.randn(1, 3, 8, 8)
    program = torch.onnx.export(net, (x,), dynamo=True, optimize=False, verbose=False)
    made = bnfold.fold(program)
    assert isinstance(made, torch.onnx.ONNXProgram) and made is not program
    assert kinds(made.model).count("BatchNormalization") == 0
    assert kinds(program.model).count("BatchNormalization") == 1
    assert made.exported_program is program.exported_program
    assert torch.allclose(made(x)[0], net(x), atol=1e-5)
    assert [fold.ops for fold in bnfold.plan(program).folds] == [("BatchNormalization",)]
    for pair in ((program, made), (program, made.model), (program.model_proto, made)):
        assert bnfold.verify(*pair).status == "pass"
        assert bnfold.prove(*pair).status == "proved"
    assert bnfold.prove(net, made, (x,)).status == "proved"
