"""Sites: the parameters through which an operator absorbs affine maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._core import channels
from bnfold._core.affine import IDENTITY, AffineMap, Vector
from bnfold._core.broadcast import Shape
from bnfold._core.channels import ChannelLayout
from bnfold._core.limits import dead, drowned, outgrows, overflows, underflows
from bnfold._core.quantized import Quantized, Rescaled
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.stored import Array, Parameter
from bnfold._core.view import Role
from bnfold._system.records import record


@record(frozen=True)
class Entrance:
    """How a weight's entries belong to the input channels of a linear operator.

    ``layout`` says where the input channels lie in the weight. ``factor`` multiplies the sum of
    products, and so what the operator makes of a shift of its input (Gemm's alpha).
    """

    layout: ChannelLayout
    factor: float = 1.0


@record(frozen=True)
class Site:
    """Where an operator keeps its weight and bias, and how channels lie in them.

    ``weight`` and ``bias`` are input positions; ``bias`` is None where the operator has none
    (MatMul). ``layout`` gives the weight's layout for an output axis and ``bias_along`` the shape
    that a per-channel vector takes in the bias. ``bias_shape`` is the shape of a bias made anew
    (None: that of the vector). ``bias_factor`` is Gemm's beta. ``bias_beyond`` counts the numbers
    at the end of the bias's last axis that are something else's: they stay. ``entrance`` is set for
    an operator that can take in a map of its input. ``parts`` are the channels of the weight where
    one channel of what is put out may have several, as in batches of matrices: what each is lost to
    counts by itself.

    An operator with several sites takes a map in at each of them.
    """

    label: str
    weight: int
    bias: int | None
    channels: Mapping[int, int]
    layout: Callable[[int], ChannelLayout]
    bias_along: Callable[[int], tuple[int, ...]]
    weight_value: Parameter | None
    bias_value: Parameter | None = None
    bias_shape: tuple[int, ...] | None = None
    bias_factor: float = 1.0
    bias_beyond: int = 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    entrance: Entrance | None = None
    quantized: Quantized | None = None
    parts: ChannelLayout | None = None

    def peaks(self, axis: int) -> Vector:
        """The largest weight magnitude of each part of the weight, or output channel of an axis."""
        assert self.weight_value is not None
        return channels.channel_peaks(self.weight_value.load(), self.parts or self.layout(axis))

    def any_axis(self, map_: AffineMap) -> int:
        """The axis to lay a map along; a uniform one fits any."""
        return map_.axis if map_.axis is not None else next(iter(self.channels), 0)

    def rescales(self, behind: AffineMap, ahead: AffineMap = IDENTITY) -> bool:
        """Whether there is a new weight: not where all scales are 1."""
        kept = behind.keeps_scale and ahead.keeps_scale
        return self.weight_value is not None and not kept and self.quantized is None

    def new_weight(self, behind: AffineMap, ahead: AffineMap = IDENTITY) -> Array | None:
        """``W[o, i]·s_o·s_i`` rounded once, or None where all scales are 1."""
        if self.weight_value is None or not self.rescales(behind, ahead):
            return None
        layout = self.layout(self.any_axis(behind))
        if ahead.keeps_scale:
            return channels.scaled(self.weight_value.load(), behind.scale, layout, self.dtype)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            exact = self._entered(ahead).reshape(layout.view) * layout.spread(behind.scale)
            return exact.astype(self.dtype).reshape(self.weight_value.shape)

    def rescaled(self, behind: AffineMap, ahead: AffineMap) -> Rescaled | Reason | None:
        """What becomes of a weight that is stored as integers, or why it cannot take the maps in;
        None where it stays. See `Quantized.rescaled`.
        """
        if self.quantized is None or (behind.keeps_scale and ahead.keeps_scale):
            return None
        try:
            return self.quantized.rescaled(self.factor(behind, ahead), self.label)
        except Refusal as no:
            return no.reason

    def factor(self, behind: AffineMap, ahead: AffineMap) -> Vector:
        """``s_o·s_i`` at the rank of the weight, with size 1 along axes where it does not vary."""
        assert self.weight_value is not None
        shape = self.weight_value.shape
        parts = [(self.layout(self.any_axis(behind)), behind.scale)]
        if not ahead.keeps_scale:
            assert self.entrance is not None
            parts.append((self.entrance.layout, ahead.scale))
        factor = np.ones((1,) * len(shape))
        for layout, scale in parts:
            laid = layout.spread(scale)
            if layout.view != shape and scale.size > 1:  # groups
                laid = np.broadcast_to(laid, layout.view).reshape(shape)
            factor = factor * laid.reshape(laid.shape if scale.size > 1 else (1,) * len(shape))
        for axis in range(len(shape)):
            first = factor.take([0], axis)
            if bool((factor == first).all()):
                factor = first
        return factor

    def new_bias(self, behind: AffineMap, ahead: AffineMap = IDENTITY) -> Array | None:
        """``s·(β·b + Σ W[o, i, k]·t_i) + t`` rounded once, or None where it stays what it was."""
        if self.bias is None:
            return None
        exact = self._exact_bias(behind, ahead)
        if exact is None:
            return None
        with np.errstate(over="ignore"):
            return exact.astype(self.dtype)

    def image(self, shift: Vector) -> Vector:
        """What a shift of the input adds to each output channel: ``Σ W[o, i, k]·t_i``."""
        assert self.weight_value is not None
        assert self.entrance is not None
        inside = self.entrance.layout
        weight = self.weight_value.load().astype(np.float64)
        outside = self.layout(self.any_axis(IDENTITY))
        terms = (weight.reshape(inside.view) * inside.spread(shift)).reshape(outside.view)
        summed = tuple(k for k, n in enumerate(outside.along) if n == 1)
        total: Vector = terms.sum(axis=summed, keepdims=True).reshape(-1)
        return total * self.entrance.factor

    def _entered(self, ahead: AffineMap) -> NDArray[np.float64]:
        """``W[o, i]·s_i`` in float64."""
        assert self.weight_value is not None
        assert self.entrance is not None
        inside = self.entrance.layout
        weight = self.weight_value.load().astype(np.float64)
        return np.asarray(weight.reshape(inside.view) * inside.spread(ahead.scale))

    def _exact_bias(self, behind: AffineMap, ahead: AffineMap) -> NDArray[np.float64] | None:
        has_bias = self.bias_value is not None and self.bias_factor != 0.0
        moved = not ahead.keeps_origin
        if behind.keeps_origin and not moved and (behind.keeps_scale or not has_bias):
            return None
        scale, shift = behind.scale, behind.shift
        if moved:
            shift = shift + scale * self.image(ahead.shift)
        along = behind.axis is not None
        if along or moved or self.bias_beyond:
            shape = self.bias_along(self.any_axis(behind))
            shift = self._laid(shift, shape, 0.0, along or shift.size > 1)
            scale = self._laid(scale, shape, 1.0, along)
        if not has_bias:
            made = self.bias_shape if self.bias_shape is not None else shift.shape
            return np.broadcast_to(shift, made)
        assert self.bias_value is not None
        old = self.bias_value.load().astype(np.float64)
        new = scale * (self.bias_factor * old) + shift
        return np.asarray(new.reshape(old.shape) if new.size == old.size else new)

    def _laid(
        self, vector: Vector, shape: tuple[int, ...], beyond: float, along: bool
    ) -> NDArray[np.float64]:
        """A vector as the bias meets it, with the number that the rest of a bias meets. A uniform
        one is not laid ``along`` anything, but for a bias that has such a rest.
        """
        if not self.bias_beyond:
            return vector.reshape(shape) if along else vector
        laid = np.broadcast_to(vector, (math.prod(shape),)).reshape(shape)
        wide = [(0, 0)] * (len(shape) - 1) + [(0, self.bias_beyond)]
        return np.pad(laid, wide, constant_values=beyond)

    def refuses(
        self, behind: AffineMap, ahead: AffineMap, peaks: Callable[[int], Vector]
    ) -> Reason | None:
        """Whether the folded parameters would be lost to overflow, underflow or NaN.

        ``peaks`` gives the channel peaks along an axis, so that a caller may remember them.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            bias = self.new_bias(behind, ahead)
        rescaled = self.rescaled(behind, ahead)
        if isinstance(rescaled, Reason):
            return rescaled
        kept = (behind.keeps_scale and ahead.keeps_scale) or self.quantized is not None
        if self.weight_value is not None and not kept:
            axis = self.any_axis(behind)
            top = peaks(axis)
            if not bool(np.isfinite(top).all()):
                name = self.weight_value.name
                return Reason("non-finite", self.label, f"weight {name} is not finite")
            stored = top
            if not ahead.keeps_scale:
                reason = self._refuses_ahead(behind, ahead)
                if reason is not None:
                    return reason
                top = channels.channel_peaks(self._entered(ahead), self.parts or self.layout(axis))
            most = float(np.abs(ahead.scale).max(initial=0.0))
            scale = np.abs(behind.scale)
            if self.parts is not None and scale.size > 1:
                laid = self.layout(axis).spread(scale)
                scale = np.broadcast_to(laid, self.parts.along).reshape(-1)
            reason = self._refuses_scale(scale, top, stored, most, self._least(bias, axis))
            if reason is not None:
                return reason
        if bias is None or bool(np.isfinite(bias.astype(np.float64)).all()):
            return None
        old = self.bias_value.load() if self.bias_value is not None else np.zeros(1)
        if not bool(np.isfinite(old.astype(np.float64)).all()):
            return Reason("non-finite", self.label, f"the bias of {self.label} is not finite")
        return Reason("overflow", self.label, f"the folded bias of {self.label} would overflow")

    def _least(self, bias: Array | None, axis: int) -> Vector | None:
        """The least that a bias adds to each channel of an axis; None where there are several such
        axes, or none.
        """
        if bias is None or len(self.channels) != 1 or self.bias_beyond:
            return None
        along = self.bias_along(axis)
        size = np.abs(bias.astype(np.float64))
        laid = np.broadcast_to(size, np.broadcast_shapes(size.shape, along))
        ones = (1,) * (laid.ndim - len(along)) + along
        others = tuple(k for k, n in enumerate(ones) if n == 1)
        return np.asarray(laid.min(axis=others, initial=np.inf)).reshape(-1)

    def _refuses_scale(
        self, scale: Vector, top: Vector, stored: Vector, most: float, bias: Vector | None
    ) -> Reason | None:
        """The range of ``W[o]·s_o``, where the weights of channel o are at most ``stored[o]``, and
        ``top[o]`` with the map ahead, whose scales are at most ``most``. At least ``bias[o]`` is
        added. The scale comes from behind alpha: the products of the operator ahead of it have to
        fit, too.
        """
        assert self.weight_value is not None
        alpha = self._alpha
        if overflows(scale * top, self.dtype):
            what = f"the folded weight of {self.label} would overflow {self.dtype}"
            return Reason("overflow", self.label, what)
        if bool(outgrows(top, scale, self.dtype, alpha).any()):
            what = f"products with the folded weight of {self.label} may overflow {self.dtype}"
            return Reason("overflow", self.label, f"{what} ahead of alpha, which is {alpha:g}")
        factor = scale * np.divide(top, stored, where=stored > 0, out=1.0 * stored)
        lost = underflows(stored, factor, self.dtype)
        if abs(alpha) > 1:
            lost |= underflows(top, scale, self.dtype, alpha)
        terms = math.prod(self.weight_value.shape) // max(lost.size, 1)
        lost &= ~dead(stored, scale * most, terms, self.dtype, alpha)
        if bias is not None:
            lost &= ~drowned(bias, terms, self.dtype, alpha)
        return self._lost(int(np.argmax(lost))) if bool(lost.any()) else None

    def _refuses_ahead(self, behind: AffineMap, ahead: AffineMap) -> Reason | None:
        """The range of ``W[o, i]·s_i``, as its largest ``s_o`` leaves it."""
        assert self.weight_value is not None
        assert self.entrance is not None
        top = channels.channel_peaks(self.weight_value.load(), self.entrance.layout)
        most = float(np.abs(behind.scale).max(initial=0.0))
        lost = underflows(top, ahead.scale * most, self.dtype)
        terms = math.prod(self.weight_value.shape)
        lost &= ~dead(top, ahead.scale * most, terms, self.dtype, self._alpha)
        return self._lost(int(np.argmax(lost))) if bool(lost.any()) else None

    @property
    def _alpha(self) -> float:
        """What multiplies the sum of products."""
        return self.entrance.factor if self.entrance is not None else 1.0

    def _lost(self, channel: int) -> Reason:
        return Reason(
            "underflow",
            self.label,
            f"the folded weight of {self.label} would lose precision in channel {channel}: "
            f"it falls below the smallest normal {self.dtype}",
        )


@record(frozen=True)
class Reading:
    """A node's role, the sites it absorbs at, and its output's shape where that follows.

    ``deviation`` is ``√(var + ε)`` of a BatchNorm, per channel.
    """

    role: Role
    sites: tuple[Site, ...] = ()
    shape: Shape | None = None
    deviation: Vector | None = field(default=None, repr=False)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of its parameters, None where it has none."""
        return self.sites[0].dtype if self.sites else None
