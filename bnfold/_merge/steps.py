"""Steps of a linear function of channels × space: what an operator is of the tensor it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.reasons import Reason
from bnfold._merge.kernels import Kernel
from bnfold._merge.windows import Window
from bnfold._merge.work import Work


@dataclass(frozen=True)
class Weighted:
    """A linear operator with weights: its kernel, and the type they are stored in.

    Channels are on the axis ahead of those of space, those of a matrix product on the last.
    """

    kernel: Kernel
    dtype: np.dtype[Any]
    data: int = 0


@dataclass(frozen=True)
class Pool:
    """An average over fixed windows."""

    windows: tuple[Window, ...]
    data: int = 0


@dataclass(frozen=True)
class Mapped:
    """A per-channel affine operator."""

    map: AffineMap
    steps: int
    data: int = 0


@dataclass(frozen=True)
class Passed:
    """An operator that hands its input through."""

    data: int = 0


@dataclass(frozen=True)
class Blocked:
    """What would be a step of its input, but for a reason. ``ends`` says whether it is of interest
    at the end of a branch alone: an activation.
    """

    reason: Reason
    data: int = 0
    ends: bool = False


LinearStep = Weighted | Pool | Mapped | Passed | Blocked


@dataclass(frozen=True)
class LinearForm:
    """What an operator is of the tensors that it reads: a step of one of them; or their sum, with
    ``signs`` of 1 or −1; or neither.
    """

    step: LinearStep | None = None
    signs: tuple[int, ...] | None = None


NEITHER = LinearForm()


def cost(kernel: Kernel, taken: LinearStep) -> Work:
    """What one step costs for one of its own output positions."""
    moved = kernel.inputs * kernel.strides + kernel.outputs
    if isinstance(taken, Weighted):
        return Work(kernel.size, moved, kernel.size)
    if isinstance(taken, Pool):
        return Work(kernel.size, moved)
    return Work(kernel.outputs * taken.steps, moved) if isinstance(taken, Mapped) else Work()
