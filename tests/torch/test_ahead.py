"""Norms ahead of linear operators, and one step outside of what is exact."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .carrying import C, ahead, normed, program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402

X = rand(C, C, C, C)
MORE = ((rand(2, C, 5, 6),),)


def same(x):
    return x


def conv(*args, **options):
    return lambda: nn.Conv2d(*args, **options)


AHEAD = {
    # what the norm is ahead of, the operator between, the kind of norm, what stops it
    "conv": (conv(C, 3, 3), same, "any", ""),
    "conv-without-bias": (conv(C, 3, 3, bias=False), same, "any", ""),
    "conv-square": (conv(C, C, C), same, "any", ""),
    "conv-strided": (conv(C, 3, 2, stride=2, dilation=2), same, "any", ""),
    "conv-padded": (conv(C, 3, 3, padding=1), same, "any", "zero-padding"),
    "conv-padded-on-one-side": (conv(C, 3, 3, padding=(0, 1)), same, "shift", "zero-padding"),
    "conv-padded-scale": (conv(C, 3, 3, padding=1), same, "scale", ""),
    "conv-same": (conv(C, 3, 3, padding="same"), same, "shift", "zero-padding"),
    "conv-same-scale": (conv(C, 3, 3, padding="same"), same, "scale", ""),
    "conv-same-single": (conv(C, 3, 1, padding="same"), same, "any", ""),
    "conv-valid": (conv(C, 3, 3, padding="valid"), same, "any", ""),
    "conv-circular": (conv(C, 3, 3, padding=1, padding_mode="circular"), same, "any", ""),
    "conv-reflect": (conv(C, 3, 3, padding=1, padding_mode="reflect"), same, "any", ""),
    "conv-grouped": (conv(C, 6, 3, groups=2), same, "any", ""),
    "conv-grouped-square": (conv(C, C, 3, groups=2, bias=False), same, "any", ""),
    "conv-depthwise": (conv(C, 2 * C, 3, groups=C), same, "any", ""),
    "transposed-single": (lambda: nn.ConvTranspose2d(C, 3, 1), same, "any", ""),
    "transposed-blocks": (
        lambda: nn.ConvTranspose2d(C, 3, 2, stride=2),
        same,
        "shift",
        "zero-padding",
    ),
    "transposed-blocks-scale": (lambda: nn.ConvTranspose2d(C, 3, 2, stride=2), same, "scale", ""),
    "transposed-spread": (
        lambda: nn.ConvTranspose2d(C, 3, 1, stride=2),
        same,
        "shift",
        "zero-padding",
    ),
    "transposed-grouped": (lambda: nn.ConvTranspose2d(C, 6, 3, groups=2), same, "scale", ""),
    "transposed-grouped-square": (
        lambda: nn.ConvTranspose2d(C, C, 1, groups=2),
        same,
        "any",
        "",
    ),
    "transposed-cut": (
        lambda: nn.ConvTranspose2d(C, 3, 1, padding=1),
        same,
        "any",
        "zero-padding",
    ),
    "transposed-extended": (
        lambda: nn.ConvTranspose2d(C, 3, 1, stride=2, output_padding=1),
        same,
        "shift",
        "zero-padding",
    ),
    "relu": (conv(C, 3, 3, padding=1), F.relu, "positive scale", ""),
    "relu-shift": (conv(C, 3, 3), F.relu, "shift", "the shift does not pass"),
    "relu-negative": (conv(C, 3, 3), F.relu, "scale", "a scale is not positive"),
    "abs-negative": (conv(C, 3, 3), torch.abs, "scale", ""),
    "max-pool": (conv(C, 3, 2), nn.MaxPool2d(2), "positive", ""),
    "average": (conv(C, 3, 2), nn.AvgPool2d(2), "any", ""),
    "zeros-by-hand": (conv(C, 3, 3), nn.ZeroPad2d(1), "shift", "zero-padding"),
    "no-zeros-today": (conv(C, 3, 3), nn.ZeroPad2d(0), "shift", "zero-padding"),
    "upsampled": (conv(C, 3, 3), nn.Upsample(scale_factor=2), "any", ""),
    "blocks": (conv(4 * C, 3, 1), nn.PixelUnshuffle(2), "any", ""),
    "flat": (lambda: nn.Linear(C**3, 3), lambda x: x.flatten(1), "any", ""),
    "head": (lambda: nn.Linear(C, 3), lambda x: x.mean((2, 3)), "any", ""),
    "summed": (lambda: nn.Linear(C, 3), lambda x: x.sum((2, 3)), "shift", "how many elements"),
    "tokens": (lambda: nn.Linear(C, 3), lambda x: x.flatten(2).mT, "any", ""),
    "last-axis": (lambda: nn.Linear(C, C), same, "any", "varies along axis 1"),
    "dropout": (conv(C, 3, 2), nn.Dropout(), "any", ""),
}
FIXED = ("blocks", "flat", "last-axis")


@pytest.mark.parametrize("name", list(AHEAD))
def test_a_norm_ahead(name):
    linear, op, kind, code = AHEAD[name]
    module = ahead(op, kind, linear())
    others = () if name in FIXED else MORE
    done = fold(module, X, folds=not code, others=others)
    if code:
        (kept,) = done.plan.kept
        assert kept.code == code or code in kept.message
    program(module, X)


def test_a_norm_ahead_of_a_relu_in_place():
    module = ready(
        nn.Sequential(
            nn.Sigmoid(), nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Conv2d(C, 3, 3, padding=1)
        )
    )
    normed(module[1], "positive scale")
    fold(module, X, folds=1, others=MORE)
    program(module, X, folds=1)


@pytest.mark.parametrize("name", [name for name, case in AHEAD.items() if not case[3]])
def test_the_norm_is_gone_and_the_layer_has_a_bias(name):
    linear, op, kind, _ = AHEAD[name]
    module = ahead(op, kind, linear())
    folded = bnfold.fold(module, (X,))
    assert isinstance(folded.norm, nn.Identity)
    assert (folded.conv.bias is not None) == (module.conv.bias is not None or "scale" not in kind)


@pytest.mark.parametrize(
    "shape, rank, folds", [((C, C), 2, 1), ((C, C, C), 3, 0), ((2, C, 7), 3, 0)]
)
def test_a_norm_of_vectors_ahead_of_linear(shape, rank, folds):
    """On three dimensions the norm is along axis 1, the layer along the last."""
    module = ahead(same, conv=nn.Linear(shape[-1], C), rank=rank)
    fold(module, rand(*shape), folds=folds)
    program(module, rand(*shape), folds=folds)


class Inside(nn.Module):
    """Channels on axis 0 of what a convolution without a batch reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.gamma = nn.Conv1d(C, 3, 2), nn.Parameter(torch.empty(C, 1))

    def forward(self, x):
        return self.conv(x.sigmoid() * self.gamma)


