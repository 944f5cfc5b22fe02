"""The limits of a stored floating-point dtype, and what is lost beyond them."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import Vector
from bnfold._system.records import record


@record(frozen=True)
class Limits:
    """The limits of a floating-point dtype.

    ``tiny`` is its smallest normal number, ``largest`` its largest finite one, ``eps`` the spacing
    at 1.
    """

    tiny: float
    largest: float
    eps: float

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Limits:
        """The limits of float16, bfloat16, float32 or float64."""
        info: Any = ml_dtypes.finfo  # Untyped in ml_dtypes.
        found = info(dtype)
        return cls(float(found.smallest_normal), float(found.max), float(found.eps))

    def hold(self, less: Limits) -> bool:
        """Whether a dtype of these limits has every number of a dtype of other ones."""
        return self.eps <= less.eps and self.largest >= less.largest and self.tiny <= less.tiny


def overflows(peaks: Vector, dtype: np.dtype[Any]) -> bool:
    """Whether one of the exact peak magnitudes has no finite rounding in a dtype."""
    with np.errstate(over="ignore"):
        return not bool(np.isfinite(peaks.astype(dtype).astype(np.float64)).all())


def outgrows(peaks: Vector, scale: Vector, dtype: np.dtype[Any], alpha: float) -> NDArray[np.bool_]:
    """Which channels' products may overflow when a weight of these peaks is multiplied.

    A runtime may multiply the finished sum of products by ``alpha``. Below 1 it is what keeps the
    output finite, and products with a weight that the scale has made larger overflow ahead of it.
    Inputs are at most ``√max``, as for `drowned`. So a channel counts that grows more than 4 times,
    above ``max·max(α, 1/√max)``.
    """
    if abs(alpha) >= 1:
        return np.zeros(np.broadcast_shapes(peaks.shape, scale.shape), bool)
    limits = Limits.of(dtype)
    top = limits.largest * max(abs(alpha), 1 / math.sqrt(limits.largest))
    return np.asarray(np.abs(scale) * np.minimum(peaks, top) > 4 * top)


def underflows(
    peaks: Vector, scale: Vector, dtype: np.dtype[Any], alpha: float = 1.0
) -> NDArray[np.bool_]:
    """Which channels lose precision when a weight of these peaks is multiplied by the scale.

    Below the smallest normal number ``tiny`` the spacing of a dtype stays constant, so small
    products lose relative precision. The stored weight was exact only to the spacing at its peak.
    A channel that is not zero counts as lost when the new spacing is more than 4 times the old
    spacing times |s|: when ``|s|·max(peak, tiny) < tiny / 4``. In all other channels, rounding
    costs at most a small multiple of what the rounding of the original weight cost.

    Where the sum of products is multiplied by an ``alpha`` above 1, products may fall below
    ``tiny`` though what is put out does not. There ``tiny·min(α, √max)`` takes the place of
    ``tiny``.
    """
    limits = Limits.of(dtype)
    tiny = limits.tiny * min(max(abs(alpha), 1.0), math.sqrt(limits.largest))
    magnitude = np.abs(scale)
    return (peaks > 0) & (magnitude > 0) & (magnitude * np.maximum(peaks, tiny) < tiny / 4)


def dead(
    peaks: Vector, scale: Vector, terms: int, dtype: np.dtype[Any], alpha: float = 1.0
) -> NDArray[np.bool_]:
    """Which channels hold nothing, before and after a weight of these peaks is multiplied.

    A channel is dead where its stored weights or its scale lie below the smallest normal number
    ``tiny``. A runtime that flushes denormals computes with 0 there. It stays dead where the
    products lie below ``tiny``, too: then they are off by less than ``tiny``, flushed or rounded.
    Inputs are at most ``√max``, as for `drowned`, so a sum of ``terms`` of them is off by less than
    ``terms·tiny·√max``. That must be less than ``eps``, the last digit of 1, as it is in float32
    and wider types. In float16 it is not: there numbers below ``tiny`` show. An ``alpha`` above 1
    that multiplies the sum makes what it is off by larger.
    """
    limits = Limits.of(dtype)
    shown = limits.tiny * terms * math.sqrt(limits.largest) * max(abs(alpha), 1.0)
    magnitude = np.abs(scale)
    before = (peaks < limits.tiny) | (magnitude < limits.tiny)
    return np.asarray(before & (magnitude * peaks < limits.tiny) & (shown < limits.eps))


def drowned(
    bias: Vector, terms: int, dtype: np.dtype[Any], alpha: float = 1.0
) -> NDArray[np.bool_]:
    """Which channels have a bias so large that weights below the normal range do not matter.

    A lost weight is off by at most ``eps·tiny``. Inputs are taken to be at most ``√max``: squares
    of larger ones overflow. A sum of ``terms`` such products is then off by at most
    ``eps·tiny·terms·√max``. This is below the spacing of the result, ``eps·|bias|``, when
    ``tiny·terms·√max ≤ |bias|``. An ``alpha`` above 1 that multiplies the sum makes it larger.
    """
    limits = Limits.of(dtype)
    largest = limits.tiny * terms * math.sqrt(limits.largest) * max(abs(alpha), 1.0)
    return np.asarray(np.abs(bias) >= largest)
