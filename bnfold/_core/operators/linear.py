"""Linear operators with a constant weight: convolutions, and products with one constant factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bnfold._core import channels
from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.operators.record import Operand, Operator, unusual
from bnfold._core.parameters import Entrance, Site
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import OPAQUE, Absorber, Crossing, InputSide, Opaque
from bnfold._core.windows import Window, see_zeros


@dataclass(frozen=True, kw_only=True)
class Convolution(Operator):
    """A convolution, or a ``transposed`` one, of any rank, stride, dilation, padding and group.

    ``kernel`` is the shape of its weight as far as it is known: ``[Cout, Cin/groups, k…]``,
    transposed ``[Cin, Cout/groups, k…]``. Channels are on ``axis`` of what it reads and puts out.
    ``windows`` are those of the convolution, or of the one that it is the transpose of; None where
    its padding is not known. ``dtype`` is the type it computes in, None where not known.
    ``activation`` and ``beside`` are as in `view.Absorber`. ``merges``: whether whoever writes it
    back can write a merged one.

    Law behind: ``A∘Conv`` has ``W[o]·s_o`` and ``s·b + t``: each output element of channel o is
    linear in the weights of o and adds b[o] once. Always exact.

    Law ahead: ``Conv∘A`` has ``W[o, i]·s_i`` and ``b + Σ W[o, i, k]·t_i``. Always exact for the
    scale; for the shift where every output sums the whole kernel over what is read: no output of a
    convolution sees padding; of a transposed one the kernel is one place, its stride 1, and nothing
    is padded or cut.
    """

    weight: Operand
    bias: Operand
    kernel: Shape
    groups: int
    windows: tuple[Window, ...] | None
    transposed: bool = False
    axis: int = 1
    dtype: np.dtype[Any] | None = None
    activation: Crossing | None = None
    beside: int | None = None
    merges: bool = True

    @property
    def outputs(self) -> int:
        """The number of channels that it puts out."""
        return self._sizes[1] * self.groups if self.transposed else self._sizes[0]

    @property
    def inputs(self) -> int:
        """The number of channels that it reads."""
        return self._sizes[0] if self.transposed else self._sizes[1] * self.groups

    @cached_property
    def offset(self) -> Operand:
        """The bias, which can only be one number for each channel that is put out."""
        return self.bias.shaped((self.outputs,))

    @property
    def role(self) -> Absorber:
        """It takes in maps of what it puts out, and of what it reads."""
        weight, bias = self.weight.missing, self.offset.missing
        # A new bias has to be of the type that it computes in.
        untyped = weight if self._type is None else None
        ahead = None
        if self.weight.value is not None:
            blocked = self._partial or bias or untyped
            ahead = InputSide(self.data[0], {self.axis: self.inputs}, None, blocked)
        outside = {self.axis: self.outputs}
        return Absorber(
            outside,
            weight or bias,
            bias or untyped,
            True,
            ahead,
            self.activation,
            self.beside,
        )

    @property
    def sites(self) -> tuple[Site]:
        """The weight, and the bias of one number for each channel that is put out."""
        shape, size = self._sizes, self.outputs
        outside = channels.along_axis(shape, 0)
        inside = channels.conv_inputs(shape, self.groups) if not self.transposed else outside
        if self.transposed:
            outside = channels.conv_transpose(shape, self.groups)
        site = Site(
            self.label,
            self.weight.position,
            self.bias.position,
            {self.axis: size},
            lambda axis: outside,
            lambda axis: (size,),
            self.weight.value,
            self.offset.value,
            (size,),
            dtype=self._type or np.dtype(np.float32),
            entrance=Entrance(inside) if self.weight.value is not None else None,
            quantized=self.weight.quantized,
        )
        return (site,)

    @property
    def output(self) -> Shape:
        """Its rank, and the number of its channels."""
        rank = len(self.kernel) - 1 + min(self.axis, 1)
        return tuple(self.outputs if axis == self.axis else None for axis in range(rank))

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The weight's shape; unknown sizes of one that is not constant do not matter."""
        return tuple(size if size is not None else 1 for size in self.kernel)

    @property
    def _type(self) -> np.dtype[Any] | None:
        """The type of its parameters."""
        known = self.weight.value or self.offset.value
        return known.dtype if known is not None else self.dtype

    @property
    def _partial(self) -> Reason | None:
        """Why some outputs may not sum the whole kernel over what is read."""
        windows = self.windows
        if self.transposed:
            if windows is not None and all(window.is_point for window in windows):
                return None
            what = "its outputs sum different parts of the kernel, zero padding would see the shift"
        else:
            if not see_zeros(windows):
                return None
            what = "zero padding would see the shift"
        return Reason("zero-padding", self.label, f"{self.label}: {what}")