@pytest.mark.parametrize("shape", [(C, C), (C, C, C)])
def test_convolutions_with_and_without_a_batch(shape):
    program(ready(Inside()), rand(*shape), folds=1)


class Several(nn.Module):
    """A norm that more than one layer reads."""

    def __init__(self, other):
        super().__init__()
        self.norm, self.one, self.other = nn.BatchNorm2d(C), nn.Conv2d(C, 3, 2), other

    def forward(self, x):
        y = self.norm(x)
        return self.one(y), self.other(y)


@pytest.mark.parametrize(
    "other, folds",
    [
        (nn.Conv2d(C, 2, 3, bias=False), 1),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(C, 2, 1)), 1),
        (nn.Conv2d(C, 2, 3, padding=1), 0),
        (nn.Identity(), 0),
        (nn.Sigmoid(), 0),
    ],
)
def test_all_readers_take_the_norm_in_or_none(other, folds):
    fold(ready(Several(other)), X, folds=folds)


class Twice(nn.Module):
    """One layer behind two norms: what it takes in for one, the other would see."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.conv = nn.BatchNorm2d(C), nn.BatchNorm2d(C), nn.Conv2d(C, 3, 2)

    def forward(self, x):
        return self.conv(self.one(x)) + self.conv(self.two(x.sin()))


def test_a_layer_that_is_called_twice():
    done = fold(ready(Twice()), X, folds=0)
    assert all("conv.weight is also used by" in kept.message for kept in done.plan.kept)
    program(ready(Twice()), X, folds=2)


class Functional(nn.Module):
    """A weight of the module's own, without a place for a bias."""

    def __init__(self):
        super().__init__()
        self.norm, self.weight = nn.BatchNorm1d(C), nn.Parameter(torch.empty(3, C))

    def forward(self, x):
        return F.linear(self.norm(x), self.weight)


@pytest.mark.parametrize("kind, folds", [("any", 0), ("scale", 1)])
def test_a_layer_without_a_place_for_a_bias(kind, folds):
    module = ready(Functional())
    normed(module.norm, kind)
    done = fold(module, rand(C, C), folds=folds)
    assert [kept.message for kept in done.plan.kept if "no bias to set" not in kept.message] == []
    program(module, rand(C, C), folds=1)


def test_a_layer_whose_weight_is_computed():
    module = ready(
        nn.Sequential(nn.BatchNorm1d(C), nn.utils.parametrizations.weight_norm(nn.Linear(C, 3)))
    )
    fold(module, rand(C, C), folds=1)


def test_both_sides_of_one_layer():
    module = ready(
        nn.Sequential(
            nn.BatchNorm2d(C), nn.Conv2d(C, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)
        )
    )
    fold(module, X, folds=2)
    placed = bnfold.fold(module, (X,), inplace=True)
    assert placed is module and isinstance(module[0], nn.Identity)


def test_in_place_both_sides_are_right():
    from .folding import assert_close, copied, outputs

    module = ready(
        nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
    )
    wanted = outputs(copied(module), (X,), {})
    assert_close(wanted, outputs(bnfold.fold(module, (X,), inplace=True), (X,), {}))


def test_a_hook_on_the_norm_keeps_it():
    module = ahead(same)
    module.norm.register_forward_hook(lambda m, i, o: None)
    fold(module, X, folds=0)


def test_a_pre_hook_on_the_layer_keeps_the_norm():
    module = ahead(same)
    module.conv.register_forward_pre_hook(lambda m, i: None)
    fold(module, X, folds=0)


@pytest.mark.parametrize(
    "parts, folds",
    [
        ((nn.MaxPool2d(2), nn.Conv2d(C, 3, 3)), 1),
        ((nn.Conv2d(C, 3, 3),), 1),
        ((nn.Upsample(scale_factor=2), nn.Conv2d(C, 3, 3)), 0),
        ((nn.Conv2d(C, 3, 3, padding=1),), 0),
    ],
)
def test_without_example_inputs_only_what_is_certain(parts, folds):
    module = ready(nn.Sequential(nn.BatchNorm2d(C), *parts))
    normed(module[0], "positive")
    folded = bnfold.fold(module)
    assert isinstance(folded[0], nn.Identity) == bool(folds)
    for x in (rand(1, C, 8, 8), rand(2, C, 7, 9)):
        torch.testing.assert_close(folded(x), module(x), rtol=1e-10, atol=1e-10)
