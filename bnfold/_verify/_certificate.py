"""The certificate: every fold's new weights, computed a second time by another way.

Nothing here is shared with the code that folds but the reading of stored constants. A chain of
affine operators is followed by its definition, operator by operator with NumPy broadcasting at the
tensor's full rank, as a pair ``(S, T)`` with ``y = S·x + T``; weights are then derived from each
operator's formula in the ONNX specification. A stored value may be off by one unit in the last
place of its dtype, and by what float64 itself may lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from bnfold._limits import Limits
from bnfold._onnx._constants import Constant, Constants
from bnfold._onnx._rewrite import Applied
from bnfold._onnx._scopes import Scope, label, read_scopes
from bnfold._onnx._shapes import Shapes, infer

Double = NDArray[np.float64]
_EPSILON = float(np.float32(1e-5))
_SLACK = 32 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Certificate:
    """One fold, checked. ``ulps`` is the largest deviation in units in the last place, beyond
    what float64 may lose; ``problem`` says what was wrong, or is empty.
    """

    graph: str
    into: str
    maps: tuple[str, ...]
    ulps: float
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the fold's new weights are right."""
        return not self.problem and self.ulps <= 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "graph": self.graph,
            "into": self.into,
            "maps": list(self.maps),
            "holds": self.holds,
            "ulps": self.ulps if np.isfinite(self.ulps) else None,
            "problem": self.problem,
        }


_PASSED = ("Add", "BatchNormalization", "Dropout", "Identity", "Mul")


class _Mismatch(Exception):
    """The folded graph is not of the form that a right fold gives."""


@dataclass
class _Line:
    """``y = scale·x + shift`` at the tensor's rank; ``bulk`` bounds the terms summed into shift,
    ``steps`` counts the operators that were rounded on the way.
    """

    scale: Double
    shift: Double
    bulk: Double
    steps: int = 0

    @classmethod
    def identity(cls, rank: int) -> _Line:
        shape = (1,) * rank
        return cls(np.ones(shape), np.zeros(shape), np.zeros(shape))

    def times(self, factor: Double) -> None:
        self.scale = self.scale * factor
        self.shift = self.shift * factor
        self.bulk = self.bulk * np.abs(factor)

    def plus(self, term: Double) -> None:
        self.shift = self.shift + term
        self.bulk = self.bulk + np.abs(term)


@dataclass(frozen=True)
class _Side:
    """One model: its graphs by path and what is constant in it."""

    scopes: dict[str, Scope]
    constants: Constants
    shapes: Shapes

    @classmethod
    def of(cls, model: ModelProto, base_dir: Path | None) -> _Side:
        scopes = read_scopes(model)
        shapes = infer(model, scopes)
        return cls({s.path: s for s in scopes}, Constants(base_dir, shapes), shapes)

    def values(self, scope: Scope, name: str) -> NDArray[Any] | None:
        if not name:
            return None
        found = self.constants.find(scope, name)
        return found.load() if isinstance(found, Constant) else None

    def double(self, scope: Scope, node: NodeProto, position: int) -> Double | None:
        if position >= len(node.input):
            return None
        values = self.values(scope, node.input[position])
        return None if values is None else values.astype(np.float64)

    def rank(self, scope: Scope, name: str) -> int | None:
        shape = self.shapes.shape(scope, name)
        return None if shape is None else len(shape)


