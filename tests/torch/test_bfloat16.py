"""Folds in bfloat16, where rounding hides in the outputs what the weights still show."""

from __future__ import annotations

import copy
import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402

import bnfold  # noqa: E402
from bnfold._command.cli import main  # noqa: E402
from bnfold._core.affine import AffineMap  # noqa: E402
from bnfold._judge import normal_form  # noqa: E402
from bnfold._torch.module.fold import Example  # noqa: E402

BF16 = torch.bfloat16
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if "var" in name:
                    tensor.abs_().add_(0.1)
    return module.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.head, self.norm = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = x + F.relu(self.norm_a(self.a(x)))
        return self.norm(self.head(F.silu(self.norm_b(self.b(x))).mean((2, 3))))


class Branches(nn.Module):
    """RepVGG: a program merges these, a module keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(self.norm_a(self.a(x)) + self.norm_b(self.b(x)) + self.norm(x))


def upsampling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 4, 2, 2, bias=False),
        nn.BatchNorm2d(4),
    )


def mixed() -> nn.Module:
    """Weights in bfloat16, norms in float32, as autocast leaves them."""
    module = lively(Residual()).to(BF16)
    for part in module.modules():
        if isinstance(part, NORMS):
            part.float()
    return module


MODELS = {
    "residual": lambda: lively(Residual()).to(BF16),
    "branches": lambda: lively(Branches()).to(BF16),
    "upsampling": lambda: lively(upsampling()).to(BF16),
    "mixed": mixed,
}
every_model = pytest.mark.parametrize("name", MODELS)


def inputs():
    return (torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)).to(BF16),)


def weights(model):
    """The tensors of a folded model that hold weights of several axes and numbers per channel."""
    state = model.state_dict if isinstance(model.state_dict, dict) else model.state_dict()
    return [t for t in state.values() if t.dim() > 1 and t[0].numel() > 1]


@every_model
def test_right_fold_passes(name):
    module, x = MODELS[name](), inputs()
    assert bnfold.verify(module, bnfold.fold(module, x), x).status == "pass"


@every_model
def test_right_fold_of_a_program_passes(name):
    program = torch.export.export(MODELS[name](), inputs())
    assert bnfold.verify(program, bnfold.fold(program)).status == "pass"


@every_model
def test_module_is_itself(name):
    module = MODELS[name]()
    assert bnfold.verify(module, copy.deepcopy(module), inputs()).status == "pass"


def test_folded_in_float32_and_rounded_passes():
    module, x = MODELS["residual"](), inputs()
    folded = bnfold.fold(copy.deepcopy(module).float(), (x[0].float(),)).to(BF16)
    assert bnfold.verify(module, folded, x).status == "pass"


@pytest.mark.parametrize("seed", range(5))
def test_folded_in_bfloat16_itself_passes(seed):
    """As torch's own function does it: every factor of the scale is rounded."""
    module, x = lively(upsampling(), seed).to(BF16), inputs()
    folded = copy.deepcopy(module)
    folded[0], folded[1] = fuse_conv_bn_eval(folded[0], folded[1]), nn.Identity()
    folded[3] = fuse_conv_bn_eval(folded[3], folded[4], transpose=True)
    folded[4] = nn.Identity()
    assert bnfold.verify(module, folded, x).status == "pass"


def test_weights_that_are_almost_a_power_of_two_apart_are_rounded_alike():
    """1.001·w is w again for most w in bfloat16: all of a channel is off to one side."""
    module, x = lively(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))), inputs()
    with torch.no_grad():
        module[1].running_var.fill_(1.0)
        module[1].weight.copy_(torch.linspace(0.98, 1.02, 8))
    folded = bnfold.fold(module.to(BF16), x)
    assert bnfold.verify(module, folded, x).status == "pass"


def test_command_writes_the_program(tmp_path):
    source, target = tmp_path / "m.pt2", tmp_path / "out.pt2"
    torch.export.save(torch.export.export(MODELS["upsampling"](), inputs()), source)
    result = CliRunner().invoke(main, [str(source), "-o", str(target)])
    assert result.exit_code == 0
    assert target.exists()


# --- what it must still notice -----------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, pytest.param(2, marks=pytest.mark.slow)])
@every_model
def test_one_wrong_channel_fails(name, channels):
    """1 % in any weight, in one channel or another; most of them no output shows."""
    module, x = MODELS[name](), inputs()
    folded = bnfold.fold(module, x)
    every = list(itertools.product(range(len(weights(folded))), (0, 3)))
    for number, channel in [one for k, one in enumerate(every) if channels == 2 or k % 4 in (0, 3)]:
        wrong = copy.deepcopy(folded)
        with torch.no_grad():
            weights(wrong)[number][channel] *= 1.01
        assert bnfold.verify(module, wrong, x).status == "fail", (number, channel)


@every_model
def test_one_wrong_channel_of_a_program_fails(name):
    program = torch.export.export(MODELS[name](), inputs())
    folded = bnfold.fold(program)
    with torch.no_grad():
        weights(folded)[0][1] *= 1.01
    assert bnfold.verify(program, folded).status == "fail"


