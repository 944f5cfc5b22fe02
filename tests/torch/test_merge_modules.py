"""``merge=True``: a submodule that adds up linear branches becomes one linear module."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

import bnfold  # noqa: E402
import bnfold.nn  # noqa: E402

from ..scripts import REPARAMETERIZED  # noqa: E402
from .folding import assert_close, fold, kinds, outputs, rand, ready, state  # noqa: E402
from .test_merge_networks import X  # noqa: E402


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_a_block_becomes_what_its_authors_make_of_it(name, networks):
    network = networks.built(name)
    by_hand, before = networks.collapsed(network), state(network)
    made = bnfold.fold(network, (X,), merge=True)
    assert state(network)["modules"] == before["modules"]
    assert_close(outputs(network, (X,), {}), outputs(made, (X,), {}), 1e-6)
    blocks = [number for number, part in enumerate(network) if hasattr(part, "collapsed")]
    for number in blocks:
        one, other = made[number], by_hand[number]
        assert type(one) is nn.Conv2d and str(one) == str(other)
        for part, exact in other.named_parameters():
            torch.testing.assert_close(one.get_parameter(part), exact, rtol=1e-6, atol=1e-6)
    assert kinds(made)["BatchNorm2d"] == 0
    plain = bnfold.fold(network, (X,))
    assert [type(plain[n]) for n in blocks] == [type(network[n]) for n in blocks]
    plan = bnfold.plan(network, (X,), merge=True)
    assert plan.before == bnfold.plan(network, (X,)).before
    assert sum(each.merges for each in plan.folds) == len(blocks)
    assert [each for each in plan.kept if each.kind == "merge"] == []
    assert plan.after["conv2d"] == sum(isinstance(m, nn.Conv2d) for m in made.modules())


class Branches(nn.Module):
    """A 3×3 and a 1×1 convolution with norms, the input, and what subclasses do with the sum."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n))
        self.point = nn.Sequential(nn.Conv2d(n, n, 1), nn.BatchNorm2d(n))
        self.skip = nn.BatchNorm2d(n)
        self.idle, self.none, self.act = nn.Identity(), None, nn.SiLU()

    def added(self, x):
        return self.wide(x) + self.point(x) + self.skip(x)

    def forward(self, x):
        return self.idle(self.added(x))


class WithActivation(Branches):
    def forward(self, x):
        return self.act(self.added(x))


class WithFunction(Branches):
    def forward(self, x):
        y = self.added(x)
        return y * F.relu6(y + 3.0) / 6.0


