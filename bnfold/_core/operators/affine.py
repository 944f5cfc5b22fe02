"""Operators that are affine maps, and norms, whose γ and β take maps in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bnfold._core import broadcast
from bnfold._core.affine import LAST, AffineMap, Vector
from bnfold._core.broadcast import Array, Shape
from bnfold._core.channels import ChannelLayout, along_axis, off_axis
from bnfold._core.operators.record import Operand, Operator
from bnfold._core.parameters import Site
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.stored import Parameter
from bnfold._core.view import Absorber, Affine
from bnfold._system.records import record


@record(frozen=True, kw_only=True)
class Elementwise(Operator):
    """A per-channel affine map by one elementwise operator: ``x·c``, ``x + c``, ``−x``.

    ``operations``, ``composable`` and ``dtype`` are those of `view.Affine`.
    """

    map: AffineMap
    operations: int = 1
    composable: bool = True
    dtype: np.dtype[Any] | None = None

    @property
    def role(self) -> Affine:
        """The map."""
        return Affine(self.map, self.data[0], self.operations, None, self.composable, self.dtype)


def with_constant(
    op: str,
    constant: Array,
    shape: Shape | None,
    label: str,
    *,
    constant_first: bool = False,
    factor: float = 1.0,
    last: int | None = None,
) -> AffineMap:
    """The map of ``x op c``, or of ``c op f·x`` when the constant comes first.

    ``op`` is one of Add, Sub, Mul and Div; ``shape`` is that of x, ``last`` the size of its last
    axis where that alone is known. Exact where c, aligned from the
    right, varies along one axis at most and does not make x larger.

    Raises:
        Refusal: it is no map with one number per channel, or has no finite one.
    """
    spread = broadcast.spread(constant, shape, label, last)
    with np.errstate(over="ignore"):
        map_ = broadcast.affine(op, spread, constant_first, label)
    if factor != 1.0:
        map_ = AffineMap.of(map_.scale * factor, map_.shift, map_.axis)
    if not map_.is_finite:
        message = f"the constant of {label} has no usable reciprocal"
        raise Refusal(Reason("non-finite", label, message))
    return map_


@record(frozen=True, kw_only=True)
class Norm(Operator):
    """A norm by the statistics of what it reads, times γ, plus β, along axes of their own.

    Law: ``A∘norm`` has ``γ·s`` and ``β·s + t``, always exact, where the map varies along one of the
    axes that γ spans. ``start`` is the first of these in what it puts out; it is `LAST` where the
    rank is not known, and γ is a vector. None: no position has parameters of its own, and a map
    must be uniform. ``beta`` is None where the operator has no place for a β: a shift then needs an
    Add.
    """

    gamma: Operand
    beta: Operand | None
    start: int | None

    @property
    def channels(self) -> Mapping[int, int]:
        """The sizes of the axes that have parameters of their own: not those along which γ holds
        one number for several places.
        """
        if self.start is None:
            return {}
        sizes = {self.start + place: n for place, n in enumerate(self._gamma.shape)}
        if self.start == LAST:
            return sizes if sizes[LAST] > 1 else {}  # One number may be for several places.
        read = self.like or ()
        spread = {
            axis for axis, n in enumerate(read) if n not in (None, 1) and sizes.get(axis) == 1
        }
        return {axis: n for axis, n in sizes.items() if axis not in spread}

    @property
    def last(self) -> int | None:
        """That of γ, where this tells it."""
        return self.channels.get(LAST)

    @property
    def role(self) -> Absorber:
        """It takes in maps of what it puts out."""
        blocked = self.beta.missing if self.beta is not None else None
        return Absorber(self.channels, blocked, blocked, bias_free=self.beta is not None)

    @property
    def sites(self) -> tuple[Site]:
        """γ and β, of one shape; a missing β is made with that of γ."""
        gamma, start = self._gamma, self.start or 0

        def layout(axis: int) -> ChannelLayout:
            """A uniform map may be laid along any axis, and along one that is none of γ's."""
            return along_axis(gamma.shape, max(axis - start, 0) if (axis < 0) == (start < 0) else 0)

        site = Site(
            self.label,
            self.gamma.position,
            self.beta.position if self.beta is not None else None,
            self.channels,
            layout,
            lambda axis: layout(axis).along,
            gamma,
            self.beta.value if self.beta is not None else None,
            gamma.shape,
            dtype=gamma.dtype,
            parts=off_axis(gamma.shape, None),
        )
        return (site,)

    @property
    def _gamma(self) -> Parameter:
        assert self.gamma.value is not None
        return self.gamma.value


@record(frozen=True, kw_only=True)
class FixedNorm(Operator):
    """A norm by statistics that no input changes: ``A(γ/√(var + ε), β − μ·s)`` along axis 1.

    ``divisor`` is ``√(var + ε)``. ``standing`` is the norm whose γ and β take maps in where it
    stays, None where it has no γ.
    """

    map: AffineMap
    divisor: Vector
    standing: Norm | None
    composable: bool = True
    dtype: np.dtype[Any] | None = None

    @property
    def role(self) -> Affine:
        """The map, which takes two steps for each element."""
        absorber = self.standing.role if self.standing is not None else None
        return Affine(self.map, self.data[0], 2, absorber, self.composable, self.dtype)

    @property
    def sites(self) -> tuple[Site, ...]:
        """γ and β."""
        return self.standing.sites if self.standing is not None else ()

    @property
    def deviation(self) -> Vector | None:
        """What γ is divided by; only a norm that has one could stay and hold several maps."""
        return self.divisor if self.standing is not None else None


def fixed_norm(
    label: str,
    vectors: Sequence[tuple[str, Array]],
    epsilon: float,
) -> tuple[AffineMap, Vector]:
    """The map of a BatchNorm, and ``√(var + ε)``.

    ``vectors`` are γ, β, mean and variance, each of one number per channel, and what the framework
    calls them. The map is exact where all are finite and ``var + ε`` is positive.

    Raises:
        Refusal: they are not, or the map is not finite.
    """
    for name, vector in vectors:
        if not bool(np.isfinite(vector.astype(np.float64)).all()):
            message = f"the {name} of {label} is NaN or infinite somewhere"
            raise Refusal(Reason("non-finite", label, message))
    gamma, beta, mean, variance = (vector for _, vector in vectors)
    total = variance.astype(np.float64) + epsilon
    if not bool((total > 0).all()):
        worst = int(np.argmin(total))
        message = f"variance + epsilon of {label} is {total[worst]:g} in channel {worst}"
        raise Refusal(Reason("non-positive-variance", label, message))
    map_ = AffineMap.batch_norm(gamma, beta, mean, variance, epsilon, 1)
    if not map_.is_finite:
        message = f"the scale or shift of {label} is not finite"
        raise Refusal(Reason("non-finite", label, message))
    return map_, np.sqrt(total)
