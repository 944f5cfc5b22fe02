"""What each linear operator's and normalization's new weights have to be, by its definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._core.limits import Limits
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.write.applied import Related
from bnfold._proof.rows import Double, Line, Mismatch, Side

_SLACK = 32 * float(np.finfo(np.float64).eps)
# Numbers of a weight that are looked at together, each of which takes some 100 bytes meanwhile.
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Case:
    """One absorption: the operator before and after, the maps, what stands behind it now, and the
    map that now comes ahead of its data.
    """

    before: Side
    after: Side
    old_scope: Scope
    new_scope: Scope
    node: NodeProto
    twin: NodeProto
    line: Line
    added: Line
    entry: Related | None = None

    @property
    def loose(self) -> int:
        """Roundings that weights may have behind them more than one: those of what stands, and of a
        dequantization on either side.
        """
        dynamic = [n for n in self.node.input[:2] if n and n not in self.old_scope.initializers]
        quantized = any(self.before.integers(self.old_scope, name) for name in dynamic)
        return self.added.steps + (2 if quantized else 0)

    def old(self, at: int) -> Double | None:
        """A constant input of the original operator, in float64."""
        return self.before.double(self.old_scope, self.node, at)

    def stored(self, at: int) -> NDArray[Any] | None:
        """A constant input of the original operator, as stored."""
        if at >= len(self.node.input):
            return None
        return self.before.values(self.old_scope, self.node.input[at])

    def new(self, at: int) -> NDArray[Any] | None:
        """A constant input of the folded operator, as stored."""
        if at >= len(self.twin.input):
            return None
        return self.after.values(self.new_scope, self.twin.input[at])

    def entering(self, axis: int | None, count: int) -> tuple[Double, Double]:
        """Scale and shift that come with the data, for each of its channels along an axis."""
        if self.entry is None:
            return np.ones(count), np.zeros(count)
        if len(self.entry.old) != 1:
            raise Mismatch(f"several maps come ahead of {label(self.node)}")
        (step,) = self.entry.old
        if bool(np.isnan(step.scale).any()):
            raise Mismatch(f"nothing is known of some of what {label(self.node)} reads")
        if step.axis is None and step.scale.size > 1:
            raise Mismatch(f"the map ahead of {label(self.node)} varies along several axes")
        if step.axis is not None and (step.axis != axis or step.scale.size != count):
            raise Mismatch(f"the map ahead of {label(self.node)} is along axis {step.axis}")
        return np.broadcast_to(step.scale, (count,)), np.broadcast_to(step.shift, (count,))

    def rank(self, at: int) -> int | None:
        """The rank of an input of the original operator."""
        return self.before.rank(self.old_scope, self.node.input[at])

    def scale(self, axes: Sequence[int], dtype: np.dtype[Any]) -> Double:
        """What the weights have to be scaled by, at the tensor's rank.

        That is ``S`` over what stands behind, NaN where both are 0 and any weight will do. It may
        vary along the given axes alone, those the weights have parameters on, up to the rounding of
        what stands behind.
        """
        lost = np.broadcast_to(
            self.added.scale == 0,
            np.broadcast_shapes(self.line.scale.shape, self.added.scale.shape),
        )
        if bool((lost & (self.line.scale != 0)).any()):
            raise Mismatch(f"what stands behind {label(self.node)} is 0 where it may not be")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(lost, np.nan, self.line.scale / self.added.scale)
        loose = self.added.steps * Limits.of(dtype).eps + _SLACK
        for axis in set(range(ratio.ndim)) - {axis % ratio.ndim for axis in axes}:
            if ratio.shape[axis] == 1:
                continue
            low, high = (
                reduce(ratio, axis=axis, keepdims=True)
                for reduce in (np.fmin.reduce, np.fmax.reduce)
            )
            if bool((high - low > loose * np.maximum(np.abs(high), np.abs(low))).any()):
                raise Mismatch(
                    f"the scale varies along axis {axis}, where {label(self.node)} has no weights"
                )
            ratio = (low + high) / 2
        return ratio


def deviation(
    made: Double,
    wanted: Double,
    bulk: Double,
    dtype: np.dtype[Any],
    sizes: Sequence[Double] = (),
    loose: int = 0,
) -> float:
    """The largest difference in units in the last place of ``dtype``, float64's losses forgiven.

    Units are those at the magnitude of what is wanted, or at the largest of ``sizes``. ``loose``
    units are forgiven, one for each further rounded number that takes part.
    """
    try:
        made, wanted, bulk, *rest = np.broadcast_arrays(made, wanted, bulk, *sizes)
    except ValueError as error:
        raise Mismatch(f"shapes {made.shape} and {wanted.shape} do not agree") from error
    if made.size == 0:
        return 0.0
    limits = Limits.of(dtype)
    magnitude = np.maximum.reduce([np.abs(wanted), *rest])
    exponent = np.frexp(np.maximum(magnitude, limits.tiny))[1] - 1
    unit = np.ldexp(limits.eps, exponent)
    excess = np.abs(made - wanted) - _SLACK * bulk
    worst = float(np.max(excess / unit - max(loose, 0)))
    return worst if np.isfinite(worst) else float("inf")


def _parts(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of the first axis of a weight, few numbers each: a weight may fill the memory."""
    rows = shape[0] if shape else 1
    step = max(1, _AT_ONCE * rows // max(math.prod(shape), 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _cut(values: NDArray[Any], rank: int, part: slice) -> NDArray[Any]:
    """What a part of a weight of some rank meets of values that broadcast with it."""
    along = values.ndim == rank > 0 and values.shape[0] > 1
    return values[part] if along else values


def _weights(
    case: Case, wanted: Callable[[slice], Double], made: NDArray[Any], dtype: np.dtype[Any]
) -> float:
    """How far a weight, seen in the formula's own layout, is from what it has to be, which is asked
    for part by part along the first axis.
    """
    worst = -math.inf
    for part in _parts(made.shape):
        found = np.asarray(made[part] if made.ndim else made, np.float64)
        asked = wanted(part)
        asked = np.where(np.isnan(asked), found, asked)
        worst = max(worst, deviation(found, asked, np.abs(asked), dtype, loose=case.loose))
    return worst


@dataclass(frozen=True)
class _Image:
    """What a shift of its data adds to the output of an operator, and the size of its terms."""

    value: Double
    bulk: Double


_NOTHING = _Image(np.zeros(()), np.zeros(()))


def _shift(
    case: Case, old: Double, made: Double, dtype: np.dtype[Any], image: _Image = _NOTHING
) -> float:
    """How far the new bias, with what stands behind, is from ``S·(old + image) + T``; all are given
    at the tensor's rank.
    """
    line, added = case.line, case.added
    try:
        wanted = line.scale * (old + image.value) + line.shift
        terms = np.abs(line.scale) * (np.abs(old) + image.bulk) + line.bulk
        found, scaled = added.scale * made + added.shift, np.abs(added.scale * made)
    except ValueError as error:
        raise Mismatch(f"the bias of {label(case.twin)} has shape {made.shape}") from error
    # What is added behind may cancel the bias, whose own rounding then counts.
    cancels = added.steps > 0 or bool((added.shift != 0).any())
    sizes = (scaled, added.bulk) if cancels else ()
    return deviation(found, wanted, terms, dtype, sizes, added.steps)


def _on_axis_one(values: NDArray[Any] | None, rank: int) -> Double:
    """A vector of one number per channel at a tensor's rank; zero where absent."""
    if values is None:
        return np.zeros((1,) * rank)
    if values.ndim != 1 or rank < 2:
        raise Mismatch(f"a bias of shape {values.shape} is not one number per channel")
    return values.astype(np.float64).reshape((1, -1, *(1,) * (rank - 2)))


def _per_channel(case: Case, dtype: np.dtype[Any], count: int) -> Double:
    """The scale of a convolution's output channels, which lie on axis 1."""
    scale = case.scale([1], dtype).reshape(-1)
    if scale.size not in (1, count):
        raise Mismatch(f"the folded map has {scale.size} channels, its operator {count}")
    return np.broadcast_to(scale, (count,))


def _conv_bias(case: Case, rank: int, dtype: np.dtype[Any], image: _Image = _NOTHING) -> float:
    """``s·b + t`` where the bias is input 2, one number per channel, absent meaning 0."""
    old, made = _on_axis_one(case.old(2), rank), _on_axis_one(case.new(2), rank)
    return _shift(case, old, made, dtype, image)


def _sees_no_padding(case: Case, shape: Sequence[int]) -> None:
    """Raise where some output of a Conv sums less than the whole kernel: a shift would show."""
    lists = {a.name: list(a.ints) for a in case.node.attribute}
    mode = next((a.s for a in case.node.attribute if a.name == "auto_pad"), b"NOTSET")
    padded = any(lists.get("pads", ())) and mode in (b"", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = case.before.shapes.shape(case.old_scope, case.node.input[0]) or ()
        for k, kernel in enumerate(shape[2:]):
            stride = (lists.get("strides") or [1] * len(shape))[k]
            reach = (lists.get("dilations") or [1] * len(shape))[k] * (kernel - 1)
            size = sizes[2 + k] if len(sizes) == len(shape) else None
            last = None if size is None else (-(-size // stride) - 1) * stride + reach
            padded = padded or (reach > 0 and (last is None or size is None or last >= size))
    if padded:
        raise Mismatch(f"a shift went ahead of {label(case.node)}, whose padding has none")


def _check_conv(case: Case) -> float:
    """``y[o] = Σ W[o,i,k]·x[i,·] + b[o]``: row o of the weight times ``s[o]``."""
    weight, made = case.stored(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case)
    _same_shape(case, weight, made)
    scale = _per_channel(case, made.dtype, weight.shape[0])
    group = next((a.i for a in case.node.attribute if a.name == "group"), 1)
    cout, columns = weight.shape[:2]
    factor, term = case.entering(1, columns * group)
    first = np.arange(cout) // (cout // group) * columns
    read = first[:, None] + np.arange(columns)
    values, sizes = np.zeros(cout), np.zeros(cout)
    if bool(term.any()):
        _sees_no_padding(case, weight.shape)
        for part in _parts(weight.shape):
            flat = weight[part].astype(np.float64)
            flat = flat.reshape(*flat.shape[:2], -1)
            values[part] = (flat.sum(axis=2) * term[read[part]]).sum(axis=1)
            sizes[part] = (np.abs(flat).sum(axis=2) * np.abs(term[read[part]])).sum(axis=1)
    image = _Image(_on_axis_one(values, weight.ndim), _on_axis_one(sizes, weight.ndim))

    def wanted(part: slice) -> Double:
        entered = np.einsum("oi...,oi->oi...", weight[part].astype(np.float64), factor[read[part]])
        scaled: Double = np.einsum("o...,o->o...", entered, scale[part])
        return scaled

    worst = _weights(case, wanted, made, made.dtype)
    return max(worst, _conv_bias(case, weight.ndim, made.dtype, image))


def _same_shape(case: Case, weight: NDArray[Any], made: NDArray[Any]) -> None:
    if weight.shape != made.shape:
        raise Mismatch(f"the weight of {label(case.twin)} has shape {made.shape}")


def _check_conv_transpose(case: Case) -> float:
    """Output channel o of group j is written by that group's input channels only, through column
    ``o − j·(Cout/group)`` of the weight: those entries times ``s[o]``.
    """
    weight, made = case.old(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case)
    group = next((a.i for a in case.node.attribute if a.name == "group"), 1)
    _same_shape(case, weight, made)
    cin, columns = weight.shape[:2]
    scale = _per_channel(case, made.dtype, columns * group)
    factor, term = case.entering(1, cin)
    if bool(term.any()):
        _hits_each_once(case, weight.shape)
    wanted = np.einsum("i...,i->i...", weight, factor)
    values, sizes = np.zeros(columns * group), np.zeros(columns * group)
    for output in range(columns * group):
        member, column = divmod(output, columns)
        rows = slice(member * (cin // group), (member + 1) * (cin // group))
        wanted[rows, column] *= scale[output]
        if bool(term.any()):
            terms = weight[rows, column].reshape(-1) * term[rows]
            values[output], sizes[output] = terms.sum(), np.abs(terms).sum()
    image = _Image(_on_axis_one(values, weight.ndim), _on_axis_one(sizes, weight.ndim))
    worst = _weights(case, lambda part: wanted[part], made, made.dtype)
    return max(worst, _conv_bias(case, weight.ndim, made.dtype, image))


def _hits_each_once(case: Case, shape: Sequence[int]) -> None:
    """Raise where outputs of a ConvTranspose do not each come from one input position alone."""
    lists = {a.name: list(a.ints) for a in case.node.attribute}
    cut = [v for name in ("pads", "output_padding", "output_shape") for v in lists.get(name, ())]
    strides = lists.get("strides", [1])
    if any(k != 1 for k in shape[2:]) or any(s != 1 for s in strides) or any(cut):
        raise Mismatch(f"a shift went ahead of {label(case.node)}, whose outputs sum unlike parts")


def _bias_only(case: Case) -> float:
    """A pure shift behind a weight that is computed at run time."""
    entered = case.entry is not None
    if entered or bool((case.scale([1], np.dtype(np.float64)) != 1).any()):
        raise Mismatch(f"a scale was folded into {label(case.node)}, whose weight is not constant")
    if list(case.twin.input[1:2]) != list(case.node.input[1:2]):
        raise Mismatch(f"{label(case.twin)} reads another weight")
    made = case.new(2)
    dtype = np.dtype(np.float64) if made is None else made.dtype
    return _conv_bias(case, case.line.scale.ndim, dtype)


def _check_gemm(case: Case) -> float:
    """``Y = α·A'·B' + β·C``: the constant factor and ``β·C`` as matrices, times S, plus T."""

    def matrix(values: NDArray[Any] | None, of: NodeProto, at: int) -> NDArray[Any] | None:
        flag = "transA" if at == 0 else "transB"
        turned = any(a.name == flag and a.i for a in of.attribute)
        if values is None:
            return None
        return values.T if turned else values

    def offset(c: NDArray[Any] | None, of: NodeProto) -> Double:
        beta = next((float(a.f) for a in of.attribute if a.name == "beta"), 1.0)
        zero = c is None or beta == 0.0
        return np.zeros((1, 1)) if zero else np.atleast_2d(beta * np.asarray(c, np.float64))

    at = 1 if case.stored(1) is not None else 0
    raw = case.new(at)
    factor, made = matrix(case.stored(at), case.node, at), matrix(raw, case.twin, at)
    if factor is None or made is None or raw is None:
        raise Mismatch(f"{label(case.twin)} has no constant factor")
    _same_shape(case, factor, made)
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
    scales, terms = case.entering(at ^ int(data_turned), summed)
    entering = scales[:, None] if at == 1 else scales[None, :]
    scale = case.scale([at], raw.dtype)

    def wanted(part: slice) -> Double:
        entered = factor[part].astype(np.float64) * _cut(entering, 2, part)
        scaled: Double = entered * _cut(scale, 2, part)
        return scaled

    worst = _weights(case, wanted, made, raw.dtype)
    image = _matrix_image(factor, terms, at, alphas[0]) if bool(terms.any()) else _NOTHING
    old, new = offset(case.old(2), case.node), offset(case.new(2), case.twin)
    return max(worst, _shift(case, old, new, raw.dtype, image))


def _matrix_image(factor: NDArray[Any], terms: Double, at: int, alpha: float) -> _Image:
    """``α·t·B'`` of a row t that every row of the data has more, or ``α·A'·t`` of a column."""
    shape = (1, factor.shape[1]) if at == 1 else (factor.shape[0], 1)
    value, bulk = np.zeros(shape), np.zeros(shape)
    for part in _parts(factor.shape):
        rows = factor[part].astype(np.float64)
        if at == 1:
            value += terms[None, part] @ rows
            bulk += np.abs(terms)[None, part] @ np.abs(rows)
        else:
            value[part] = rows @ terms[:, None]
            bulk[part] = np.abs(rows) @ np.abs(terms)[:, None]
    return _Image(alpha * value, abs(alpha) * bulk)


def _check_matmul(case: Case) -> float:
    """``S·(X·W) + T = X·(S·W) + T`` where S is constant along the axis that X writes."""
    at = 1 if case.stored(1) is not None else 0
    factor, made = case.stored(at), case.new(at)
    if factor is None or made is None:
        raise Mismatch(f"{label(case.twin)} has no constant factor")
    rank = case.line.scale.ndim
    vector = case.rank(1 - at) == 1
    columns = factor.ndim - 2 if at == 1 else factor.ndim - 1
    # What the constant has on each axis of the output: on the one that X writes, nothing.
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
    entry = None if data is None else (data - 1 if at == 1 else max(data - 2, 0))
    scales, terms = case.entering(entry, factor.shape[max(columns, 0)])
    along = tuple(-1 if k == max(columns, 0) else 1 for k in range(factor.ndim))
    _same_shape(case, factor, made)
    np.broadcast_to(scale, factor.shape)  # a scale of another rank is none of this weight's
    entering = scales.reshape(along)

    def wanted(part: slice) -> Double:
        rows = (factor[part] if factor.ndim else factor).astype(np.float64)
        entered = rows * _cut(entering, factor.ndim, part)
        scaled: Double = entered * _cut(scale, factor.ndim, part)
        return scaled

    worst = _weights(case, wanted, made, made.dtype)
    image = _NOTHING
    if bool(terms.any()):
        if factor.ndim != 2:
            raise Mismatch(
                f"a shift went ahead of {label(case.node)}, which has batches of weights"
            )
        parts = terms.reshape(along) * factor.astype(np.float64)
        out = rank - 1 if at == 1 else rank - 2 + vector
        shape = tuple(-1 if k == out else 1 for k in range(rank))
        image = _Image(
            parts.sum(axis=max(columns, 0)).reshape(shape),
            np.abs(parts).sum(axis=max(columns, 0)).reshape(shape),
        )
    return max(worst, _shift(case, np.zeros(()), np.zeros(()), made.dtype, image))


def _check_norm(case: Case) -> float:
    """``γ·n + β`` becomes ``(S·γ)·n + (S·β + T)``; γ lies on axis 1, for LayerNormalization on
    the last axes.
    """
    gamma, made = case.old(1), case.new(1)
    if gamma is None or made is None:
        raise Mismatch(f"γ of {label(case.twin)} is not constant")
    rank = max(case.line.scale.ndim, 1)

    def lay(values: NDArray[Any] | None) -> Double:
        if values is None:
            return np.zeros(1)
        double = values.astype(np.float64)
        if case.node.op_type == "LayerNormalization" or rank < 2:
            return double
        return double.reshape((1, -1, *(1,) * (rank - 2)))

    last = range(max(rank - gamma.ndim, 0), rank)
    own = list(last) if case.node.op_type == "LayerNormalization" else [1]
    wanted = lay(gamma) * case.scale(own if rank > 1 else [0], made.dtype)
    found = lay(made)
    worst = deviation(
        found,
        np.where(np.isnan(wanted), found, wanted),
        np.abs(wanted),
        made.dtype,
        loose=case.loose,
    )
    return max(worst, _shift(case, lay(case.old(2)), lay(case.new(2)), made.dtype))


FORMULAS = {
    "BatchNormalization": _check_norm,
    "Conv": _check_conv,
    "ConvTranspose": _check_conv_transpose,
    "Gemm": _check_gemm,
    "GroupNormalization": _check_norm,
    "InstanceNormalization": _check_norm,
    "LayerNormalization": _check_norm,
    "MatMul": _check_matmul,
}
