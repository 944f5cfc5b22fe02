"""What the check of one fold or merge gives: a certificate, an error, or why it did not run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

_ENDLESS = (float("inf"),)


class Mismatch(Exception):
    """The folded graph is not of the form that a right fold gives."""


class Obstacle(Enum):
    """Why a check did not run. Its value is the text for the user."""

    SHAPE_UNKNOWN = "the shape of {} is not known"
    TYPE_UNKNOWN = "the type of {} is not known"
    TOO_LARGE = "{} is too large to be made up"
    NOT_DRAWABLE = "nothing can be drawn for {}"
    DOES_NOT_RUN = "it does not run by itself: {}"
    EMPTY = "{} puts out no numbers"
    NOT_FINITE = "{} puts out numbers that are not finite"
    EXHAUSTED = "{}"


@dataclass(frozen=True)
class Unchecked:
    """A check that did not run; it is never a difference of zero.

    ``about`` names the tensor, the operator or the error that the obstacle concerns.
    """

    obstacle: Obstacle
    about: str

    def __str__(self) -> str:
        """The reason in words."""
        return self.obstacle.value.format(self.about)


@dataclass(frozen=True)
class Certificate:
    """One fold or merge, checked.

    Attributes:
        graph: the path of its graph.
        into: the operator that took the maps in, by label.
        maps: the operators that it took in, by label.
        ulps: the largest deviation in units in the last place, beyond what float64 may lose.
        problem: what was wrong, or "".
        law: one of the laws that `Applied` names.
        probe: how far the new operators are from the old ones on real numbers, in units of what
            rounding explains; None where they were not run.
        unchecked: why the check did not run, or None if it ran.
        layers: the operators of the main graph, by label, whose folds rest on a check that did not
            run. Empty where the fold is in a body or a function.
    """

    graph: str
    into: str
    maps: tuple[str, ...]
    ulps: float
    problem: str = ""
    law: str = "absorb"
    probe: float | None = None
    unchecked: Unchecked | None = None
    layers: frozenset[str] = frozenset()

    @property
    def holds(self) -> bool:
        """Whether the fold's new weights were seen to be right."""
        return self.unchecked is None and not self.fails

    @property
    def fails(self) -> bool:
        """Whether the fold's new weights were seen to be wrong."""
        right = not self.problem and self.ulps <= 1.0
        return not right or (self.probe is not None and self.probe > 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "graph": self.graph,
            "into": self.into,
            "maps": list(self.maps),
            "law": self.law,
            "holds": self.holds,
            "unchecked": str(self.unchecked or ""),
            "ulps": self.ulps if np.isfinite(self.ulps) and not self.unchecked else None,
            "problem": self.problem,
            "probe": str(self.probe) if self.probe in _ENDLESS else self.probe,
        }
