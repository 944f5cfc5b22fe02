"""Modules that cannot be folded are one clear line each."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402


def block():
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def refused(module, *args, **options):
    with pytest.raises(UsageError) as caught:
        bnfold.fold(module, args, **options)
    text = str(caught.value)
    assert text and len(text.splitlines()) == 1
    return text


def test_training_mode():
    module = ready(block()).train()
    assert ".eval()" in refused(module, rand(2, 4, 3, 3))
    assert module.training and isinstance(module[1], nn.BatchNorm2d)


def test_as_if_in_eval():
    module, x = ready(block()).train(), rand(2, 4, 3, 3)
    statistics = module[1].running_mean.clone()
    folded = bnfold.fold(module, (x,), as_eval=True)
    assert module.training and module[1].training and not folded.training
    assert torch.equal(module[1].running_mean, statistics)
    assert isinstance(folded[1], nn.Identity)
    assert torch.allclose(module.eval()(x), folded(x), atol=1e-10)


def test_as_if_in_eval_in_place():
    module = ready(block()).train()
    assert bnfold.fold(module, (rand(2, 4, 3, 3),), as_eval=True, inplace=True) is module
    assert isinstance(module[1], nn.Identity) and not module.training


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules():
    module = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d()).eval()
    x = rand(2, 4, 3, 3, dtype=torch.float32)
    assert "not initialized" in refused(module, x)
    module(x)
    fold(ready(module), rand(2, 4, 3, 3), folds=1)


def test_meta_tensors():
    with torch.device("meta"):
        module = block().eval()
    assert "meta tensor" in refused(module, rand(2, 4, 3, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript(way):
    module, x = ready(block()), rand(2, 4, 3, 3)
    scripted = torch.jit.script(module) if way == "script" else torch.jit.trace(module, (x,))
    assert "TorchScript" in refused(scripted, x)


class Locked(nn.Sequential):
    """Holds what cannot be copied."""

    def __init__(self, *parts) -> None:
        super().__init__(*parts)
        self.lock = threading.Lock()


def test_module_that_cannot_be_copied():
    module, x = ready(Locked(*block())), rand(2, 4, 3, 3)
    assert len(bnfold.plan(module, (x,)).folds) == 1
    wanted = module(x)
    assert "inplace=True" in refused(module, x)
    assert isinstance(module[1], nn.BatchNorm2d)
    assert bnfold.fold(module, (x,), inplace=True) is module
    assert isinstance(module[1], nn.Identity)
    assert torch.allclose(module(x), wanted, atol=1e-10)


class DataDependent(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("first\nsecond")


@pytest.mark.parametrize("kind", [DataDependent, Raises])
def test_module_that_cannot_be_traced(kind):
    text = refused(nn.Sequential(*block(), kind()).eval().double(), rand(2, 4, 3, 3))
    assert "could not trace" in text


def test_wrong_inputs():
    assert "could not trace" in refused(ready(block()), rand(2, 5, 3, 3))
    assert "could not trace" in refused(ready(block()), rand(2, 4, 3, 3), rand(1))
    with pytest.raises(UsageError, match="tuple"):
        bnfold.fold(ready(block()), rand(2, 4, 3, 3))


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BLOCKED = """
import sys
sys.modules["torch"] = None
import numpy as np
from onnx import TensorProto, helper, numpy_helper
import bnfold  # noqa: E402
from bnfold._command.cli import main  # noqa: E402
c = lambda n, v: numpy_helper.from_array(np.asarray(v, np.float32), n)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Mul", ["y", "s"], ["z"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 3])],
    [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2, 3, 3])],
    [c("w", np.ones((2, 2, 1, 1))), c("s", np.array([2, 3]).reshape(2, 1, 1))],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
open(sys.argv[1], "wb").write(model.SerializeToString())
sys.argv = ["bnfold", sys.argv[1], "-o", sys.argv[2]]
main()
"""


def run(code, *args):
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_command_works_without_torch(tmp_path):
    done = run(BLOCKED, tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    import onnx

    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Conv"]
