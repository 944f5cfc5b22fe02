"""Networks in which a norm has to be carried across an operator, and norms of chosen kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .folding import assert_close, outputs_of, ready, wide
from .merging import planned_and_folded

C = 4
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def normed(norm: nn.Module, kind: str) -> nn.Module:
    """A norm whose map is of a kind: "any", "positive" (with shifts), "scale" (of both signs),
    "positive scale", "shift".
    """
    with torch.no_grad():
        if "positive" in kind:
            norm.weight.abs_()
        if "scale" in kind:
            norm.bias.zero_()
            norm.running_mean.zero_()
        if kind == "shift":
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    return norm


class Behind(nn.Module):
    """conv → operator → norm."""

    def __init__(self, op: Callable[[Tensor], Any], channels: int, rank: int, conv: nn.Module):
        super().__init__()
        # A module in a table of tests would keep what one test leaves in it.
        self.op, self.conv, self.norm = copy.deepcopy(op), conv, NORMS[rank](channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.op(self.conv(x)))


class Ahead(nn.Module):
    """norm → operator → conv; the norm reads what nothing absorbs behind."""

    def __init__(self, op: Callable[[Tensor], Any], rank: int, conv: nn.Module) -> None:
        super().__init__()
        self.op, self.conv, self.norm = op, conv, NORMS[rank](C)

    def forward(self, x: Tensor) -> Any:
        return self.conv(self.op(self.norm(x)))


def behind(
    op: Callable[[Tensor], Any],
    kind: str = "any",
    channels: int = C,
    rank: int = 4,
    wide: int = C,
) -> nn.Module:
    module = ready(Behind(op, channels, rank, nn.Conv2d(C, wide, 1)))
    normed(module.norm, kind)
    return module


def ahead(
    op: Callable[[Tensor], Any], kind: str = "any", conv: nn.Module | None = None, rank: int = 4
) -> nn.Module:
    module = ready(Ahead(op, rank, conv or nn.Conv2d(C, 3, 2, bias=False)))
    normed(module.norm, kind)
    return module


def program(module: nn.Module, *args: Tensor, folds: int | None = None, **options: Any) -> Any:
    """Export, fold and compare in float64."""
    exported = torch.export.export(module, args, **options)
    plan, folded = planned_and_folded(exported)
    assert_close(*(outputs_of(wide(each), args, {}) for each in (exported, folded)))
    if folds is not None:
        assert sum(len(fold.nodes) for fold in plan.folds) == folds, (plan.folds, plan.kept)
    return folded
