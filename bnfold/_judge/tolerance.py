"""How far an output may be off.

The tolerance is measured on the original: P is the largest change of an output over a few draws in
which every weight moves by at most one unit in the last place. A right fold rounds each new weight
once, so it moves the output by about that much; ``tolerance = FACTOR · max(P, floor)``. Where the
values of an output are of very different sizes, each size has a P and a tolerance (`size_groups`).

One draw can underrate P, most of all where weights are few, so a difference is held against
eighteen more before it counts as a failure; more draws only ever widen the tolerance. On 5,000
right folds of small random models three draws alone gave one false alarm, which further ones
cleared; against twenty draws, 1,000 such folds stayed below 1.4 P. Four real models with twelve
seeds stayed at or below 2 P of three draws. The verdicts on right and wrong folds are printed by
``python -m tests.verify.calibration 1000``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from dataclasses import field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bnfold._errors import UsageError
from bnfold._judge.difference import distance, gaps, is_float, magnitude
from bnfold._run.noise import Array
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._judge.sensitivity import InputSensitivity, Sensitivity

FACTOR = 3.0
"""How many times its own rounding noise a fold may move an output."""
DEPLOYED = 10.0
"""How many times the tolerance a runtime may move an output. Its kernels sum in other orders."""
DRAWS = 1
"""Noise draws for every comparison."""
MORE_DRAWS = 18
"""Further draws before a difference counts as a failure."""
FLOOR = 1.0
"""Least rounding noise, in units in the last place of the largest output value."""
WIDEST = 10.0
"""How many times the tolerance rounding may explain where it is measured on inputs alone."""
FALLBACK = {2: 2e-2, 4: 1e-4, 8: 1e-11}
"""Tolerance relative to the largest output value, by element width in bytes, where P is unknown."""


class Measured(NamedTuple):
    """The difference that matters most, the tolerance there, and their ratio."""

    difference: float
    tolerance: float
    ratio: float


@record(frozen=True)
class Fixed:
    """A tolerance that a user has chosen: ``|left − right| ≤ atol + rtol·|left|``, as numpy's
    ``allclose`` has it; ``left`` is the output of the original.

    ``source`` is the file that says so, if it is none of the command's own options.
    """

    rtol: float = 0.0
    atol: float = 0.0
    source: str = ""

    @classmethod
    def of(cls, rtol: float | None, atol: float | None, source: str = "") -> Fixed | None:
        """What a user asks for; None where nothing is.

        Raises:
            UsageError: one is not a number, is negative or is not finite.
        """
        if rtol is None and atol is None:
            return None
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is None:
                continue
            if not is_number(value) or not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name} is a number that is 0 or more, not {value!r}")
        return cls(rtol or 0.0, atol or 0.0, source)


@record(frozen=True)
class Tolerance:
    """How far outputs may be off.

    Attributes:
        sensitivity: how the original moves with its weights; None where they cannot be moved.
        fixed: the tolerance that the user has chosen, or None.
        wider: a factor for inner tensors, whose draws are few.
        width: bytes of the narrowest weight.
        floor: the least rounding noise, see `FLOOR`.
        by_inputs: how the original moves with its inputs, where its weights cannot be moved.
        unmoved: the numbers of the outputs that no weight reaches that can be moved.
    """

    sensitivity: Sensitivity | None
    fixed: Fixed | None = None
    wider: float = 1.0
    width: int = 8
    floor: float = FLOOR
    by_inputs: InputSensitivity | None = None
    unmoved: Collection[int] = ()
    _largest: dict[tuple[int, int], tuple[Array, float]] = field(default_factory=dict, repr=False)

    def allowed(self, at: tuple[int, int], expected: Array) -> float:
        """The largest difference that is allowed anywhere in an output, given by the numbers of
        input set and output; 0 for integers and booleans.
        """
        return float(self.allowances(at, expected).max())

    def allowances(self, at: tuple[int, int], expected: Array) -> Array:
        """The largest difference that is allowed in each size group of an output."""
        if not is_float(expected):
            return np.zeros(1)
        if self.fixed is not None:
            return np.array([self.fixed.atol + self.fixed.rtol * self._magnitude(at, expected)])
        if self.sensitivity is None or at[1] in self.unmoved:
            part = FALLBACK[min(self.width, expected.dtype.itemsize)]
            return np.array([part * self._magnitude(at, expected) * self.wider])
        groups = self.sensitivity.groups.get(at)
        sizes = np.array([self._magnitude(at, expected)]) if groups is None else groups.sizes
        floors = self.floor * np.spacing(sizes.astype(expected.dtype)).astype(np.float64)
        noise: Array = np.maximum(self.sensitivity.rounding.get(at, 0.0), floors)
        return FACTOR * self.wider * noise

    def _magnitude(self, at: tuple[int, int], expected: Array) -> float:
        """The largest value of an output. It is computed once."""
        known = self._largest.get(at)
        if known is None or known[0] is not expected:
            known = self._largest[at] = expected, magnitude(expected)
        return known[1]

    def measure(self, at: tuple[int, int], expected: Array, found: Array) -> Measured:
        """Compare two outputs without a mismatch; measure their difference by the tolerance."""
        if not is_float(expected):
            return worst(np.array([distance(expected, found)]), np.zeros(1))
        return self.measure_differences(at, expected, gaps(expected, found))

    def measure_differences(self, at: tuple[int, int], expected: Array, apart: Array) -> Measured:
        """Measure some differences by the tolerance of a float output.

        The differences may be those of another pair of outputs.
        """
        if self.fixed is not None:
            sizes = np.where(np.isfinite(expected), np.abs(expected.astype(apart.dtype)), 0.0)
            allowances = self.fixed.atol + self.fixed.rtol * sizes
            if not apart.size:
                return Measured(0.0, self.fixed.atol, 0.0)
            return worst(apart.reshape(-1), allowances.reshape(-1))
        measured = self.sensitivity is not None and at[1] not in self.unmoved
        groups = self.sensitivity.groups.get(at) if self.sensitivity and measured else None
        peaks = np.array([apart.max(initial=0.0)]) if groups is None else groups.peaks(apart)
        return worst(peaks, self.allowances(at, expected))

    def jumps(self, at: tuple[int, int]) -> bool:
        """Whether rounding alone changes an output's shape, its NaN or its integers."""
        found = self.sensitivity, self.by_inputs
        return any(each.jumps.get(at, False) for each in found if each is not None)

    def explained(self, at: tuple[int, int], expected: Array, difference: float) -> bool:
        """Whether rounding of the inputs alone may move an output by a difference.

        It is asked where weights cannot be moved, and the tolerance is a fixed one. Rounding of the
        inputs tells the order of magnitude, for the rounding of weights adds to it.
        """
        if self.by_inputs is None or self.fixed is not None or not is_float(expected):
            return False
        moved = FACTOR * self.by_inputs.moved.get(at, 0.0)
        return moved > self.allowed(at, expected) and difference <= WIDEST * moved

    def exceeded(self, at: tuple[int, int], expected: Any, found: Any, why: str) -> bool:
        """Whether two outputs differ by more than rounding is known to cause.

        ``why`` says why they cannot be subtracted; it is "" if they can.
        """
        if self.jumps(at):
            return False
        return bool(why) or self.measure(at, expected, found).ratio > 1.0


def is_number(value: object) -> bool:
    """Whether a value is a real number of Python or NumPy; true and false are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def ratios_to_allowed(differences: Array, allowances: Array) -> Array:
    """Differences in units of the allowed ones; infinite where none is allowed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(differences > 0, differences / allowances, 0.0)


def worst(differences: Array, allowances: Array) -> Measured:
    ratios = ratios_to_allowed(differences, allowances)
    worst = int(np.argmax(ratios))
    if not ratios[worst]:  # nothing differs: the usual tolerance is that of the largest values
        return Measured(0.0, float(allowances.max()), 0.0)
    return Measured(float(differences[worst]), float(allowances[worst]), float(ratios[worst]))
