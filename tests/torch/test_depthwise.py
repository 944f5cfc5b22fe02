"""``depthwise=True`` for modules and programs: norms that nothing takes in go, too."""

from __future__ import annotations

import copy
import io
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402
from bnfold.nn import Remainder, ScaleShift  # noqa: E402

from ..cli.command import bnfold as command  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402

NORMS = {
    "matrix": (nn.BatchNorm1d(4), (4, 4), ScaleShift, ["mul", "add"]),
    "row": (nn.BatchNorm1d(4), (2, 4, 4), nn.Conv1d, ["conv1d"]),
    "image": (nn.BatchNorm2d(4), (4, 4, 4, 4), nn.Conv2d, ["conv2d"]),
    "volume": (nn.BatchNorm3d(4), (2, 4, 4, 4, 4), nn.Conv3d, ["conv3d"]),
    "no parameters": (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 3), nn.Conv2d, ["conv2d"]),
    "one channel": (nn.BatchNorm2d(1), (2, 1, 3, 3), nn.Conv2d, ["conv2d"]),
    "instances": (
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 3, 3),
        nn.Conv2d,
        ["conv2d"],
    ),
}


def between(norm: nn.Module) -> nn.Module:
    return ready(nn.Sequential(nn.Tanh(), copy.deepcopy(norm), nn.Sigmoid()))


@pytest.mark.parametrize("name", NORMS)
def test_modules(name):
    norm, shape, kind, _ = NORMS[name]
    module, x = between(norm), rand(*shape)
    fold(module, x, folds=0)
    done = fold(module, x, folds=1, codes=[], depthwise=True, others=((rand(*shape, seed=3),),))
    made = done.module[1]
    assert type(made) is kind and not made.training
    assert list(done.module.state_dict()) == ["1.weight", "1.bias"]
    assert all(each.requires_grad for each in made.parameters())
    if kind is not ScaleShift:
        assert made.groups == made.in_channels == made.out_channels == shape[1]
    assert made(rand(*shape)).shape == shape
    assert done.plan.folds[0].rewrites


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_programs(name, decomposed):
    norm, shape, _, wanted = NORMS[name]
    module, x = between(norm), rand(*shape)
    program = torch.export.export(module, (x,))
    program = program.run_decompositions() if decomposed else program
    planned = PlannedProgram(program, depthwise=True)
    told = planned.apply_told()
    operators = [n.target for n in told.program.graph.nodes if n.op == "call_function"]
    names = [str(target).split(".")[1] for target in operators]
    assert [name for name in names if name != "view"] == ["tanh", *wanted, "sigmoid"]
    assert torch.allclose(told.program.module()(x), module(x), atol=1e-12)
    certificates = certify_program(told.applied)
    assert certificates and all(each.holds for each in certificates)
    assert planned.plan == bnfold.plan(program, depthwise=True)
    again = bnfold.fold(program, depthwise=True)
    assert torch.equal(again.module()(x), told.program.module()(x))


def test_a_wrong_number_in_a_program_is_seen():
    program = torch.export.export(between(nn.BatchNorm2d(4)), (rand(2, 4, 3, 3),))
    told = PlannedProgram(program, depthwise=True).apply_told()
    name = next(name for name in told.program.state_dict if name.endswith("weight"))
    with torch.no_grad():
        told.program.state_dict[name][1] *= 1 + 1e-10
    assert not all(each.holds for each in certify_program(told.applied))


def test_the_command(tmp_path):
    path, out = tmp_path / "m.pt2", tmp_path / "f.pt2"
    module, x = between(nn.BatchNorm2d(4)).float(), rand(2, 4, 3, 3, dtype=torch.float32)
    torch.export.save(torch.export.export(module, (x,)), path)
    assert command(path, "--check").code == 0
    assert command(path, "--check", "--no-batchnorm").code == 1
    done = command(path, "--no-batchnorm", "-o", out)
    assert done.code == 0 and "certificates: 1 of 1 hold" in done.lines
    assert "rewrote 1 norm that nothing takes in" in done.lines
    made = torch.export.load(out).module()
    assert torch.allclose(made(x), module(x), atol=1e-6)


