"""Norms of every kind, and what keeps one."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")


import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .carrying import program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402
from .merging import exported, ops  # noqa: E402


class OwnNorm(nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Frozen(nn.Module):
    """A norm of buffers alone, written out, as in torchvision."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var + 1e-3).rsqrt().view(
            1, -1, 1, 1
        )
        shift = self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale
        return x * scale + shift


class Written(Frozen):
    def forward(self, x):
        each = (slice(None), None, None)
        y = (x - self.running_mean[each]) / torch.sqrt(self.running_var[each] + 1e-3)
        return y * self.weight[each] + self.bias[each]


class FunctionalNorm(Frozen):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class LayerScale(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(n, 1, 1))

    def forward(self, x):
        return x.mul_(self.gamma)


NORMS = {
    "plain": lambda: nn.BatchNorm2d(4),
    "no gamma": lambda: nn.BatchNorm2d(4, affine=False),
    "no momentum": lambda: nn.BatchNorm2d(4, momentum=None),
    "large eps": lambda: nn.BatchNorm2d(4, eps=0.7),
    "no eps": lambda: nn.BatchNorm2d(4, eps=0.0),
    "sync": lambda: nn.SyncBatchNorm(4),
    "subclass": lambda: OwnNorm(4),
    "frozen": lambda: Frozen(4),
    "written": lambda: Written(4),
    "functional": lambda: FunctionalNorm(4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "instance, no gamma": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "layer scale": lambda: LayerScale(4),
}
STEPS = {"frozen": 2, "written": 4}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_norms_that_fold(name, bias):
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 3, bias=bias), NORMS[name](), nn.ReLU()))
    done = fold(module, rand(4, 4, 4, 4), folds=STEPS.get(name, 1), codes=[])
    assert type(done.module[1]) is nn.Identity
    assert (done.module[0].bias is not None) == (bias or name != "layer scale")


class InlineScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.conv(x) * self.gamma


def test_inline_layer_scale_is_kept_with_its_reason():
    done = fold(ready(InlineScale()), rand(2, 4, 3, 3), folds=0, codes=["not-a-module"])
    (kept,) = done.plan.kept
    assert kept.message.endswith("takes it away, and leaves 1 of 2 operators")
    assert sum(bnfold.plan(exported(InlineScale(), rand(2, 4, 3, 3).float())).after.values()) == 1


class InlineShift(InlineScale):
    """A map that no program folds: nothing is promised."""

    def forward(self, x):
        return (self.conv(x) * x[:, :1]).sigmoid() + self.gamma


def test_a_map_that_a_program_keeps_too():
    done = fold(ready(InlineShift()), rand(2, 4, 3, 3), folds=0)
    assert "exported_program" not in done.plan.kept[0].message


@pytest.mark.parametrize("lead", ["group", "layer", "instance", "batch"])
def test_norms_absorb_what_follows(lead):
    first = {
        "group": nn.GroupNorm(2, 4),
        "layer": nn.LayerNorm((4, 4, 4)),
        "instance": nn.InstanceNorm2d(4, affine=True),
        "batch": nn.BatchNorm2d(4),
    }[lead]
    fold(ready(nn.Sequential(nn.Sigmoid(), first, LayerScale(4))), rand(4, 4, 4, 4), folds=1)


class LastScale(LayerScale):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.gamma = nn.Parameter(torch.ones(n))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_takes_a_scale_of_the_features(bias):
    module = nn.Sequential(nn.LayerNorm(4, bias=bias), LastScale(4))
    fold(ready(module), rand(4, 4, 4), folds=1)


def test_layer_norm_without_bias_gets_one():
    class Shift(LastScale):
        def forward(self, x):
            return x + self.gamma

    done = fold(ready(nn.Sequential(nn.LayerNorm(4, bias=False), Shift(4))), rand(4, 4, 4), folds=1)
    assert done.module[0].bias is not None


