"""Linear operators with a constant weight: convolutions, and products with one constant factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from bnfold._core import channels
from bnfold._core.affine import LAST, AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.operators.record import Operand, Operator, unusual
from bnfold._core.parameters import Entrance, Site
from bnfold._core.reasons import Reason, past_padding
from bnfold._core.view import OPAQUE, Absorber, Crossing, InputSide, Opaque
from bnfold._core.windows import Window, see_zeros
from bnfold._system.records import record


@record(frozen=True, kw_only=True)
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
            odd = bias if _is_odd(self.bias, self.offset) else None
            ahead = InputSide(self.data[0], {self.axis: self.inputs}, odd, blocked)
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
        brief = past_padding("ConvTranspose" if self.transposed else "Conv", self.label)
        return Reason("zero-padding", self.label, f"{self.label}: {what}", brief=brief)


def _is_odd(bias: Operand | None, offset: Operand) -> bool:
    """Whether a bias has a shape that none can have: nobody knows what its operator computes."""
    return bias is not None and bias.value is not None and offset.value is None


@record(frozen=True, kw_only=True)
class Product(Operator):
    """A matrix product of data with a constant factor: Gemm, MatMul, Linear.

    ``columns`` maps each axis of what is put out that has entries of its own in the weight to the
    weight's axis; the product sums over axis ``summed`` of the weight and ``along`` of the data
    (None: not known). ``rank`` is that of what it puts out, ``read`` that of its data. ``bias`` is
    None where the operator has no place for one (MatMul), ``bias_shape`` is the shape of every
    bias, None where it may be any that broadcasts; ``alpha`` and ``beta`` multiply the product and
    the bias. ``dtype`` is the type it computes in, None where not known. ``add_blocked`` says why
    no Add may be put behind it; ``writable``: whether whoever writes it back can change its weight.
    ``activation`` is as in `view.Absorber`. ``merges``: whether whoever writes it back can write a
    merged one. ``becomes`` is as in `view.Absorber`, too.

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
    read: int | None = None

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
    def last(self) -> int | None:
        """That is the weight's, whatever its data are."""
        return self.channels.get(LAST)

    @property
    def _ahead(self) -> InputSide:
        inside = {} if self.along is None else {self.along: self._shape[self.summed]}
        if self.offset is not None:
            missing = self.offset.missing
            odd = missing if _is_odd(self.bias, self.offset) else None
            return InputSide(self.data[0], inside, odd, missing, rank=self.read)
        blocked = None
        if len(self._shape) != 2 or not (self.along is not None or LAST in self.columns):
            message = f"the shift would vary along several axes of what {self.label} puts out"
            blocked = Reason("axis-mismatch", self.label, message)
        return InputSide(self.data[0], inside, None, blocked, self._image, self.read)

    def _image(self, map_: AffineMap) -> AffineMap:
        site = self._site
        return AffineMap.of(1.0, site.image(map_.shift), next(iter(site.channels)))
