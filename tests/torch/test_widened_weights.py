"""Weights in float16 or bfloat16 that a module's code widens before it computes with them.

Right folds of those round to the type that is stored. No other one is right to that.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .folding import rand, ready  # noqa: E402

BF16, HALF = torch.bfloat16, torch.float16
X = rand(2, 3, 8, 8, dtype=torch.float32)


class Widening(nn.Conv2d):
    """A convolution in float32 whose weights are stored in a narrower type."""

    widen = staticmethod(lambda weight, x: weight.float())

    def forward(self, x):
        return self._conv_forward(x.float(), self.widen(self.weight, x), self.widen(self.bias, x))


class AsData(Widening):
    widen = staticmethod(lambda weight, x: weight.to(x.dtype))


class AsTensor(Widening):
    widen = staticmethod(lambda weight, x: weight.type_as(x))


class Own(nn.Module):
    """Its own code has the weights, of two layers."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, 3, 3, 3)), nn.Parameter(torch.ones(8))
        self.bn, self.last = nn.BatchNorm2d(8), nn.Parameter(torch.ones(5, 8))

    def forward(self, x):
        y = self.bn(F.conv2d(x, self.weight.float(), self.bias.float()))
        return F.linear(y.relu().mean((2, 3)), self.last.float())

    def __getitem__(self, number):
        return self if number == 0 else self.bn


def layers(kind):
    pair = [kind(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*pair, kind(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


MAKES = {
    "float": lambda: layers(Widening),
    "as the data": lambda: layers(AsData),
    "as a tensor": lambda: layers(AsTensor),
    "own code": Own,
}


def network(name, dtype):
    module = ready(MAKES[name](), torch.float32).to(dtype)
    module[1].float()
    return module


def by_hand(module, factor=1.0):
    """The norm in the weights of the layer ahead of it, which stay in their type."""
    made = copy.deepcopy(module)
    layer, bn = made[0], made[1]
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.double() * scale.reshape(-1, 1, 1, 1))
        layer.bias.copy_((layer.bias - bn.running_mean.double()) * scale + bn.bias)
        layer.weight[1] *= factor
    if isinstance(made, Own):
        made.bn = nn.Identity()
    else:
        made[1] = nn.Identity()
    return made


@pytest.mark.parametrize("dtype", [BF16, HALF])
@pytest.mark.parametrize("name", MAKES)
def test_a_right_fold_passes_and_a_wrong_one_fails(name, dtype):
    module = network(name, dtype)
    assert bnfold.verify(module, by_hand(module), (X,)).status == "pass"
    assert bnfold.verify(module, by_hand(module, 1.1), (X,)).status == "fail"
    assert bnfold.verify(module, by_hand(module, -1.0), (X,)).status == "fail"


@pytest.mark.parametrize("dtype", [BF16, HALF])
@pytest.mark.parametrize("name", ["float", "own code"])
def test_programs(name, dtype):
    """bnfold's own fold holds the new weights in float32, as the code computes them."""
    module = network(name, dtype)
    program, right, wrong = (
        torch.export.export(each, (X,)) for each in (module, by_hand(module), by_hand(module, 1.1))
    )
    folded = bnfold.fold(program)
    assert len(bnfold.plan(program).folds) == 1
    assert bnfold.verify(program, folded).status == "pass"
    assert bnfold.verify(program, right).status == "pass"
    assert bnfold.verify(module, right, (X,)).status == "pass"
    assert bnfold.verify(program, wrong).status == "fail"


@pytest.mark.parametrize("dtype", [BF16, HALF])
def test_a_module_says_that_its_code_computes_the_weight(dtype):
    (kept,) = bnfold.plan(network("float", dtype), (X,)).kept
    assert kept.code == "not-a-module"
    assert "bnfold.fold(exported_program)" in kept.message
