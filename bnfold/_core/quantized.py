"""Weights stored as integers: what multiplies the integers takes maps in.

A weight is ``(q − z)·s`` with integers q, scales s and zero points z. Its operator sees
``a·(q − z)·s`` if s is multiplied by a. So the integers stay, bit by bit, where a > 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold._core.affine import Vector
from bnfold._core.limits import Limits
from bnfold._core.reasons import Refusal
from bnfold._core.stored import Array, Parameter
from bnfold._system.records import record


@record(frozen=True)
class Grid:
    """Which numbers of a tensor share a scale and a zero point.

    Without an ``axis`` all do. With one, all at the same position of it. With a ``block``, only so
    many positions along the axis that follow each other, and nothing else.
    """

    axis: int | None = None
    block: int | None = None

    def spans(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many positions along each axis share a scale."""
        if self.axis is None:
            return shape
        if self.block is not None:
            return tuple(self.block if k == self.axis else 1 for k in range(len(shape)))
        return tuple(1 if k == self.axis else n for k, n in enumerate(shape))

    def cells(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many scales lie along each axis."""
        spans = self.spans(shape)
        return tuple(-(-n // span) if span else 1 for n, span in zip(shape, spans, strict=True))

    def spread(self, values: Array, shape: tuple[int, ...]) -> Array:
        """Scales or zero points in a shape that broadcasts with the tensor."""
        laid = values.reshape(self.cells(shape))
        if self.axis is None or self.block is None:
            return laid
        whole = np.repeat(laid, self.block, self.axis)
        return whole[tuple(slice(n) for n in shape)]

    def taken(self, factor: Vector, shape: tuple[int, ...]) -> Vector | None:
        """A factor of the tensor as one number for each scale; None where it varies between numbers
        that share one. The factor has the tensor's rank, and size 1 where it does not vary.
        """
        for axis, span in enumerate(self.spans(shape)):
            if factor.shape[axis] == 1 or span <= 1:
                continue
            first = factor.take(np.arange(0, shape[axis], span), axis)
            again = np.repeat(first, span, axis).take(np.arange(shape[axis]), axis)
            if not np.array_equal(again, factor):
                return None
            factor = first
        return factor


@record(frozen=True)
class Rounding:
    """Floats that a quantizer rounds to integers at every run: ``q = clip(round(x/s) + z)``.

    It divides in float32 and rounds halves to even, as ONNX QuantizeLinear does. The integers are
    ``lowest`` at least and ``highest`` at most.
    """

    numbers: Parameter
    lowest: int
    highest: int

    def integers(self, numbers: Array, scale: Array, zero: Array) -> Array:
        """The integers of some floats, in float64. All broadcast with the floats."""
        with np.errstate(all="ignore"):
            steps = np.rint(np.divide(numbers, scale, dtype=np.float32)).astype(np.float64)
        return np.asarray(np.clip(steps + zero, self.lowest, self.highest))


@record(frozen=True)
class Rescaled:
    """What becomes of a quantized weight.

    ``scale`` are the new scales. ``axis`` is set where one scale has become one for each position
    of an axis. ``integers`` and ``numbers`` (what a quantizer rounds to them) are None where they
    stay.
    """

    scale: Array
    axis: int | None
    integers: Array | None
    numbers: Array | None


@record(frozen=True)
class Sharing:
    """What several operators read: the name of the tensor, and the labels of those that read it,
    one for each read. ``copied`` is the type of the one operator that makes it of constants, "" if
    there are more.
    """

    name: str
    readers: tuple[str, ...]
    copied: str = ""


@record(frozen=True)
class Quantized:
    """A weight ``(q − z)·s`` that is stored as integers q.

    ``order`` has for each axis of the weight, as its operator sees it, the axis of the integers.
    ``spreads`` says whether one scale may become several. ``rounding`` is set where the integers
    are not stored, but rounded from floats at every run. ``multiplies``: the scale is a factor of
    an elementwise product, where any number may stand. ``sharing`` is set where several operators
    read the weight, which then changes for all of them or for none; or each gets one of its own.
    """

    integers: Parameter
    scale: Parameter
    zero: Parameter | None
    grid: Grid
    order: tuple[int, ...]
    spreads: bool
    rounding: Rounding | None = None
    multiplies: bool = False
    sharing: Sharing | None = None

    def values(self, dtype: np.dtype[Any]) -> Array:
        """The weight as its operator sees it, rounded to a type."""
        shape = self.integers.shape
        centred = self.integers.load().astype(np.float64) - self._zeros()
        scale = self.grid.spread(self.scale.load().astype(np.float64), shape)
        return np.asarray((centred * scale).astype(dtype).transpose(self.order))

    def rescaled(self, factor: Vector, label: str) -> Rescaled:
        """The weight times a factor a, which has its rank, and size 1 where it does not vary.

        ``(q − z)·s·a`` has the scale ``s·|a|`` and the integers ``z + sign(a)·(q − z)``. It is
        exact up to the one rounding of the scale, if two things hold: |a| is the same for all that
        share a scale, and the new integers have a place in their type. For a > 0 they are the old
        ones. For a < 0 the negative of −128 has none in int8. For a = 0 every integer is z and the
        scale stays: runtimes ask for positive scales. A scale that ``multiplies`` takes all in.

        Where floats x are rounded to q at every run, they become ``x·a``. They are divided by the
        rounded ``s·|a|``, so a quotient at the border of two integers may fall to the other side.
        There the float is put on the new integer itself: ``(q − z)·s·|a|``, which is far from any
        border. All integers are computed again, and must be the right ones.

        Raises `Refusal`.
        """
        shape, inside = self.integers.shape, factor.transpose(np.argsort(self.order))
        size = inside if self.multiplies else np.where(inside == 0, 1.0, np.abs(inside))
        grid, taken = self.grid, self.grid.taken(size, shape)
        varying = [k for k, n in enumerate(size.shape) if n > 1]
        if taken is None and grid.axis is None and len(varying) == 1 and self.spreads:
            grid = Grid(varying[0])
            taken = grid.taken(size, shape)
        if taken is None:
            message = f"the integer weight of {label} has no scale for each channel of the map"
            raise Refusal.of("quantized-weight", label, message)
        old = self.scale.load()
        cells = grid.cells(shape)
        laid = old.astype(np.float64).reshape(cells if grid == self.grid else (1,) * len(cells))
        with np.errstate(over="ignore"):
            scale = np.broadcast_to(laid * taken, cells).astype(old.dtype)
        _check_range(scale[laid * taken != 0] if self.multiplies else scale, old.dtype, label)
        turns = bool((inside <= 0).any()) and not self.multiplies
        integers = self._turned(np.sign(inside), label) if turns else None
        numbers = None
        if self.rounding is not None:
            numbers = self._moved(self.rounding, inside, grid, scale, integers, label)
        if grid != self.grid:
            return Rescaled(scale.reshape(-1), grid.axis, integers, numbers)
        return Rescaled(scale.reshape(old.shape), None, integers, numbers)

    def _zeros(self) -> Array:
        """The zero points in a shape that broadcasts with the integers."""
        if self.zero is None:
            return np.zeros((1,) * len(self.integers.shape))
        return self.grid.spread(self.zero.load().astype(np.float64), self.integers.shape)

    def _turned(self, sign: Vector, label: str) -> Array:
        """``z + sign·(q − z)`` in the type of q. Raises `Refusal` where that has no such number."""
        old, zero = self.integers.load(), self._zeros()
        exact = zero + sign * (old.astype(np.float64) - zero)
        turned = exact.astype(old.dtype)
        lost = turned.astype(np.float64) != exact
        if self.rounding is not None:
            lost |= (exact < self.rounding.lowest) | (exact > self.rounding.highest)
        if bool(lost.any()):
            worst = old[np.unravel_index(int(np.argmax(lost)), lost.shape)]
            message = (
                f"the map would turn the sign of the integer weight of {label}, and for {worst} "
                f"there is no such number in {old.dtype}"
            )
            raise Refusal.of("quantized-weight", label, message)
        return np.asarray(turned)

    def _moved(
        self,
        rounding: Rounding,
        factor: Vector,
        grid: Grid,
        scale: Array,
        integers: Array | None,
        label: str,
    ) -> Array:
        """The floats that are rounded to the new integers. Raises `Refusal` if there are none."""
        old, zero = rounding.numbers.load(), self._zeros()
        steps = grid.spread(scale, old.shape)
        wanted = (self.integers.load() if integers is None else integers).astype(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            new = (old.astype(np.float64) * factor).astype(old.dtype)
            off = rounding.integers(new, steps, zero) != wanted
            new[off] = ((wanted - zero) * steps.astype(np.float64)).astype(old.dtype)[off]
        right = np.isfinite(new) & (rounding.integers(new, steps, zero) == wanted)
        if not bool(right.all()):
            message = f"the integer weight of {label} would not be rounded to the same integers"
            raise Refusal.of("quantized-weight", label, message)
        return np.asarray(new)


def _check_range(scale: Array, dtype: np.dtype[Any], label: str) -> None:
    """Raise `Refusal` where a scale leaves the normal range of its type."""
    wide = np.abs(scale.astype(np.float64))
    finite = bool(np.isfinite(wide).all())
    if finite and bool((wide >= Limits.of(dtype).tiny).all()):
        return
    message = f"the quantization scale of {label} would leave {dtype}'s range"
    raise Refusal.of("underflow" if finite else "overflow", label, message)
