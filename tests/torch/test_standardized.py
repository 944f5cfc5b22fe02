"""Norms of weights alone: weight standardization, as in NFNets and BiT."""

from __future__ import annotations

import copy
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .folding import assert_close, fold, outputs, outputs_of, rand, ready, wide  # noqa: E402
from .merging import certified, exported, ops  # noqa: E402

X = rand(2, 4, 7, 7)


class Conv(nn.Conv2d):
    """A convolution by a standardized weight, which has as many inputs as outputs."""

    def standard(self):
        rows = self.weight.reshape(1, self.out_channels, -1)
        norm = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=0.1)
        return norm.view_as(self.weight)

    def forward(self, x):
        size = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, self.standard(), self.bias, *size)


class Gained(Conv):
    """The norm scales by a gain, as in NFNets."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def standard(self):
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        norm = F.batch_norm(rows, None, None, weight=gain, training=True, eps=0.1)
        return norm.reshape_as(self.weight)


class WithRelu(Conv):
    def forward(self, x):
        return super().forward(x).relu()


class Doubled(Conv):
    """Two convolutions that are added, one by a plain weight."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.other = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return super().forward(x) + self.other(x)


class Long(nn.Conv1d):
    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return F.conv1d(x, weight, self.bias)


# What is left of each in the place of the whole module.
ALONE = {
    "plain": (lambda: Conv(4, 4, 3), X, [nn.Conv2d]),
    "groups": (lambda: Conv(4, 8, 3, 2, 1, 2, groups=2, bias=False), X, [nn.Conv2d]),
    "gain": (lambda: Gained(4, 4, 3, padding=1), X, [nn.Conv2d]),
    "activation": (lambda: WithRelu(4, 4, 3), X, [nn.Conv2d, nn.ReLU]),
    "branches": (lambda: Doubled(4, 4, 1), X, [nn.Conv2d]),
    "one axis": (lambda: Long(4, 4, 3), rand(2, 4, 6), [nn.Conv1d]),
}


def norms(program):
    return sum(kind.startswith(("batch_norm", "_native_batch_norm")) for kind in ops(program))


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_a_program_stores_what_the_norm_computes(name, lowered):
    make, x, _ = ALONE[name]
    module = ready(nn.Sequential(make(), nn.Tanh()))
    program = exported(module, x)
    given = program.run_decompositions() if lowered else program
    plan, folded = bnfold.plan(given), bnfold.fold(given)
    assert norms(given) == 1 and norms(folded) == 0
    assert [kept for kept in plan.kept if "norm" in kept.op] == []
    law = "merge in parallel" if name == "branches" else "store the weight"
    assert [fold.laws for fold in plan.folds] == [(law,)]
    if not lowered:  # There, taking a part of a list counts as an operator.
        assert plan.after == Counter(ops(folded))
    assert_close(outputs(module, (x,), {}), outputs_of(wide(folded), (x,), {}), 1e-14)
    assert all(each.holds for each in certified(given))


@pytest.mark.parametrize("name", ALONE)
def test_a_module_has_a_plain_one_in_its_place(name):
    make, x, parts = ALONE[name]
    module = ready(nn.Sequential(make(), nn.Tanh()))
    plan = bnfold.plan(module, (x,))
    (told,) = [kept for kept in plan.kept if kept.code == "constant-norm"]
    assert "merge=True" in told.message
    done = fold(module, x, merge=True, others=((torch.cat([x, x]),),))
    block = done.module[0]
    found = [block] if len(parts) == 1 else list(block.children())
    assert [type(part) for part in found] == parts
    assert norms(exported(done.module, x)) == 0
    assert not [kept for kept in done.plan.kept if "norm" in kept.op]


