"""Which elementwise operators are per-channel affine maps, by broadcasting rules alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import LAST, AffineMap
from bnfold._core.reasons import Reason, Refusal
from bnfold._system.records import record

Array = NDArray[Any]
Shape = tuple[int | None, ...]


@record(frozen=True)
class Spread:
    """The values of a constant along its one varying ``axis``; None says that it is one number."""

    values: NDArray[np.float64]
    axis: int | None


def spread(constant: Array, shape: Shape | None, label: str, last: int | None = None) -> Spread:
    """The values of a constant along the one axis of a tensor on which they vary, by broadcasting.

    A constant ``[C, 1, 1]`` meets a tensor ``[N, C, H, W]`` on axis 1. Exact when the result has
    the tensor's own shape and the constant, aligned from the right, varies by value along at most
    one axis. Axes come from ranks. A size decides only whether broadcasting would enlarge the
    tensor, and must be known for that. Of a tensor of unknown rank the size of the ``last`` axis
    may be known: a constant ``[N]`` meets it there, one of more axes might enlarge the tensor.
    Raises `Refusal` otherwise.
    """
    if not bool(np.isfinite(constant.astype(np.float64)).all()):
        message = f"the constant of {label} is NaN or infinite somewhere"
        raise Refusal(Reason("non-finite", label, message))
    if shape is None:
        if constant.ndim == 0:
            return Spread(constant.astype(np.float64).reshape(1), None)
        if last is not None and constant.shape in ((last,), (1,)):
            return _along_one_axis(constant, LAST, label)
        message = f"the rank of what {label} reads is not known"
        raise Refusal(Reason("unknown-shape", label, message))
    if constant.size == 0:
        raise Refusal(Reason("not-per-channel", label, f"the constant of {label} is empty"))
    offset = len(shape) - constant.ndim
    if offset < 0:
        message = (
            f"the constant of {label} has {constant.ndim} dimensions, the tensor {len(shape)}: "
            "broadcasting enlarges it"
        )
        raise Refusal(Reason("not-per-channel", label, message))
    for axis, size in enumerate(constant.shape):
        if size == 1 or shape[offset + axis] == size:
            continue
        if shape[offset + axis] is None:
            message = (
                f"the constant of {label} has size {size} along axis {offset + axis}, "
                "where the tensor's size is not known"
            )
            raise Refusal(Reason("unknown-shape", label, message))
        message = (
            f"the constant of {label} has size {size} along axis {offset + axis}, the tensor "
            f"{shape[offset + axis]}: broadcasting enlarges it"
        )
        raise Refusal(Reason("not-per-channel", label, message))
    return _along_one_axis(constant, offset, label)


def broadcasts_to(constant: tuple[int, ...], shape: Shape) -> bool:
    """Whether a constant of a shape, aligned from the right, is known to leave a tensor its own."""
    offset = len(shape) - len(constant)
    return offset >= 0 and all(
        size == 1 or shape[offset + axis] == size for axis, size in enumerate(constant)
    )


def _along_one_axis(constant: Array, offset: int, label: str) -> Spread:
    varying = [
        axis
        for axis, size in enumerate(constant.shape)
        if size > 1 and bool((constant != constant.take([0], axis)).any())
    ]
    if len(varying) > 1:
        axes = " and ".join(str(offset + axis) for axis in varying)
        message = f"the constant of {label} varies along axes {axes}"
        raise Refusal(Reason("not-per-channel", label, message))
    if constant.size == 0:
        raise Refusal(Reason("not-per-channel", label, f"the constant of {label} is empty"))
    if not varying:
        return Spread(constant.reshape(-1)[:1].astype(np.float64), None)
    line = [0] * constant.ndim
    index = tuple(
        slice(None) if axis == varying[0] else line[axis] for axis in range(constant.ndim)
    )
    return Spread(constant[index].astype(np.float64), offset + varying[0])


def affine(op: str, constant: Spread, constant_first: bool, label: str) -> AffineMap:
    """The map of ``x op c``, or of ``c op x`` when the constant comes first.

    ``x·c``: A(c, 0); ``x + c``: A(1, c); ``x − c``: A(1, −c); ``c − x``: A(−1, c); ``x / c``:
    A(1/c, 0) for c ≠ 0; raises `Refusal` for c = 0. ``c / x`` is not affine, and no caller asks
    for it.
    """
    c, axis = constant.values, constant.axis
    if op == "Mul":
        return AffineMap.of(c, 0.0, axis)
    if op == "Add":
        return AffineMap.of(1.0, c, axis)
    if op == "Sub":
        return AffineMap.of(-1.0, c, axis) if constant_first else AffineMap.of(1.0, -c, axis)
    if bool((c == 0).any()):
        raise Refusal(Reason("non-finite", label, f"{label} divides by zero"))
    return AffineMap.of(1.0 / c, 0.0, axis)
