"""Groups of an output's values, by their size. Each group has a tolerance of its own.

A detector may put boxes in pixels and scores from 0 to 1 into one tensor of ``(1, 85, 8400)``.
Rounding moves a box by more than a wrong weight moves a score. So the 85 slices along axis 1 are
sorted into groups by their largest value, and rounding is measured in each group.
"""

from __future__ import annotations

import numpy as np

from bnfold._judge.difference import is_float, magnitude
from bnfold._run.noise import Array
from bnfold._system.records import record

SPAN = 64.0
"""About how many times as large as in the next group the values of a group are."""


@record(frozen=True)
class SizeGroups:
    """Groups of slices of an array.

    Attributes:
        sizes: the largest finite absolute value in each group, the largest first.
        axis: the axis of the slices, if there are several groups.
        of_slices: for each slice, the number of its group.
    """

    sizes: Array
    axis: int | None = None
    of_slices: Array | None = None

    @classmethod
    def of(cls, array: Array) -> SizeGroups:
        """The groups of an output, along the axis whose slices differ most in size.

        There is one group if no slices differ by `SPAN`. Slices of zeros belong to the group of the
        largest values.
        """
        if not is_float(array):
            return cls(np.zeros(1))
        axis, peaks = _widest(array)
        filled = peaks > 0
        if not filled.any():
            return cls(np.array([magnitude(array)]))
        steps = np.zeros(len(peaks), int)
        steps[filled] = np.log2(peaks.max() / peaks[filled]) // np.log2(SPAN)
        kept = np.array(sorted(set(steps.tolist())))  # np.unique imports masked arrays
        groups = np.searchsorted(kept, steps)
        sizes = np.array([peaks[steps == step].max() for step in kept])
        return cls(sizes, axis, groups)

    def peaks(self, values: Array) -> Array:
        """The largest value in each group. ``values`` has the shape of the output."""
        if self.of_slices is None or self.axis is None:
            return np.array([values.max(initial=0.0)])
        found = np.zeros(len(self.sizes))
        np.maximum.at(found, self.of_slices, values.max(_others(values, self.axis)))
        return found


def _widest(array: Array) -> tuple[int, Array]:
    """The axis whose slices differ most in size, and the largest finite absolute value of each."""
    sizes = np.abs(array.astype(np.promote_types(array.dtype, np.float32), copy=False))
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    best, spread = (0, np.zeros(0)), SPAN
    for axis in range(array.ndim if array.size else 0):
        peaks = sizes.max(_others(sizes, axis)).astype(np.float64)
        filled = peaks[peaks > 0]
        if filled.size and filled.max() / filled.min() >= spread:
            best, spread = (axis, peaks), filled.max() / filled.min()
    return best


def _others(array: Array, axis: int) -> tuple[int, ...]:
    return tuple(n for n in range(array.ndim) if n != axis)