def test_a_norm_behind_goes_into_what_stands_there():
    module = ready(nn.Sequential(Conv(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    assert norms(exported(fold(module, X).module, X)) == 2
    done = fold(module, X, merge=True)
    assert norms(exported(done.module, X)) == 0 and type(done.module[0]) is nn.Conv2d


def test_one_module_for_several_inputs():
    shared = Conv(4, 4, 3, padding=1)
    done = fold(ready(nn.Sequential(shared, nn.ReLU(), shared)), X, merge=True)
    assert done.module[0] is done.module[2] and type(done.module[0]) is nn.Conv2d


class PutOut(Conv):
    def forward(self, x):
        weight = self.standard()
        return F.conv2d(x, weight), weight


class WithNoise(Conv):
    """A weight that is another one in each run."""

    def standard(self):
        return super().standard() + 0 * torch.rand_like(self.weight)


def test_what_is_put_out_stays_and_is_told():
    module = ready(PutOut(4, 4, 3))
    given = exported(module, X)
    plan, folded = bnfold.plan(given), bnfold.fold(given)
    assert [kept.code for kept in plan.kept] == ["constant-norm"]
    assert norms(folded) == 1 and not plan.folds
    assert_close(outputs(module, (X,), {}), outputs_of(wide(folded), (X,), {}), 0.0)


class Unread(Conv):
    def forward(self, x):
        self.weight[0].numel()
        self.standard()
        return super().forward(x)


def test_what_nobody_reads_is_still_there():
    """Neither a fold nor a program's sweep takes it out, and the plan does not say so."""
    given = exported(ready(Unread(4, 4, 3)), X)
    plan, folded = bnfold.plan(given), bnfold.fold(given)
    assert plan.after == Counter(ops(folded)) and norms(folded) == 1
    assert [kept.code for kept in plan.kept] == ["constant-norm"]


def test_a_weight_that_is_drawn_is_not_stored():
    """What the norm of the stored weight computes is, and the rest runs."""
    folded = bnfold.fold(exported(ready(WithNoise(4, 4, 3)), X))
    assert {"rand_like", "add", "conv2d"} <= set(ops(folded)) and norms(folded) == 0


class Faked(Conv):
    def standard(self):
        return torch.fake_quantize_per_tensor_affine(super().standard(), 0.02, 0, -128, 127)


def test_what_is_rounded_to_integers_goes_on_being_rounded():
    module = ready(Faked(4, 4, 3))
    folded = bnfold.fold(exported(module, X))
    assert ops(folded) == ["fake_quantize_per_tensor_affine", "conv2d"]
    assert_close(outputs(module, (X,), {}), outputs_of(wide(folded), (X,), {}), 1e-14)


def test_integers_are_those_of_the_numbers_in_their_own_type():
    """A scale that is computed from a norm stays float32, and so do the numbers it rounds."""

    class Scaled(Conv):
        def __init__(self):
            super().__init__(4, 4, 3)
            self.register_buffer("zero", torch.zeros(4, dtype=torch.int32))

        def standard(self):
            weight = super().standard()
            scale = weight.abs().amax((1, 2, 3)) / 100
            return torch.fake_quantize_per_channel_affine(weight, scale, self.zero, 0, -128, 127)

    module = ready(nn.Sequential(Scaled(), nn.BatchNorm2d(4)), torch.float32)
    x = X.float()
    given = exported(module, x)
    folded = bnfold.fold(given)
    assert norms(folded) == 0 and "fake_quantize_per_channel_affine" in ops(folded)
    assert {str(t.dtype) for t in folded.state_dict.values() if t.is_floating_point()} == {
        "torch.float32"
    }
    with torch.no_grad():
        assert_close([module(x)], [folded.module()(x)], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("behind", [nn.Identity, lambda: nn.BatchNorm2d(4)])
def test_a_weight_is_rounded_once(dtype, behind):
    """Computed in its own type and then scaled, it was called a wrong fold in bfloat16."""
    module = ready(nn.Sequential(Conv(4, 4, 3), behind(), nn.ReLU()), dtype)
    x = X.to(dtype)
    given = exported(module, x)
    folded = bnfold.fold(given)
    wanted = bnfold.fold(exported(copy.deepcopy(module).double(), x.double()))
    (weight,) = (t for n, t in folded.state_dict.items() if t.ndim == 4)
    (exact,) = (t for n, t in wanted.state_dict.items() if t.ndim == 4)
    apart = (weight.double() - exact).abs() / exact.abs() / torch.finfo(dtype).eps
    assert float(apart.max()) <= 0.5 + 1e-6
    assert bnfold.verify(given, folded).status == "pass"


def test_counts_of_operators_on_constants():
    """A frozen norm written out computes its scale and shift in each run."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.register_buffer("var", torch.ones(4))

        def forward(self, x):
            return self.conv(x) * (self.var + 0.1).rsqrt().view(1, -1, 1, 1)

    given = exported(ready(Frozen()), X)
    plan = bnfold.plan(given)
    assert plan.after == Counter(ops(bnfold.fold(given))) == {"conv2d": 1}


class Tracked(Conv):
    """The norm of the weight writes statistics in each run, which its schema does not tell."""

    def __init__(self, kind="batch_norm"):
        super().__init__(4, 4, 3)
        self.kind = kind
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def standard(self):
        rows = self.weight.reshape(1, 4, -1)
        given = {"use_input_stats" if self.kind == "instance_norm" else "training": True}
        return getattr(F, self.kind)(rows, self.mean, self.var, **given).reshape_as(self.weight)

    def forward(self, x):
        return super().forward(x) * self.mean.view(-1, 1, 1)


class OfData(Tracked):
    """The same of the data."""

    def forward(self, x):
        y = F.batch_norm(x, self.mean, self.var, training=True)
        return F.conv2d(y, self.weight) * self.mean.view(-1, 1, 1)


@pytest.mark.parametrize("make", [Tracked, lambda: Tracked("instance_norm"), OfData])
@pytest.mark.parametrize("merge", [False, True, None])
def test_statistics_that_a_norm_writes_are_no_constants(make, merge):
    """They were taken for such, and the user's own were written while the norm was evaluated."""
    module = ready(nn.Sequential(make(), nn.ReLU()))
    before = copy.deepcopy(module.state_dict())
    given = module if merge is not None else exported(module, X)
    more = ((X,),) if merge is not None else ()
    options = {} if merge is None else {"merge": merge}
    plan, folded = bnfold.plan(given, *more, **options), bnfold.fold(given, *more, **options)
    after = given.state_dict() if merge is not None else given.state_dict
    assert all(torch.equal(after[name], before[name]) for name in before)
    (told,) = [kept for kept in plan.kept if "norm" in kept.op]
    assert told.code in ("untracked-statistics", "training-mode")
    ran, wanted = (folded.module() if merge is None else folded), copy.deepcopy(module)
    with torch.no_grad():
        for _ in range(3):
            assert_close([wanted(X)], [ran(X)], 1e-12)


class Masked(Conv):
    def standard(self):
        weight = super().standard()
        return torch.where(weight > 0, weight, -torch.ones_like(weight))


class Cut(Conv):
    def standard(self):
        return F.threshold(super().standard(), 0.0, -1.0)


class MaskedSum(Doubled):
    """Without a norm: 0.1 in float32 is not below 0.1, and it is more in float64."""

    def standard(self):
        return torch.where(self.weight > 0.1, 1.0, self.weight)


@pytest.mark.parametrize("kind", [Masked, Cut, MaskedSum])
@pytest.mark.parametrize("merge", [False, True])
def test_a_weight_that_jumps_is_computed_in_its_own_type(kind, merge):
    """Rounding alone decides here: all weights of a channel are equal, so that their norm is 0."""
    module = ready(nn.Sequential(kind(4, 4, 1), nn.ReLU()), torch.float32)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([0.1, 0.3, 0.7, 1.3]).view(4, 1, 1, 1))
    x = X.float()
    if merge:
        folded = bnfold.fold(module, (x,), merge=True)
    else:
        folded = bnfold.fold(exported(module, x)).module()
    with torch.no_grad():
        assert_close([module(x)], [folded(x)], 1e-5)


class Around(nn.Module):
    """Code around a module, which asks it for more than what it computes."""

    def __init__(self, asks):
        super().__init__()
        self.conv = Gained(4, 4, 3)
        self.conv.table = [1.0, 3.0]
        self.plain = Conv(4, 4, 1)
        self.asks = asks

    def forward(self, x):
        return self.plain(self.conv(x).relu() * self.asks(self.conv))


ASKED = {
    "its class": lambda conv: 2.0 if isinstance(conv, Gained) else 1.0,
    "a list": lambda conv: conv.table[1],
    "a parameter's shape": lambda conv: conv.gain.shape[0],
    "a method": lambda conv: 2.0 if hasattr(conv, "standard") else 1.0,
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_code_around_a_module_asks_it_stays(asked):
    """It went another way, or could not run, once a plain Conv2d stood there."""
    module = ready(Around(ASKED[asked]))
    done = fold(module, X, merge=True)
    assert type(done.module.conv) is Gained
    kept = [each for each in done.plan.kept if each.code == "constant-norm"]
    (told,) = {each.message.partition(" stays: ")[2] for each in kept}
    assert told.startswith("the code around conv, plain ")


def test_what_is_there_as_before_may_be_asked_for():
    module = ready(Around(lambda conv: conv.out_channels * conv.stride[0]))
    done = fold(module, X, merge=True)
    assert type(done.module.conv) is type(done.module.plain) is nn.Conv2d
