"""Why an output was judged as it was, where its figures do not say it."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Cause(Enum):
    """A cause; its value makes the words of it, with what a check says of it filled in."""

    RANDOM = "it depends on random numbers that the model draws"
    NOT_A_TENSOR = "not a tensor"
    MISMATCH = "{}"
    MISMATCH_BY_ROUNDING = "{}, as rounding alone causes"
    EMPTY = "empty"
    NOT_FINITE = "no finite value"
    ROUNDING_ALONE = "rounding alone changes it"
    CONSTANT = "constant"
    POWER_UNKNOWN = "power not known"
    NOT_REACHED = "no folded layer reaches this output"
    AS_ASKED_FOR = "within what was asked for, as an error of 1 % in some layers would be"
    HIDDEN_ERRORS = "a planted error in some folded layers does not show here; pass real inputs"
    SEEN_AHEAD = "compared ahead of its {}"
    DIFFERS_AHEAD = "ahead of its {} the two differ by {:.2e}, and {:.2e} is allowed there"
    NEXT_TO_FLOAT64 = "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    ORIGINAL_INACCURATE = (
        "the original is the inaccurate one: "
        "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    )
    ARITHMETIC = (
        "in float64 the two agree: "
        "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    )
    TIED = "other indices where the values tie"
    TIED_AND = "other indices where the values tie; {}"
    IN_FLOAT64 = "in float64"

    def words(self, about: tuple[Any, ...]) -> str:
        """The cause in words."""
        return str(self.value).format(*about)
