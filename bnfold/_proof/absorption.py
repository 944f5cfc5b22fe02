"""One absorption as the certificate's formulas see it, and distances in ulps."""

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
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double, FullRankMap

SLACK = 32 * float(np.finfo(np.float64).eps)

# How many numbers of a weight are checked together. Each takes some 100 bytes meanwhile.
_AT_ONCE = 1 << 20
# Attributes that the formula of their operator checks.
_OF_FORMULAS = {
    ("FusedConv", "activation_params"),
    ("FusedGemm", "activation_alpha"),
    ("FusedGemm", "beta"),
    ("Gemm", "beta"),
    ("NhwcFusedConv", "activation_params"),
}


@dataclass(frozen=True)
class Absorption:
    """An operator that took in maps.

    Attributes:
        before: the original model.
        after: the folded model.
        old_scope: the operator's graph in the original model.
        new_scope: the operator's graph in the folded model.
        node: the operator in the original model.
        twin: the operator in the folded model.
        target: ``S·x + T``, the map of all affine operators that stood behind ``node``.
        remaining: the map of the affine operators that still stand behind ``twin``.
        related: the maps that were carried past tensors that it reads or puts out, by name.
    """

    before: CheckedModel
    after: CheckedModel
    old_scope: Scope
    new_scope: Scope
    node: NodeProto
    twin: NodeProto
    target: FullRankMap
    remaining: FullRankMap
    related: Mapping[str, Related] = field(default_factory=dict)

    @property
    def entry(self) -> Related | None:
        """The maps that were carried past the data ahead of ``twin``, or None."""
        names = (name for name in self.node.input if name in self.related)
        return next((self.related[name] for name in names), None)

    @property
    def forgiven(self) -> int:
        """How many roundings the weights may have behind them, besides one of their own.

        Each operator that remains adds one. A dequantized weight adds two: one before the fold and
        one after it.
        """
        dynamic = [n for n in self.node.input[:2] if n and n not in self.old_scope.initializers]
        quantized = any(self.before.integers(self.old_scope, name) for name in dynamic)
        return self.remaining.steps + (2 if quantized else 0)

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

    def entering(
        self, axis: int | None, count: int, rank: int | None = None
    ) -> tuple[Double, Double]:
        """The scale and the shift of the data, one number for each of its channels along an axis.

        That is −1 for the last one where the ``rank`` is not known. Without a map ahead they are 1
        and 0. Raises `Mismatch` where the map ahead varies along another axis: a Conv asks for axis
        1, and a map along axis 2 does not fit it.
        """
        if self.entry is None:
            return np.ones(count), np.zeros(count)
        if self.entry.new:
            what = f"what {label(self.node)} reads has changed"
            raise Mismatch(f"{what}, and its weights cannot follow")
        if len(self.entry.old) != 1:
            raise Mismatch(f"several maps come ahead of {label(self.node)}")
        (step,) = self.entry.old
        if bool(np.isnan(step.scale).any()):
            raise Mismatch(f"nothing is known of some of what {label(self.node)} reads")
        if step.axis is None and step.scale.size > 1:
            raise Mismatch(f"the map ahead of {label(self.node)} varies along several axes")
        own = step.axis
        if own is not None and own < 0 and rank is not None:
            own += rank
        if own is not None and (own != axis or step.scale.size != count):
            raise Mismatch(f"the map ahead of {label(self.node)} is along axis {step.axis}")
        return np.broadcast_to(step.scale, (count,)), np.broadcast_to(step.shift, (count,))

    def rank(self, at: int) -> int | None:
        """The rank of an input of the original operator."""
        return self.before.rank(self.old_scope, self.node.input[at])

    def scale(self, axes: Sequence[int], dtype: np.dtype[Any]) -> Double:
        """The scale that the new weights need, at the tensor's rank.

        It is ``S`` divided by the scale of what remains. Where both are 0, it is NaN: any weight is
        right there. It may vary along the given axes only, because the weights have parameters on
        these axes. Raises `Mismatch` where it varies along another axis by more than the rounding
        of what remains.
        """
        lost = np.broadcast_to(
            self.remaining.scale == 0,
            np.broadcast_shapes(self.target.scale.shape, self.remaining.scale.shape),
        )
        if bool((lost & (self.target.scale != 0)).any()):
            raise Mismatch(f"what stands behind {label(self.node)} is 0 where it may not be")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(lost, np.nan, self.target.scale / self.remaining.scale)
        forgiven = self.remaining.steps * Limits.of(dtype).eps + SLACK
        own = {axis % ratio.ndim for axis in axes} if ratio.ndim else set()
        for axis in set(range(ratio.ndim)) - own:
            if ratio.shape[axis] == 1:
                continue
            low, high = (
                reduce(ratio, axis=axis, keepdims=True)
                for reduce in (np.fmin.reduce, np.fmax.reduce)
            )
            if bool((high - low > forgiven * np.maximum(np.abs(high), np.abs(low))).any()):
                raise Mismatch(
                    f"the scale varies along axis {axis}, where {label(self.node)} has no weights"
                )
            ratio = (low + high) / 2
        return ratio