class NormAct(nn.BatchNorm2d):
    """A norm and an activation in one module, as timm has them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class ActNorm(NormAct):
    def forward(self, input: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, self.act(input))


def test_a_norm_with_an_activation():
    x = rand(2, 4, 3, 3)
    done = fold(between(NormAct(4)), x, folds=1, depthwise=True)
    assert type(done.module[1]) is Remainder
    assert [type(part) for part in done.module[1]] == [nn.Conv2d, nn.ReLU]
    # Behind the activation nothing can stand.
    fold(between(ActNorm(4)), x, folds=0, codes=["not-a-module"], depthwise=True)


class Several(nn.Module):
    """One norm in two places, on data of two ranks if wanted."""

    def __init__(self, flat: bool, scaled: bool = False) -> None:
        super().__init__()
        self.norm, self.flat = nn.BatchNorm1d(4), flat
        self.scale = nn.BatchNorm1d(4) if scaled else nn.Identity()

    def forward(self, x):
        first = self.scale(self.norm(x.tanh())).sigmoid()
        return self.norm(first.mean(2) if self.flat else first).sigmoid()


def test_a_norm_that_is_called_twice():
    x = rand(2, 4, 3)
    done = fold(ready(Several(flat=False)), x, folds=2, depthwise=True)
    assert type(done.module.norm) is nn.Conv1d
    fold(ready(Several(flat=True)), x, folds=0, depthwise=True)
    done = fold(ready(Several(flat=False, scaled=True)), x, folds=3, depthwise=True)
    assert type(done.module.norm) is type(done.module.scale) is nn.Conv1d


def test_what_the_norm_would_take_in_goes_along():
    module = ready(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()))
    done = fold(module, rand(2, 4, 3, 3), folds=2, codes=[], depthwise=True)
    assert [type(part) for part in done.module] == [nn.Tanh, nn.Conv2d, nn.Identity, nn.ReLU]


def test_what_folds_still_folds():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh()))
    done = fold(module, rand(2, 4, 3, 3), folds=1, depthwise=True)
    assert isinstance(done.module[1], nn.Identity)


class Own(nn.Module):
    """A norm in a module's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return nn.functional.batch_norm(
            x.tanh(), self.norm.running_mean, self.norm.running_var, self.norm.weight
        )


def test_norms_that_stay_say_why():
    x = rand(2, 4, 3, 3)
    fold(ready(Own()), x, folds=0, codes=["not-a-module"], depthwise=True)
    tracked = ready(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4, track_running_stats=False)))
    fold(tracked, x, folds=0, codes=["untracked-statistics"], depthwise=True)
    kept = between(nn.BatchNorm2d(4))
    fold(kept, x, folds=0, codes=["kept-value"], depthwise=True, keep=("1.weight",))
    assert isinstance(fold(kept, x, depthwise=True, keep=("1",)).module[1], nn.Conv2d)


def test_frozen_hooked_and_verified():
    """Hooks, names and what learns stay; another fold finds nothing; the verdict is a pass."""
    module, x = between(nn.BatchNorm2d(4)).float(), rand(2, 4, 3, 3, dtype=torch.float32)
    module[1].weight.requires_grad_(False)
    seen: list[Any] = []
    module[1].register_forward_hook(lambda *given: seen.append(given[2]))
    folded = bnfold.fold(module, (x,), depthwise=True)
    assert not folded[1].weight.requires_grad and folded[1].num_features == 4
    folded(x)
    module(x)
    assert len(seen) >= 2 and torch.allclose(seen[-2], seen[-1], atol=1e-6)
    folded[1]._forward_hooks.clear()
    module[1]._forward_hooks.clear()
    assert bnfold.verify(module, folded, (x,)).status == "pass"
    assert not bnfold.plan(folded, (x,), depthwise=True).folds
    again = bnfold.refold(folded, module.state_dict())
    assert torch.equal(again(x), folded(x))


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3), (2, 4, 1, 2, 2, 2)])
def test_the_module_of_ours(shape):
    made = ready(ScaleShift(4))
    x = rand(*shape)
    view = (1, 4, *(1,) * (len(shape) - 2))
    wanted = x * made.weight.view(view) + made.bias.view(view)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    exported = torch.export.export(made, (x,)).module()
    loaded = torch.load(file, weights_only=False)
    for net in (made, torch.jit.script(made), copy.deepcopy(made), loaded, exported):
        assert torch.equal(net(x), wanted)
    assert "ScaleShift(4)" in repr(made)


def test_a_plan_names_the_operators_of_pytorch():
    """What is left is counted under the names that the program has."""

    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.last(self.bn(self.conv(x).relu()).sigmoid()).sigmoid()

    x = rand(4, 4, 4, 4)
    shift = nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    given = [torch.export.export(ready(net), (x,)) for net in (Left(), shift)]
    for program in (*given, *(each.run_decompositions() for each in given)):
        for depthwise in (False, True):
            plan = bnfold.plan(program, depthwise=depthwise)
            graph = bnfold.fold(program, depthwise=depthwise).graph
            made = Counter(
                n.target.__name__.partition(".")[0] for n in graph.nodes if n.op == "call_function"
            )
            assert {**plan.after, "getitem": 0} == {**made, "getitem": 0}
            assert made["add"] == ("relu" not in made)  # The scale goes, the shift stays.
    after = bnfold.plan(ready(Left()), (x,), depthwise=True).after
    assert after == {"conv2d": 3, "relu": 1, "sigmoid": 2}
