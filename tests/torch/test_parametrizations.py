"""Weights that weight_norm, spectral_norm and others compute."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")


from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm  # noqa: E402
from torch.nn.utils import spectral_norm as old_spectral_norm  # noqa: E402
from torch.nn.utils import weight_norm as old_weight_norm  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm, weight_norm  # noqa: E402

import bnfold  # noqa: E402

from .folding import assert_close, fold, outputs, rand, ready  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(module):
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


WAYS = {
    "old weight": old_weight_norm,
    "old weight, no axis": lambda m: old_weight_norm(m, dim=None),
    "old spectral": old_spectral_norm,
    "weight": weight_norm,
    "spectral": spectral_norm,
    "own": doubled,
    "two": lambda m: doubled(weight_norm(m)),
}


def model(way, conv=None):
    conv = WAYS[way](conv or nn.Conv2d(4, 4, 3, bias=False))
    module = ready(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()))
    module.train()(rand(2, 4, 5, 5))  # So that spectral norms have found their vectors.
    return module.eval()


@pytest.mark.parametrize("way", WAYS)
def test_folds_and_leaves_the_original_whole(way):
    module, x = model(way), rand(2, 4, 5, 5)
    module(x)
    wanted = outputs(module, (x,), {})
    done = fold(module, x, folds=1, codes=[])
    conv = done.module[0]
    assert isinstance(conv._parameters["weight"], nn.Parameter)
    assert type(conv).__name__ == "Conv2d" and not parametrize.is_parametrized(conv)
    assert set(done.module.state_dict()) == {"0.weight", "0.bias"}
    assert_close(wanted, outputs(module, (x,), {}), 0.0)
    module(x).sum().backward()
    assert all(p.grad is not None for p in module[0].parameters())
    done.module(x).sum().backward()
    assert conv.weight.grad is not None and conv.weight.is_leaf
    # What computes the weight can still be removed from the original.
    if way.startswith("old weight"):
        remove_weight_norm(module[0])
    elif way == "old spectral":
        remove_spectral_norm(module[0])
    else:
        parametrize.remove_parametrizations(module[0], "weight")
    assert_close(wanted, outputs(module, (x,), {}))


@pytest.mark.parametrize("way", WAYS)
def test_a_second_copy_of_a_parametrized_module_stays_so(way):
    module, x = model(way), rand(2, 4, 5, 5)
    with torch.no_grad():
        module(x)
    other = copy.deepcopy(module) if not way.startswith("old") else None
    bnfold.fold(module, (x,))
    if other is not None:
        assert parametrize.is_parametrized(other[0]) and parametrize.is_parametrized(module[0])
        assert_close(outputs(module, (x,), {}), outputs(other, (x,), {}), 0.0)


@pytest.mark.parametrize("way", WAYS)
def test_in_place(way):
    module, x = model(way), rand(2, 4, 5, 5)
    wanted = outputs(module, (x,), {}) if not way.startswith("old") else [module(x).detach()]
    assert bnfold.fold(module, (x,), inplace=True) is module
    assert isinstance(module[1], nn.Identity)
    assert_close(wanted, outputs(module, (x,), {}))
    assert all(p.is_leaf for p in module.parameters())


class Twice(nn.Module):
    def __init__(self, way) -> None:
        super().__init__()
        self.conv = WAYS[way](nn.Conv2d(4, 4, 1))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


@pytest.mark.parametrize("way", WAYS)
def test_computed_weight_of_a_module_called_twice_is_shared(way):
    fold(ready(Twice(way)), rand(2, 4, 3, 3), folds=0, codes=["shared-weight"])


class Standardized(nn.Conv2d):
    """Computes its weight in its own code."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_weight_that_a_module_computes_in_its_own_code_stays():
    module = nn.Sequential(Standardized(4, 4, 3), nn.BatchNorm2d(4))
    fold(ready(module), rand(2, 4, 5, 5), folds=0, codes=["not-a-module"])


class Reads(nn.Module):
    """Uses a computed weight a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


def test_computed_weight_that_is_read_elsewhere_is_shared():
    done = fold(ready(Reads()), rand(2, 4, 3, 3), folds=0)
    assert done.codes[0] == "shared-weight"


@pytest.mark.parametrize("way", WAYS)
def test_frozen_weights_stay_frozen(way):
    module = model(way)
    module.requires_grad_(False)
    done = fold(module, rand(2, 4, 5, 5), folds=1)
    assert isinstance(done.module[0].weight, nn.Parameter)
    assert not any(p.requires_grad for p in done.module.parameters())


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = doubled(nn.Conv2d(4, 4, 1))
        parametrize.register_parametrization(self.conv, "bias", Doubled())
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


def test_weight_and_bias_both_computed():
    done = fold(ready(Norms()), rand(2, 4, 3, 3), folds=1)
    assert not parametrize.is_parametrized(done.module.conv)


def test_norm_with_a_computed_gamma():
    module = nn.Sequential(nn.Conv2d(4, 4, 1), doubled(nn.BatchNorm2d(4)))
    done = fold(ready(module), rand(2, 4, 3, 3), folds=1)
    assert type(done.module[1]) is nn.Identity
