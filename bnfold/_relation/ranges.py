"""Pairs of numbers between which others lie, and what functions make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold._relation.expressions import Double

BY_TYPE: Mapping[int, tuple[float, float]] = {
    TensorProto.BOOL: (0.0, 1.0),
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT16: (0.0, 65535.0),
    TensorProto.INT16: (-32768.0, 32767.0),
}
_WHOLE = frozenset(
    (
        *(TensorProto.INT4, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32),
        *(TensorProto.INT64, TensorProto.UINT4, TensorProto.UINT8, TensorProto.UINT16),
        *(TensorProto.UINT32, TensorProto.UINT64),
    )
)
COMPARING = {"Greater": 1, "GreaterOrEqual": 1, "Less": -1, "LessOrEqual": -1}


class Range(NamedTuple):
    """The least and the largest number, along the axes of the tensor."""

    low: Double
    high: Double

    @property
    def is_one(self) -> NDArray[np.bool_]:
        """Where there is only one number."""
        return np.asarray(self.low == self.high)

    @property
    def overall(self) -> Range:
        """One pair for all channels."""
        return range_of(np.min(self.low, initial=np.inf), np.max(self.high, initial=-np.inf))


def range_of(low: Double | float, high: Double | float) -> Range:
    return Range(np.asarray(low, np.float64), np.asarray(high, np.float64))


ANY = range_of(-np.inf, np.inf)


def _sigmoid(x: Double) -> Double:
    return np.asarray(1 / (1 + np.exp(-x)))


RISING: Mapping[str, Callable[[Double], Double]] = {
    "Ceil": np.ceil,
    "Celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Erf": np.tanh,  # It rises as Erf does, between the same ends.
    "Exp": np.exp,
    "Floor": np.floor,
    "Relu": lambda x: np.maximum(x, 0),
    "Round": np.round,
    "Selu": lambda x: np.where(x > 0, 1.06 * x, 1.76 * np.expm1(np.minimum(x, 0))),
    "Sigmoid": _sigmoid,
    "Sign": np.sign,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Softsign": lambda x: np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))),
    "Sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "Tanh": np.tanh,
}
"""Functions of one number that never fall. Only their ends and their flat parts count."""
FROM_TO: Mapping[str, tuple[float, float]] = {
    "Abs": (0.0, np.inf),
    "And": (0.0, 1.0),
    "Celu": (-np.inf, np.inf),
    "Cos": (-1.0, 1.0),
    "Elu": (-np.inf, np.inf),
    "Gelu": (-0.171, np.inf),
    "HardSwish": (-0.376, np.inf),
    "LogSoftmax": (-np.inf, 0.0),
    "Mish": (-0.31, np.inf),
    "ReduceL1": (0.0, np.inf),
    "ReduceL2": (0.0, np.inf),
    "ReduceSumSquare": (0.0, np.inf),
    "Shape": (0.0, np.inf),
    "Sin": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Swish": (-0.279, np.inf),
}


def times(factor: Double, end: Double) -> Double:
    """A product in which 0 times anything is 0."""
    with np.errstate(invalid="ignore"):
        return np.where((factor == 0) | (end == 0), 0.0, factor * end)


def multiplied(one: Range, other: Range) -> Range:
    ends = [times(a, b) for a in one for b in other]
    return Range(reduced(np.minimum, ends), reduced(np.maximum, ends))


def reduced(chosen: Callable[[Double, Double], Double], ends: Sequence[Double]) -> Double:
    total = ends[0]
    for end in ends[1:]:
        total = chosen(total, end)
    return total


def union(ranges: Sequence[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    try:
        return Range(reduced(np.minimum, lows), reduced(np.maximum, highs))
    except ValueError:  # Parts of other sizes.
        return range_of(min(np.min(e) for e in lows), max(np.max(e) for e in highs))


def compared(kind: str, one: Range, other: Range) -> Range:
    if COMPARING[kind] < 0:
        one, other = other, one
    strict = kind in ("Greater", "Less")
    never = one.high <= other.low if strict else one.high < other.low
    always = one.low > other.high if strict else one.low >= other.high
    return range_of(np.where(always, 1.0, 0.0), np.where(never, 0.0, 1.0))


def cast(data: Range, kind: int) -> Range:
    """Behind a Cast: one to integers cuts off what is behind the point."""
    if kind == TensorProto.BOOL:
        return ANY
    if kind not in _WHOLE:
        return data
    least, most = BY_TYPE.get(kind, (-(2.0**31), 2.0**31 - 1))
    inside = np.all(data.low > least - 1) and np.all(data.high < most + 1)
    return Range(np.trunc(data.low), np.trunc(data.high)) if inside else ANY


def inverse(data: Range) -> Range:
    """1 divided by numbers of one sign; by others it may be anything."""
    is_signed = (data.low >= 0) | (data.high <= 0)
    with np.errstate(divide="ignore"):
        low, high = 1 / np.where(data.high == 0, -0.0, data.high), 1 / np.abs(data.low)
        high = np.where(data.low < 0, -high, high)
    return Range(np.where(is_signed, low, -np.inf), np.where(is_signed, high, np.inf))


def added_up(data: Range, count: int | None) -> Range:
    """The sum of so many numbers; of any number of them where that is None."""
    if count is not None:
        return Range(
            times(np.asarray(float(count)), data.low), times(np.asarray(float(count)), data.high)
        )
    return range_of(
        *(
            times(np.asarray(np.inf), end)
            for end in (np.minimum(data.low, 0), np.maximum(data.high, 0))
        )
    )
