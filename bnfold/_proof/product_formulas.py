"""The right new weights of matrix products, by their definition; see `formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read.scopes import label
from bnfold._proof.absorption import (
    NO_SHIFT,
    Absorption,
    Channels,
    ShiftImage,
    bias_deviation,
    part_of,
    require_same_shape,
    row_parts,
    weight_deviation,
)
from bnfold._proof.activations import ahead_of_activation
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double

Turned = Callable[[NDArray[Any], int], NDArray[Any]]


def _as_it_is(values: NDArray[Any], at: int) -> NDArray[Any]:
    return values


def gemm(case: Absorption) -> float:
    """``S·(α·A'·B' + β·C) + T``: S goes into the constant factor and ``β·C``, T into ``β·C``."""

    def matrix(values: NDArray[Any] | None, of: NodeProto, at: int) -> NDArray[Any] | None:
        flag = "transA" if at == 0 else "transB"
        turned = any(a.name == flag and a.i for a in of.attribute)
        if values is None:
            return None
        return values.T if turned else values

    at = 1 if case.stored(1) is not None else 0
    raw = case.new(at)
    factor, made = matrix(case.stored(at), case.node, at), matrix(raw, case.twin, at)
    if factor is None or made is None or raw is None:
        raise Mismatch(f"{label(case.twin)} has no constant factor")
    require_same_shape(case, factor, made)
    alphas = [
        next((float(a.f) for a in of.attribute if a.name == "alpha"), 1.0)
        for of in (case.node, case.twin)
    ]
    if alphas[0] != alphas[1]:
        raise Mismatch(f"alpha of {label(case.twin)} changed")
    # B' is [K, N] and data A' is [M, K]; A' as the constant is [M, K] and data B' is [K, N].
    data_turned = any(
        a.name == ("transA" if at == 1 else "transB") and a.i for a in case.node.attribute
    )
    summed = factor.shape[0] if at == 1 else factor.shape[1]
    scales, terms = case.entering(at ^ int(data_turned), summed, 2)
    entering = scales[:, None] if at == 1 else scales[None, :]
    scale = case.scale([at], raw.dtype)

    def wanted(part: slice) -> Double:
        entered = factor[part].astype(np.float64) * part_of(entering, 2, part)
        scaled: Double = entered * part_of(scale, 2, part)
        return scaled

    if _reads_dynamic(case.old(2), case.node) != _reads_dynamic(case.new(2), case.twin):
        raise Mismatch(f"C of {label(case.twin)} is computed at run time now, or was")
    old, new = _offset(case.old(2), case.node), _offset(case.new(2), case.twin)
    reach = np.abs(scale) * np.abs(entering).max(initial=0.0)
    held = Channels(factor, (1 - at,), reach, _least(new, 1 - at), alphas[0], np.abs(scale))
    worst = weight_deviation(case, wanted, made, raw.dtype, held)
    image = _matrix_image(factor, terms, at, alphas[0]) if bool(terms.any()) else NO_SHIFT
    return max(worst, bias_deviation(case, old, new, raw.dtype, image))


def matmul(case: Absorption, turned: Turned = _as_it_is, alpha: float = 1.0) -> float:
    """``S·α·(X·W) + T = α·X·(S·W) + T`` where S is constant along the axis that X writes.

    ``turned`` gives an operand, by its number, as it is multiplied. The product may have become a
    Gemm, which adds T; of a tensor that is no matrix a Gemm does not run.
    """
    at = 1 if case.stored(1) is not None else 0
    stored, new = case.stored(at), case.new(at)
    if stored is None or new is None:
        raise Mismatch(f"{label(case.twin)} has no constant factor")
    factor, made = turned(stored, at), turned(new, at)
    rank = case.target.scale.ndim
    vector = case.rank(1 - at) == 1
    columns = factor.ndim - 2 if at == 1 else factor.ndim - 1
    # The sizes of the constant along the axes of the output; 1 on the axis that X writes.
    sizes = list(factor.shape)
    sizes[max(columns, 0)] = 1
    if vector or factor.ndim < 2:
        del sizes[max(columns, 0)]
    own = {rank - len(sizes) + k for k, n in enumerate(sizes) if n > 1}
    scale = case.scale(sorted(own), made.dtype)
    if vector and rank:
        scale = np.expand_dims(scale, -2 if at == 1 else -1)
    while scale.ndim > factor.ndim and scale.shape[0] == 1:
        scale = scale[0]
    data = case.rank(1 - at)
    entry = None
    if data is not None:
        # An array whose sizes are the numbers of its axes tells where each axis comes from.
        axes = turned(np.empty(range(data)), 1 - at).shape
        entry = axes[data - 1 if at == 1 else max(data - 2, 0)]
    elif at == 1 and turned(np.empty((2, 3)), 0).shape == (2, 3):
        entry = -1
    scales, terms = case.entering(entry, factor.shape[max(columns, 0)], data)
    along = tuple(-1 if k == max(columns, 0) else 1 for k in range(factor.ndim))
    require_same_shape(case, factor, made)
    np.broadcast_to(scale, factor.shape)  # raises for a scale of another rank
    entering = scales.reshape(along)

    def wanted(part: slice) -> Double:
        rows = (factor[part] if factor.ndim else factor).astype(np.float64)
        entered = rows * part_of(entering, factor.ndim, part)
        scaled: Double = entered * part_of(scale, factor.ndim, part)
        return scaled

    bias = least = np.zeros(())
    if case.twin.op_type == "Gemm":
        if factor.ndim != 2 or data not in (2, None):
            raise Mismatch(f"{label(case.twin)} is a Gemm, and does not multiply two matrices")
        bias = _offset(case.new(2), case.twin)
        least = _least(bias, columns)
    reach = np.abs(scale) * np.abs(entering).max(initial=0.0)
    summed = (max(columns, 0),) if factor.ndim else ()
    held = Channels(factor, summed, reach, least, alpha, np.abs(scale))
    worst = weight_deviation(case, wanted, made, made.dtype, held)
    image = NO_SHIFT
    if bool(terms.any()):
        if factor.ndim != 2:
            raise Mismatch(
                f"a shift went ahead of {label(case.node)}, which has batches of weights"
            )
        parts = terms.reshape(along) * factor.astype(np.float64)
        out = rank - 1 if at == 1 else rank - 2 + vector
        shape = tuple(-1 if k == out else 1 for k in range(rank))
        if at == 1 and not rank:  # The last axis is the last, whatever the rank.
            shape = (-1,)
        image = ShiftImage(
            alpha * parts.sum(axis=max(columns, 0)).reshape(shape),
            abs(alpha) * np.abs(parts).sum(axis=max(columns, 0)).reshape(shape),
        )
    return max(worst, bias_deviation(case, np.zeros(()), bias, made.dtype, image))


def _least(bias: Double, along: int) -> Double:
    """The least of what is added to each channel, whose outputs lie ``along`` an axis."""
    return np.asarray(np.abs(bias).min(axis=along, initial=np.inf, keepdims=True))


def _reads_dynamic(c: NDArray[Any] | None, of: NodeProto) -> bool:
    """Whether a Gemm adds a C that is no constant."""
    beta = next((float(a.f) for a in of.attribute if a.name == "beta"), 1.0)
    return c is None and beta != 0.0 and any(of.input[2:3])


def _offset(c: NDArray[Any] | None, of: NodeProto) -> Double:
    """``β·C`` of a Gemm."""
    beta = next((float(a.f) for a in of.attribute if a.name == "beta"), 1.0)
    zero = c is None or beta == 0.0
    return np.zeros((1, 1)) if zero else np.atleast_2d(beta * np.asarray(c, np.float64))


def _matrix_image(factor: NDArray[Any], terms: Double, at: int, alpha: float) -> ShiftImage:
    """What a shift of its data adds to the output of a Gemm: ``α·t·B'`` for a row t that is added
    to every row of A', ``α·A'·t`` for a column t that is added to every column of B'.
    """
    shape = (1, factor.shape[1]) if at == 1 else (factor.shape[0], 1)
    value, bulk = np.zeros(shape), np.zeros(shape)
    for part in row_parts(factor.shape):
        rows = factor[part].astype(np.float64)
        if at == 1:
            value += terms[None, part] @ rows
            bulk += np.abs(terms)[None, part] @ np.abs(rows)
        else:
            value[part] = rows @ terms[:, None]
            bulk[part] = np.abs(rows) @ np.abs(terms)[:, None]
    return ShiftImage(alpha * value, abs(alpha) * bulk)


def fused_gemm(case: Absorption) -> float:
    """``f(α·A'·B' + β·C)`` of onnxruntime's FusedGemm."""
    inner, worst = ahead_of_activation(case)
    return max(worst, gemm(inner))


