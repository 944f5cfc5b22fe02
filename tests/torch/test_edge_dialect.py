"""Programs in ExecuTorch's edge dialect fold as those of ATen do, and stay in it."""

from __future__ import annotations

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
exir = pytest.importorskip("executorch.exir", reason="needs executorch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402


class Net(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels, 4)

    def forward(self, x):
        return self.last((torch.relu(self.norm(self.first(x))) * 2.0).mean((2, 3)))


class Ahead(nn.Module):
    """A norm that nothing takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.sigmoid(self.norm(x)))


def drawn(module):
    with torch.no_grad():
        for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 2.0) if "var" in name else tensor.normal_()
    return module.eval()


def edge(module, image):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exir.to_edge(torch.export.export(module, (image,))).exported_program()


def called(program):
    return [n.target.__name__ for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("make", [Net, lambda: Net(3)])
def test_a_program_folds_and_stays_in_its_dialect(make):
    module, image = drawn(make()), torch.randn(3, 3, 8, 8)
    program = edge(module, image)
    before = copy.deepcopy(called(program))
    folded = bnfold.fold(program)
    assert folded.dialect == program.dialect == "EDGE"
    assert called(program) == before
    assert not any("norm" in name or "mul" in name for name in called(folded))
    wanted = copy.deepcopy(module).double()(image.double())
    apart = (folded.module()(image).double() - wanted).abs().max()
    assert apart < 1e-5 * wanted.abs().max()
    assert bnfold.verify(program, folded).status == "pass"
    exir.EdgeProgramManager(folded).to_executorch()


def test_another_function_is_no_pass():
    module, image = drawn(Net()), torch.randn(2, 3, 8, 8)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.norm.running_var[3] *= 1.05
    assert bnfold.verify(edge(module, image), bnfold.fold(edge(other, image))).status == "fail"


def test_a_norm_that_stays_says_why_and_goes_where_that_is_asked():
    module, image = drawn(Ahead()), torch.randn(2, 3, 8, 8)
    program = edge(module, image)
    assert [kept.code for kept in bnfold.plan(program).kept] == ["no-linear-operator"]
    folded = bnfold.fold(program, depthwise=True)
    assert called(folded).count("aten.convolution.default") == 2
    assert bnfold.verify(program, folded).status == "pass"
