"""How two models are to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold._errors import UsageError
from bnfold._verify._inputs import USUAL, Wanted
from bnfold._verify._providers import CPU, Provider
from bnfold._verify._tolerance import Fixed


@dataclass(frozen=True)
class Settings:
    """What a user may choose.

    Attributes:
        seed: seed of drawn inputs and of the noise on weights.
        wanted: which inputs to draw.
        bisect: look for the first tensor that differs even where no output does.
        providers: where the folded model is run as deployed, its optimizations on.
        power: plant an error in every folded layer by itself, not in a few groups of them.
        fixed: a tolerance in place of the one that is measured.
        threads: how many a session computes with, 0 for as many as there are cores.
        seconds: after how long to stop, None for never.
    """

    seed: int = 0
    wanted: Wanted = USUAL
    bisect: bool = False
    providers: Sequence[Provider] = (CPU,)
    power: bool = False
    fixed: Fixed | None = None
    threads: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers that mean nothing."""
        if self.threads < 0:
            raise UsageError("a session needs 1 thread or more; 0 takes as many as there are cores")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError("a timeout is a number of seconds above 0")


DEFAULT = Settings()
