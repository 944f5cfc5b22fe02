"""PyTorch's hardsigmoid has fixed numbers: a clamp becomes one where just these come out."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._core import bounded  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402

from .carrying import C, program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402

X = 4 * rand(C, C, C, C)


class Gate(nn.Module):
    """``x·g(x)``, and what follows."""

    def __init__(self, gate, after=None):
        super().__init__()
        self.gate, self.after = gate, after or nn.Identity()

    def forward(self, x):
        x = torch.tanh(x) * x  # Nothing takes a map in here.
        return self.after(x * self.gate(x))


def kinds(folded):
    nodes = (n for n in folded.graph.nodes if n.op == "call_function")
    return [str(n.target).split(".")[1] for n in nodes]


WHOLE = {
    "relu6, then div": lambda x: F.relu6(x + 3) / 6,
    "clamp": lambda x: (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x: F.hardtanh(x + 3.0, 0.0, 6.0) / 6,
    "mul first": lambda x: (x * 2 + 6).clamp(0, 12) / 12,
    "between 0 and 1": lambda x: (x / 6 + 0.5).clamp(0, 1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_clamp_becomes_the_hardsigmoid_that_it_is(name):
    folded = program(Gate(WHOLE[name]), X)
    found = [kind.rstrip("_") for kind in kinds(folded)]
    assert found == ["tanh", "mul", "hardsigmoid", "mul"]


def test_hard_swish_with_the_factor_behind_the_product():
    module = ready(Gate(lambda x: F.relu6(x + 3), nn.Conv2d(C, C, 1)))
    exported = torch.export.export(module, (X,))
    assert kinds(program(module, X)) == ["tanh", "mul", "hardsigmoid", "mul", "conv2d"]
    plan = bnfold.plan(exported)
    assert "turn relu6 into hardsigmoid" in [law for fold in plan.folds for law in fold.laws]
    assert plan.after["hardsigmoid"] == 1
    assert "relu6" not in plan.after


OTHERS = {
    "other slope": lambda x: (x + 2.5).clamp(0, 5) / 5,
    "other offset": lambda x: (x + 2).clamp(0, 6) / 6,
    "one bound": lambda x: (x + 3).clamp(min=0) / 6,
    "almost": lambda x: (x + 3.000001).clamp(0, 6) / 6,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_clamp_of_other_numbers_is_none(name):
    folded = program(Gate(OTHERS[name]), X)
    assert "hardsigmoid" not in kinds(folded)


def test_a_part_of_a_map_may_be_what_makes_the_numbers():
    """Of 3 − x the shift goes in, and what is left is one product instead of two operators."""
    folded = program(Gate(lambda x: (3 - x).clamp(0, 6) / 6), X)
    assert kinds(folded) == ["tanh", "mul", "mul", "hardsigmoid", "mul"]


def test_an_operator_that_writes_in_place_stays():
    """Without the sum it would write into what the product reads."""
    for gate in (lambda x: F.relu6(x + 3, inplace=True) / 6, lambda x: (x + 3).clamp_(0, 6) / 6):
        assert "add" in kinds(program(Gate(gate), X))
        exported = torch.export.export(Gate(gate), (X,))
        message = bnfold.plan(exported).kept[0].message
        assert "would write into a tensor that is read elsewhere" in message


def test_a_map_ahead_of_a_hardsigmoid_has_nowhere_to_go():
    for op in (F.hardsigmoid, nn.Hardsigmoid(inplace=True)):
        module = Gate(lambda x, op=op: op(2 * x + 1))
        exported = torch.export.export(module, (X,))
        assert program(module, X, folds=0) is not None
        (kept, *_) = bnfold.plan(exported).kept
        assert "its numbers are fixed" in kept.message


def test_a_map_behind_a_hardsigmoid_stays():
    module = Gate(lambda x: F.hardsigmoid(x) * 0.7 + 0.1)
    assert "hardsigmoid" in kinds(program(module, X))


def test_the_code_of_a_module_stays_as_it_is():
    module = ready(Gate(lambda x: F.relu6(x + 3), nn.Conv2d(C, C, 1)))
    done = fold(module, X, folds=0)
    assert any("its bounds cannot be changed" in kept.message for kept in done.plan.kept)


def test_relu6_alone_stays():
    module = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.ReLU6(), nn.Conv2d(C, C, 1)))
    assert kinds(program(module, X)) == ["conv2d", "hardtanh", "conv2d"]


@pytest.mark.parametrize("slope", [5.0, 6.05])
def test_a_clamp_that_would_be_a_wrong_hardsigmoid_fails_its_certificate(slope, monkeypatch):
    module = Gate(lambda x: (x + slope / 2).clamp(0, slope) / slope)
    monkeypatch.setattr(bounded, "_alike", lambda one, other: True)
    applied = PlannedProgram(torch.export.export(module, (X.float(),))).apply_told().applied
    monkeypatch.undo()
    certificates = certify_program(applied)
    assert any(each.law == "cross" and each.fails for each in certificates)
