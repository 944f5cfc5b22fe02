"""A check that did not run: a value of its own, never a difference of zero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Obstacle(Enum):
    """What kept a check from running; its value makes the words of it."""

    SHAPE_UNKNOWN = "the shape of {} is not known"
    TOO_LARGE = "{} is too large to be made up"
    NOT_DRAWABLE = "nothing can be drawn for {}"
    DOES_NOT_RUN = "it does not run by itself: {}"
    EMPTY = "{} puts out no numbers"
    NOT_FINITE = "{} puts out numbers that are not finite"
    EXHAUSTED = "{}"


@dataclass(frozen=True)
class Unchecked:
    """Why a check did not run: the obstacle, and the tensor, operator or error that it is about."""

    obstacle: Obstacle
    about: str

    def __str__(self) -> str:
        """The reason in words."""
        return self.obstacle.value.format(self.about)
