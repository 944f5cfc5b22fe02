"""The weights that two models have once each is folded in float64.

In bfloat16 an output says little about a fold: every weight of the original moves it by up to 0.4 %
when it is rounded, and an error of 1 % in one channel drowns in that. Weights say more. Both models
are widened to float64 and folded, so that one that is folded and one that is not have the same
operators; then their weights may differ by roundings alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._torch.module.fold import Example, copied, prepare_module
from bnfold._torch.program.fold import PlannedProgram

Folded = nn.Module | ExportedProgram
# In units of the type's spacing at 1. A scale that was computed in the type itself, by var + ε, its
# root's reciprocal and γ, is off by 1.25 at most, a number that it multiplies by 0.5 besides.
_SCALE, _ROUNDED = 1.25, 0.5
# Numbers that are stored in the type and scaled by little more than a power of 2 are rounded alike.
_ALIKE = 0.3
# Channels are off by much the same, to either side: none by many times the usual, nor all to one.
_OUTSTANDING, _LEAN = 5.0, 0.75
# Of a bias, whose terms may cancel, against the largest of its tensor.
_BIAS = 4.0


def state(model: Folded) -> Mapping[str, Tensor]:
    """The parameters and buffers of a model by name."""
    return model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()


def folded_module(module: nn.Module, example: Example) -> nn.Module:
    """A module in float64, folded. ``example`` is widened.

    Raises:
        UsageError: it cannot be copied, exported or folded.
    """
    wide = nn.Module.double(copied(module))
    return prepare_module(wide, example).apply(inplace=True)


def folded_program(program: ExportedProgram, example: Example) -> ExportedProgram:
    """A program in float64, folded. ``example`` is widened.

    Raises:
        UsageError: it cannot be exported in float64.
    """
    try:
        wide = program.module().double()
        exported = torch.export.export(wide, example.args, dict(example.kwargs))
    except Exception as error:  # Whatever torch.export raises.
        raise UsageError(f"the program cannot be exported in float64: {error}") from error
    return PlannedProgram(exported).apply()


def apart(original: Folded, folded: Folded, dtype: torch.dtype) -> str | None:
    """What in the weights of two models, both in float64 and folded, roundings to a type do not
    explain: "" for nothing, None where the two do not have the same parameters.
    """
    wanted, made = state(original), state(folded)
    if {name: t.shape for name, t in wanted.items()} != {n: t.shape for n, t in made.items()}:
        return None
    for name, tensor in wanted.items():
        if tensor.is_floating_point():
            problem = _off(tensor.detach().double(), made[name].detach().double(), dtype)
            if problem:
                return f"{name} {problem}, which roundings to {str(dtype)[6:]} do not explain"
    return ""


def _off(wanted: Tensor, made: Tensor, dtype: torch.dtype) -> str:
    """Where a tensor is further from what it has to be than a few roundings, or ""."""
    if wanted.numel() == 0 or torch.equal(wanted, made):
        return ""
    info: Any = torch.finfo(dtype)
    difference = (made - wanted).abs()
    most = (_SCALE + _ROUNDED) * info.eps * wanted.abs() + info.tiny
    if wanted.dim() < 2:
        most = _BIAS * info.eps * wanted.abs().max() + info.tiny
    if not bool((difference <= most).all()):
        return f"is off by {difference.max():.2e}"
    for axis in range(wanted.dim() if wanted.dim() > 1 else 0):
        was, now = (t.movedim(axis, 0).flatten(1) for t in (wanted, made))
        alive = was.abs().amax(1) > 0
        at = _off_as_a_whole(was[alive], now[alive], info.eps)
        if at is not None:
            return f"is off by {100 * at[1]:.2g} % in slice {at[0]} of axis {axis}"
    return ""


def _off_as_a_whole(was: Tensor, now: Tensor, eps: float) -> tuple[int, float] | None:
    """The row of numbers whose scale is further from 1 than roundings explain, and by how much.

    A row whose n numbers were each rounded is as a whole off by less than 1/√n units, five times
    what is to be expected. What is more comes from the scale that it was multiplied with.
    """
    if len(was) == 0:
        return None
    was, now = (t / was.abs().amax(1, keepdim=True) for t in (was, now))
    squares = (was * was).sum(1)
    off = ((was * (now - was)).sum(1) / squares) / eps
    rounded = ((was**4).sum(1).sqrt() / squares).clamp(max=_ROUNDED)
    usual = off.abs().median()
    leans = off.median().abs() > _LEAN
    most = (_OUTSTANDING * usual).clamp(_ALIKE, _SCALE) + rounded
    if not bool(leans) and bool((off.abs() <= most).all()):
        return None
    worst = int((off.abs() - most).argmax())
    return worst, float(off[worst].abs()) * eps
