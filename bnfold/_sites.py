"""Sites: the parameters through which an operator absorbs an affine map of its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnfold import _weights
from bnfold._affine import AffineMap, Vector
from bnfold._elementwise import Shape
from bnfold._plan._reasons import Reason
from bnfold._plan._view import Role
from bnfold._weights import Layout

Array = NDArray[Any]


class Parameter(Protocol):
    """A constant tensor that an operator reads; its values are loaded when they are asked for."""

    @property
    def name(self) -> str:
        """What the user knows it by."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def load(self) -> Callable[[], Array]:
        """Read the values."""
        ...


@dataclass(frozen=True)
class Site:
    """Where an operator keeps its weight and bias, and how output channels lie in them.

    ``weight`` and ``bias`` are input positions; ``bias`` is None where the operator has none
    (MatMul). ``layout`` gives the weight's layout for an output axis and ``bias_along`` the shape
    that a per-channel vector takes in the bias. ``bias_shape`` is the shape of a bias made anew
    (None: that of the vector). ``bias_factor`` is Gemm's beta.
    """

    label: str
    weight: int
    bias: int | None
    channels: Mapping[int, int]
    layout: Callable[[int], Layout]
    bias_along: Callable[[int], tuple[int, ...]]
    weight_value: Parameter | None
    bias_value: Parameter | None = None
    bias_shape: tuple[int, ...] | None = None
    bias_factor: float = 1.0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    def peaks(self, axis: int) -> Vector:
        """The largest weight magnitude of each output channel along an axis."""
        assert self.weight_value is not None
        return _weights.channel_peaks(self.weight_value.load(), self.layout(axis))

    def any_axis(self, map_: AffineMap) -> int:
        """The axis to lay a map along; a uniform one fits any."""
        return map_.axis if map_.axis is not None else next(iter(self.channels), 0)

    def new_weight(self, map_: AffineMap) -> Array | None:
        """``W[o]·s_o`` rounded once, or None where the scale is 1."""
        if map_.keeps_scale or self.weight_value is None:
            return None
        layout = self.layout(self.any_axis(map_))
        return _weights.scaled(self.weight_value.load(), map_.scale, layout)

    def new_bias(self, map_: AffineMap) -> Array | None:
        """``s·β·b + t`` rounded once, or None where it stays what it was."""
        if self.bias is None:
            return None
        exact = self._exact_bias(map_)
        if exact is None:
            return None
        with np.errstate(over="ignore"):
            return exact.astype(self.dtype)

    def _exact_bias(self, map_: AffineMap) -> NDArray[np.float64] | None:
        has_bias = self.bias_value is not None and self.bias_factor != 0.0
        if map_.keeps_origin and (map_.keeps_scale or not has_bias):
            return None
        scale, shift = map_.scale, map_.shift
        if map_.axis is not None:
            along = self.bias_along(map_.axis)
            scale, shift = scale.reshape(along), shift.reshape(along)
        if not has_bias:
            shape = self.bias_shape if self.bias_shape is not None else shift.shape
            return np.broadcast_to(shift, shape)
        assert self.bias_value is not None
        old = self.bias_value.load().astype(np.float64)
        new = scale * (self.bias_factor * old) + shift
        return np.asarray(new.reshape(old.shape) if new.size == old.size else new)

    def refuses(self, map_: AffineMap, peaks: Callable[[int], Vector]) -> Reason | None:
        """Whether the folded parameters would be lost to overflow, underflow or NaN.

        ``peaks`` gives the channel peaks along an axis, so that a caller may remember them.
        """
        bias = self.new_bias(map_)
        if not map_.keeps_scale and self.weight_value is not None:
            top = peaks(self.any_axis(map_))
            if not bool(np.isfinite(top).all()):
                name = self.weight_value.name
                return Reason("non-finite", self.label, f"weight {name} is not finite")
            if _weights.overflows(np.abs(map_.scale) * top, self.dtype):
                what = f"the folded weight of {self.label} would overflow {self.dtype}"
                return Reason("overflow", self.label, what)
            lost = _weights.underflows(top, map_.scale, self.dtype)
            if bias is not None and bias.size == lost.size:
                terms = math.prod(self.weight_value.shape) // lost.size
                exact = bias.astype(np.float64).reshape(-1)
                lost &= ~_weights.drowned(exact, terms, self.dtype)
            if bool(lost.any()):
                channel = int(np.argmax(lost))
                return Reason(
                    "underflow",
                    self.label,
                    f"the folded weight of {self.label} would lose precision in channel {channel}: "
                    f"it falls below the smallest normal {self.dtype}",
                )
        if bias is None or bool(np.isfinite(bias.astype(np.float64)).all()):
            return None
        old = self.bias_value.load() if self.bias_value is not None else np.zeros(1)
        if not bool(np.isfinite(old.astype(np.float64)).all()):
            return Reason("non-finite", self.label, f"the bias of {self.label} is not finite")
        return Reason("overflow", self.label, f"the folded bias of {self.label} would overflow")


@dataclass(frozen=True)
class Reading:
    """A node's role, the site it absorbs at, and its output's shape where that follows.

    ``deviation`` is ``√(var + ε)`` of a BatchNorm, per channel.
    """

    role: Role
    site: Site | None = None
    shape: Shape | None = None
    deviation: Vector | None = field(default=None, repr=False)