def test_all_channels_wrong_alike_fails():
    module, x = MODELS["residual"](), inputs()
    folded = bnfold.fold(module, x)
    with torch.no_grad():
        folded.a.weight *= 1.01
    assert bnfold.verify(module, folded, x).status == "fail"


def test_a_dropped_epsilon_fails():
    module, x = MODELS["residual"](), inputs()
    dropped = copy.deepcopy(module)
    for part in (module.norm_a, module.norm_b):
        part.eps = 0.02
    assert bnfold.verify(module, bnfold.fold(dropped, x), x).status == "fail"


def test_a_bias_that_was_not_scaled_fails():
    module, x = MODELS["residual"](), inputs()
    folded = bnfold.fold(module, x)
    scale = module.norm_b.weight / (module.norm_b.running_var + module.norm_b.eps).sqrt()
    with torch.no_grad():
        folded.b.bias += module.b.bias * (1 - scale)
    assert bnfold.verify(module, folded, x).status == "fail"


def test_folding_that_is_wrong_itself_is_no_witness(monkeypatch):
    """A wrong law gives both models the same wrong weights; the outputs in float64 tell."""
    right = AffineMap.batch_norm

    def wrong(gamma, beta, mean, variance, _, axis):
        return right(gamma, beta, mean, variance, 0.0, axis)

    monkeypatch.setattr(AffineMap, "batch_norm", staticmethod(wrong))
    module, x = MODELS["residual"](), inputs()
    result = bnfold.verify(module, bnfold.fold(module, x), x)
    assert result.status == "inconclusive"
    assert any("folding in float64" in note for note in result.notes)


class Hidden(nn.Module):
    """A branch that a sigmoid hides, which is 1 whatever the branch says, beside one that shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.act, self.pool = nn.LeakyReLU(0.1), nn.AvgPool2d(3)
        self.last, self.seen = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=3)
        self.register_buffer("at", torch.tensor([0, 1, 2, 3]), persistent=False)

    def get_extra_state(self):
        return {"no": "tensor"}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        y = self.pool(self.act(self.norm(self.conv(x)))).index_select(1, self.at)
        return torch.sigmoid(0.01 * self.last(y) + 40) + self.seen(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "act", nn.Identity()),
        lambda module: setattr(module.act, "negative_slope", 0.11),
        lambda module: setattr(module, "pool", nn.MaxPool2d(3)),
        lambda module: setattr(module, "at", module.at.flip(0)),
        None,
    ],
    ids=["gone", "number", "kind", "indices", "none"],
)
def test_weights_say_nothing_of_models_that_run_other_operators(change):
    """The same weights, and an error in what is between them that no output shows."""
    module = Hidden().eval().to(BF16)
    x = (torch.randn(1, 4, 11, 11, generator=torch.Generator().manual_seed(0)).to(BF16),)
    wrong = bnfold.fold(module, x)
    if change is not None:
        change(wrong)
    result = bnfold.verify(module, wrong, x)
    assert result.status == ("pass" if change is None else "inconclusive")


def test_weights_under_other_names_are_the_same_weights():
    """They count by the operators that read them first, not by what they are called."""
    x = Example((torch.randn(1, 3, dtype=torch.float64),), {})
    one = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double().eval()
    other = nn.Sequential(nn.Identity(), *copy.deepcopy(one)).eval()
    forms = [normal_form.NormalForm.of(model, x) for model in (one, other)]
    assert list(forms[0].weights) != list(forms[1].weights)
    assert forms[0].operators == forms[1].operators
    assert normal_form.unexplained(*forms, BF16) == ""
    swapped = normal_form.NormalForm.of(nn.Sequential(*list(one)[::-1]).eval(), x)
    assert normal_form.unexplained(forms[0], swapped, BF16)
    shorter = normal_form.NormalForm.of(one[:1].eval(), x)
    assert normal_form.unexplained(forms[0], shorter, BF16) is None


@every_model
def test_the_models_given_are_not_changed(name):
    """A program holds the parameters of its module; both stay what they are."""
    module, x = MODELS[name](), inputs()
    program = torch.export.export(module, x)
    bnfold.verify(program, bnfold.fold(program))
    kinds = {t.dtype for t in module.state_dict().values() if t.is_floating_point()}
    assert torch.float64 not in kinds


@pytest.mark.parametrize("factor", [1.02, 1.2])
@pytest.mark.parametrize("dtype", [torch.float16, BF16])
def test_one_wrong_channel_of_two_programs_from_two_modules(dtype, factor):
    """Their parameters have other names: a bias that folding has made is the program's own."""
    module, x = lively(Residual()).to(dtype), (inputs()[0].to(dtype),)
    program, wrong = torch.export.export(module, x), bnfold.fold(module, x)
    assert bnfold.verify(program, torch.export.export(wrong, x)).status == "pass"
    with torch.no_grad():
        wrong.a.weight[1] *= factor
    assert bnfold.verify(program, torch.export.export(wrong, x)).status != "pass"
