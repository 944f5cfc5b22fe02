"""One operator called for several inputs folds in place if every call is to take in the same."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

import bnfold  # noqa: E402

from .carrying import program  # noqa: E402
from .folding import assert_close, fold, kinds, outputs, rand, ready  # noqa: E402


class Each(nn.Module):
    """Calls its body once for each input."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, *inputs):
        return [self.body(x) for x in inputs]


class Loop(Each):
    def forward(self, x):
        for _ in range(3):
            x = self.body(x)
        return x


class Two(Each):
    """Two names for one body."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__(*body)
        self.other = self.body

    def forward(self, a, b):
        return self.body(a) - self.other(b)


class OwnCode(nn.Module):
    """A convolution and a norm in a module's own code, with a place for a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4, 3, 3))
        self.register_parameter("bias", None)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias)


class NormAndRelu(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Dilated(nn.Module):
    """The same weights with other steps, as in TridentNet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.empty(4, 4, 3, 3)), nn.BatchNorm2d(4)
        self.bias = nn.Parameter(torch.empty(4))

    def forward(self, *inputs):
        steps = enumerate(inputs, 1)
        return [
            self.norm(F.conv2d(x, self.weight, self.bias, padding=n, dilation=n)) for n, x in steps
        ]


def conv(**options) -> nn.Module:
    return nn.Conv2d(4, 4, 3, **options)


def normalize() -> nn.Module:
    return nn.BatchNorm2d(4)


SEVERAL = {
    "no bias": (lambda: Each(conv(bias=False, padding=1), nn.BatchNorm2d(4)), 2),
    "deep": (lambda: Each(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)), 4),
    "ahead": (lambda: Each(normalize(), conv(bias=False)), 2),
    "both sides": (lambda: Each(normalize(), conv(), nn.BatchNorm2d(4)), 4),
    "two names": (lambda: Two(conv(), nn.BatchNorm2d(4)), 2),
    "own code": (lambda: Each(OwnCode(), nn.BatchNorm2d(4)), 2),
    "computed weight": (lambda: Each(weight_norm(conv()), nn.BatchNorm2d(4)), 2),
    "transposed": (lambda: Each(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)), 2),
    "activation": (lambda: Each(conv(), NormAndRelu(4)), 2),
    "other steps": (Dilated, 2),
    "norm takes": (lambda: Each(nn.GroupNorm(2, 4), nn.BatchNorm2d(4)), 2),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_calls_that_take_in_the_same(name):
    make, folds = SEVERAL[name]
    module, inputs = ready(make()), (rand(2, 4, 8, 8), rand(1, 4, 9, 6, seed=2)[..., :6, :6])
    if name == "two names":
        inputs = inputs[0], inputs[0] + 1
    done = fold(module, *inputs, folds=folds, codes=[])
    assert kinds(done.module)["BatchNorm2d"] == 0
    assert sorted(done.module.state_dict()) != sorted(module.state_dict())
    own = copy.deepcopy(module)  # written once, where it is read, too
    assert bnfold.fold(own, inputs, inplace=True) is own
    assert_close(outputs(module, inputs, {}), outputs(own, inputs, {}))


class Ranks(nn.Module):
    """A layer and a norm behind it on data of two ranks, turned so that the norm sees axis 1."""

    def __init__(self, layer: nn.Module, *places: int) -> None:
        super().__init__()
        self.layer, self.norm, self.places = layer, nn.SyncBatchNorm(4), places

    def forward(self, *inputs):
        pairs = zip(inputs, self.places, strict=True)
        return [self.norm(self.layer(x).transpose(1, place)) for x, place in pairs]


@pytest.mark.parametrize(
    ("layer", "places", "folds"),
    [
        (nn.Linear(4, 4), (1, 2), 2),
        (nn.Linear(4, 4), (1, 3), 2),
        (nn.LayerNorm((4, 4)), (2, 3), 2),
        (nn.LayerNorm((4, 4)), (1, 2), 2),
        (nn.LayerNorm((4, 4)), (2, 2), 0),
        (nn.LayerNorm((4, 4)), (1, 3), 0),
    ],
)
def test_calls_on_data_of_several_ranks(layer, places, folds):
    """The same axis of the data may be another one of the weight, and another axis the same. All
    sizes are 4.
    """
    ranks = (2, places[1] + 1) if isinstance(layer, nn.Linear) else (3, 4)
    inputs = tuple(rand(*(4,) * rank, seed=rank) for rank in ranks)
    fold(ready(Ranks(layer, *places)), *inputs, folds=folds)


def test_a_loop():
    module = ready(Loop(conv(padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    done = fold(module, rand(2, 4, 8, 8), folds=3, codes=[])
    assert len(done.module.body) == 3


def test_matrices_and_recurrent_networks():
    fold(ready(Each(nn.Linear(3, 4), nn.BatchNorm1d(4))), rand(5, 3), rand(2, 3), folds=2, codes=[])

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lstm = nn.BatchNorm1d(3), nn.LSTM(3, 2, batch_first=True)

        def forward(self, a, b):
            return [self.lstm(self.norm(x).transpose(1, 2))[0] for x in (a, b)]

    fold(ready(Read()), rand(2, 3, 5), rand(1, 3, 4), folds=2, codes=[])


class Heads(nn.Module):
    """One convolution, and what is ahead of or behind each of its two calls."""

    def __init__(self, before=(None, None), behind=(None, None)) -> None:
        super().__init__()
        self.conv, self.last = conv(), conv()
        self.before = nn.ModuleList(each or nn.Identity() for each in before)
        self.behind = nn.ModuleList(each or nn.Identity() for each in behind)

    def forward(self, a, b):
        first, second = (
            behind(self.conv(before(x)))
            for x, before, behind in zip((a, b), self.before, self.behind, strict=True)
        )
        return first.sigmoid(), second.sigmoid()


def test_a_norm_for_each_call_stays():
    module = ready(Heads(behind=(nn.BatchNorm2d(4), nn.BatchNorm2d(4))))
    done = fold(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=0, codes=["shared-weight"] * 2)
    assert "bnfold.fold(exported_program)" in done.plan.kept[0].message
    program(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=2)


def test_norms_of_equal_numbers_for_each_call_go():
    """They are two modules, but one map."""
    norm = ready(nn.BatchNorm2d(4))
    module = ready(Heads())
    module.behind = nn.ModuleList([norm, copy.deepcopy(norm)])
    fold(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=2, codes=[])
    with torch.no_grad():
        module.behind[1].weight[2] *= 1 + 2**-45
    fold(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=0, codes=["shared-weight"] * 2)


CODES = {"before": "no-linear-operator", "behind": "shared-weight"}


@pytest.mark.parametrize("side", CODES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_norm_at_one_call_alone_stays(side, place):
    norms = [None, None]
    norms[place] = nn.BatchNorm2d(4)
    module, code = ready(Heads(**{side: norms})), CODES[side]
    done = fold(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=0, codes=[code])
    assert "another call of the same module" in done.plan.kept[0].message


def test_one_side_uneven_and_the_other_even():
    """What is behind both calls goes, whatever is ahead of one."""
    norm = nn.BatchNorm2d(4)
    module = ready(Heads(before=(nn.BatchNorm2d(4), None), behind=(norm, norm)))
    done = fold(module, rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=2, codes=[CODES["before"]])
    assert type(done.module.behind[0]) is nn.Identity


class OneUse(nn.Module):
    """What one call cannot take in goes on to a convolution that is called once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = conv(), nn.BatchNorm2d(4), conv()

    def forward(self, a, b):
        return self.last(self.norm(self.conv(a))), self.conv(b)


def test_a_map_that_a_call_cannot_take_goes_elsewhere():
    done = fold(ready(OneUse()), rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=1, codes=[])
    assert done.plan.folds[0].into == "last"


class SeenInside(nn.Module):
    """A shared pair of which one use reads what is between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, a, b):
        y = self.conv(b)
        return self.norm(self.conv(a)), self.norm(y), y.sigmoid()


def test_a_use_that_cannot_fold_keeps_all():
    done = fold(ready(SeenInside()), rand(2, 4, 8, 8), rand(2, 4, 8, 8), folds=0)
    assert kinds(done.module)["BatchNorm2d"] == 1


def test_weights_that_another_module_has_too_stay():
    module = ready(Each(conv(bias=False), nn.BatchNorm2d(4), conv(bias=False)))
    module.body[2].weight = module.body[0].weight
    fold(module, rand(2, 4, 8, 8), rand(2, 4, 9, 9), folds=0, codes=["shared-weight"] * 2)