@dataclass(frozen=True)
class _Case:
    """One absorption: the operator before and after, the maps, and what stands behind it now."""

    before: _Side
    after: _Side
    old_scope: Scope
    new_scope: Scope
    node: NodeProto
    twin: NodeProto
    line: _Line
    added: _Line

    def old(self, at: int) -> Double | None:
        """A constant input of the original operator, in float64."""
        return self.before.double(self.old_scope, self.node, at)

    def new(self, at: int) -> NDArray[Any] | None:
        """A constant input of the folded operator, as stored."""
        if at >= len(self.twin.input):
            return None
        return self.after.values(self.new_scope, self.twin.input[at])

    def rank(self, at: int) -> int | None:
        """The rank of an input of the original operator."""
        return self.before.rank(self.old_scope, self.node.input[at])

    def scale(self, axes: Sequence[int], dtype: np.dtype[Any]) -> Double:
        """What the weights have to be scaled by, at the tensor's rank.

        That is ``S`` over what stands behind. It may vary along the given axes alone, those the
        weights have parameters on, up to the rounding of what stands behind.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.asarray(self.line.scale / self.added.scale)
        ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        loose = self.added.steps * Limits.of(dtype).eps
        for axis in set(range(ratio.ndim)) - {axis % ratio.ndim for axis in axes}:
            if ratio.shape[axis] == 1:
                continue
            low, high = (
                reduce(ratio, axis=axis, keepdims=True)
                for reduce in (np.fmin.reduce, np.fmax.reduce)
            )
            if bool((high - low > loose * np.maximum(np.abs(high), np.abs(low))).any()):
                raise _Mismatch(
                    f"the scale varies along axis {axis}, where {label(self.node)} has no weights"
                )
            ratio = (low + high) / 2
        return ratio


def certify(
    original: ModelProto,
    folded: ModelProto,
    applied: Sequence[Applied],
    original_dir: Path | None = None,
    folded_dir: Path | None = None,
) -> tuple[Certificate, ...]:
    """Check every fold that was carried out, in float64.

    ``applied`` is what the rewrite recorded: positions in the original graph, tensor names in the
    folded one. The folders are those of external data. A fold whose operators are not found where
    they should be gets a certificate with a ``problem``, never an exception.
    """
    before, after = _Side.of(original, original_dir), _Side.of(folded, folded_dir)
    return tuple(_certify(before, after, fold) for fold in applied)


def _certify(before: _Side, after: _Side, fold: Applied) -> Certificate:
    scope = before.scopes[fold.path]
    maps = tuple(label(scope.nodes[i]) for i in fold.maps)
    into = label(scope.nodes[fold.into])
    check = _compose if fold.law == "compose" else _absorb
    try:
        if fold.path not in after.scopes:
            raise _Mismatch(f"the folded model has no graph {fold.path}")
        with np.errstate(over="ignore", invalid="ignore"):
            ulps = check(before, after, fold)
    except _Mismatch as mismatch:
        return Certificate(fold.path, into, maps, float("inf"), str(mismatch))
    except ValueError as error:  # Operands that NumPy cannot broadcast.
        return Certificate(fold.path, into, maps, float("inf"), f"shapes do not agree: {error}")
    return Certificate(fold.path, into, maps, max(ulps, 0.0))


def _compose(before: _Side, after: _Side, fold: Applied) -> float:
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    first = old.nodes[fold.into]
    rank = before.rank(old, first.output[0]) or 0
    wanted = _Line.identity(rank)
    for position in fold.chain:
        _follow(before, old, old.nodes[position], wanted)
    made, kind = _standing(after, new, fold, rank)
    size = np.abs(wanted.scale)
    scale = _deviation(made.scale, wanted.scale, size, kind, loose=made.steps - 1)
    sizes = (wanted.bulk, made.bulk) if made.steps > 1 else (np.abs(wanted.shift),)
    loose = made.steps - 1
    return max(scale, _deviation(made.shift, wanted.shift, wanted.bulk, kind, sizes, loose))


def _standing(side: _Side, scope: Scope, fold: Applied, rank: int) -> tuple[_Line, np.dtype[Any]]:
    """The operators of the folded graph from a fold's source to its end, as one line."""
    line = _Line.identity(rank)
    kind: np.dtype[Any] = np.dtype(np.float32)
    for node in _chain_between(side, scope, fold.source, fold.output):
        dtype = _follow(side, scope, node, line)
        if dtype is not None:
            kind = dtype
            line.steps += 1
    return line, kind


def _absorb(before: _Side, after: _Side, fold: Applied) -> float:
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    node = old.nodes[fold.into]
    position = new.producers.get(fold.source)
    if position is None:
        raise _Mismatch(f"no operator of the folded graph writes {fold.source}")
    twin = new.nodes[position]
    if twin.op_type != node.op_type:
        raise _Mismatch(f"{fold.source} is written by {twin.op_type}, not by {node.op_type}")
    rank = _output_rank(before, old, node)
    line = _Line.identity(rank)
    for place in fold.chain:
        _follow(before, old, old.nodes[place], line)
    added, _ = _standing(after, new, fold, rank)
    _same_otherwise(before, after, old, new, node, twin)
    check = _FORMULAS.get(node.op_type)
    if check is None:
        raise _Mismatch(f"{node.op_type} has no formula to check against")
    return check(_Case(before, after, old, new, node, twin, line, added))