@dataclass(frozen=True)
class ShiftImage:
    """How a shift of the data shows in the output of an operator.

    ``value`` is what it adds to the output; ``bulk`` bounds the absolute values of its terms.
    """

    value: Double
    bulk: Double


NO_SHIFT = ShiftImage(np.zeros(()), np.zeros(()))


def weight_deviation(
    case: Absorption,
    wanted: Callable[[slice], Double],
    made: NDArray[Any],
    dtype: np.dtype[Any],
    channels: Channels | None = None,
) -> float:
    """The largest distance of a new weight from the wanted one, in ulps.

    ``made`` is the new weight in the layout of the formula. ``wanted`` gives the right numbers for
    a range of the first axis; NaN stands where any number is right. Raises `Mismatch` where all
    that one of the ``channels`` holds is lost, see `Channels`.
    """
    worst, peaks = -math.inf, np.zeros(channels.shape(made.shape) if channels else ())
    for part in row_parts(made.shape):
        found = np.asarray(made[part] if made.ndim else made, np.float64)
        asked = wanted(part)
        asked = np.where(np.isnan(asked), found, asked)
        worst = max(worst, deviation(found, asked, np.abs(asked), dtype, forgiven=case.forgiven))
        if channels is not None and asked.size:
            top = np.abs(asked).max(axis=channels.summed, keepdims=True)
            held = part_of(peaks, made.ndim, part)
            np.maximum(held, top, out=held)
    if channels is not None:
        channels.check(peaks, dtype, case)
    return worst


