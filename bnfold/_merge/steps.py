"""What an operator is for merging: one step of a linear function of channels × space, or a sum.

An operator that is almost such a step is `Blocked`, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.joins import Summed
from bnfold._core.operators.affine import Elementwise, FixedNorm
from bnfold._core.operators.crossed import Activation, Crossed, Pooling
from bnfold._core.operators.linear import Convolution, Product
from bnfold._core.operators.record import Operator, Passing, Unweighted
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.windows import Window
from bnfold._merge.kernels import Kernel, convolving, multiplying
from bnfold._system.records import record


@record(frozen=True)
class Weighted:
    """A linear operator with weights: its kernel, and the type they are stored in.

    Channels are on the axis directly ahead of the axes of space, for a matrix product on the last.
    """

    kernel: Kernel
    dtype: np.dtype[Any]
    data: int = 0


@record(frozen=True)
class Pool:
    """An average over fixed windows."""

    windows: tuple[Window, ...]
    data: int = 0


@record(frozen=True)
class Mapped:
    """A per-channel affine operator."""

    map: AffineMap
    operations: int
    data: int = 0


@record(frozen=True)
class Passed:
    """An operator that hands its input through."""

    data: int = 0


@record(frozen=True)
class Blocked:
    """An operator that would be a step, and the reason why it is not.

    ``ends`` is set for an activation, which users care about only at the end of a branch.
    """

    reason: Reason
    data: int = 0
    ends: bool = False


LinearStep = Weighted | Pool | Mapped | Passed | Blocked


@record(frozen=True)
class LinearForm:
    """An operator as a step of one tensor, as a sum of several, or as neither.

    ``signs`` has 1 or −1 for each term of a sum.
    """

    step: LinearStep | None = None
    signs: tuple[int, ...] | None = None


NEITHER = LinearForm()


def linear_form(operator: Operator) -> LinearForm:
    """The linear form of an operator, from its record."""
    if isinstance(operator, Crossed) and isinstance(operator.law, Summed):
        signs = operator.law.signs
        return LinearForm(None, signs if len(signs) > 1 else None)
    try:
        taken = _step(operator)
    except Refusal as no:
        taken = Blocked(no.reason, operator.data[0])
    return NEITHER if taken is None else LinearForm(taken)


def _step(operator: Operator) -> LinearStep | None:
    if isinstance(operator, Elementwise | FixedNorm):
        return Mapped(operator.map, operator.role.operations, operator.data[0])
    if isinstance(operator, Passing):
        return Passed(operator.data[0])
    if isinstance(operator, Activation):
        what = f"{operator.label} ({operator.kind}) is not linear"
        return Blocked(_not_mergeable(operator, what), operator.data[0], ends=True)
    if isinstance(operator, Convolution):
        return _convolution(operator)
    if isinstance(operator, Product):
        return _product(operator)
    if isinstance(operator, Pooling) and operator.mean:
        return _mean(operator)
    if isinstance(operator, Unweighted) and operator.merges:
        return Blocked(operator.reason, operator.data[0])
    return None


def _convolution(operator: Convolution) -> LinearStep | None:
    """``b[o] + Σ W[o, i, k]·x[i]``, group j of outputs from group j of inputs (ONNX Conv)."""
    if operator.transposed or not operator.merges:
        return None
    weight, bias = operator.weight.stored, operator.bias.stored
    if weight is None or not all(weight.shape) or operator.dtype not in (None, weight.dtype):
        return None
    if bias is not None and bias.shape != (operator.outputs,):
        return None
    if operator.windows is None:
        raise Refusal(_unknown_padding(operator))
    kernel = convolving(weight, bias, operator.groups, operator.windows)
    return Weighted(kernel, weight.dtype, operator.data[0])


def _product(operator: Product) -> LinearStep | None:
    """``α·x·W + β·b`` along the last axis of x (ONNX Gemm, MatMul).

    W is a matrix on the right. b varies along the last axis alone, or not at all.
    """
    rank, bias = operator.rank, operator.bias
    if not operator.merges or rank is None or set(operator.columns) != {rank - 1}:
        return None
    weight = operator.weight.stored
    if weight is None or operator.dtype not in (None, weight.dtype):
        return None
    if len(weight.shape) != 2 or not all(weight.shape):
        return None
    if operator.along != rank - 1 or (bias is None and rank < 2):
        return None
    offset = bias.stored if bias is not None else None
    turned = operator.summed == 1
    if offset is not None and not _is_row(offset.shape, weight.shape[0 if turned else 1]):
        return None
    kernel = multiplying(weight, offset, turned=turned, alpha=operator.alpha, beta=operator.beta)
    return Weighted(kernel, weight.dtype, operator.data[0])


def _is_row(shape: Sequence[int], outputs: int) -> bool:
    """Whether a bias of this shape adds the same numbers to every row of a matrix."""
    *before, last = shape or (1,)
    return len(shape) <= 2 and all(n == 1 for n in before) and last in (1, outputs)


def _mean(operator: Pooling) -> LinearStep:
    """An average as a step. Each output must divide by the same number, its number of taps."""
    if operator.windows is None:
        raise Refusal(_unknown_padding(operator))
    label = operator.label
    what = ""
    if operator.padded and not operator.counted:
        what = f"{label} leaves padding out of its averages, so that borders weigh more"
    elif operator.ceils:
        what = f"{label} has {operator.ceils}: windows over the end are cut"
    elif operator.divides:
        what = f"{label} divides by a number of its own"
    if what:
        raise Refusal(_not_mergeable(operator, what))
    return Pool(operator.windows, operator.data[0])


def _not_mergeable(operator: Operator, what: str) -> Reason:
    return Reason("not-mergeable", operator.label, what)


def _unknown_padding(operator: Operator) -> Reason:
    what = f"the padding of {operator.label} depends on sizes that are not known"
    return Reason("unknown-shape", operator.label, what)
