"""Casts between floating-point types, one of which holds every number of the other."""

from __future__ import annotations

import numpy as np
from onnx import helper

from bnfold._core.laws import Law
from bnfold._core.limits import Limits
from bnfold._core.pointwise import Converted
from bnfold._onnx.tensors import FLOATS


def conversion(source: int, target: int, exact: bool) -> Law | None:
    """The law of a Cast from one element type to another; None if neither type holds the other.

    ``exact``: what it reads was cast from its target type directly ahead. float16 and bfloat16 are
    a pair without a law: each has numbers that the other has not.
    """
    if source not in FLOATS or target not in FLOATS:
        return None
    read, written = (np.dtype(helper.tensor_dtype_to_np_dtype(one)) for one in (source, target))
    if _holds(written, read):
        return Converted(read, written, True)
    return Converted(written, read, False, exact) if _holds(read, written) else None


def _holds(wide: np.dtype[np.generic], narrow: np.dtype[np.generic]) -> bool:
    """Whether a type holds every number of another one."""
    more, less = Limits.of(wide), Limits.of(narrow)
    return more.eps <= less.eps and more.largest >= less.largest and more.tiny <= less.tiny
