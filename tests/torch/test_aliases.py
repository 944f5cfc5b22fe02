"""Code that writes into tensors, holds modules in more than one place, or computes in hooks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from .carrying import program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.drop = nn.Dropout()


class InplaceAfter(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        y.relu_()
        y += 1
        return y.mul_(2)


class InplaceBetween(Block):
    def forward(self, x):
        y = self.conv(x)
        y += 1
        y.mul_(self.bn.weight[:, None, None])
        return self.bn(y)


class ViewWritten(Block):
    """The conv's output is changed through a view before the norm reads it."""

    def forward(self, x):
        y = self.conv(x)
        y.view(-1).add_(1)
        return self.bn(y)


class ViewWrittenLater(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        y.view(-1).relu_()
        return z


class DropoutWritten(Block):
    """In eval Dropout gives its input itself."""

    def forward(self, x):
        y = self.conv(x)
        z = self.drop(y)
        z.view(-1).relu_()
        return self.bn(y)


class WeightWritten(Block):
    """A weight that is computed, and changed through a view after that."""

    def forward(self, x):
        w = self.conv.weight.clone()
        w[0] = 0
        return self.bn(F.conv2d(x, w))


class BetaWritten(Block):
    def forward(self, x):
        beta = self.bn.bias.clone()
        beta[1:] *= 3
        mean, var = self.bn.running_mean, self.bn.running_var
        return F.batch_norm(self.conv(x), mean, var, self.bn.weight, beta)


class BufferWritten(Block):
    """A buffer that changes at every call, read through an earlier view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        view = self.shift[:, None, None]
        self.shift.add_(1)
        return self.conv(x) + view


class OutputWritten(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        z[:, 0] = 7
        return z, y.shape[0]


KINDS = [
    InplaceAfter,
    InplaceBetween,
    ViewWritten,
    ViewWrittenLater,
    DropoutWritten,
    WeightWritten,
    BetaWritten,
    OutputWritten,
]


@pytest.mark.parametrize("kind", KINDS)
def test_writing_into_tensors(kind):
    fold(ready(kind()), rand(2, 4, 3, 3))


def test_in_place_operators_do_not_stop_a_norm():
    fold(ready(InplaceAfter()), rand(2, 4, 3, 3), folds=1)
    fold(ready(OutputWritten()), rand(2, 4, 3, 3), folds=1)


def test_buffer_that_changes_is_no_constant():
    module, x = ready(BufferWritten()), rand(2, 4, 3, 3)
    done = fold(module, x, folds=0)
    for _ in range(3):
        assert torch.equal(module(x), done.module(x))


class IdentityNorm(nn.Module):
    """A norm that changes nothing but makes a new tensor, which is then written into."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1) if conv else nn.Sigmoid()
        self.bn = nn.BatchNorm2d(4, eps=0.0)

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        z.relu_()
        return y + z


@pytest.mark.parametrize("conv", [True, False])
def test_an_identity_that_makes_a_copy_stays_where_the_copy_matters(conv):
    module = ready(IdentityNorm(conv))
    norm = nn.BatchNorm2d(4, eps=0.0)
    module.bn.load_state_dict(norm.state_dict())
    fold(module, rand(2, 4, 3, 3), folds=0)


def test_an_identity_at_the_input_keeps_the_callers_tensor_whole():
    module = nn.Sequential(nn.BatchNorm2d(4, eps=0.0), nn.ReLU(inplace=True)).double().eval()
    done = fold(module, x := rand(2, 4, 3, 3))
    before = x.clone()
    done.module(x)
    assert torch.equal(x, before)


class InList(Block):
    """A norm that is called through a list, which PyTorch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = [self.conv, self.bn]

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class InClosure(Block):
    """A function that calls the modules of the original, of which a copy knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        bn = self.bn
        self.post = lambda y: bn(y)

    def forward(self, x):
        return self.post(self.conv(x))


class PatchedForward(Block):
    def __init__(self) -> None:
        super().__init__()
        forward = self.bn.forward
        self.bn.forward = lambda y: forward(y) * 2

    def forward(self, x):
        return self.bn(self.conv(x))


class ReadsAttributes(Block):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return y.reshape(-1, self.bn.num_features, 9) * self.bn.eps


class ReadsParameters(Block):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.weight.sum()


class ReadsWeight(Block):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


@pytest.mark.parametrize(
    "kind, folds",
    [
        (InList, 1),
        (InClosure, 0),
        (PatchedForward, None),
        (ReadsAttributes, None),
        (ReadsParameters, 0),
        (ReadsWeight, 0),
    ],
)
def test_modules_reached_by_other_ways(kind, folds):
    fold(ready(kind()), rand(2, 4, 3, 3), folds=folds)


class TwoNames(Block):
    def __init__(self, read: str) -> None:
        super().__init__()
        self.again, self.norm = self.conv, self.bn
        self.read = read

    def forward(self, x):
        y = self.norm(self.again(x))
        return y + self.bn.weight.sum() if self.read == "weight" else y


@pytest.mark.parametrize("read, folds", [("", 1), ("weight", 0)])
def test_module_under_two_names(read, folds):
    done = fold(ready(TwoNames(read)), rand(2, 4, 3, 3), folds=folds)
    assert done.module.bn is done.module.norm and done.module.conv is done.module.again


class Tied(nn.Module):
    """Two convs of one weight, tied as a parameter or through one memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.how = how

    def tie(self):
        if self.how == "memory":
            self.b.weight = nn.Parameter(self.a.weight.detach())
        else:
            self.b.weight = self.a.weight
        return self

    def forward(self, x):
        y = self.bn(self.a(x))
        return y if self.how == "unused" else self.b(y.relu())


@pytest.mark.parametrize("how", ["parameter", "memory", "unused"])
def test_tied_weights_stay_tied(how):
    module = ready(Tied(how)).tie()
    done = fold(module, rand(2, 4, 3, 3), folds=0, codes=["shared-weight"])
    assert torch.equal(done.module.a.weight, done.module.b.weight)


def test_tied_norms_fold_each():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    module.append(nn.Conv2d(4, 4, 1).double()).append(nn.BatchNorm2d(4).double().eval())
    module[4].weight = module[1].weight
    fold(module, rand(2, 4, 3, 3))


def test_expanded_parameter():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    module[0].bias = nn.Parameter(torch.ones(1).double().expand(4))
    fold(module, rand(2, 4, 3, 3), folds=0)


class TwoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(4, 1, 1))

    def forward(self, mask, x):
        return x * self.gamma


class TwoResults(TwoArguments):
    def forward(self, mask, x):
        return x * self.gamma, mask


class ByName(TwoArguments):
    def forward(self, x):
        return x * self.gamma


class Caller(Block):
    def __init__(self, kind) -> None:
        super().__init__()
        self.scale = kind()

    def forward(self, x):
        y = self.conv(x)
        if isinstance(self.scale, ByName):
            return self.scale(x=y)
        result = self.scale(None, y)
        return result if isinstance(result, torch.Tensor) else result[0]


@pytest.mark.parametrize("kind", [TwoArguments, TwoResults, ByName])
def test_modules_that_an_identity_could_not_stand_for(kind):
    fold(ready(Caller(kind)), rand(2, 4, 3, 3), folds=0, codes=["not-a-module"])


class Nested(nn.Module):
    """A module that scales and holds a norm: both go, in any order."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.bn, self.gamma = nn.BatchNorm2d(4), nn.Parameter(torch.empty(4, 1, 1))
        self.first = first

    def forward(self, x):
        return self.bn(x * self.gamma) if self.first else self.bn(x) * self.gamma


@pytest.mark.parametrize("first", [True, False])
def test_nested_modules_that_both_go(first):
    fold(ready(nn.Sequential(nn.Conv2d(4, 4, 1), Nested(first))), rand(2, 4, 3, 3), folds=2)


def test_a_norm_whose_two_parameters_are_one():
    """Written in turn into one tensor, both would be what the second has to be."""
    module = ready(nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4)))
    module[0].bias = module[0].weight
    x = rand(2, 4, 3, 3)
    fold(module, x, folds=0, codes=["shared-weight"])
    done = fold(module, x, folds=1, clone=True)
    assert done.module[0].bias is not done.module[0].weight
    program(module, x, folds=1)


@pytest.mark.parametrize("step, folds", [(4, 1), (3, 0)])
def test_parameters_one_after_the_other_in_one_memory(step, folds):
    """They are no more shared than others, unless they overlap."""
    module = ready(nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4)))
    memory = rand(8)
    module[0].weight = nn.Parameter(memory[:4])
    module[0].bias = nn.Parameter(memory[step : step + 4])
    fold(module, rand(2, 4, 3, 3), folds=folds, codes=[] if folds else ["shared-weight"])
