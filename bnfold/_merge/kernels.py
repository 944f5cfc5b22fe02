"""Linear operators on channels × space as kernels in float64: sums of them, and series.

A kernel is the function ``y[o] = b[o] + Σ W[o, i, k]·x[i, window(k)]``. A convolution computes
exactly this (ONNX Conv). Without axes of space, a matrix product and an Add compute it. Weights are
made only when they are asked for, so that the work of kernels can be compared without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import AffineMap, Vector
from bnfold._core.windows import Window, aligned
from bnfold._system.records import record

Double = NDArray[np.float64]


@record(frozen=True)
class Obstacle:
    """Why kernels cannot become one; ``code`` is a reason's code."""

    code: str
    message: str


@record(frozen=True)
class Kernel:
    """``weight`` gives ``[outputs, inputs/groups, taps…]``, ``bias`` one number for each output."""

    inputs: int
    outputs: int
    groups: int
    windows: tuple[Window, ...]
    weight: Callable[[], Double]
    bias: Callable[[], Vector]

    @property
    def size(self) -> int:
        """The number of weights. An output position takes as many products."""
        taps = math.prod(window.taps for window in self.windows)
        return self.outputs * (self.inputs // self.groups) * taps

    @property
    def strides(self) -> int:
        """The number of input positions for each output position."""
        return math.prod(window.stride for window in self.windows)

    @property
    def is_depthwise(self) -> bool:
        """Whether output channel c reads input channel c alone."""
        return self.groups == self.inputs == self.outputs


class Stored(Protocol):
    """A constant of a model, read only when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def load(self) -> Callable[[], NDArray[Any]]:
        """Reads its values."""


def convolving(
    weight: Stored, bias: Stored | None, groups: int, windows: tuple[Window, ...]
) -> Kernel:
    """The kernel of a Conv whose weight is ``[outputs, inputs/groups, taps…]``.

    Group j of the outputs reads group j of the inputs (ONNX Conv).
    """
    outputs, per_group = weight.shape[:2]
    return Kernel(
        per_group * groups,
        outputs,
        groups,
        windows,
        lambda: weight.load().astype(np.float64),
        lambda: _vector(bias, outputs),
    )


def multiplying(
    weight: Stored,
    bias: Stored | None = None,
    *,
    turned: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Kernel:
    """The kernel of ``α·x·W + β·b`` along the last axis of x.

    W is ``[inputs, outputs]``, or ``[outputs, inputs]`` if ``turned`` (ONNX MatMul, Gemm;
    torch.nn.functional.linear).
    """
    inputs, outputs = weight.shape[::-1] if turned else weight.shape

    def values() -> Double:
        stored = weight.load().astype(np.float64) * alpha
        return stored if turned else stored.T

    return Kernel(inputs, outputs, 1, (), values, lambda: beta * _vector(bias, outputs))


def _vector(bias: Stored | None, outputs: int) -> Vector:
    if bias is None:
        return np.zeros(outputs)
    return np.broadcast_to(bias.load().astype(np.float64).reshape(-1), (outputs,))


def mapped(channels: int, map_: AffineMap, space: int) -> Kernel:
    """An affine map as a kernel: depthwise, of one tap. Exact: ``s_c·x_c + t_c`` by definition."""
    shape = (channels, 1, *(1,) * space)
    scale = np.broadcast_to(map_.scale, (channels,)).reshape(shape)
    shift = np.broadcast_to(map_.shift, (channels,))
    points = (Window(),) * space
    return Kernel(channels, channels, channels, points, lambda: scale, lambda: shift)


def averaging(channels: int, windows: Sequence[Window]) -> Kernel:
    """An AveragePool as a kernel: depthwise, each weight is 1 / the number of taps.

    Exact if every output divides by the size of the whole window. This holds if padding is counted
    or absent, and no window hangs over the end (ONNX AveragePool, ceil_mode 0).
    """
    taps = tuple(window.taps for window in windows)
    shape, share = (channels, 1, *taps), 1.0 / math.prod(taps)
    zeros = np.zeros(channels)
    return Kernel(
        channels,
        channels,
        channels,
        tuple(windows),
        lambda: np.broadcast_to(np.float64(share), shape),  # A window may have any size.
        lambda: zeros,
    )


def apart(kernels: Sequence[Kernel]) -> Obstacle | None:
    """Why the sum of kernels on one input is no kernel; None if `added` is exact."""
    first = kernels[0]
    for other in kernels[1:]:
        if other.inputs != first.inputs:
            message = f"they read {first.inputs} and {other.inputs} channels"
            return Obstacle("not-mergeable", message)
        if other.outputs != first.outputs:
            message = f"they write {first.outputs} and {other.outputs} channels"
            return Obstacle("not-mergeable", message)
        for one, two in zip(first.windows, other.windows, strict=True):
            if one.stride != two.stride:
                message = f"their strides are {one.stride} and {two.stride}"
                return Obstacle("not-mergeable", message)
            if one.room != two.room:
                message = "kernel sizes, dilations and pads give them outputs of other sizes"
                return Obstacle("not-mergeable", message)
    return None


def added(terms: Sequence[tuple[float, Kernel]]) -> Kernel:
    """The kernel of ``Σ f·K`` for factors f and kernels K on one input.

    Exact if `apart` gives None: all kernels have as many inputs and outputs, and along each axis
    the same stride and, for every size, the same number of outputs. Then output o of each kernel
    sums inputs around the same ``stride·o``, and weights at the same place add. All kernels see
    zeros beyond the ends. A tap that a kernel lacks is a weight of 0. The pads say where a window
    starts, and so how windows lie over each other. The number of groups is the greatest common
    divisor.
    """
    kernels = [kernel for _, kernel in terms]
    first = kernels[0]
    windows = tuple(map(aligned, zip(*(kernel.windows for kernel in kernels), strict=True)))
    groups = math.gcd(*(kernel.groups for kernel in kernels))

    def weight() -> Double:
        taps = (window.taps for window in windows)
        total = np.zeros((first.outputs, first.inputs // groups, *taps))
        for factor, kernel in terms:
            place = tuple(
                slice(offset, offset + (own.taps - 1) * stretch + 1, stretch)
                for own, window in zip(kernel.windows, windows, strict=True)
                for offset in [(own.start - window.start) // window.dilation]
                for stretch in [max(own.dilation // window.dilation, 1) if own.taps > 1 else 1]
            )
            total[_tap(place)] += factor * _widened(kernel.weight(), kernel.groups, groups)
        return total

    def bias() -> Vector:
        total = np.zeros(first.outputs)
        for factor, kernel in terms:
            total = total + factor * kernel.bias()
        return total

    return Kernel(first.inputs, first.outputs, groups, windows, weight, bias)


def between(first: Kernel, second: Kernel, exact: bool = True) -> Obstacle | None:
    """Why ``second ∘ first`` is not one kernel; None if `composed` is exact.

    Without ``exact`` None says that `composed` is right except at the borders.
    """
    if first.outputs != second.inputs:
        message = f"one writes {first.outputs} channels, the next reads {second.inputs}"
        return Obstacle("not-mergeable", message)
    if not exact:
        return None
    padded = [one for one, two in zip(first.windows, second.windows, strict=True) if two.sees_zeros]
    if any(not window.is_zero_outside for window in padded):
        message = "the second pads with zeros where the first one would not write zeros"
        return Obstacle("zero-padding", message)
    if padded and bool((first.bias() != 0).any()):
        message = "the second pads with zeros where the first one would write its bias"
        return Obstacle("zero-padding", message)
    return None


def composed(first: Kernel, second: Kernel) -> Kernel:
    """The kernel of ``second ∘ first``.

    Its weights are ``Σ_m W₂[o, m, j]·W₁[m, i, k]``, at the place to which taps k and j lead
    together. Its bias is ``b₂ + Σ W₂[o, m, j]·b₁[m]``.

    Exact if `between` gives None. Then the second reads nothing beyond the ends of the first's
    output. Or it reads zeros there, and the first would write zeros there too: the first has no
    bias, and its further outputs would read no input. The number of groups is the greatest common
    divisor: both kernels divide the channels between them in the same order.
    """
    windows = tuple(one.then(two) for one, two in zip(first.windows, second.windows, strict=True))
    if first.is_depthwise or second.is_depthwise:
        groups = second.groups if first.is_depthwise else first.groups
    else:
        groups = math.gcd(first.groups, second.groups)

    def weight() -> Double:
        taps = tuple(window.taps for window in windows)
        inner, outer = first.weight(), second.weight()
        total = np.zeros((second.outputs, first.inputs // groups, *taps))
        for j in np.ndindex(outer.shape[2:]):
            for k in np.ndindex(inner.shape[2:]):
                place = tuple(
                    (one.dilation * a + one.stride * two.dilation * b) // window.dilation
                    for one, two, window, a, b in zip(
                        first.windows, second.windows, windows, k, j, strict=True
                    )
                )
                sides = inner[_tap(k)], outer[_tap(j)]
                total[_tap(place)] += _through(first, second, *sides, groups)
        return total

    def bias() -> Vector:
        outer = second.weight()
        flat = outer.reshape(*outer.shape[:2], -1).sum(axis=2)
        shift = first.bias().reshape(second.groups, 1, -1)
        image = (flat.reshape(second.groups, -1, flat.shape[1]) * shift).sum(axis=2)
        return np.asarray(second.bias() + image.reshape(-1))

    return Kernel(first.inputs, second.outputs, groups, windows, weight, bias)


def _tap(place: tuple[int | slice, ...]) -> tuple[int | slice, ...]:
    """The index of a weight's entries at one place in its window, for all channels."""
    return (slice(None), slice(None), *place)


def _through(first: Kernel, second: Kernel, inner: Double, outer: Double, groups: int) -> Double:
    """``Σ_m W₂[o, m]·W₁[m, i]`` of one tap each, as ``[outputs, inputs/groups]``."""
    if first.is_depthwise:
        columns = inner.reshape(groups, 1, -1)
        rows = outer.reshape(groups, -1, outer.shape[1]) * columns
        return np.asarray(rows.reshape(outer.shape))
    if second.is_depthwise:
        return np.asarray(outer * inner)
    left = _widened(outer, second.groups, groups).reshape(groups, -1, second.inputs // groups)
    right = _widened(inner, first.groups, groups).reshape(groups, -1, first.inputs // groups)
    return np.asarray((left @ right).reshape(second.outputs, first.inputs // groups))


def _widened(weight: NDArray[Any], groups: int, wanted: int) -> Double:
    """A grouped weight as one with fewer, wider groups.

    A filter keeps its weights at the place of its own inputs in the wider group. Its weights for
    the other inputs of that group are 0 (ONNX Conv).
    """
    if groups == wanted:
        return weight
    outputs, per_group, *taps = weight.shape
    joined = groups // wanted
    result = np.zeros((wanted, joined, outputs // groups, joined, per_group, *taps))
    parts = weight.reshape(wanted, joined, outputs // groups, per_group, *taps)
    for number in range(joined):
        result[:, number, :, number] = parts[:, number]
    return result.reshape(outputs, joined * per_group, *taps)
