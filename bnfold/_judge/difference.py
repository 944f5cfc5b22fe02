"""How far apart two outputs are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from bnfold._run.noise import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

NOT_FINITE_ALIKE = ("NaN at other places", "infinite at other places")
"""What `mismatch` says of numbers that are not finite."""


def mismatch(left: Any, right: Any) -> str:
    """Return why two outputs cannot be subtracted, or "" if they can.

    They can where both are arrays of one shape and type whose NaN and infinities agree.
    """
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        return "not a tensor"
    if left.dtype != right.dtype:
        return f"type {right.dtype} instead of {left.dtype}"
    if left.shape != right.shape:
        return f"shape {list(right.shape)} instead of {list(left.shape)}"
    if not is_float(left) or (np.isfinite(left).all() and np.isfinite(right).all()):
        return ""
    if not np.array_equal(np.isnan(left), np.isnan(right)):
        return NOT_FINITE_ALIKE[0]
    infinite = np.isinf(left) | np.isinf(right)
    if not np.array_equal(left[infinite], right[infinite]):
        return NOT_FINITE_ALIKE[1]
    return ""


def step(left: Any, right: Any) -> float | None:
    """Return the largest absolute difference of two outputs, None where there is a mismatch."""
    if (
        isinstance(left, np.ndarray)
        and isinstance(right, np.ndarray)
        and (left.shape, left.dtype) == (right.shape, right.dtype)
        and is_float(left)
        and left.size
    ):
        most = float(np.max(_absolute_differences(left, right)))
        if math.isfinite(most):  # as it is where all values are, most often
            return most
    return None if mismatch(left, right) else distance(left, right)


def distance(left: Array, right: Array) -> float:
    """Return the largest absolute difference of two outputs without a mismatch."""
    if not is_float(left):
        return float(np.max(left != right, initial=False))
    return float(np.max(gaps(left, right), initial=0.0))


def gaps(left: Array, right: Array) -> Array:
    """Return the absolute differences of two float outputs without a mismatch, 0 where both are
    infinite or NaN.
    """
    return np.where(np.isfinite(left), _absolute_differences(left, right), 0.0)


_FINEST, _BINS = -40, 120


@dataclass(frozen=True)
class Spread:
    """How many elements of an output differ by how much.

    ``same`` elements do not differ, or cannot be subtracted. ``counts`` has for two bins in each
    power of ten the elements whose difference lies there: from ``10^(first/2)`` on.
    """

    same: int
    first: int
    counts: Sequence[int]


def spread(left: Array, right: Array) -> Spread:
    """How the elements of two float outputs without a mismatch differ."""
    apart = gaps(left, right).reshape(-1)
    apart = apart[apart > 0]
    bins = np.floor(2 * np.log10(apart)).clip(_FINEST, _FINEST + _BINS - 1).astype(np.int64)
    counts = np.bincount(bins - _FINEST, minlength=_BINS)
    used = np.flatnonzero(counts)
    if not used.size:
        return Spread(left.size, 0, ())
    first, last = int(used[0]), int(used[-1])
    told = tuple(int(count) for count in counts[first : last + 1])
    return Spread(left.size - apart.size, first + _FINEST, told)


def magnitude(array: Array) -> float:
    """Return the largest finite absolute value."""
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))


def is_float(array: Array) -> bool:
    """Tell whether an output is judged by a tolerance; all others must be equal."""
    return bool(array.dtype.kind == "f" or array.dtype == _BFLOAT16)


def _absolute_differences(left: Array, right: Array) -> Array:
    """Return the absolute differences in at least float64; NaN between equal infinities."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart: Array = np.abs(np.subtract(left, right, dtype=np.promote_types(left.dtype, "f8")))
    return apart
