"""Modules on which other tools' fusion is wrong, and sizes that agree by accident."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402


class OneNormTwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.b(self.bn(self.a(x)).relu()))


def test_one_norm_behind_two_convs_folds_into_both():
    done = fold(ready(OneNormTwoConvs()), rand(2, 4, 6, 6), folds=2)
    assert isinstance(done.module.bn, nn.Identity)


class NormAlsoAlone(OneNormTwoConvs):
    def forward(self, x):
        return self.bn(self.b(self.bn(self.a(x)).relu()).relu())


def test_a_norm_that_one_of_its_calls_keeps_is_kept_in_all():
    fold(ready(NormAlsoAlone()), rand(2, 4, 6, 6), folds=0)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 4, 4), (3, 4, 5)])
def test_linear_on_three_axes_is_not_scaled_along_its_features(sizes):
    _, channels, length = sizes
    module = nn.Sequential(nn.Linear(length, length), nn.BatchNorm1d(channels))
    fold(ready(module), rand(*sizes), folds=0, codes=["axis-mismatch"])


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_linear_on_two_axes_takes_its_norm(batch):
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    fold(ready(module), rand(batch, 4), folds=1)


def test_linear_and_norm_without_gamma_and_beta():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    fold(ready(module), rand(3, 4), folds=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "cin, cout, groups",
    [(4, 4, 1), (4, 4, 2), (4, 4, 4), (4, 8, 2), (8, 4, 4), (6, 3, 3), (2, 2, 2), (3, 5, 1)],
)
def test_conv_transpose_with_groups_and_square_weights(cin, cout, groups, bias):
    conv = nn.ConvTranspose2d(cin, cout, 3, 2, 1, 1, groups=groups, bias=bias)
    module = nn.Sequential(conv, nn.BatchNorm2d(cout))
    fold(ready(module), rand(2, cin, 4, 5), folds=1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transpose", [True, False])
def test_every_rank(dims, transpose):
    kind = getattr(nn, f"Conv{'Transpose' if transpose else ''}{dims}d")
    norm = getattr(nn, f"BatchNorm{dims}d")
    module = nn.Sequential(kind(4, 4, 2, groups=2), norm(4))
    fold(ready(module), rand(4, 4, *[4] * dims), folds=1)


class PerChannel(nn.Module):
    """Inline arithmetic, each on a module of its own."""

    def __init__(self, shape, axis_first: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(shape))

    def forward(self, x):
        return x * self.gamma


@pytest.mark.parametrize(
    "shape, folds", [((4, 1, 1), 1), ((4,), 0), ((1, 4, 1), 0), ((4, 4, 1), 0)]
)
def test_unbatched_conv_has_its_channels_first(shape, folds):
    module = nn.Sequential(nn.Conv2d(4, 4, 1), PerChannel(shape))
    fold(ready(module), rand(4, 4, 4), folds=folds, others=((rand(4, 4, 4, 4),),))


@pytest.mark.parametrize(
    "shape, folds", [((4, 1, 1), 1), ((4,), 0), ((1, 4, 1), 0), ((4, 1, 1, 1), 0)]
)
def test_a_vector_along_the_width_is_not_per_channel(shape, folds):
    module = nn.Sequential(nn.Conv2d(4, 4, 1), PerChannel(shape))
    fold(ready(module), rand(4, 4, 4, 4), folds=folds)


@pytest.mark.parametrize(
    "shape, folds", [((4,), 1), ((4, 1), 0), ((4, 1, 1), 0), ((), 1), ((1,), 1)]
)
def test_linear_takes_what_varies_along_its_features(shape, folds):
    module = nn.Sequential(nn.Linear(4, 4), PerChannel(shape))
    fold(ready(module), rand(4, 4, 4), folds=folds)


def test_enlarging_broadcast_is_no_map():
    module = nn.Sequential(nn.Linear(4, 4), PerChannel((3, 4, 4, 4)))
    fold(ready(module), rand(4, 4, 4), folds=0)


def test_forward_hook_between_conv_and_norm_sees_what_it_saw():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    seen = []
    module[0].register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    x = rand(1, 4, 3, 3)
    done = fold(module, x, folds=0, codes=["shared-output"])
    seen.clear()
    module(x), done.module(x)
    assert torch.equal(seen[0], seen[1])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


def test_conv_output_read_twice():
    fold(ready(Residual()), rand(2, 4, 3, 3), folds=0, codes=["shared-output"])


class Functional(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4, 1, 1))
        self.register_parameter("bias", None)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(F.conv2d(x, self.weight))


def test_a_bias_that_the_code_would_not_use_is_not_made():
    module = ready(Functional())
    done = fold(module, rand(2, 4, 3, 3), folds=0, codes=["not-a-module"])
    assert done.module.bias is None


class UsesBias(Functional):
    def forward(self, x):
        return self.bn(F.conv2d(x, self.weight, self.bias))


def test_a_bias_that_the_code_would_use_is_made():
    done = fold(ready(UsesBias()), rand(2, 4, 3, 3), folds=1)
    assert isinstance(done.module.bias, nn.Parameter)


class BiasElsewhere(Functional):
    def forward(self, x):
        y = F.conv2d(x, self.weight, self.bias)
        return self.bn(y) if self.bias is None else self.bn(y) * 2


def test_a_bias_that_would_change_the_code_is_not_made():
    fold(ready(BiasElsewhere()), rand(2, 4, 3, 3), folds=0)


class SameConv(nn.Conv2d):
    """As in EfficientNet: a forward of its own that pads and hands its bias on."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class IgnoresBias(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride)


class AddsBiasLater(nn.Conv2d):
    def forward(self, x):
        y = F.conv2d(x, self.weight, None, self.stride)
        return y if self.bias is None else y.relu() + self.bias[:, None, None]


@pytest.mark.parametrize("kind, folds", [(SameConv, 1), (IgnoresBias, 0), (AddsBiasLater, 0)])
def test_subclasses_of_conv_with_code_of_their_own(kind, folds):
    module = nn.Sequential(kind(4, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    fold(ready(module), rand(2, 4, 5, 5), folds=folds)


def test_subclass_of_conv_that_lacks_no_bias():
    module = nn.Sequential(SameConv(4, 4, 2), nn.BatchNorm2d(4))
    fold(ready(module), rand(2, 4, 5, 5), folds=1)