class OwnRms(nn.Module):
    """An RMSNorm by the function, with a weight that may be another module's or none."""

    def __init__(self, weight=None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return F.rms_norm(x, (4,), self.weight, 1e-3)


class Shifted(LastScale):
    def forward(self, x):
        return x + self.gamma


@pytest.mark.parametrize("first", [nn.RMSNorm(4), OwnRms(nn.Parameter(torch.ones(4)))], ids=type)
def test_rms_norm_takes_a_scale_of_the_features_and_no_shift(first):
    """Of [4, 4, 4] all axes have four places: only the last is γ's. There is no β to make."""
    module = ready(nn.Sequential(first, LastScale(4), nn.Sigmoid()))
    fold(module, rand(4, 4, 4), folds=1)
    assert ops(program(module, rand(4, 4, 4), folds=1)) == ["rms_norm", "sigmoid"]
    shifted = ready(nn.Sequential(first, LastScale(4), Shifted(4)))
    assert ops(program(shifted, rand(4, 4, 4), folds=1)) == ["rms_norm", "add"]
    done = fold(ready(nn.Sequential(first, Shifted(4))), rand(4, 4, 4), folds=0)
    assert len(done.codes) == 1
    fold(ready(nn.Sequential(first, LayerScale(4))), rand(4, 4, 4, 4), folds=0)


def test_rms_norm_over_two_axes():
    """γ of [3, 4] takes a scale along either of them, and along no other."""
    for shape, goes in (((3, 1), 1), ((4,), 1), ((), 1), ((5, 1, 1), 0), ((3, 4), 0)):
        module = nn.Sequential(nn.RMSNorm((3, 4)), LastScale(4))
        module[1].gamma = nn.Parameter(torch.ones(shape))
        module = ready(module)
        fold(module, rand(2, 5, 3, 4), folds=goes)


def test_rms_norm_without_a_weight_takes_nothing():
    for first in (nn.RMSNorm(4, elementwise_affine=False), OwnRms()):
        module = ready(nn.Sequential(first, LastScale(4)))
        fold(module, rand(2, 3, 4), folds=0, codes=["no-linear-operator"])
        assert ops(program(module, rand(2, 3, 4), folds=0)) == ["rms_norm", "mul_"]


def test_a_weight_that_two_rms_norms_share_becomes_two_in_a_program():
    shared = nn.Parameter(torch.ones(4))
    module = nn.Sequential(OwnRms(shared), LastScale(4), nn.Sigmoid(), OwnRms(shared))
    module = ready(module)
    fold(module, rand(2, 3, 4), folds=0, codes=["shared-weight"])
    assert ops(program(module, rand(2, 3, 4), folds=1)) == ["rms_norm", "sigmoid", "rms_norm"]


@pytest.mark.parametrize(
    "training, tracked, code",
    [
        (False, True, None),
        (False, False, "untracked-statistics"),
        (True, True, "training-mode"),
        (True, False, "training-mode-untracked"),
    ],
)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_training_and_tracking(kind, training, tracked, code):
    module = nn.Sequential(nn.Conv2d(4, 4, 1), kind(4, affine=True, track_running_stats=tracked))
    module = ready(module)
    module[1].train(training)
    plan = bnfold.plan(module, (rand(2, 4, 4, 4),))
    if kind is nn.InstanceNorm2d and not tracked:  # By design it uses the statistics of each input.
        assert not plan.folds
        return
    assert [kept.code for kept in plan.kept] == ([code] if code else [])
    assert len(plan.folds) == (code is None)
    if code:
        assert plan.kept[0].node.startswith("1") and plan.kept[0].advice
    before = copy.deepcopy(module)
    folded = bnfold.fold(module, (rand(2, 4, 4, 4),))
    x = rand(2, 4, 4, 4, seed=5)
    assert torch.allclose(before(x), folded(x), atol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["weight", "bias", "running_mean", "running_var"])
def test_statistics_that_are_no_numbers(what, value):
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    getattr(module[1], what).data[2] = value
    plan = bnfold.plan(module, (rand(2, 4, 3, 3),))
    assert not plan.folds and [kept.code for kept in plan.kept] == ["non-finite"]
    folded = bnfold.fold(module, (rand(2, 4, 3, 3),))
    assert isinstance(folded[1], nn.BatchNorm2d)


def test_weight_that_is_no_number():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    module[0].weight.data[1, 2] = float("nan")
    plan = bnfold.plan(module, (rand(2, 4, 3, 3),))
    assert not plan.folds and [kept.code for kept in plan.kept] == ["non-finite"]


@pytest.mark.parametrize("variance", [-1.0, -1e-5])
def test_variance_that_has_no_root(variance):
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-5)))
    module[1].running_var[3] = variance
    plan = bnfold.plan(module, (rand(2, 4, 3, 3),))
    assert not plan.folds and [kept.code for kept in plan.kept] == ["non-positive-variance"]


