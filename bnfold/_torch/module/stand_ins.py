"""What stands where a module was: an Identity, a linear module, or a row of what it still does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfold._torch.module.formulas import Formula
from bnfold._torch.program.draft import fresh
from bnfold.nn import Remainder


@dataclass(frozen=True, eq=False)
class OneLinear:
    """One linear module, with its weights in float64, and how they are stored."""

    kind: type[nn.Module]
    options: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    learns: bool

    @property
    def name(self) -> str:
        """A name for a submodule."""
        return "linear" if self.kind is nn.Linear else "conv"

    def module(self) -> nn.Module:
        """The module, its weights rounded once."""
        place = {"device": self.weight.device, "dtype": self.dtype}
        made = self.kind(**self.options, bias=self.bias is not None, **place).eval()
        with torch.no_grad():
            for name, values in self.tensors():
                made.get_parameter(name).copy_(values).requires_grad_(self.learns)
        return made

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weight, and the bias if there is one, by their names in the module."""
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias

    def is_like(self, other: OneLinear) -> bool:
        """Whether another one is the same, bit by bit."""
        return (
            (self.kind, self.options, self.dtype) == (other.kind, other.options, other.dtype)
            and (self.bias is None) == (other.bias is None)
            and all(
                torch.equal(one, two)
                for (_, one), (_, two) in zip(self.tensors(), other.tensors(), strict=True)
            )
        )


Step = str | Formula | OneLinear
"""A submodule by its name, operators of a module's own code, or a new linear module."""


def become(module: nn.Module, steps: Sequence[Step], stands: nn.Module | None = None) -> None:
    """Make a module a row of some steps, in place: all its names see the change.

    No steps make an Identity, one linear module stands for itself, else it is a Remainder. What
    ``stands`` for a norm comes first. Hooks stay, and plain attributes too, for code that asks for
    a norm's ``num_features``.
    """
    old = module._modules
    (alone,) = steps if len(steps) == 1 else (None,)
    new: nn.Module = Remainder() if steps else stands or nn.Identity()
    if isinstance(alone, OneLinear):
        new = alone.module()
    else:
        if steps and stands is not None:
            new._modules[fresh("norm", old)] = stands
        for step, name in zip(steps, names(steps), strict=True):
            new._modules[name] = old[step] if isinstance(step, str) else step.module()
    state = new.__dict__
    for name, value in module.__dict__.items():
        plain = name not in state and isinstance(value, bool | int | float | str | tuple | None)
        if name in HOOKS or name == "training" or (plain and name != "forward"):
            state[name] = value
    module.__class__ = type(new)
    module.__dict__.clear()
    module.__dict__.update(state)


def names(steps: Sequence[Step]) -> list[str]:
    """The names of steps in a Remainder: submodules keep theirs."""
    taken = {step for step in steps if isinstance(step, str)}
    found = []
    for step in steps:
        name = step if isinstance(step, str) else fresh(step.name, taken)
        taken.add(name)
        found.append(name)
    return found


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