@dataclass(frozen=True)
class Channels:
    """The output channels of a linear operator, in its ``weight`` as stored.

    One output is a sum over the axes ``summed`` of the weight; each place on the others is a
    channel. ``scale`` is the largest that a channel takes in, at the rank of the weight; ``bias``
    the least that is added to it, likewise. The sum is multiplied by ``alpha``; of the scale the
    part ``behind`` was behind that before.

    Where all new weights of a channel are denormal, their last digits are lost, and a runtime may
    take them for 0. That is right in two cases. The bias is so large that no denormal weight shows
    in its last digit. Or the channel was dead: its stored weights, or the scale that it takes in,
    are denormal or 0, too. Then nothing in it shows in the last digit of 1, if the type is wide
    enough for that. An input is at most the root of the largest number, whose square still is one.
    An alpha above 1 raises what is lost.

    What comes ahead of alpha is in range only if the sum is. So alpha is a limit to how small, or
    how large, weights may become by a scale from behind it.
    """

    weight: NDArray[Any]
    summed: tuple[int, ...]
    scale: Double
    bias: Double
    alpha: float = 1.0
    behind: Double | None = None

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of a weight with size 1 along the axes that are summed."""
        return tuple(1 if k in self.summed else n for k, n in enumerate(whole))

    def check(self, wanted: Double, dtype: np.dtype[Any], case: Absorption) -> None:
        """Raise `Mismatch` where the ``wanted`` weights, at most, are lost otherwise.

        ``wanted`` has a number for each channel, at the rank of the weight.
        """
        limits = Limits.of(dtype)
        root = math.sqrt(limits.largest)
        raised = min(max(abs(self.alpha), 1.0), root)
        top = limits.largest * min(max(abs(self.alpha), 1 / root), 1.0)
        if not bool(((wanted > 0) & (wanted < raised * limits.tiny / 4) | (wanted > top)).any()):
            return
        whole = np.abs(self.weight.astype(np.float64))
        stored = whole.max(axis=self.summed, initial=0.0, keepdims=True)
        terms = self.weight.size // max(stored.size, 1)
        reach = terms * root * limits.tiny * max(abs(self.alpha), 1.0)
        behind = self.scale if self.behind is None else self.behind
        parts = wanted, stored, np.abs(self.scale), np.abs(self.bias), np.abs(behind)
        wanted, stored, scale, bias, behind = np.broadcast_arrays(*parts)
        if bool(((wanted > 4 * top) & (behind > 4)).any()):
            raise Mismatch(f"products of {label(case.twin)} are too large for its alpha")
        # A denormal weight keeps its digits where it shrinks to a quarter at most.
        lost = wanted < np.minimum(limits.tiny, stored) / 4
        lost |= (wanted < raised * limits.tiny / 4) & (behind < 1 / 4) & (raised > 1)
        lost &= wanted > 0
        dead = ((stored < limits.tiny) | (scale < limits.tiny)) & (reach < limits.eps)
        lost &= ~(dead & (wanted < limits.tiny) | (bias >= reach))
        if bool(lost.any()):
            summed = {axis + lost.ndim - self.weight.ndim for axis in self.summed}
            place = [int(k) for axis, k in enumerate(np.argwhere(lost)[0]) if axis not in summed]
            where = ", ".join(map(str, place)) or "0"
            raise Mismatch(f"the weights of channel {where} of {label(case.twin)} are lost")


def bias_deviation(
    case: Absorption, old: Double, made: Double, dtype: np.dtype[Any], image: ShiftImage = NO_SHIFT
) -> float:
    """The largest distance of the new bias from ``S·(old + image) + T``, in ulps.

    The maps that remain behind the operator are applied to the new bias first. All arrays have the
    tensor's rank.
    """
    target, remaining = case.target, case.remaining
    try:
        wanted = target.scale * (old + image.value) + target.shift
        terms = np.abs(target.scale) * (np.abs(old) + image.bulk) + target.bulk
        found, scaled = remaining.scale * made + remaining.shift, np.abs(remaining.scale * made)
    except ValueError as error:
        raise Mismatch(f"the bias of {label(case.twin)} has shape {made.shape}") from error
    # A shift that remains may cancel the bias. Then the rounding of the bias itself counts.
    cancels = remaining.steps > 0 or bool((remaining.shift != 0).any())
    sizes = (scaled, remaining.bulk) if cancels else ()
    return deviation(found, wanted, terms, dtype, sizes, remaining.steps)


def deviation(
    made: Double,
    wanted: Double,
    bulk: Double,
    dtype: np.dtype[Any],
    sizes: Sequence[Double] = (),
    forgiven: int = 0,
) -> float:
    """The largest difference of two arrays, in units in the last place of ``dtype``.

    The unit is the one at the magnitude of ``wanted``, or of the largest of ``sizes``. Two losses
    are allowed for: what float64 may lose in terms of the size ``bulk``, and ``forgiven`` units,
    one for each further rounded number that takes part.
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
    with np.errstate(invalid="ignore"):
        excess = np.abs(made - wanted) - SLACK * bulk
    if not bool(np.isfinite(excess).all()):
        # A number that is infinite, or none, is right where it was before.
        same = (made == wanted) | (np.isnan(made) & np.isnan(wanted))
        excess = np.where(same, 0.0, np.where(np.isfinite(excess), excess, np.inf))
    worst = float(np.max(excess / unit - max(forgiven, 0)))
    return worst if np.isfinite(worst) else float("inf")


