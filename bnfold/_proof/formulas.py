"""The right new weights of each linear operator and each normalization, by its definition.

Each formula returns the largest distance of the folded weights from the right ones, in units in the
last place. It raises `Mismatch` where no weights would be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._onnx.read.scopes import DEQUANTIZERS, label
from bnfold._proof.absorption import (
    NO_SHIFT,
    Absorption,
    Channels,
    ShiftImage,
    bias_deviation,
    deviation,
    require_same_input,
    require_same_shape,
    row_parts,
    weight_deviation,
)
from bnfold._proof.activations import ahead_of_activation, without_sum
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double
from bnfold._proof.product_formulas import einsum, fused_gemm, fused_matmul, gemm, matmul
from bnfold._proof.quantized import dequantized, product_of_integers, rescaled


def _conv(case: Absorption, last: bool = False) -> float:
    """``y[o] = Σ W[o,i,k]·x[i,·] + b[o]``: row o of the weight times ``s[o]``.

    Channels are on axis 1, or on the ``last``.
    """
    weight, made = case.stored(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case, last)
    require_same_shape(case, weight, made)
    axis = weight.ndim - 1 if last else 1
    scale = _per_channel(case, made.dtype, weight.shape[0], axis)
    group = next((a.i for a in case.node.attribute if a.name == "group"), 1)
    cout, columns = weight.shape[:2]
    factor, term = case.entering(axis, columns * group)
    first = np.arange(cout) // (cout // group) * columns
    read = first[:, None] + np.arange(columns)
    values, sizes = np.zeros(cout), np.zeros(cout)
    if bool(term.any()):
        _require_no_padding(case, weight.shape, 1 if last else 2)
        for part in row_parts(weight.shape):
            flat = weight[part].astype(np.float64)
            flat = flat.reshape(*flat.shape[:2], -1)
            values[part] = (flat.sum(axis=2) * term[read[part]]).sum(axis=1)
            sizes[part] = (np.abs(flat).sum(axis=2) * np.abs(term[read[part]])).sum(axis=1)
    image = ShiftImage(*(_on_axis(part, weight.ndim, axis) for part in (values, sizes)))

    def wanted(part: slice) -> Double:
        entered = np.einsum("oi...,oi->oi...", weight[part].astype(np.float64), factor[read[part]])
        scaled: Double = np.einsum("o...,o->o...", entered, scale[part])
        return scaled

    reach = _on_axis(np.abs(scale) * np.abs(factor).max(initial=0.0), weight.ndim, 0)
    bias = _on_axis(case.new(2), weight.ndim, 0)
    held = Channels(weight, tuple(range(1, weight.ndim)), reach, bias)
    worst = weight_deviation(case, wanted, made, made.dtype, held)
    return max(worst, _conv_bias_deviation(case, weight.ndim, made.dtype, image, axis))


def _fused_conv(case: Absorption, last: bool = False) -> float:
    """``f(Conv(x, W, b) + z)`` of onnxruntime's FusedConv."""
    inner, worst = ahead_of_activation(case)
    return max(worst, _conv(without_sum(inner, 3), last))