def fused_matmul(case: Absorption) -> float:
    """``α·A'·B'`` of onnxruntime's FusedMatMul.

    With transBatch an operand is stored as [M, batch…, K] and multiplied as [batch…, M, K]; with
    trans its last two axes are exchanged then. A vector stays as it is, and so does what stands
    ahead of one.
    """
    given = {a.name: a.i for a in case.node.attribute}
    alpha = next((float(a.f) for a in case.node.attribute if a.name == "alpha"), 1.0)

    def turned(values: NDArray[Any], at: int) -> NDArray[Any]:
        side = "AB"[at]
        if given.get(f"transBatch{side}"):
            if values.ndim < 3:
                raise Mismatch(f"{label(case.node)} has a batch of {values.ndim} axes")
            values = np.moveaxis(values, 0, -2)
        ahead = at == 0 and (case.rank(1) or 0) < 2
        if given.get(f"trans{side}") and values.ndim > 1 and not ahead:
            values = np.swapaxes(values, -1, -2)
        return values

    return matmul(case, turned, alpha)


def einsum(case: Absorption) -> float:
    """``S·Σ W·x = Σ (S·W)·x`` for an S that varies along axes which W has, too, by their letters.

    A map of the data multiplies W along the axis of its letter; no shift has a place.
    """
    at = 1 if case.stored(1) is not None else 0
    factor, made = case.stored(at), case.new(at)
    if factor is None or made is None or len(case.node.input) != 2:
        raise Mismatch(f"{label(case.twin)} has no constant factor of two")
    require_same_shape(case, factor, made)
    equation = next((a.s.decode() for a in case.node.attribute if a.name == "equation"), "")
    terms, _, out = equation.replace(" ", "").partition("->")
    words = [*terms.split(","), out]
    single = all(word.isalpha() and len(set(word)) == len(word) for word in words if word)
    told = "->" in equation and single and len(words[at]) == factor.ndim
    own, read, out = (words[at], words[1 - at], out) if told else ("", "", "")
    rank = case.target.scale.ndim
    if told and out and rank not in (0, len(out)):  # Of rank 0 none is known.
        raise Mismatch(f"{label(case.node)} puts out {len(out)} axes, not {rank}")
    wide = {name for name, n in zip(own, factor.shape, strict=told) if n > 1}
    kept = [k for k, name in enumerate(out) if name in wide] if rank else []
    scale = case.scale(kept, made.dtype)
    entered, shifts = np.ones(1), np.zeros(1)
    along = -1
    if case.entry is not None:
        (step, *_) = case.entry.old or (None,)
        axis = None if step is None else step.axis
        if axis is not None:
            axis += len(read) if axis < 0 else 0
            name = read[axis : axis + 1]
            if not name or name not in wide:
                raise Mismatch(f"the map ahead of {label(case.node)} is along axis {axis}")
            along = own.index(name)
        count = factor.shape[along] if axis is not None else 1
        entered, shifts = case.entering(axis, count, len(read) or None)
    if bool(shifts.any()):
        raise Mismatch(f"a shift went ahead of {label(case.node)}, which has no place for it")
    # The scale in the order of the weight's axes: those that it lacks have one number.
    names = [out[k] for k in kept]
    laid = np.transpose(scale, [*kept, *(k for k in range(scale.ndim) if k not in kept)])
    laid = laid.reshape([laid.shape[k] for k in range(len(kept))])
    order = [names.index(name) for name in own if name in names]
    laid = np.transpose(laid, order).reshape(
        [laid.shape[names.index(name)] if name in names else 1 for name in own]
        if names
        else (1,) * factor.ndim
    )
    ahead = entered.reshape([-1 if k == along else 1 for k in range(factor.ndim)])

    def wanted(part: slice) -> Double:
        rows = (factor[part] if factor.ndim else factor).astype(np.float64)
        first: Double = rows * part_of(laid, factor.ndim, part)
        second: Double = first * part_of(ahead, factor.ndim, part)
        return second

    reach = np.abs(laid) * np.abs(ahead)
    held = Channels(factor, (), reach, np.zeros((1,) * factor.ndim), 1.0, np.abs(laid))
    kind = made.dtype
    worst = weight_deviation(case, wanted, made, kind, held)
    return max(worst, bias_deviation(case, np.zeros(()), np.zeros(()), kind))
