"""Inputs and outputs of every form, sizes that vary, element types and memory formats."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")


from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import bnfold  # noqa: E402

from .folding import assert_close, bits, copied, fold, outputs, rand, ready  # noqa: E402


def block(*more):
    return nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), *more)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x, *, scale=None, flag=True):
        y = self.block(x)
        return y if scale is None else y * scale


def test_keyword_inputs():
    kwargs = {"scale": rand(2, 1, 1, 1), "flag": False}
    fold(ready(Keywords()), rand(2, 4, 5, 5), kwargs=kwargs, folds=1)
    module = ready(Keywords())
    folded = bnfold.fold(module, kwargs={"x": rand(2, 4, 5, 5)})
    assert isinstance(folded.block[1], nn.Identity)


@pytest.mark.parametrize("axes", [(0,), (2, 3), (0, 2, 3)])
def test_sizes_that_vary(axes):
    names = dict.fromkeys(axes, torch.export.Dim.AUTO)
    sizes = [3, 4, 6, 7]
    for axis in axes:
        sizes[axis] += 2
    module, x = ready(block(nn.ReLU())), rand(3, 4, 6, 7)
    fold(module, x, folds=1, dynamic_shapes=(names,), others=((rand(*sizes),),))


class WidthScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.scale = block(), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.block(x) * self.scale


def test_a_width_that_equals_the_channels_by_accident_and_varies():
    dims = ({2: torch.export.Dim.AUTO},)
    fold(ready(WidthScale()), rand(4, 4, 6, 6), folds=1, dynamic_shapes=dims)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(), block()

    def forward(self, batch, pair):
        y = self.a(batch["image"])
        z = self.b(pair[0] + pair[1][0])
        return {"y": y, "more": (z, [y + z])}


def test_nested_inputs_and_outputs():
    x = rand(2, 4, 5, 5)
    fold(ready(Nested()), {"image": x}, (x, [x]), folds=2)


@dataclasses.dataclass
class Result:
    y: torch.Tensor
    extra: torch.Tensor


torch.export.register_dataclass(Result, serialized_type_name="tests.torch.Result")


class Dataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x):
        y = self.block(x)
        return Result(y, y.mean())


def test_dataclass_output():
    folded = fold(ready(Dataclass()), rand(2, 4, 5, 5), folds=1).module
    assert isinstance(folded(rand(2, 4, 5, 5)), Result)


class Intermediate(nn.Module):
    """Gives what is between conv and norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y), y


def test_intermediate_output():
    fold(ready(Intermediate()), rand(2, 4, 3, 3), folds=0, codes=["graph-output"])


