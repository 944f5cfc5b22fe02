"""Certificates of programs: of wrong folds they fail, of what did not run they say so.

That they hold for right folds is asked by every test that folds a program (`merging.certified`).
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from torch import nn  # noqa: E402

from bnfold._command.cli import main  # noqa: E402
from bnfold._core.bounded import Clipped, Thresholded  # noqa: E402
from bnfold._core.pointwise import Homogeneous  # noqa: E402
from bnfold._judge.power import RestingFold  # noqa: E402
from bnfold._pipeline.modules import compare_programs  # noqa: E402
from bnfold._proof import torch_certificate  # noqa: E402
from bnfold._proof.evidence import Obstacle  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import certified, exported  # noqa: E402


class Net(nn.Module):
    """Branches that merge, norms behind all kinds of operators, and one carried to a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.up, self.norm_up = nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)
        self.far, self.norm_far = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.layer, self.scale = nn.LayerNorm(4), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        y = F.relu(self.norm_a(self.a(x)) + self.norm_b(self.b(x)))
        y = F.silu(self.norm_up(self.up(y)))
        y = self.norm_far(F.max_pool2d(self.far(y), 2))
        y = F.silu(y).mean((2, 3))
        return self.layer(F.silu(self.norm(self.head(y)))) * self.scale


def net(dtype=torch.float32):
    module = ready(Net(), dtype)
    with torch.no_grad():
        module.norm_far.weight.abs_()
    return exported(module, rand(2, 4, 8, 8, dtype=dtype))


def told(program):
    return PlannedProgram(program).apply_told().applied


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_right_folds_hold(dtype):
    laws = [each.law for each in certified(net(dtype))]
    assert {"merge", "absorb", "cross", "carry"} <= set(laws)


def test_one_channel_off_by_a_percent_is_named():
    """In any new parameter; every other certificate holds."""
    _, folded = told(net())
    state = folded.after.state_dict
    before = folded.before.state_dict
    new = [n for n, t in state.items() if n not in before or not torch.equal(before[n], t)]
    assert len(new) >= 8
    for name in new:
        wrong = copy.copy(folded.after)
        values = state[name].detach().clone()
        values[1] = values[1] * 1.01 + (values[1] == 0)
        wrong._state_dict = {**state, name: nn.Parameter(values)}
        found = certify_program([replace(folded, after=wrong)])
        assert [each.ulps > 20 for each in found].count(True) == 1, name
        assert [each.fails for each in found].count(True) == 1, name


def test_a_merged_weight_off_by_a_percent_fails():
    merged, _ = told(net())
    name = next(n for n, load in merged.exact_after.items() if load().ndim == 4)
    right = merged.exact_after[name]()
    wrong = right.copy()
    wrong[1] *= 1.01
    found = certify_program(
        [replace(merged, exact_after={**merged.exact_after, name: lambda: wrong})]
    )
    assert [each.fails for each in found] == [True]