def _conv_transpose(case: Absorption) -> float:
    """``W[i, m]·s[o]`` for the input channels i of group j, where ``o = j·(Cout/group) + m``: these
    channels write output channel o, and no others do.
    """
    weight, made = case.old(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case)
    group = next((a.i for a in case.node.attribute if a.name == "group"), 1)
    require_same_shape(case, weight, made)
    cin, columns = weight.shape[:2]
    scale = _per_channel(case, made.dtype, columns * group)
    factor, term = case.entering(1, cin)
    if bool(term.any()):
        _require_one_source(case, weight.shape)
    wanted = np.einsum("i...,i->i...", weight, factor)
    values, sizes = np.zeros(columns * group), np.zeros(columns * group)
    for output in range(columns * group):
        member, column = divmod(output, columns)
        rows = slice(member * (cin // group), (member + 1) * (cin // group))
        wanted[rows, column] *= scale[output]
        if bool(term.any()):
            terms = weight[rows, column].reshape(-1) * term[rows]
            values[output], sizes[output] = terms.sum(), np.abs(terms).sum()
    image = ShiftImage(*(_on_axis(part, weight.ndim) for part in (values, sizes)))

    def by_output(values: Double) -> Double:
        rows = values.reshape(group, cin // group, columns, -1).swapaxes(1, 2)
        laid: Double = rows.reshape(group * columns, -1)
        return laid

    reach = _on_axis(np.abs(scale) * np.abs(factor).max(initial=0.0), 2, 0)
    held = Channels(by_output(weight), (1,), reach, _on_axis(case.new(2), 2, 0))
    asked = np.where(np.isnan(wanted), 0.0, np.abs(wanted))
    held.check(by_output(asked).max(axis=1, initial=0.0, keepdims=True), made.dtype, case)
    worst = weight_deviation(case, lambda part: wanted[part], made, made.dtype)
    return max(worst, _conv_bias_deviation(case, weight.ndim, made.dtype, image))


def _norm(
    case: Absorption, at: int = 1, beta_at: int | None = 2, on_last_axes: bool = False
) -> float:
    """``γ·n + β`` becomes ``(S·γ)·n + (S·β + T)``; the normalized data n stay as they are.

    ``at`` and ``beta_at`` are the numbers of the inputs γ and β. Without a β, T must be 0. γ lies
    on axis 1 or, with ``on_last_axes``, on the last axes.
    """
    gamma, made = case.old(at), case.new(at)
    if gamma is None or made is None:
        raise Mismatch(f"γ of {label(case.twin)} is not constant")
    _require_same_normalization(case, (at, beta_at))
    rank = max(case.target.scale.ndim, 1)

    def lay(values: NDArray[Any] | None) -> Double:
        if values is None:
            return np.zeros(1)
        double = values.astype(np.float64)
        if on_last_axes or rank < 2:
            return double
        return double.reshape((1, -1, *(1,) * (rank - 2)))

    last = range(max(rank - gamma.ndim, 0), rank)
    own = list(last) if on_last_axes else [1]
    scale = case.scale(own if rank > 1 else [0], made.dtype)
    wanted = lay(gamma) * scale
    found = lay(made)
    worst = deviation(
        found,
        np.where(np.isnan(wanted), found, wanted),
        np.abs(wanted),
        made.dtype,
        forgiven=case.forgiven,
    )
    old, new = (None, None) if beta_at is None else (case.old(beta_at), case.new(beta_at))
    held = Channels(lay(gamma), (), scale, lay(new))
    held.check(np.where(np.isnan(wanted), 0.0, np.abs(wanted)), made.dtype, case)
    return max(worst, bias_deviation(case, lay(old), lay(new), made.dtype))


def _require_same_normalization(case: Absorption, parameters: Sequence[int | None]) -> None:
    """Raise `Mismatch` where another input of a norm than γ and β may have changed.

    All other inputs decide what the norm divides by. ``parameters`` are the numbers of γ and β.
    """
    if case.entry is not None:
        raise Mismatch(f"a map went ahead of {label(case.node)}, which normalizes it away")
    for place in range(max(len(case.node.input), len(case.twin.input))):
        if place not in parameters:
            require_same_input(case, place)


def _recurrent(case: Absorption) -> float:
    """``W[d]·(s·x[k] + t) + B[d, :rows]`` for step k of direction d, which sees no more of x, whose
    rank is 3. All else stays: the second half of ``B[d]``, and the other inputs.
    """
    weight, made = case.stored(1), case.new(1)
    if weight is None or made is None:
        raise Mismatch(f"the weight of {label(case.twin)} is not constant")
    require_same_shape(case, weight, made)
    for map_ in (case.target, case.remaining):
        if bool((map_.scale != 1).any() or (map_.shift != 0).any()):
            raise Mismatch(f"a map went into {label(case.node)} from behind it")
    both = any(a.name == "direction" and a.s == b"bidirectional" for a in case.node.attribute)
    if weight.ndim != 3 or len(weight) != 1 + both:
        raise Mismatch(f"{label(case.node)} cannot have a weight of shape {weight.shape}")
    rows = weight.shape[1]
    factor, term = case.entering(2, weight.shape[2], 3)

    def wanted(part: slice) -> Double:
        scaled: Double = weight[part].astype(np.float64) * factor
        return scaled

    reach = np.abs(factor).max(initial=0.0, keepdims=True)
    held = Channels(weight, (2,), reach, np.zeros(()))
    worst = weight_deviation(case, wanted, made, made.dtype, held)
    old, new = case.old(3), case.new(3)
    fixed = old is not None or not any(case.node.input[3:4])
    for at in range(2, max(len(case.node.input), len(case.twin.input))):
        if at != 3 or not fixed:
            require_same_input(case, at)
    if not fixed:
        if bool(term.any()):
            raise Mismatch(f"a shift went ahead of {label(case.node)}, whose bias is not constant")
        return worst
    bias = np.zeros((len(weight), 2 * rows)) if old is None else old.copy()
    found = np.zeros(bias.shape) if new is None else new.astype(np.float64)
    if found.shape != bias.shape:
        raise Mismatch(f"the bias of {label(case.twin)} has shape {found.shape}")
    sizes = np.abs(bias)
    for direction, matrix in enumerate(weight):
        wide = matrix.astype(np.float64)
        bias[direction, :rows] += wide @ term
        sizes[direction, :rows] += np.abs(wide) @ np.abs(term)
    return max(worst, deviation(found, bias, sizes, made.dtype))


def _bias_only(case: Absorption, last: bool = False) -> float:
    """``b + t``: the weight is computed at run time, so only a shift can be folded."""
    entered, rank = case.entry is not None, case.target.scale.ndim
    axis = rank - 1 if last else 1
    if entered or bool((case.scale([axis], np.dtype(np.float64)) != 1).any()):
        raise Mismatch(f"a scale was folded into {label(case.node)}, whose weight is not constant")
    if list(case.twin.input[1:2]) != list(case.node.input[1:2]):
        raise Mismatch(f"{label(case.twin)} reads another weight")
    made = case.new(2)
    dtype = np.dtype(np.float64) if made is None else made.dtype
    return _conv_bias_deviation(case, rank, dtype, axis=axis)


def _conv_bias_deviation(
    case: Absorption,
    rank: int,
    dtype: np.dtype[Any],
    image: ShiftImage = NO_SHIFT,
    axis: int = 1,
) -> float:
    """``s·b + t`` for a bias at input 2 with one number per channel; a missing bias is 0."""
    old, made = _on_axis(case.old(2), rank, axis), _on_axis(case.new(2), rank, axis)
    return bias_deviation(case, old, made, dtype, image)


def _per_channel(case: Absorption, dtype: np.dtype[Any], count: int, axis: int = 1) -> Double:
    """The scale of a convolution's output channels, which lie on an axis."""
    scale = case.scale([axis], dtype).reshape(-1)
    if scale.size not in (1, count):
        raise Mismatch(f"the folded map has {scale.size} channels, its operator {count}")
    return np.broadcast_to(scale, (count,))


def _on_axis(values: NDArray[Any] | None, rank: int, axis: int = 1) -> Double:
    """A vector with one number per channel, on an axis of a tensor of a rank; None gives 0.

    A vector of 8 numbers becomes an array of shape ``(1, 8, 1, 1)`` for rank 4.
    """
    if values is None:
        return np.zeros((1,) * rank)
    if values.ndim != 1 or rank < 2:
        raise Mismatch(f"a bias of shape {values.shape} is not one number per channel")
    return values.astype(np.float64).reshape([-1 if k == axis else 1 for k in range(rank)])


def _require_no_padding(case: Absorption, shape: Sequence[int], first: int) -> None:
    """Raise `Mismatch` where a Conv pads its data: the shift is missing in the padding.

    ``first`` is the first axis of space.
    """
    lists = {a.name: list(a.ints) for a in case.node.attribute}
    mode = next((a.s for a in case.node.attribute if a.name == "auto_pad"), b"NOTSET")
    padded = any(lists.get("pads", ())) and mode in (b"", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = case.before.shapes.shape(case.old_scope, case.node.input[0]) or ()
        for k, kernel in enumerate(shape[2:]):
            stride = (lists.get("strides") or [1] * len(shape))[k]
            reach = (lists.get("dilations") or [1] * len(shape))[k] * (kernel - 1)
            size = sizes[first + k] if len(sizes) == len(shape) else None
            last = None if size is None else (-(-size // stride) - 1) * stride + reach
            padded = padded or (reach > 0 and (last is None or size is None or last >= size))
    if padded:
        raise Mismatch(f"a shift went ahead of {label(case.node)}, whose padding has none")


def _require_one_source(case: Absorption, shape: Sequence[int]) -> None:
    """Raise `Mismatch` unless each output of a ConvTranspose comes from one input position."""
    lists = {a.name: list(a.ints) for a in case.node.attribute}
    cut = [v for name in ("pads", "output_padding", "output_shape") for v in lists.get(name, ())]
    strides = lists.get("strides", [1])
    if any(k != 1 for k in shape[2:]) or any(s != 1 for s in strides) or any(cut):
        raise Mismatch(f"a shift went ahead of {label(case.node)}, whose outputs sum unlike parts")


FORMULAS: dict[str, Callable[[Absorption], float]] = {
    "BatchNormalization": _norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(DEQUANTIZERS, dequantized),
    "Einsum": einsum,
    "GRU": _recurrent,
    "Gemm": gemm,
    "GroupNormalization": _norm,
    "InstanceNormalization": _norm,
    "LSTM": _recurrent,
    "LayerNormalization": partial(_norm, on_last_axes=True),
    "MatMul": matmul,
    "Mul": rescaled,
    "RMSNormalization": partial(_norm, beta_at=None, on_last_axes=True),
    "RNN": _recurrent,
    "SimplifiedLayerNormalization": partial(_norm, beta_at=None, on_last_axes=True),
    "com.microsoft::DynamicQuantizeMatMul": partial(
        product_of_integers, at=2, bias_at=4, matrix_at=1
    ),
    "com.microsoft::EmbedLayerNormalization": partial(_norm, at=5, beta_at=6, on_last_axes=True),
    "com.microsoft::FusedConv": _fused_conv,
    "com.microsoft::FusedGemm": fused_gemm,
    "com.microsoft::FusedMatMul": fused_matmul,
    "com.microsoft::MatMulIntegerToFloat": partial(
        product_of_integers, at=3, bias_at=6, matrix_at=1, other_at=2
    ),
    "com.microsoft::NhwcConv": partial(_conv, last=True),
    "com.microsoft::NhwcFusedConv": partial(_fused_conv, last=True),
    "com.microsoft::QGemm": partial(product_of_integers, at=4, bias_at=None, matrix_at=None),
    "com.microsoft::SkipLayerNormalization": partial(_norm, at=2, beta_at=3, on_last_axes=True),
    "com.microsoft::SkipSimplifiedLayerNormalization": partial(
        _norm, at=2, beta_at=None, on_last_axes=True
    ),
    "com.microsoft::TransposeMatMul": fused_matmul,
}
