"""Merged weights: whether they fit their stored type, and how they are kept until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core.limits import Limits, drowned, overflows
from bnfold._core.reasons import Reason

_CACHED_BYTES = 1 << 20
Load = Callable[[], NDArray[Any]]


def unfit(
    where: str, weight: NDArray[Any], bias: NDArray[Any], dtype: np.dtype[Any]
) -> Reason | None:
    """Why merged weights do not fit their type: overflow or underflow; None if they fit."""
    if not bool(np.isfinite(weight).all() and np.isfinite(bias).all()):
        return Reason("non-finite", where, f"a weight that {where} would take in is not finite")
    peaks = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    if overflows(peaks, dtype) or overflows(np.abs(bias), dtype):
        return Reason("overflow", where, f"the merged weight of {where} would overflow {dtype}")
    lost = (peaks > 0) & (peaks < Limits.of(dtype).tiny)
    lost &= ~drowned(bias, weight[0].size, dtype)
    if bool(lost.any()):
        what = f"the merged weight of {where} would fall below the smallest normal {dtype}"
        return Reason("underflow", where, what)
    return None


def remembered(load: Load, always: bool) -> Load:
    """The same function, but the values are computed only once if they are small, or ``always``."""
    kept: list[NDArray[Any]] = []

    def values() -> NDArray[Any]:
        if kept:
            return kept[0]
        computed = load()
        if always or computed.nbytes <= _CACHED_BYTES:
            kept.append(computed)
        return computed

    return values