def _same_otherwise(
    before: _Side, after: _Side, old: Scope, new: Scope, node: NodeProto, twin: NodeProto
) -> None:
    """Everything else that decides what an operator computes is as it was: its attributes (but
    Gemm's beta, which its formula knows) and a BatchNormalization's statistics.
    """

    def attributes(of: NodeProto) -> dict[str, bytes]:
        return {
            a.name: a.SerializeToString(deterministic=True)
            for a in of.attribute
            if (of.op_type, a.name) != ("Gemm", "beta")
        }

    if attributes(node) != attributes(twin):
        raise _Mismatch(f"attributes of {label(twin)} changed")
    if node.op_type == "BatchNormalization":
        for position in (3, 4):
            was = before.double(old, node, position)
            now = after.double(new, twin, position)
            if was is None or now is None or not np.array_equal(was, now):
                raise _Mismatch(f"the statistics of {label(twin)} changed")


def _follow(side: _Side, scope: Scope, node: NodeProto, line: _Line) -> np.dtype[Any] | None:
    """Apply one operator to a line, by its definition; the dtype of its constant if it has one."""
    if node.op_type in ("Identity", "Dropout"):
        return None
    if node.op_type == "Neg":
        line.times(np.asarray(-1.0))
        return None
    if node.op_type == "BatchNormalization":
        return _follow_batch_norm(side, scope, node, line)
    if len(node.input) != 2:
        raise _Mismatch(f"{label(node)} does not have two operands")
    first, second = (side.values(scope, name) for name in node.input)
    raw = first if first is not None else second
    if raw is None or (first is not None and second is not None):
        raise _Mismatch(f"{label(node)} does not have one constant operand")
    constant = raw.astype(np.float64)
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    if axis is not None and scope.opset < 7:
        constant = constant.reshape(
            *constant.shape, *(1,) * (line.scale.ndim - axis - constant.ndim)
        )
    if constant.ndim > line.scale.ndim > 0:
        raise _Mismatch(f"the constant of {label(node)} has more axes than its tensor")
    if node.op_type == "Mul":
        line.times(constant)
    elif node.op_type == "Div" and second is not None:
        line.times(1.0 / constant)
    elif node.op_type == "Add":
        line.plus(constant)
    elif node.op_type == "Sub":
        if first is not None:
            line.times(np.asarray(-1.0))
            line.plus(constant)
        else:
            line.plus(-constant)
    else:
        raise _Mismatch(f"{label(node)} ({node.op_type}) is not affine")
    return raw.dtype


def _follow_batch_norm(
    side: _Side, scope: Scope, node: NodeProto, line: _Line
) -> np.dtype[Any] | None:
    """``(x − mean) / √(var + ε) · scale + bias`` with vectors along axis 1."""
    vectors = [side.double(scope, node, k) for k in range(1, 5)]
    rank = line.scale.ndim
    epsilon = next((float(a.f) for a in node.attribute if a.name == "epsilon"), _EPSILON)
    if rank < 2 or any(v is None for v in vectors):
        raise _Mismatch(f"{label(node)} is not a BatchNormalization with constant parameters")
    gamma, beta, mean, variance = (
        v.reshape((1, -1, *(1,) * (rank - 2))) for v in vectors if v is not None
    )
    stored = side.values(scope, node.input[1])
    line.plus(-mean)
    line.times(1.0 / np.sqrt(variance + epsilon))
    line.times(gamma)
    line.plus(beta)
    return None if stored is None else stored.dtype


def _chain_between(side: _Side, scope: Scope, source: str, output: str) -> list[NodeProto]:
    """The operators from one tensor to another, where each reads the one before."""
    nodes: list[NodeProto] = []
    name = output
    while name != source:
        position = scope.producers.get(name)
        if position is None or len(nodes) > len(scope.nodes):
            raise _Mismatch(f"no chain of operators leads from {source} to {output}")
        node = scope.nodes[position]
        nodes.append(node)
        data = [n for n in node.input if n == source or side.values(scope, n) is None]
        if node.op_type not in _PASSED or not data:
            raise _Mismatch(f"{label(node)} stands between {source} and {output}")
        name = data[0]
    return nodes[::-1]