def require_same_input(case: Absorption, place: int) -> None:
    """Raise `Mismatch` where an input has changed that takes no map in."""
    given = [place < len(one.input) and one.input[place] != "" for one in (case.node, case.twin)]
    was, now = (
        None if values is None else (values.shape, values.dtype, values.tobytes())
        for values in (case.stored(place), case.new(place))
    )
    related = given[0] and case.node.input[place] in case.related
    if given[0] != given[1] or was != now or related:
        raise Mismatch(f"input {place} of {label(case.twin)} changed")


def row_parts(shape: Sequence[int]) -> Iterator[slice]:
    """Yield ranges of the first axis of a weight. Each holds few numbers, to save memory."""
    rows = shape[0] if shape else 1
    step = max(1, _AT_ONCE * rows // max(math.prod(shape), 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def part_of(values: NDArray[Any], rank: int, part: slice) -> NDArray[Any]:
    """The part of some values that broadcasts with a part of a weight.

    The values broadcast with the whole weight, whose rank is ``rank``. A vector along the first
    axis is cut like the weight; a single number on that axis stays whole.
    """
    along = values.ndim == rank > 0 and values.shape[0] > 1
    return values[part] if along else values


def require_same_shape(case: Absorption, weight: NDArray[Any], made: NDArray[Any]) -> None:
    """Raise `Mismatch` where the new weight has another shape than the old one."""
    if weight.shape != made.shape:
        raise Mismatch(f"the weight of {label(case.twin)} has shape {made.shape}")


def _steps(model: CheckedModel, scope: Scope, name: str) -> Double:
    """How many steps each number of a dequantized weight is from 0; none for any other weight."""
    found = model.integers(scope, name)
    if found is None:
        return np.zeros(0)
    stored = found.quantized.integers.load().astype(np.float64)
    zero = np.zeros(()) if found.zero is None else found.zero.load().astype(np.float64)
    grid = found.quantized.grid
    return np.abs(stored - (grid.spread(zero, stored.shape) if zero.size > 1 else zero))


def require_same_otherwise(
    before: CheckedModel,
    after: CheckedModel,
    old: Scope,
    new: Scope,
    node: NodeProto,
    twin: NodeProto,
) -> None:
    """Raise `Mismatch` if more than the weights of an operator has changed.

    Its attributes and the statistics of a BatchNormalization stay as they are. The integers of its
    dequantized weights keep their distance from the zero point, or get there: a map may turn their
    sign, or make a channel 0. The beta of a Gemm may change, and the numbers of an activation:
    their formulas use them.
    """

    def attributes(of: NodeProto) -> dict[str, bytes]:
        return {
            a.name: a.SerializeToString(deterministic=True)
            for a in of.attribute
            if (of.op_type, a.name) not in _OF_FORMULAS
        }

    if attributes(node) != attributes(twin):
        raise Mismatch(f"attributes of {label(twin)} changed")
    for name, new_name in zip(node.input[:2], twin.input[:2], strict=False):
        was, now = _steps(before, old, name), _steps(after, new, new_name)
        if was.shape != now.shape or not bool(((now == was) | (now == 0)).all()):
            raise Mismatch(f"the integers of {label(twin)} changed")
    if node.op_type == "BatchNormalization":
        for position in (3, 4):
            given = before.double(old, node, position)
            made = after.double(new, twin, position)
            if given is None or made is None or not np.array_equal(given, made):
                raise Mismatch(f"the statistics of {label(twin)} changed")
