"""The Python API says what is wrong with what it is given, and what to give; it ignores nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold

from .graphs import bn, conv, model


@pytest.fixture
def made():
    return model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4))


@pytest.mark.parametrize(
    "given, words",
    [
        (b"bytes", "onnx.load_model_from_string"),
        ({"w": 1}, "state dict"),
        (["m.onnx"], "one model at a time"),
        (onnx.GraphProto(), "ModelProto around it"),
        (None, "NoneType"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_model(given, words):
    for act in (bnfold.plan, bnfold.fold, lambda it: bnfold.verify(it, it)):
        with pytest.raises(TypeError, match=words):
            act(given)


def test_options_of_modules_are_not_for_onnx(made, tmp_path):
    example = (np.zeros(1),)
    with pytest.raises(TypeError, match=r"a path to write .* got tuple; example inputs"):
        bnfold.fold(made, example)
    with pytest.raises(bnfold.UsageError, match="example inputs"):
        bnfold.plan(made, example)
    with pytest.raises(bnfold.UsageError, match="example inputs"):
        bnfold.verify(made, made, example)
    for option in ({"inplace": True}, {"clone": True}, {"as_eval": True}, {"kwargs": {"x": 1}}):
        with pytest.raises(bnfold.UsageError, match=f"{next(iter(option))}: .*torch.nn.Module"):
            bnfold.fold(made, **option)
    with pytest.raises(bnfold.UsageError, match=r"no \.pt2 file"):
        bnfold.fold(made, tmp_path / "out.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"inputs": [1]}, TypeError, "a mapping from input names .* got list"),
        ({"inputs": {"x": [1.0]}}, TypeError, r"inputs\['x'\] is list, not a NumPy array"),
        ({"inputs": {"z": np.zeros(1)}}, bnfold.UsageError, r"\['x'\], got \['z'\]"),
        ({"dims": {"n": "4"}}, bnfold.UsageError, "'n' needs sizes"),
        ({"dims": {"n": 0}}, bnfold.UsageError, "'n' needs sizes"),
        ({"dims": {"n": 4}}, bnfold.UsageError, "no free dimension 'n'"),
        ({"draws": "huge"}, bnfold.UsageError, "no 'huge' inputs"),
        ({"providers": "gpu"}, bnfold.UsageError, "no provider 'gpu'"),
    ],
    ids=str,
)
def test_options_of_a_comparison(options, error, words, made):
    with pytest.raises(error, match=words):
        bnfold.verify(made, made, **options)


def test_models_of_pytorch(made, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    example = torch.randn(2, 3, 8, 8)
    with pytest.raises(bnfold.UsageError, match=r"verify\(module, folded, \(example,\)\)"):
        bnfold.verify(net, net)
    with pytest.raises(bnfold.UsageError, match="as a tuple, not Tensor"):
        bnfold.fold(net, example)
    for pair in ((net, made), (made, net)):
        with pytest.raises(bnfold.UsageError, match=r"needs example inputs"):
            bnfold.verify(*pair)
    with pytest.raises(TypeError, match="state dict"):
        bnfold.verify(net, net.state_dict(), (example,))
    with pytest.raises(TypeError, match="state dict"):
        bnfold.fold(net.state_dict())
    program = torch.export.export(net, (example,))
    with pytest.raises(bnfold.UsageError, match=r"torch\.export\.save"):
        bnfold.fold(program, tmp_path / "out.pt2")
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(bnfold.UsageError, match=r"exported program .*torch\.export\.load"):
        bnfold.fold(tmp_path / "m.pt2")
