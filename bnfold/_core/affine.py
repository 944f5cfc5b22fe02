"""Per-channel affine maps ``y = scale · x + shift``. All other modules are built on this idea.

An inference-time BatchNorm is such a map, with ``scale = γ / √(var + ε)`` and
``shift = β − μ · scale`` (Ioffe & Szegedy 2015, section 3.1). So is a multiply, add, subtract or
divide by a constant that varies along one axis only. Maps are composed in float64. The code that
writes a weight rounds the result once, to the stored dtype.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnfold._system.records import record

Vector = NDArray[np.float64]
LAST = -1
"""The axis of a map along the last axis of a tensor of unknown rank. Such a map is taken in where
it stands, or by a product right behind it. It crosses nothing: laws know an axis by its number from
the first."""
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@record(frozen=True, eq=False)
class AffineMap:
    """``y = scale · x + shift``, with one scale and one shift per position of ``axis``.

    ``scale`` and ``shift`` are float64 vectors of one length: the size of the axis. When ``axis``
    is None, the length is 1, and every element of the tensor has the same scale and shift. It is
    `LAST` where the rank of the tensor is not known.
    """

    scale: Vector
    shift: Vector
    axis: int | None

    @classmethod
    def of(cls, scale: ArrayLike, shift: ArrayLike, axis: int | None) -> AffineMap:
        """Make a map from scalars or vectors; one whose values all agree becomes uniform.

        A uniform map acts alike on every axis. It needs no axis, and without one it passes where a
        per-channel map could not. Values agree if a few roundings in float64 can explain their
        difference: ``t`` and ``(t·s)/s`` are the same number.
        """
        s = np.array(scale, np.float64, ndmin=1)
        t = np.array(shift, np.float64, ndmin=1)
        if s.size == t.size:
            uniform = s.size > 0 and _uniform(s) and _uniform(t)
        elif s.size < t.size:
            uniform = bool(np.isfinite(s[0])) and _uniform(t)
            s = np.full(t.size, s[0])
        else:
            uniform = bool(np.isfinite(t[0])) and _uniform(s)
            t = np.full(s.size, t[0])
        return cls(s[:1], t[:1], None) if uniform else cls(s, t, axis)

    @classmethod
    def batch_norm(
        cls,
        gamma: NDArray[Any],
        beta: NDArray[Any],
        mean: NDArray[Any],
        variance: NDArray[Any],
        epsilon: float,
        axis: int,
    ) -> AffineMap:
        """The map of a BatchNorm with fixed statistics, each a vector of shape ``[C]``.

        Exact for ``variance + epsilon > 0`` and finite statistics. The caller makes sure of both.
        The stored variance is used unchanged: frameworks store the unbiased variance, and their
        inference divides by it as it is (ONNX BatchNormalization, torch.nn.BatchNorm2d).
        """
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        shift = beta.astype(np.float64) - mean.astype(np.float64) * scale
        return cls.of(scale, shift, axis)

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return self.keeps_scale and self.keeps_origin

    @cached_property
    def keeps_scale(self) -> bool:
        """Whether every scale is 1."""
        return bool((self.scale == 1.0).all())

    @cached_property
    def keeps_origin(self) -> bool:
        """Whether every shift is 0."""
        return bool((self.shift == 0.0).all())

    @property
    def is_finite(self) -> bool:
        """Whether every scale and shift is a finite number."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def rounded(self, dtype: np.dtype[Any]) -> AffineMap:
        """The map as a dtype can store it."""
        with np.errstate(over="ignore"):
            scale, shift = self.scale.astype(dtype), self.shift.astype(dtype)
        return AffineMap.of(scale.astype(np.float64), shift.astype(np.float64), self.axis)

    def then(self, outer: AffineMap) -> AffineMap | None:
        """The map ``outer ∘ self = A(s₂·s₁, s₂·t₁ + t₂)``, or None if one axis cannot hold both.

        Always exact. The composition has one axis if both maps vary along the same axis, or if at
        least one of them is uniform.
        """
        if self.axis is not None and outer.axis is not None:
            if self.axis != outer.axis or self.scale.size != outer.scale.size:
                return None
            axis: int | None = self.axis
        else:
            axis = self.axis if self.axis is not None else outer.axis
        with np.errstate(over="ignore", invalid="ignore"):  # Callers look at `is_finite`.
            shift = outer.scale * self.shift + outer.shift
            return AffineMap.of(outer.scale * self.scale, shift, axis)


def _uniform(vector: Vector) -> bool:
    if vector.size == 1:
        return True
    first = vector[0]
    others = vector[vector != first]  # Mostly few, or the second one is already another number.
    if not others.size:
        return True
    near = np.abs(others[0] - first) <= _ROUNDING * np.abs(first) < np.inf
    return bool(near and (np.abs(others - first) <= _ROUNDING * np.abs(first)).all())


IDENTITY = AffineMap.of(1.0, 0.0, None)
