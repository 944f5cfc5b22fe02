"""What tests of merging in exported programs ask: fewer operators, the same function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import bnfold
from bnfold._proof.evidence import Certificate
from bnfold._proof.torch_certificate import certify_program
from bnfold._torch.program.fold import PlannedProgram

from .folding import assert_close, outputs_of, rand, ready, wide


class Net(nn.Module):
    """Parts, and code that brings them together."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.code = forward

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def ops(program: ExportedProgram) -> list[str]:
    return [
        str(node.target.__name__).partition(".")[0]
        for node in program.graph.nodes
        if node.op == "call_function"
    ]


def exported(module: nn.Module, x: Tensor, **options: Any) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, (x.clone(),), **options)


def same(program: ExportedProgram, folded: ExportedProgram, x: Tensor, within: float) -> None:
    """By PyTorch, in float64, on these inputs and on others of their size."""
    modules = [wide(each) for each in (program, folded)]
    for seed in (0, 1):
        args = (x if seed == 0 else rand(*x.shape, dtype=x.dtype, seed=seed + 5).to(x),)
        wanted, made = (outputs_of(module, args, {}) for module in modules)
        assert_close(wanted, made, within)


def fold(module: nn.Module, x: Tensor, within: float = 1e-10, **options: Any) -> ExportedProgram:
    """Fold what a module exports to, compare, and fold again."""
    program = exported(module, x, **options)
    text = str(program)
    plan, folded = planned_and_folded(program)
    assert str(program) == text
    same(program, folded, x, within)
    assert dict(Counter(ops(program))) == plan.before
    assert bnfold.plan(folded).folds == ()
    return folded


def merges(module: nn.Module, x: Tensor, *left: str, **options: Any) -> ExportedProgram:
    """Fold to these operators and no others."""
    folded = fold(ready(module, x.dtype), x, **options)
    assert ops(folded) == list(left)
    return folded


def apart(module: nn.Module, x: Tensor, *codes: str, **options: Any) -> None:
    """Nothing merges, for these reasons."""
    module = ready(module, x.dtype)
    fold(module, x, **options)
    plan = bnfold.plan(exported(module, x, **options))
    assert not [fold for fold in plan.folds if fold.merges], plan.folds
    assert [kept.code for kept in plan.kept if kept.kind == "merge"] == list(codes), plan.kept


def planned_and_folded(program: ExportedProgram) -> tuple[bnfold.Plan, ExportedProgram]:
    """What ``bnfold.plan`` and ``bnfold.fold`` give for a program, all of whose certificates hold.
    It is of one reading: most of the time goes there.
    """
    planned = PlannedProgram(program)
    told = planned.apply_told()
    assert [each for each in certify_program(told.applied) if not each.holds] == []
    return planned.plan, told.program


def certified(program: ExportedProgram) -> list[Certificate]:
    """The certificates of what folding does to a program, all of which hold."""
    found = list(certify_program(PlannedProgram(program).apply_told().applied))
    assert [each for each in found if not each.holds] == []
    return found
