"""The range and precision of a floating-point dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Limits:
    """``tiny`` is the smallest normal number, ``eps`` the spacing at 1."""

    tiny: float
    largest: float
    eps: float

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Limits:
        """The limits of float16, bfloat16, float32 or float64."""
        info: Any = ml_dtypes.finfo  # Untyped in ml_dtypes.
        found = info(dtype)
        return cls(float(found.smallest_normal), float(found.max), float(found.eps))