def test_another_operator_fails():
    """A merged convolution with other pads: shapes agree, borders do not."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    merged, _ = told(exported(ready(Wide(), torch.float32), rand(2, 4, 8, 8, dtype=torch.float32)))
    wrong = copy.deepcopy(merged.after)
    (node,) = (n for n in wrong.graph.nodes if n.op == "call_function")
    node.args = (*node.args[:4], [2, 0], *node.args[5:])
    (found,) = certify_program([replace(merged, after=wrong)])
    assert found.fails


def test_what_code_without_gradients_writes_is_checked():
    """No output depends on the layer, but what the program stores does."""

    class Storing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.register_buffer("last", torch.zeros(2, 4, 3, 3))

        def forward(self, x):
            y = self.norm(self.conv(x))
            with torch.no_grad():
                self.last.copy_(y)
            return x + 1

    # Exported with gradients, so that the code without them is an operator of its own.
    x = rand(2, 4, 3, 3, dtype=torch.float32)
    program = torch.export.export(ready(Storing(), torch.float32), (x,))
    assert "wrap_with_set_grad_enabled" in str(program.graph)
    (right,) = certify_program(told(program))
    assert right.holds
    applied = told(program)
    weight = applied[-1].after.state_dict["conv.weight"]
    with torch.no_grad():
        weight.mul_(3)
    (wrong,) = certify_program(applied)
    assert wrong.fails


class Crossing(nn.Module):
    """A norm that goes across an operator to the convolution behind it."""

    def __init__(self, op) -> None:
        super().__init__()
        self.norm, self.conv, self.op = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), op

    def forward(self, x):
        return self.conv(self.op(self.norm(F.relu(x))))


def crossing(op=lambda x: x.mean(3, keepdim=True)):
    module = ready(Crossing(op), torch.float32)
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([1.5, -0.5, 2.0, -1.0]))
    return exported(module, rand(2, 4, 8, 8, dtype=torch.float32))


def test_a_law_that_is_wrong_fails(monkeypatch):
    """Neither shifts nor negative factors pass a Relu."""
    monkeypatch.setattr(Homogeneous, "_check", lambda self, map_: None)
    applied = told(crossing(F.relu))
    found = {each.law: each for each in certify_program(applied)}
    assert found["cross"].fails


@pytest.mark.parametrize(
    "op",
    [nn.Threshold(0.25, -3.0), nn.Threshold(-30.0, -50.0), nn.ReLU6(), nn.Hardtanh(-40.0, 60.0)],
    ids=str,
)
def test_a_number_that_moved_a_part_in_a_thousand_too_far_fails(op, monkeypatch):
    """Far from what is drawn around 0, too."""
    module = ready(Numbered(op), torch.float32)
    program = exported(module, rand(2, 4, 8, 8, dtype=torch.float32))
    assert all(each.holds for each in certify_program(told(program)))
    for law in (Clipped, Thresholded):
        right = law._edit

        def wrong(self, moved, right=right):
            return right(self, lambda number: moved(number) * 1.001)

        monkeypatch.setattr(law, "_edit", wrong)
    found = {each.law: each for each in certify_program(told(program))}
    assert found["cross"].fails


class Numbered(nn.Module):
    """A number times and another plus, behind an operator that has numbers of its own."""

    def __init__(self, op) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(4, 4, 1), op

    def forward(self, x):
        return self.op(self.conv(x)) * 1.7 + 0.4


# --- what did not run ---------------------------------------------------------------------------


def spoiled(applied, name, values):
    """The program before with other values of a parameter."""
    before = copy.copy(applied.before)
    before._state_dict = {**before.state_dict, name: nn.Parameter(values)}
    return replace(applied, before=before)


def unshaped(applied):
    before = copy.deepcopy(applied.before)
    for node in before.graph.nodes:
        if node.op == "call_function":
            node.meta.pop("val")
    return replace(applied, before=before)


def test_what_cannot_be_drawn_is_unchecked():
    _, folded = told(crossing())
    found = {each.law: each for each in certify_program([unshaped(folded)])}
    assert found["cross"].unchecked.obstacle is Obstacle.NOT_DRAWABLE
    assert not found["cross"].holds
    assert not found["cross"].fails
    assert found["cross"].layers == {"conv", "norm"}


def test_what_is_too_large_is_unchecked(monkeypatch):
    monkeypatch.setattr(torch_certificate, "_LARGEST", 10)
    found = certify_program(told(crossing()))
    assert found
    assert {each.unchecked.obstacle for each in found} == {Obstacle.TOO_LARGE}


def test_what_is_not_finite_is_unchecked():
    _, folded = told(crossing())
    weight = folded.before.state_dict["conv.weight"]
    wrong = spoiled(folded, "conv.weight", torch.full_like(weight, float("nan")))
    found = {each.into: each for each in certify_program([wrong]) if each.law == "absorb"}
    assert [each.unchecked.obstacle for each in found.values()] == [Obstacle.NOT_FINITE]


def test_what_does_not_run_is_unchecked(monkeypatch):
    _, folded = told(crossing())
    before = copy.deepcopy(folded.before)
    (node,) = (n for n in before.graph.nodes if "mean" in n.name and n.op == "call_function")

    def refuse(*given):
        raise RuntimeError("no kernel")

    node.target = refuse
    found = {each.law: each for each in certify_program([replace(folded, before=before)])}
    assert found["cross"].unchecked.obstacle is Obstacle.DOES_NOT_RUN


def test_a_fold_that_is_unchecked_has_to_show():
    """Its layer is multiplied by 0: nothing of it shows."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.layers = (
                nn.Conv2d(4, 4, 1),
                nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))),
            )

        def forward(self, x):
            return self.layers(x) + self.hidden(x) * (x.sum() - x.sum())

    program = exported(ready(Hidden(), torch.float32), rand(2, 4, 8, 8, dtype=torch.float32))
    assert compare_programs(program, program, 0).status == "pass"
    for layer, status in (("hidden", "inconclusive"), ("layers.2", "pass")):
        resting = [RestingFold("fold", {layer})]
        result = compare_programs(program, program, 0, False, resting)
        assert result.status == status
        assert any("is unchecked" in note for note in result.notes) == (status != "pass")


# --- the command --------------------------------------------------------------------------------


def test_the_command_tells_them(tmp_path, monkeypatch):
    source = tmp_path / "m.pt2"
    torch.export.save(net(), source)
    run = CliRunner().invoke(main, [str(source), "--output-format", "json"])
    assert run.exit_code == 0
    certificates = json.loads(run.stdout)["verification"]["certificates"]
    assert len(certificates) >= 6
    assert all(each["holds"] for each in certificates)
    monkeypatch.setattr(torch_certificate, "_LARGEST", 100)
    run = CliRunner().invoke(main, [str(source)])
    assert " hold, 0 fail, " in run.stdout
    assert "too large to be made up" in run.stdout