class Attention(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(n, n, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class WithAttention(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.se = Attention(4)

    def forward(self, x):
        return self.act(self.se(self.added(x)))


class OverBranches(Branches):
    """As MobileOne: a list of branches, added up in place."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ModuleList(copy.deepcopy(self.wide) for _ in range(3))

    def forward(self, x):
        out = self.skip(x) if self.none is None else 0
        for branch in self.many:
            out += branch(x)
        return F.relu(out + self.point(x), inplace=True)


class Scaled(Branches):
    """A map in its own code, and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(4, 1, 1))
        self.computed = weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return self.wide(x) - self.gamma * self.computed(x)


class Behind(Branches):
    """As RepGhost: the branches read what an activation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.act(self.added(self.ahead(x)))


class OneScaled(nn.Module):
    """No sum, but a map in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(4, 3, 2), nn.Parameter(torch.empty(3, 1, 1))

    def forward(self, x):
        return F.relu(self.conv(x) * self.gamma + 0.5)


class Dense(nn.Module):
    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(n, n), nn.Linear(n, n, bias=False)

    def forward(self, x):
        return self.a(x) - self.b(x) + x


class Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2)
        self.b = nn.Conv1d(4, 6, 1, stride=2, groups=2)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Outer(nn.Module):
    """A sum of sums: all of it is one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Branches(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.inner(x) + self.other(x)


MERGED = {
    "sum": (Branches, rand(2, 4, 6, 6), [nn.Conv2d]),
    "activation": (WithActivation, rand(2, 4, 6, 6), [nn.Conv2d, nn.SiLU]),
    "function": (WithFunction, rand(2, 4, 6, 6), [nn.Conv2d, torch.fx.GraphModule]),
    "attention": (WithAttention, rand(2, 4, 6, 6), [nn.Conv2d, Attention, nn.SiLU]),
    "list": (OverBranches, rand(2, 4, 6, 6), [nn.Conv2d, nn.ReLU]),
    "own maps": (Scaled, rand(2, 4, 6, 6), [nn.Conv2d]),
    "behind": (Behind, rand(2, 4, 6, 6), [nn.Sequential, nn.Conv2d, nn.SiLU]),
    "one scaled": (OneScaled, rand(2, 4, 6, 6), [nn.Conv2d, nn.ReLU]),
    "matrices": (Dense, rand(3, 5), [nn.Linear]),
    "matrices of a stack": (Dense, rand(2, 5, 5), [nn.Linear]),
    "one axis": (Long, rand(2, 4, 4), [nn.Conv1d]),
    "nested": (Outer, rand(4, 4, 4, 4), [nn.Conv2d]),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_sum_becomes_one_module(name):
    make, x, parts = MERGED[name]
    module = ready(nn.Sequential(make(), nn.Tanh()))
    other = rand(*x.shape[:-1], x.shape[-1] + 2 * (x.ndim > 3), seed=3)
    done = fold(module, x, merge=True, others=((other,),))
    block = done.module[0]
    found = [block] if len(parts) == 1 else list(block.children())
    assert [type(part) for part in found[:1]] == parts[:1] and len(found) == len(parts)
    assert all(isinstance(part, kind) for part, kind in zip(found, parts, strict=True))
    assert len(parts) == 1 or type(block) is bnfold.nn.Remainder
    buffer = io.BytesIO()
    torch.save(done.module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    wanted = outputs(done.module, (x,), {})
    assert_close(wanted, outputs(loaded, (x,), {}), 0.0)
    assert_close(wanted, [torch.jit.script(done.module)(x)], 1e-14)
    assert all(p.requires_grad for p in done.module.parameters())
    own = copy.deepcopy(module)
    assert bnfold.fold(own, (x,), merge=True, inplace=True) is own
    assert_close(wanted, outputs(own, (x,), {}), 0.0)


def test_weights_are_rounded_once():
    """Also where a norm behind the block goes into what has become of it."""
    module = ready(nn.Sequential(Dense(40), nn.BatchNorm1d(40)), torch.float32)
    with torch.no_grad():
        block, norm = copy.deepcopy(module[0]).double(), copy.deepcopy(module[1]).double()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = block.a.weight - block.b.weight + torch.eye(40, dtype=torch.float64)
        exact = weight * scale[:, None], (block.a.bias - norm.running_mean) * scale + norm.bias
    made = fold(module, rand(3, 40, dtype=torch.float32), merge=True, within=1e-5).module[0]
    for stored, wanted in zip((made.weight, made.bias), exact, strict=True):
        apart = (stored.double() - wanted).abs() / torch.finfo(torch.float32).eps / wanted.abs()
        assert float(apart.max()) <= 0.5 + 1e-6


def test_a_block_for_several_inputs():
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = WithActivation()

        def forward(self, a, b):
            return self.block(a), self.block(b)

    done = fold(ready(Siamese()), rand(2, 4, 6, 6), rand(1, 4, 9, 7), merge=True)
    assert [type(part) for part in done.module.block] == [nn.Conv2d, nn.SiLU]


class Padded(Branches):
    """Branches one of which reads the other side of the picture beyond an edge."""

    def __init__(self) -> None:
        super().__init__()
        self.wide[0].padding_mode = "circular"

    def forward(self, x):
        return self.wide(x) + self.point(x)


class Curved(Branches):
    def forward(self, x):
        return self.wide(x) + self.act(self.point(x))


class Residual(Branches):
    def forward(self, x):
        return self.act(self.added(x)) + x


class Dilated(Branches):
    """A sum of two that is larger than both."""

    def __init__(self) -> None:
        super().__init__()
        self.far = nn.Conv2d(4, 4, 3, padding=4, dilation=4)

    def forward(self, x):
        return self.wide(x) + self.far(x)


class BySize(Branches):
    def forward(self, x):
        return self.added(x) if x.shape[0] > 1 else self.wide(x)


class Remembers(Branches):
    def forward(self, x):
        self.last = x.shape[0]
        return self.added(x)


class OfTwo(Branches):
    def forward(self, x, y=None):
        return self.wide(x) + self.point(x if y is None else y)


class Twice(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x, x) if isinstance(self.block, OfTwo) else self.block(x)


class Outside(Twice):
    """Reads a weight of the block."""

    def forward(self, x):
        return self.block(x) * self.block.point[0].weight.sum()


class Hooked(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.wide.register_forward_hook(lambda part, given, result: None)


APART = {
    "padding": (lambda: Twice(Padded()), ""),
    "curved": (lambda: Twice(Curved()), "is not linear"),
    "residual": (lambda: Twice(Residual()), "more than one chain"),
    "work": (lambda: Twice(Dilated()), "multiply-adds"),
    "by size": (lambda: Twice(BySize()), "cannot be followed"),
    "remembers": (lambda: Twice(Remembers()), "keeps something"),
    "two inputs": (lambda: Twice(OfTwo()), "one tensor"),
    "read outside": (lambda: Outside(Branches()), "used elsewhere"),
    "hook": (lambda: Twice(Hooked()), "has hooks"),
}


@pytest.mark.parametrize("name", APART)
def test_a_block_that_is_more_stays(name):
    make, why = APART[name]
    module = ready(make())
    done = fold(module, rand(2, 4, 8, 8), merge=True, others=((rand(1, 4, 9, 8),),))
    assert type(done.module.block) is type(module.block)
    told = [kept.message for kept in done.plan.kept if kept.kind == "merge"]
    assert any(why in each for each in told) if why else told == [], told


@pytest.mark.parametrize("keep", ["block.wide", "block.point.0.weight"])
def test_keep_holds_a_block(keep):
    module, x = ready(Twice(Branches())), rand(2, 4, 6, 6)
    done = fold(module, x, merge=True, keep=(keep,))
    assert type(done.module.block) is Branches
    assert torch.equal(done.module.block.point[0].weight, module.block.point[0].weight) or (
        keep == "block.wide"
    )
    assert_close(outputs(module.block.wide, (x,), {}), outputs(done.module.block.wide, (x,), {}))


def test_options_that_do_not_go_together():
    module, x = ready(Twice(Branches())), rand(2, 4, 6, 6)
    folded = bnfold.fold(module, (x,), merge=True)
    with pytest.raises(bnfold.UsageError, match="merge=True"):
        bnfold.refold(folded, module.state_dict())
    with pytest.raises(bnfold.UsageError, match="merge"):
        bnfold.fold(torch.export.export(module, (x,)), merge=True)
    with pytest.raises(bnfold.UsageError, match="names an operator"):
        bnfold.fold(module, (x,), merge=True, keep="block: add")


def test_without_merge_the_reason_says_what_would():
    plan = bnfold.plan(ready(Twice(Branches())), (rand(2, 4, 6, 6),))
    (kept,) = [kept for kept in plan.kept if kept.kind == "merge"]
    assert "merge=True" in kept.message