class Branches(nn.Module):
    """A branch that is taken by the values it meets."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Twice()
        self.outside = outside

    def forward(self, x):
        y = self.conv(x)
        y = self.twice(self.bn(y)) if self.outside else y.relu()
        return torch.cond(x.sum() > 0, lambda z: self.twice(self.bn(z)), lambda z: z.sin(), (y,))


class Twice(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize("outside", [True, False])
def test_branches_keep_their_modules(outside):
    x = rand(2, 4, 3, 3).abs()
    fold(ready(Branches(outside)), x, folds=0, others=((-x,),))


class TwiceAside(Branches):
    """A module without parameters, and a conv without bias, that a branch calls too."""

    def __init__(self, conv: bool) -> None:
        super().__init__(True)
        self.call, self.bn = conv, nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x):
        y = self.conv(x)
        y = self.bn(y) if self.call else self.twice(y)
        part = self.conv if self.call else self.twice
        return torch.cond(x.sum() > 0, lambda z: part(z), lambda z: z.sin(), (y,))


@pytest.mark.parametrize("conv", [True, False])
def test_modules_that_a_branch_calls_too_stay(conv):
    module, x = ready(TwiceAside(conv)), rand(2, 4, 3, 3).abs()
    module.bn.weight.data.fill_(1.0)
    module.bn.running_var.fill_(1.0)
    module.bn.eps = 0.0  # So that all that is left to fold is a shift.
    fold(module, x, folds=0, others=((-x,),))


class BranchAside(Branches):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return torch.cond(x.sum() > 0, lambda z: z.cos(), lambda z: z.sin(), (y,))


def test_norm_beside_a_branch_folds():
    x = rand(2, 4, 3, 3).abs()
    fold(ready(BranchAside(False)), x, folds=1, others=((-x,),))


@pytest.mark.parametrize("transpose", [False, True])
def test_channels_last_stays(transpose):
    conv = nn.ConvTranspose2d(4, 6, 3) if transpose else nn.Conv2d(4, 6, 3)
    module = ready(nn.Sequential(conv, nn.BatchNorm2d(6))).to(memory_format=torch.channels_last)
    x = rand(2, 4, 5, 5).to(memory_format=torch.channels_last)
    folded = fold(module, x, folds=1).module
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert folded[0].weight.stride() == module[0].weight.stride()
    assert folded(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_round_once(dtype, bias):
    module = nn.Sequential(nn.Conv2d(4, 4, 3, bias=bias), nn.BatchNorm2d(4))
    module = ready(module, dtype)
    x = rand(2, 4, 5, 5, dtype=dtype)
    folded = bnfold.fold(module, (x,))
    assert isinstance(folded[1], nn.Identity)
    assert {p.dtype for p in folded.parameters()} == {dtype} and folded(x).dtype == dtype
    exact = bnfold.fold(copied(module).double(), (x.double(),))
    for got, wanted in zip(folded.parameters(), exact.parameters()):
        assert torch.equal(bits(got), bits(wanted.to(dtype)))


def test_norm_in_float32_behind_a_half_conv():
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    module = ready(module, torch.float32)
    module[0].bfloat16()
    x = rand(2, 4, 5, 5, dtype=torch.bfloat16)
    before = module(x)
    folded = bnfold.fold(module, (x,))
    assert folded[0].weight.dtype == torch.bfloat16 and folded(x).dtype == before.dtype
    assert_close(outputs(module, (x,), {}), outputs(folded, (x,), {}), 0.02)


class Promotes(nn.Module):
    """A scale in float32 makes a half tensor float32."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return x * self.gamma


def test_a_map_that_changes_the_type_stays():
    module = nn.Sequential(nn.Conv2d(4, 4, 1).bfloat16(), Promotes()).eval()
    module[1].gamma.data.mul_(1.5)
    x = rand(2, 4, 3, 3, dtype=torch.bfloat16)
    folded = bnfold.fold(module, (x,))
    assert folded(x).dtype == torch.float32
    assert torch.equal(folded(x), module(x))


def test_half_weight_that_would_overflow_stays():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), torch.float16)
    with torch.no_grad():
        module[0].weight.mul_(100)
        module[1].weight.fill_(6e4)
    plan = bnfold.plan(module, (rand(1, 4, 3, 3, dtype=torch.float16),))
    assert [kept.code for kept in plan.kept] == ["overflow"] and not plan.folds


def test_half_with_a_tiny_variance_is_folded_in_float64():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-5)), torch.float16)
    module[1].running_var.fill_(1e-7)
    module[0].weight.data.mul_(1e-2)
    x = rand(2, 4, 3, 3, dtype=torch.float16)
    folded = bnfold.fold(module, (x,))
    assert isinstance(folded[1], nn.Identity)
    assert_close(outputs(module, (x,), {}), outputs(folded, (x,), {}), 1e-3)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.block(x)


def test_autocast_is_kept_or_right():
    module, x = ready(Autocast(), torch.float32), rand(2, 4, 5, 5, dtype=torch.float32)
    folded = bnfold.fold(module, (x,))
    assert folded(x).dtype == module(x).dtype
    assert_close([module(x).double()], [folded(x).double()], 0.05)


def test_outputs_have_one_structure():
    x = rand(2, 4, 5, 5)
    module = ready(Nested())
    folded = bnfold.fold(module, ({"image": x}, (x, [x])))
    one, two = module({"image": x}, (x, [x])), folded({"image": x}, (x, [x]))
    assert pytree.tree_structure(one) == pytree.tree_structure(two)
