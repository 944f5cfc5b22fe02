"""What every formula of the certificate needs: one absorption, and distances in ulps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._core.limits import Limits
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.write.applied import Related
from bnfold._proof.rows import Double, Line, Mismatch, Side

_SLACK = 32 * float(np.finfo(np.float64).eps)

# Numbers of a weight that are looked at together, each of which takes some 100 bytes meanwhile.
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Absorption:
    """An operator that took in maps: ``node`` before the fold, ``twin`` after it.

    ``line`` is what the maps behind it did, ``added`` what still stands behind it now. ``related``
    tells of tensors that it reads and puts out how their values have changed.
    """

    before: Side
    after: Side
    old_scope: Scope
    new_scope: Scope
    node: NodeProto
    twin: NodeProto
    line: Line
    added: Line
    related: Mapping[str, Related] = field(default_factory=dict)

    @property
    def entry(self) -> Related | None:
        """What now comes ahead of its data."""
        names = (name for name in self.node.input if name in self.related)
        return next((self.related[name] for name in names), None)

    @property
    def loose(self) -> int:
        """How many roundings the weights may have behind them, besides one of their own.

        Each operator that stands adds some; a weight that was dequantized adds one on either side.
        """
        dynamic = [n for n in self.node.input[:2] if n and n not in self.old_scope.initializers]
        quantized = any(self.before.integers(self.old_scope, name) for name in dynamic)
        return self.added.steps + (2 if quantized else 0)

    def old(self, at: int) -> Double | None:
        """A constant input of the original operator, in float64."""
        return self.before.double(self.old_scope, self.node, at)

    def stored(self, at: int) -> NDArray[Any] | None:
        """A constant input of the original operator, as stored."""
        if at >= len(self.node.input):
            return None
        return self.before.values(self.old_scope, self.node.input[at])

    def new(self, at: int) -> NDArray[Any] | None:
        """A constant input of the folded operator, as stored."""
        if at >= len(self.twin.input):
            return None
        return self.after.values(self.new_scope, self.twin.input[at])

    def entering(self, axis: int | None, count: int) -> tuple[Double, Double]:
        """Scale and shift that come with the data, for each of its channels along an axis."""
        if self.entry is None:
            return np.ones(count), np.zeros(count)
        if len(self.entry.old) != 1:
            raise Mismatch(f"several maps come ahead of {label(self.node)}")
        (step,) = self.entry.old
        if bool(np.isnan(step.scale).any()):
            raise Mismatch(f"nothing is known of some of what {label(self.node)} reads")
        if step.axis is None and step.scale.size > 1:
            raise Mismatch(f"the map ahead of {label(self.node)} varies along several axes")
        if step.axis is not None and (step.axis != axis or step.scale.size != count):
            raise Mismatch(f"the map ahead of {label(self.node)} is along axis {step.axis}")
        return np.broadcast_to(step.scale, (count,)), np.broadcast_to(step.shift, (count,))

    def rank(self, at: int) -> int | None:
        """The rank of an input of the original operator."""
        return self.before.rank(self.old_scope, self.node.input[at])

    def scale(self, axes: Sequence[int], dtype: np.dtype[Any]) -> Double:
        """What the weights have to be scaled by, at the tensor's rank.

        That is ``S`` over the scale of what stands behind. It is NaN where both are 0: there any
        weight will do. It may vary along the given axes alone, those on which the weights have
        parameters, up to the rounding of what stands behind.
        """
        lost = np.broadcast_to(
            self.added.scale == 0,
            np.broadcast_shapes(self.line.scale.shape, self.added.scale.shape),
        )
        if bool((lost & (self.line.scale != 0)).any()):
            raise Mismatch(f"what stands behind {label(self.node)} is 0 where it may not be")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(lost, np.nan, self.line.scale / self.added.scale)
        loose = self.added.steps * Limits.of(dtype).eps + _SLACK
        for axis in set(range(ratio.ndim)) - {axis % ratio.ndim for axis in axes}:
            if ratio.shape[axis] == 1:
                continue
            low, high = (
                reduce(ratio, axis=axis, keepdims=True)
                for reduce in (np.fmin.reduce, np.fmax.reduce)
            )
            if bool((high - low > loose * np.maximum(np.abs(high), np.abs(low))).any()):
                raise Mismatch(
                    f"the scale varies along axis {axis}, where {label(self.node)} has no weights"
                )
            ratio = (low + high) / 2
        return ratio


@dataclass(frozen=True)
class ShiftImage:
    """What a shift of its data adds to the output of an operator, and the size of its terms."""

    value: Double
    bulk: Double


NO_SHIFT = ShiftImage(np.zeros(()), np.zeros(()))


def weight_deviation(
    case: Absorption, wanted: Callable[[slice], Double], made: NDArray[Any], dtype: np.dtype[Any]
) -> float:
    """How far a weight, seen in the formula's own layout, is from what it has to be, in ulps.

    ``wanted`` gives that part by part along the first axis.
    """
    worst = -math.inf
    for part in row_parts(made.shape):
        found = np.asarray(made[part] if made.ndim else made, np.float64)
        asked = wanted(part)
        asked = np.where(np.isnan(asked), found, asked)
        worst = max(worst, deviation(found, asked, np.abs(asked), dtype, loose=case.loose))
    return worst


def bias_deviation(
    case: Absorption, old: Double, made: Double, dtype: np.dtype[Any], image: ShiftImage = NO_SHIFT
) -> float:
    """How far the new bias, with what stands behind, is from ``S·(old + image) + T``, in ulps.

    All are given at the tensor's rank.
    """
    line, added = case.line, case.added
    try:
        wanted = line.scale * (old + image.value) + line.shift
        terms = np.abs(line.scale) * (np.abs(old) + image.bulk) + line.bulk
        found, scaled = added.scale * made + added.shift, np.abs(added.scale * made)
    except ValueError as error:
        raise Mismatch(f"the bias of {label(case.twin)} has shape {made.shape}") from error
    # What is added behind may cancel the bias, whose own rounding then counts.
    cancels = added.steps > 0 or bool((added.shift != 0).any())
    sizes = (scaled, added.bulk) if cancels else ()
    return deviation(found, wanted, terms, dtype, sizes, added.steps)


def deviation(
    made: Double,
    wanted: Double,
    bulk: Double,
    dtype: np.dtype[Any],
    sizes: Sequence[Double] = (),
    loose: int = 0,
) -> float:
    """The largest difference in units in the last place of ``dtype``, float64's losses forgiven.

    Units are those at the magnitude of what is wanted, or at the largest of ``sizes``. ``loose``
    units are forgiven, one for each further rounded number that takes part.
    """
    try:
        made, wanted, bulk, *rest = np.broadcast_arrays(made, wanted, bulk, *sizes)
    except ValueError as error:
        raise Mismatch(f"shapes {made.shape} and {wanted.shape} do not agree") from error
    if made.size == 0:
        return 0.0
    limits = Limits.of(dtype)
    magnitude = np.maximum.reduce([np.abs(wanted), *rest])
    exponent = np.frexp(np.maximum(magnitude, limits.tiny))[1] - 1
    unit = np.ldexp(limits.eps, exponent)
    excess = np.abs(made - wanted) - _SLACK * bulk
    worst = float(np.max(excess / unit - max(loose, 0)))
    return worst if np.isfinite(worst) else float("inf")


def row_parts(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of the first axis of a weight, few numbers each: a whole one may fill the memory."""
    rows = shape[0] if shape else 1
    step = max(1, _AT_ONCE * rows // max(math.prod(shape), 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def part_of(values: NDArray[Any], rank: int, part: slice) -> NDArray[Any]:
    """What a part of a weight of some rank meets of values that broadcast with it."""
    along = values.ndim == rank > 0 and values.shape[0] > 1
    return values[part] if along else values