@dataclass(frozen=True, kw_only=True)
class Product(Operator):
    """A matrix product of data with a constant factor: Gemm, MatMul, Linear.

    ``columns`` maps each axis of what is put out that has entries of its own in the weight to the
    weight's axis; the product sums over axis ``summed`` of the weight and ``along`` of the data
    (None: not known). ``rank`` is that of what is put out. ``bias`` is None where the operator has
    no place for one (MatMul), ``bias_shape`` is the shape of every bias, None where it may be any
    that broadcasts; ``alpha`` and ``beta`` multiply the product and the bias. ``dtype`` is the type
    it computes in, None where not known. ``add_blocked`` says why no Add may be put behind it;
    ``writable``: whether whoever writes it back can change its weight. ``activation`` is as in
    `view.Absorber`. ``merges``: whether whoever writes it back can write a merged one. ``becomes``
    is as in `view.Absorber`, too.

    Law behind: ``A∘(α·x·W + β·C)`` has ``W[k, n]·s_n`` and ``s·β·C + t``: each output is linear in
    its column of W. Always exact along axes of ``columns``.

    Law ahead: ``W[k, n]·s_k`` and ``β·C + α·Σ t_k·W[k, n]``. Exact where the map varies along the
    axis that is summed over, or not at all. Without a bias the shift becomes a map of what is put
    out, along one axis only where W is a matrix.
    """

    weight: Operand
    columns: Mapping[int, int]
    summed: int
    along: int | None
    rank: int | None
    bias: Operand | None = None
    bias_shape: tuple[int, ...] | None = None
    alpha: float = 1.0
    beta: float = 1.0
    dtype: np.dtype[Any] | None = None
    add_blocked: Reason | None = None
    writable: bool = True
    activation: Crossing | None = None
    merges: bool = True
    becomes: str = ""

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        assert self.weight.value is not None
        return self.weight.value.shape

    @property
    def channels(self) -> Mapping[int, int]:
        """The sizes of the axes of what is put out that have entries of their own."""
        return {out: self._shape[own] for out, own in self.columns.items()}

    @cached_property
    def offset(self) -> Operand | None:
        """The bias, where it has a shape that broadcasts to what is put out."""
        bias = self.bias
        if bias is None or bias.value is None:
            return bias
        if self.bias_shape is not None:
            return bias.shaped(self.bias_shape)
        ((axis, size),) = self.channels.items()
        shape = bias.value.shape
        if len(shape) <= 2 and (1, 1, *shape)[-2:][axis] in (1, size):
            return bias
        return replace(bias, value=None, missing=unusual(bias.value))

    @property
    def role(self) -> Absorber | Opaque:
        """It takes in maps of what it puts out, and of what it reads."""
        if not self.writable:
            return OPAQUE
        blocked = self.offset.missing if self.offset is not None else None
        behind = blocked if self.offset is not None else self.add_blocked
        has_bias = self.offset is not None
        return Absorber(
            self.channels,
            blocked,
            behind,
            has_bias,
            self._ahead,
            self.activation,
            becomes=self.becomes,
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weight, and the bias along the axis of what is put out."""
        return (self._site,) if self.writable else ()

    @property
    def _site(self) -> Site:
        shape, rank, bias = self._shape, self.rank or 0, self.offset
        return Site(
            self.label,
            self.weight.position,
            bias.position if bias is not None else None,
            self.channels,
            lambda out: channels.along_axis(shape, self.columns.get(out, 0)),
            lambda out: (shape[self.columns[out]], *(1,) * (rank - 1 - out)),
            self.weight.value,
            bias.value if bias is not None else None,
            self.bias_shape,
            self.beta,
            dtype=self.weight.value.dtype if self.weight.value else np.dtype(np.float32),
            entrance=Entrance(channels.along_axis(shape, self.summed), self.alpha),
            quantized=self.weight.quantized,
            parts=channels.off_axis(shape, self.summed),
        )

    @property
    def output(self) -> Shape | None:
        """Its rank, and the sizes that the weight gives it."""
        if self.rank is None:
            return None
        return tuple(self.channels.get(axis) for axis in range(self.rank))

    @property
    def _ahead(self) -> InputSide:
        inside = {} if self.along is None else {self.along: self._shape[self.summed]}
        if self.offset is not None:
            return InputSide(self.data[0], inside, None, self.offset.missing)
        blocked = None
        if len(self._shape) != 2 or self.along is None:
            message = f"the shift would vary along several axes of what {self.label} puts out"
            blocked = Reason("axis-mismatch", self.label, message)
        return InputSide(self.data[0], inside, None, blocked, self._image)

    def _image(self, map_: AffineMap) -> AffineMap:
        site = self._site
        return AffineMap.of(1.0, site.image(map_.shift), next(iter(site.channels)))


def gemm(
    label: str,
    weight: Operand,
    bias: Operand,
    turned: tuple[bool, bool],
    alpha: float,
    beta: float,
) -> Product:
    """``α·A'·B' + β·C`` of two matrices, of which the weight is B, or A where its position is 0;
    ``turned`` says whether A and B are transposed first. α multiplies the product either way.

    Raises `Refusal` where the weight is no matrix.
    """
    _check_matrix(weight)
    axis = weight.position
    stored = (1 - axis) if turned[axis] else axis
    # Of the data [M, K] (of [K, N] where A is constant) K is summed over, wherever it is stored.
    along = axis ^ turned[1 - axis]
    return Product(
        label=label,
        data=(1 - weight.position,),
        weight=weight,
        columns={axis: stored},
        summed=1 - stored,
        along=along,
        rank=2,
        bias=bias,
        alpha=alpha,
        beta=beta,
    )


def _check_matrix(weight: Operand) -> None:
    """Raise a `Refusal` where a weight is no matrix."""
    if weight.missing is not None:
        raise Refusal(weight.missing)
    assert weight.value is not None
    if len(weight.value.shape) != 2:
        raise Refusal(unusual(weight.value))


Turn = Callable[[int], tuple[int, ...]]
"""Gives for each axis of an operand as it is multiplied the axis as it is stored, for its rank."""


def as_stored(rank: int) -> tuple[int, ...]:
    """No axis moves."""
    return tuple(range(rank))


def matmul(
    label: str,
    weight: Operand,
    other: Shape | None,
    add_blocked: Reason | None = None,
    writable: bool = True,
    turned: tuple[Turn, Turn] = (as_stored, as_stored),
    alpha: float = 1.0,
) -> Product:
    """``α`` times a product by NumPy's rules with a constant on the right, or on the left where the
    weight's position is 0; ``other`` is the shape of the data. ``turned`` says how the axes of
    either operand are taken: a transposed matrix [N, K] as (1, 0).

    The constant's last axis (on the right) is the output's last, its second-last (on the left) the
    output's second-last, and its batch axes, aligned from the right, are the output's. An axis that
    the constant lacks, or holds with size 1 against a larger output, has no entries of its own.
    """
    assert weight.value is not None
    right = weight.position == 1
    stored = turned[weight.position](len(weight.value.shape))
    fixed = tuple(weight.value.shape[axis] for axis in stored)
    columns: dict[int, int] = {}
    along, rank = None, None
    if other is not None:
        order = turned[1 - weight.position](len(other))
        other = tuple(other[axis] for axis in order)
        along = order[len(other) - 1 if right else max(len(other) - 2, 0)]
    if other is not None and len(fixed) >= 2:
        columns = {out: stored[own] for out, own in _columns(fixed, right, other).items()}
        rank = max(len(fixed), len(other)) - (len(other) == 1)
    return Product(
        label=label,
        data=(1 - weight.position,),
        weight=weight,
        columns=columns,
        summed=stored[max(len(fixed) - 2, 0) if right else len(fixed) - 1],
        along=along,
        rank=rank,
        alpha=alpha,
        add_blocked=add_blocked,
        writable=writable,
    )


def turning(matrix: bool, batch: bool) -> Turn:
    """How FusedMatMul takes the axes of an operand: ``batch`` takes the first axis behind the batch
    axes, and then ``matrix`` exchanges the last two. A vector stays.
    """

    def turn(rank: int) -> tuple[int, ...]:
        order = list(range(rank))
        if batch and rank > 2:
            order[:-1] = [*order[1:-1], 0]
        if matrix and rank > 1:
            order[-2:] = [order[-1], order[-2]]
        return tuple(order)

    return turn


def _columns(fixed: tuple[int, ...], right: bool, other: Shape) -> dict[int, int]:
    """Output axes of a MatMul that have entries of their own, with the constant's axis."""
    batch = len(fixed) - 2
    kept = len(fixed) - 1 if right else len(fixed) - 2
    if len(other) == 1:
        axes = {batch: kept}
        first = batch
    else:
        rank = max(len(fixed), len(other))
        axes = {rank - 1 if right else rank - 2: kept}
        first = rank - 2
    axes.update({first - batch + k: k for k in range(batch) if fixed[k] != 1})
    return axes
