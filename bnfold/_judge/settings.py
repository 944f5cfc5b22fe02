"""What a user may choose about a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnfold._core.preprocessing import Pairs
from bnfold._errors import UsageError
from bnfold._judge.tolerance import Fixed, is_number
from bnfold._run.drawing import USUAL, WantedInputs
from bnfold._run.providers import CPU, Provider
from bnfold._system.records import record

MOST_THREADS = 1024
"""The largest number of threads. A larger one is a mistake, and onnxruntime would start them."""


def _is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy; true and false are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@record(frozen=True)
class Settings:
    """What a user may choose.

    Attributes:
        seed: seed of drawn inputs and of the noise on weights.
        wanted: which inputs to draw.
        bisect: look for the first tensor that differs even where no output does.
        providers: where the folded model is run as deployed, its optimizations on.
        power: plant an error in every folded layer by itself, not in groups of layers.
        fixed: a tolerance in place of the measured one.
        threads: how many a session computes with, 0 for as many as there are cores.
        seconds: after how long to stop, None for never.
        frozen: take initializers that are listed as inputs for fixed: nobody overrides them.
        equal_dims: plan as if sizes of inputs that have one name were equal.
        trust: load a .pt2 file even if code in it is run.
        follow_links: read external data through any link.
        spread: count for each output how many elements differ by how much.
        prove: prove from the weights, ahead of a run, that two files are one function.
        timed: measure how much faster the folded model is.
        libraries: the absolute paths of libraries of custom operators, see `libraries.checked`.
        preprocessing: what is put in front of inputs of the original, by name; "" is the only one.
    """

    seed: int = 0
    wanted: WantedInputs = USUAL
    bisect: bool = False
    providers: Sequence[Provider] = (CPU,)
    power: bool = False
    fixed: Fixed | None = None
    threads: int = 0
    seconds: float | None = None
    frozen: bool = False
    equal_dims: bool = False
    trust: bool = False
    follow_links: bool = False
    spread: bool = False
    prove: bool = True
    libraries: tuple[Path, ...] = ()
    preprocessing: Pairs = ()
    timed: bool = False

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers that mean nothing."""
        if not _is_whole(self.seed) or not 0 <= self.seed < 1 << 64:  # PyTorch takes no more
            raise UsageError(f"a seed is a whole number from 0 to 2^64 - 1, not {self.seed!r}")
        if not _is_whole(self.threads) or not 0 <= self.threads <= MOST_THREADS:
            raise UsageError(
                f"threads are a whole number from 1 to {MOST_THREADS}, or 0 for as many as there "
                f"are cores, not {self.threads!r}"
            )
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise UsageError(f"a timeout is a number of seconds above 0, not {self.seconds!r}")


DEFAULT = Settings()
