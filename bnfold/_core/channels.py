"""Where the channels of a linear operator lie in its stored weight, and how a map scales them.

A `ChannelLayout` says which part of a stored weight belongs to which channel. With a layout, all
operators are scaled and rounded by the same code. Arithmetic is float64, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import Vector
from bnfold._system.records import record

Array = NDArray[Any]

_BLOCK = 1 << 17


@record(frozen=True)
class ChannelLayout:
    """Where output channels lie in a weight.

    ``view`` is a shape for the stored weight, with the same elements in the same order. ``along``
    is the shape that a per-channel vector takes to broadcast over ``view``. A Conv weight
    ``[8, 3, 5, 5]`` has the view ``[8, 3, 5, 5]`` and the vector the shape ``[8, 1, 1, 1]``.
    """

    view: tuple[int, ...]
    along: tuple[int, ...]

    def spread(self, vector: Vector) -> Vector:
        """A per-channel vector, or a uniform one of length 1, in the shape that fits the view."""
        if vector.size == 1:
            return vector.reshape((1,) * len(self.view))
        return vector.reshape(self.along)


def along_axis(shape: tuple[int, ...], axis: int) -> ChannelLayout:
    """Output channels on one axis of the weight.

    A Conv has them on axis 0 of ``[Cout, Cin/group, k…]``, for any number of groups: each output
    channel is one filter, and ``A∘Conv`` has weight ``W[o]·s_o`` (ONNX Conv). The same layout fits
    a Gemm (columns of B', rows of A'), a MatMul (the constant's axis that becomes the output axis)
    and the γ of a normalization.
    """
    view = shape or (1,)
    return ChannelLayout(view, tuple(n if k == axis else 1 for k, n in enumerate(view)))


def off_axis(shape: tuple[int, ...], summed: int | None) -> ChannelLayout:
    """A channel for each place on all axes but the one that is ``summed``: the single outputs of a
    MatMul by batches of matrices, or the numbers of a γ.
    """
    view = shape or (1,)
    return ChannelLayout(view, tuple(1 if k == summed else n for k, n in enumerate(view)))


def conv_transpose(shape: tuple[int, ...], group: int) -> ChannelLayout:
    """Output channels of a ConvTranspose weight ``[Cin, Cout/group, k…]``.

    Output channel ``o = j·(Cout/group) + m`` is written by group j alone, from the ``Cin/group``
    input channels that begin at ``j·(Cin/group)``, through ``W[i, m]`` (ONNX ConvTranspose). So
    the scale of o multiplies ``W[i, m]`` for the input channels i of group j and no others.
    """
    cin, per_group, *kernel = shape
    ones = (1,) * len(kernel)
    return ChannelLayout((group, cin // group, per_group, *kernel), (group, 1, per_group, *ones))


def conv_inputs(shape: tuple[int, ...], group: int) -> ChannelLayout:
    """Input channels of a Conv weight ``[Cout, Cin/group, k…]``.

    Group j reads the ``Cin/group`` input channels that begin at ``j·(Cin/group)`` and writes the
    ``Cout/group`` filters that begin at ``j·(Cout/group)`` (ONNX Conv): input channel
    ``i = j·(Cin/group) + m`` is column m of the filters of group j, and of no others.
    """
    cout, per_group, *kernel = shape
    ones = (1,) * len(kernel)
    return ChannelLayout((group, cout // group, per_group, *kernel), (group, 1, per_group, *ones))


def scaled(weight: Array, scale: Vector, layout: ChannelLayout, dtype: np.dtype[Any]) -> Array:
    """The weight with each output channel multiplied by its scale, rounded once to a dtype.

    Exact but for that one rounding: a linear operator is linear in its weight, channel by channel.
    """
    source = weight.reshape(layout.view)
    factor = np.broadcast_to(layout.spread(scale), layout.along)
    result = np.empty(layout.view, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for part in _blocks(source):
            rows = part if factor.shape[0] > 1 else slice(None)
            exact = source[part].astype(np.float64)
            exact *= factor[rows]
            result[part] = exact
    return result.reshape(weight.shape)


def channel_peaks(weight: Array, layout: ChannelLayout) -> Vector:
    """The largest magnitude of each output channel, a float64 vector. A NaN weight gives NaN."""
    source = weight.reshape(layout.view)
    reduced = tuple(k for k, n in enumerate(layout.along) if n == 1)
    if source.size == 0:
        return np.zeros(math.prod(layout.along))
    exact = source.dtype if source.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    peaks = np.concatenate(
        [
            np.abs(source[part].astype(exact, copy=False)).max(axis=reduced, keepdims=True)
            for part in _blocks(source)
        ]
    )
    if 0 in reduced:
        peaks = peaks.max(axis=0)
    return np.asarray(peaks.astype(np.float64)).reshape(-1)


def _blocks(source: Array) -> Iterator[slice]:
    """Slices of the first axis, each so small that its float64 copy stays in cache."""
    rows = source.shape[0] if source.ndim else 0
    if rows == 0:
        return
    step = max(1, _BLOCK * rows // max(1, source.size))
    for start in range(0, rows, step):
        yield slice(start, start + step)