def test_negative_and_zero_gamma():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    module[1].weight.data.copy_(torch.tensor([-2.0, 0.0, 1.0, -0.0]))
    fold(module, rand(2, 4, 3, 3), folds=1)


def test_identities_and_dropout_between():
    module = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Identity(), nn.Dropout2d(), nn.AlphaDropout(), nn.BatchNorm2d(4)
    )
    done = fold(ready(module), rand(2, 4, 3, 3), folds=1)
    assert type(done.module[2]) is nn.Dropout2d


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_modes_and_dilation(mode, dilation):
    conv = nn.Conv2d(4, 4, 3, padding=2, padding_mode=mode, dilation=dilation, bias=False)
    fold(ready(nn.Sequential(conv, nn.BatchNorm2d(4))), rand(2, 4, 6, 6), folds=1)


def test_padding_same():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4))
    fold(ready(module), rand(2, 4, 6, 6), folds=1)


@pytest.mark.parametrize("order", [(True, False), (False, True), (False, False, True, False)])
def test_norms_in_a_row_that_nothing_takes(order):
    module = nn.Sequential(nn.Sigmoid(), *(nn.BatchNorm2d(4, affine=own) for own in order))
    fold(ready(module), rand(2, 4, 3, 3))


class Standardized(nn.Module):
    """Convolutions by one weight, which a norm standardizes in each run, and norms behind some."""

    def __init__(self, convolutions: int, normed: int) -> None:
        super().__init__()
        self.weight, self.count = nn.Parameter(rand(4, 4, 1, 1)), convolutions
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(normed))

    def forward(self, x):
        rows = self.weight.reshape(1, 4, -1)
        weight = F.batch_norm(rows, None, None, training=True, eps=0.1).view_as(self.weight)
        made = [F.conv2d(x, weight) for _ in range(self.count)]
        return [bn(each) for bn, each in zip(self.bns, made, strict=False)] + made[len(self.bns) :]


@pytest.mark.parametrize(("convolutions", "normed"), [(1, 0), (1, 1), (2, 1), (2, 2)])
def test_a_norm_of_a_weight_goes_whoever_reads_it(convolutions, normed):
    """The weight is stored where all that read it take in a scale, and otherwise by itself."""
    x, net = rand(4, 4, 4, 4), ready(Standardized(convolutions, normed))
    stored = [("store the weight",)] * (normed < convolutions)
    given = torch.export.export(net, (x,))
    for each in (given, given.run_decompositions()):
        plan, folded = bnfold.plan(each), bnfold.fold(each)
        assert not plan.kept and [f.laws for f in plan.folds if "store" in f.laws[0]] == stored
        assert not [n for n in folded.graph.nodes if "batch_norm" in str(n.target)]
        for one, other in zip(net(x), folded.module()(x), strict=True):
            torch.testing.assert_close(one, other)
    module = [kept.code for kept in bnfold.plan(net, (x,)).kept]
    assert module.count("constant-norm") == 1