def _output_rank(side: _Side, scope: Scope, node: NodeProto) -> int:
    if node.op_type == "Gemm":
        return 2
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = side.constants.find(scope, node.input[1])
        if isinstance(weight, Constant):
            return len(weight.shape)
    rank = side.rank(scope, node.output[0])
    if rank is None:
        rank = side.rank(scope, node.input[0])
    return 0 if rank is None else rank


def _deviation(
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
        raise _Mismatch(f"shapes {made.shape} and {wanted.shape} do not agree") from error
    if made.size == 0:
        return 0.0
    limits = Limits.of(dtype)
    magnitude = np.maximum.reduce([np.abs(wanted), *rest])
    exponent = np.frexp(np.maximum(magnitude, limits.tiny))[1] - 1
    unit = np.ldexp(limits.eps, exponent)
    excess = np.abs(made - wanted) - _SLACK * bulk
    worst = float(np.max(excess / unit - max(loose, 0)))
    return worst if np.isfinite(worst) else float("inf")


def _weights(case: _Case, wanted: Double, made: Double, dtype: np.dtype[Any]) -> float:
    """How far a weight, seen in the formula's own layout, is from what it has to be."""
    return _deviation(made, wanted, np.abs(wanted), dtype, loose=case.added.steps)


def _shift(case: _Case, old: Double, made: Double, dtype: np.dtype[Any]) -> float:
    """How far the new bias, with what stands behind, is from ``S·old + T``; biases are given at
    the tensor's rank.
    """
    line, added = case.line, case.added
    try:
        wanted, terms = line.scale * old + line.shift, np.abs(line.scale * old) + line.bulk
        found, scaled = added.scale * made + added.shift, np.abs(added.scale * made)
    except ValueError as error:
        raise _Mismatch(f"the bias of {label(case.twin)} has shape {made.shape}") from error
    sizes = (scaled, added.bulk) if added.steps else ()
    return _deviation(found, wanted, terms, dtype, sizes, added.steps)


def _on_axis_one(values: NDArray[Any] | None, rank: int) -> Double:
    """A vector of one number per channel at a tensor's rank; zero where absent."""
    if values is None:
        return np.zeros((1,) * rank)
    if values.ndim != 1 or rank < 2:
        raise _Mismatch(f"a bias of shape {values.shape} is not one number per channel")
    return values.astype(np.float64).reshape((1, -1, *(1,) * (rank - 2)))


def _per_channel(case: _Case, dtype: np.dtype[Any], count: int) -> Double:
    """The scale of a convolution's output channels, which lie on axis 1."""
    scale = case.scale([1], dtype).reshape(-1)
    if scale.size not in (1, count):
        raise _Mismatch(f"the folded map has {scale.size} channels, its operator {count}")
    return np.broadcast_to(scale, (count,))


def _conv_bias(case: _Case, rank: int, dtype: np.dtype[Any]) -> float:
    """``s·b + t`` where the bias is input 2, one number per channel, absent meaning 0."""
    return _shift(case, _on_axis_one(case.old(2), rank), _on_axis_one(case.new(2), rank), dtype)


def _check_conv(case: _Case) -> float:
    """``y[o] = Σ W[o,i,k]·x[i,·] + b[o]``: row o of the weight times ``s[o]``."""
    weight, made = case.old(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case)
    scale = _per_channel(case, made.dtype, weight.shape[0])
    wanted = np.einsum("o...,o->o...", weight, scale)
    worst = _weights(case, wanted, made.astype(np.float64), made.dtype)
    return max(worst, _conv_bias(case, weight.ndim, made.dtype))


def _check_conv_transpose(case: _Case) -> float:
    """Output channel o of group j is written by that group's input channels only, through column
    ``o − j·(Cout/group)`` of the weight: those entries times ``s[o]``.
    """
    weight, made = case.old(1), case.new(1)
    if weight is None or made is None:
        return _bias_only(case)
    group = next((a.i for a in case.node.attribute if a.name == "group"), 1)
    cin, columns = weight.shape[:2]
    scale = _per_channel(case, made.dtype, columns * group)
    wanted = weight.copy()
    for output in range(columns * group):
        member, column = divmod(output, columns)
        rows = range(member * (cin // group), (member + 1) * (cin // group))
        wanted[rows.start : rows.stop, column] *= scale[output]
    worst = _weights(case, wanted, made.astype(np.float64), made.dtype)
    return max(worst, _conv_bias(case, weight.ndim, made.dtype))


def _bias_only(case: _Case) -> float:
    """A pure shift behind a weight that is computed at run time."""
    if bool((case.scale([1], np.dtype(np.float64)) != 1).any()):
        raise _Mismatch(f"a scale was folded into {label(case.node)}, whose weight is not constant")
    if list(case.twin.input[1:2]) != list(case.node.input[1:2]):
        raise _Mismatch(f"{label(case.twin)} reads another weight")
    made = case.new(2)
    dtype = np.dtype(np.float64) if made is None else made.dtype
    return _conv_bias(case, case.line.scale.ndim, dtype)


def _check_gemm(case: _Case) -> float:
    """``Y = α·A'·B' + β·C``: the constant factor and ``β·C`` as matrices, times S, plus T."""

    def matrix(values: NDArray[Any] | None, of: NodeProto, at: int) -> Double | None:
        flag = "transA" if at == 0 else "transB"
        turned = any(a.name == flag and a.i for a in of.attribute)
        if values is None:
            return None
        return (values.T if turned else values).astype(np.float64)

    def offset(c: NDArray[Any] | None, of: NodeProto) -> Double:
        beta = next((float(a.f) for a in of.attribute if a.name == "beta"), 1.0)
        zero = c is None or beta == 0.0
        return np.zeros((1, 1)) if zero else np.atleast_2d(beta * np.asarray(c, np.float64))

    at = 1 if case.old(1) is not None else 0
    raw = case.new(at)
    factor, made = matrix(case.old(at), case.node, at), matrix(raw, case.twin, at)
    if factor is None or made is None or raw is None:
        raise _Mismatch(f"{label(case.twin)} has no constant factor")
    alphas = [
        next((float(a.f) for a in of.attribute if a.name == "alpha"), 1.0)
        for of in (case.node, case.twin)
    ]
    if alphas[0] != alphas[1]:
        raise _Mismatch(f"alpha of {label(case.twin)} changed")
    wanted = factor * case.scale([at], raw.dtype)
    worst = _weights(case, wanted, made, raw.dtype)
    old, new = offset(case.old(2), case.node), offset(case.new(2), case.twin)
    return max(worst, _shift(case, old, new, raw.dtype))


def _check_matmul(case: _Case) -> float:
    """``S·(X·W) + T = X·(S·W) + T`` where S is constant along the axis that X writes."""
    at = 1 if case.old(1) is not None else 0
    factor, made = case.old(at), case.new(at)
    if factor is None or made is None:
        raise _Mismatch(f"{label(case.twin)} has no constant factor")
    rank = case.line.scale.ndim
    vector = case.rank(1 - at) == 1
    contracted = {rank - 2 if at == 1 else rank - 1} if not vector else set()
    own = set(range(max(rank - factor.ndim + vector, 0), rank)) - contracted
    scale = case.scale(sorted(own), made.dtype)
    if vector and rank:
        scale = np.expand_dims(scale, -2 if at == 1 else -1)
    while scale.ndim > factor.ndim and scale.shape[0] == 1:
        scale = scale[0]
    wanted = factor * scale
    if wanted.shape != made.shape:
        raise _Mismatch(f"the weight of {label(case.twin)} has shape {made.shape}")
    worst = _weights(case, wanted, made.astype(np.float64), made.dtype)
    return max(worst, _shift(case, np.zeros(()), np.zeros(()), made.dtype))


def _check_norm(case: _Case) -> float:
    """``γ·n + β`` becomes ``(S·γ)·n + (S·β + T)``; γ lies on axis 1, for LayerNormalization on
    the last axes.
    """
    gamma, made = case.old(1), case.new(1)
    if gamma is None or made is None:
        raise _Mismatch(f"γ of {label(case.twin)} is not constant")
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
    worst = _weights(case, wanted, lay(made), made.dtype)
    return max(worst, _shift(case, lay(case.old(2)), lay(case.new(2)), made.dtype))


_FORMULAS = {
    "BatchNormalization": _check_norm,
    "Conv": _check_conv,
    "ConvTranspose": _check_conv_transpose,
    "Gemm": _check_gemm,
    "GroupNormalization": _check_norm,
    "InstanceNormalization": _check_norm,
    "LayerNormalization": _check_norm,
    "MatMul": _check_matmul,
}
