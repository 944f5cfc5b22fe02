"""Norms in float32 within a network of bfloat16 or float16, between ``.float()`` and back.

They fold where what they make is rounded to the narrow type anyway. Sizes agree wherever they can.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._core.laws import Way  # noqa: E402
from bnfold._core.pointwise import Converted  # noqa: E402
from bnfold._plan import relocation  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import certified, exported, ops  # noqa: E402

BF16, HALF = torch.bfloat16, torch.float16


class Net(nn.Module):
    """A convolution, then a norm in a wider type, and what ``code`` makes of that."""

    def __init__(self, code, wide=torch.float32, layer=None, norm=None):
        super().__init__()
        self.conv = layer or nn.Conv2d(4, 4, 1, bias=False)
        self.bn = norm or nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)  # which some code runs
        self.wide, self.code = wide, code

    def forward(self, x):
        return self.code(self, self.bn(self.conv(x).to(self.wide)), x.dtype)


def mixed(code, narrow=BF16, wide=torch.float32, **options):
    """Weights in the narrow type, norms in the wide one."""
    module = ready(Net(code, wide, **options)).to(narrow)
    module.bn.to(wide)
    module.other.to(wide)
    return module


def back(net, y, dtype):
    return y.to(dtype)


def data(narrow, *shape):
    return rand(*(shape or (4, 4, 4, 4))).to(narrow)


FOLDS = {
    "cast back": back,
    "a relu": lambda net, y, dtype: y.relu().to(dtype),
    "a clamp": lambda net, y, dtype: y.clamp(-1, 1).to(dtype),
    "a maximum": lambda net, y, dtype: torch.max_pool2d(y, 2).to(dtype),
    "moved": lambda net, y, dtype: y.flatten(1).to(dtype),
    "the type of another": lambda net, y, dtype: y.type_as(torch.zeros(1, dtype=dtype)),
    "twice": lambda net, y, dtype: y.to(dtype) + y.relu().to(dtype),
}
STAYS = {
    "put out": lambda net, y, dtype: y,
    "a sigmoid": lambda net, y, dtype: y.sigmoid().to(dtype),
    "a mean": lambda net, y, dtype: y.mean((2, 3)).to(dtype),
    "a sum": lambda net, y, dtype: (y + y.relu()).to(dtype),
    "a slope": lambda net, y, dtype: nn.functional.leaky_relu(y, 0.3).to(dtype),
    "read in the wide type, too": lambda net, y, dtype: y.to(dtype) + y.sigmoid().to(dtype),
    "a type without its numbers": lambda net, y, dtype: y.to(HALF if dtype == BF16 else BF16),
}


@pytest.mark.parametrize("narrow, wide", [(BF16, torch.float32), (HALF, torch.float32)])
@pytest.mark.parametrize("name", FOLDS)
def test_what_is_rounded_anyway_folds(name, narrow, wide):
    module, x = mixed(FOLDS[name], narrow, wide), data(narrow)
    assert bnfold.plan(module, (x,)).kept == ()
    folded = bnfold.fold(module, (x,))
    assert isinstance(folded.bn, nn.Identity)
    assert {p.dtype for p in folded.conv.parameters()} == {narrow}
    scale = module.bn.weight.double() / (module.bn.running_var.double() + module.bn.eps).sqrt()
    exact = (module.conv.weight.double() * scale.reshape(-1, 1, 1, 1)).to(narrow)
    assert torch.equal(folded.conv.weight, exact)
    assert bnfold.verify(module, folded, (x,)).status == "pass"
    program = exported(module, x)
    made = bnfold.fold(program)
    assert "batch_norm" not in ops(made)
    assert bnfold.verify(program, made).status == "pass"
    assert all(not each.problem and each.unchecked is None for each in certified(program))
    one, two = module(x), made.module()(x)
    assert torch.allclose(one, two, rtol=4e-2, atol=4e-2 * float(one.abs().max()))
    assert one.dtype == two.dtype


def test_two_norms_and_a_change_of_signs_in_a_program():
    module = mixed(lambda net, y, dtype: net.other(y).neg().to(dtype))
    program = exported(module, data(BF16))
    folded = bnfold.fold(program)
    assert not {"batch_norm", "neg"} & {*ops(folded)}
    assert bnfold.verify(program, folded).status == "pass"


@pytest.mark.parametrize("narrow", [BF16, HALF])
@pytest.mark.parametrize("name", STAYS)
def test_what_keeps_more_digits_stays(name, narrow):
    module, x = mixed(STAYS[name], narrow), data(narrow)
    for plan in (bnfold.plan(module, (x,)), bnfold.plan(exported(module, x))):
        assert plan.folds == ()
        assert [(each.node, each.code) for each in plan.kept] == [("bn", "not-carried")]


OTHERS = {
    "float64": (torch.float32, torch.float64, {}),
    "a linear layer": (BF16, torch.float32, {"layer": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)}),
    "transposed": (
        BF16,
        torch.float32,
        {"layer": nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False)},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_types_and_layers(name):
    narrow, wide, options = OTHERS[name]
    module = mixed(back, narrow, wide, **copy.deepcopy(options))
    x = data(narrow, 4, 4) if name == "a linear layer" else data(narrow)
    folded = bnfold.fold(module, (x,))
    assert isinstance(folded.bn, nn.Identity)
    assert bnfold.verify(module, folded, (x,)).status == "pass"


class Ahead(nn.Module):
    """A norm ahead of a convolution; ``code`` says what is between them and ahead of both."""

    def __init__(self, code):
        super().__init__()
        self.bn, self.conv, self.code = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), code

    def forward(self, x):
        return self.conv(self.code(self, x.relu()))


def kept_in_float32():
    module = ready(Ahead(lambda net, x: net.bn(x.float()).to(x.dtype))).to(BF16)
    module.bn.float()
    return module


def test_no_map_goes_forward_to_the_narrow_side():
    module = kept_in_float32()
    plan = bnfold.plan(module, (data(BF16),))
    assert [each.code for each in plan.kept] == ["not-carried"]
    assert isinstance(bnfold.fold(module, (data(BF16),)).bn, nn.BatchNorm2d)


def test_the_proof_lets_no_map_go_forward_past_a_rounding(monkeypatch):
    monkeypatch.setattr(Converted, "forward", lambda self, maps: [Way({0: maps[0]})])
    program = exported(kept_in_float32(), data(BF16))
    found = certify_program(PlannedProgram(program).apply_told().applied)
    assert ["rounds" in each.problem for each in found if each.problem] == [True]


def test_a_pair_of_conversions_with_nothing_in_between_is_none():
    module = ready(Ahead(lambda net, x: net.bn(x).float().to(x.dtype))).to(BF16)
    folded = bnfold.fold(module, (data(BF16),))
    assert isinstance(folded.bn, nn.Identity)
    assert all(not each.problem for each in certified(exported(module, data(BF16))))


def test_terms_that_may_be_larger_than_their_mean_are_not_rounded_first():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm1d(4).float()

        def forward(self, x):
            return self.bn(self.conv(x).float().mean((2, 3))).to(x.dtype)

    module = ready(Mean()).to(BF16)
    module.bn.float()
    assert [each.code for each in bnfold.plan(module, (data(BF16),)).kept] == ["not-carried"]


def test_a_norm_in_the_narrow_type_goes_into_a_wider_layer():
    """Toward float32 a map always may: what was rounded twice is rounded once."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x.float()).to(x.dtype))

    module = ready(Wide()).to(BF16)
    module.conv.float()
    x = data(BF16)
    folded = bnfold.fold(module, (x,))
    assert isinstance(folded.bn, nn.Identity)
    assert folded.conv.weight.dtype == torch.float32
    assert bnfold.verify(module, folded, (x,)).status == "pass"


def test_a_wrong_channel_is_noticed():
    module, x = mixed(back), data(BF16)
    folded = bnfold.fold(module, (x,))
    with torch.no_grad():
        folded.conv.weight[1] *= 1.05
    assert bnfold.verify(module, folded, (x,)).status == "fail"


@pytest.mark.parametrize("name", [n for n in STAYS if n != "a type without its numbers"])
def test_the_proof_does_not_trust_the_plan(name, monkeypatch):
    """A planner that lets everything go to the narrow side, or forward past a rounding."""
    monkeypatch.setattr(relocation, "why_unfit", lambda *_: None)
    program = exported(mixed(STAYS[name]), data(BF16))
    found = certify_program(PlannedProgram(program).apply_told().applied)
    assert any(each.problem for each in found if each.law == "cross")
