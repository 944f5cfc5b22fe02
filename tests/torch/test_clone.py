"""``clone=True``: what the user lets differ is cloned where a fold changes it, and only there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402


class Two(nn.Module):
    """Two convolutions of one weight, a norm behind the first or behind both."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.first = nn.BatchNorm2d(4)
        self.second = nn.BatchNorm2d(4) if both else nn.Identity()
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.second(self.b(self.first(self.a(x)).relu()))


@pytest.mark.parametrize("both", [True, False])
def test_tied_weights_part(both):
    module = ready(Two(both))
    fold(module, rand(2, 4, 3, 3), folds=0)
    done = fold(module, rand(2, 4, 3, 3), folds=1 + both, codes=[], clone=True)
    assert done.module.a.weight is not done.module.b.weight
    assert torch.equal(done.module.b.weight, module.b.weight) is not both


def test_what_no_fold_changes_stays_one():
    module = ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)))
    module.append(nn.Linear(4, 4)).append(nn.ReLU()).append(nn.Linear(4, 4))
    module[0].weight = module[4].weight = module[6].weight
    block = ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    module.append(block).append(block)
    done = fold(module, rand(3, 4), folds=1, clone=True)
    assert done.module[0].weight is done.module[4].weight is done.module[6].weight
    assert done.module[7] is done.module[8]
    assert done.module[7][0] is done.module[8][0]


def test_a_block_in_two_places_parts():
    conv = nn.Conv2d(4, 4, 1)
    module = ready(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4)))
    fold(module, rand(2, 4, 3, 3), folds=0)
    done = fold(module, rand(2, 4, 3, 3), folds=2, clone=True)
    assert done.module[0] is not done.module[3]


def test_equal_clones_are_one_again():
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    done = fold(ready(nn.Sequential(block, block)), rand(2, 4, 3, 3), folds=2, clone=True)
    assert done.module[0] is done.module[1]


class Alias(nn.Module):
    """One norm under two names, of which the network calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.bn, self.again = self.norm, self.conv

    def forward(self, x):
        return self.bn(self.conv(x))


def test_a_second_name_stays_one():
    done = fold(ready(Alias()), rand(2, 4, 3, 3), folds=1, clone=True)
    assert done.module.conv is done.module.again and done.module.bn is done.module.norm


class Twice(nn.Module):
    """One place that calls a convolution twice, which no clone could tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


def test_two_calls_in_one_place_stay():
    fold(ready(Twice()), rand(2, 4, 3, 3), folds=0, codes=["shared-weight"], clone=True)


def test_inplace():
    module = ready(Two(both=True))
    x = rand(2, 4, 3, 3)
    wanted = module(x)
    made = bnfold.fold(module, (x,), clone=True, inplace=True)
    assert made is module and isinstance(module.first, nn.Identity)
    assert torch.allclose(wanted, module(x), atol=1e-12)
