"""The local probe: the operators that stood and those that stand, on the same real numbers.

Both run in float64, operator by operator, by their definition, on numbers that the original has
there on real or drawn inputs. New weights are rounded once, so the two may differ
by ``u·(|W'|∗|x| + |b'|)``, u being half a unit in the last place of the weights' type: a difference
is stated in units of a bound of that, with the largest ``|x|`` in place of each. Next to the
certificate's formulas it is a second opinion on what an operator computes, and it names the fold at
fault where the end-to-end check only says that there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from bnfold._onnx.read import constants
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.tensors import FLOATS, data_type
from bnfold._onnx.write.applied import Applied
from bnfold._proof.carried import claims, laid_out
from bnfold._proof.definitions import evaluate, is_defined
from bnfold._proof.rows import Double, Line, Mismatch, Side, chain_between

ROUNDINGS = 2.0
"""Half units in the last place that a stored number may be off, as a certificate allows."""
# What float64 itself loses in sums of some thousand terms, of their absolute values.
_ARITHMETIC = 2.0**-40
_ROWS = 4
_SPAN = 1
_EPSILON = float(np.float32(1e-5))
_WINDOWED = ("Conv", "ConvTranspose")
# What rounding does over the steps of a recurrence has no bound here.
_RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class _Row:
    """Operators one after the other, and the tensor that the first of them reads."""

    side: Side
    scope: Scope
    nodes: Sequence[NodeProto]
    source: str


def source(before: Side, fold: Applied) -> str | None:
    """The tensor whose real numbers a fold is probed on; None where it cannot be probed."""
    if fold.path or fold.law not in ("absorb", "carry", "compose"):
        return None
    scope = before.scopes[fold.path]
    node = scope.nodes[fold.into]
    if node.op_type in _RECURRENT:
        return None
    data = [name for name in node.input if name and before.values(scope, name) is None]
    return data[0] if len(data) == 1 else None


def probe(before: Side, after: Side, fold: Applied, numbers: NDArray[Any]) -> float | None:
    """How far the new operators of a fold are from the old ones, in what rounding explains.

    ``numbers`` are what the original has in the fold's `source`. None where the reference
    implementation cannot run an operator, or no number that is put out says anything. Raises
    `Mismatch` where the folded graph is not of the form that a right fold gives.
    """
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    name = source(before, fold)
    assert name is not None
    was = _Row(before, old, _old_nodes(old, fold), name)
    now = _new_row(after, new, fold, name, was.nodes[0])
    entry, last = fold.related.get(name), was.nodes[-1].output[0]
    x = _sample(was, now, fold, numbers.astype(np.float64))
    fed = x
    if entry is not None:
        x, fed = _fed(laid_out(entry.old, x.ndim), laid_out(entry.new, x.ndim), x)
    try:
        wanted, made = _run(was, x), _run(now, fed)
        bulk = _bulk(now, fed, made)
    except _Unknown:
        return None
    if wanted.shape != made.shape:
        raise Mismatch(f"{label(was.nodes[-1])} puts out {wanted.shape}, now it is {made.shape}")
    unit = ROUNDINGS * _unit(now) * max(1, len(now.nodes)) + _ARITHMETIC
    known = np.isfinite(wanted)
    worst = None
    for claim in claims(fold.related.get(last), wanted.ndim):
        if bool((claim.old.unknown & ~claim.apart).any()) or not known.any():
            continue
        off = np.abs(_through(claim.old, wanted) - _through(claim.new, made))
        off = np.where(known & np.isnan(off), np.inf, off)
        sizes = np.maximum(np.abs(made), bulk) * np.abs(claim.new.scale) + np.abs(claim.new.shift)
        sizes = np.maximum(sizes, np.abs(wanted) * np.abs(claim.old.scale))
        limits = unit * sizes + np.finfo(np.float32).tiny * (1 + np.abs(fed).max(initial=0))
        told = np.where(claim.apart | ~known, 0.0, off / limits)
        worst = max(worst or 0.0, float(np.max(np.where(np.isnan(told), np.inf, told))))
    return worst


class _Unknown(Exception):
    """An operator that the reference implementation does not run."""


def _old_nodes(scope: Scope, fold: Applied) -> list[NodeProto]:
    chain = [scope.nodes[position] for position in fold.chain]
    return [scope.nodes[fold.into], *chain] if fold.law == "absorb" else chain


def _new_row(side: Side, scope: Scope, fold: Applied, name: str, first: NodeProto) -> _Row:
    """The operators of the folded graph that give what the old ones gave."""
    standing = chain_between(side, scope, fold.source, fold.output)
    if fold.law != "absorb":
        return _Row(side, scope, standing, fold.source)
    position = scope.producers.get(fold.source)
    if position is None:
        raise Mismatch(f"no operator of the folded graph writes {fold.source}")
    twin = scope.nodes[position]
    number = list(first.input).index(name)
    if number >= len(twin.input):
        raise Mismatch(f"{label(twin)} does not read what {label(first)} did")
    return _Row(side, scope, [twin, *standing], twin.input[number])


def _fed(old: Line, new: Line, x: Double) -> tuple[Double, Double]:
    """What the old and the new operators read: ``F(z)`` and ``G(z)``, for a z with ``F(z) = x`` as
    near as float64 has it. Where F is constant, x was that constant but for rounding.
    """
    lost = old.unknown | (old.scale == 0)
    free = np.random.default_rng(0).normal(size=x.shape)
    z = np.where(lost, free, (x - old.shift) / np.where(lost, 1.0, old.scale))
    return np.where(old.unknown, x, _through(old, z)), _through(new, z)


def _through(line: Line, values: Double) -> Double:
    return values * line.scale + line.shift


def _sample(was: _Row, now: _Row, fold: Applied, x: Double) -> Double:
    """A part of the numbers, along axes on which nothing depends on where it is: of a batch the
    first, of space a corner that a window fits into several times, of rows some.
    """
    fixed = {axis for axis in range(x.ndim) if _varies(was, now, fold, axis, x.ndim)}
    node = was.nodes[0]
    spans = [1 if axis == 0 else x.shape[axis] for axis in range(x.ndim)]
    if node.op_type in _WINDOWED:
        weight = was.side.values(was.scope, node.input[1])
        kernel = weight.shape[2:] if weight is not None else ()
        given = {a.name: list(a.ints) for a in node.attribute}
        dilations = given.get("dilations") or [1] * len(kernel)
        strides = given.get("strides") or [1] * len(kernel)
        for axis, (k, d, s) in enumerate(zip(kernel, dilations, strides, strict=True), start=2):
            spans[axis] = (k - 1) * d + 1 + _SPAN * s
    elif node.op_type in ("Gemm", "MatMul"):
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        rows_first = x.ndim > 1 and node.input[0] == was.source and not turned
        spans = [*([_ROWS] * (x.ndim - 1)), x.shape[-1]] if rows_first else list(x.shape)
    elif node.op_type in ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub"):
        spans[2:] = [_SPAN] * (x.ndim - 2)
    window = tuple(
        slice(None if axis in fixed else min(span, x.shape[axis]))
        for axis, span in enumerate(spans)
    )
    return x[window]


def _varies(was: _Row, now: _Row, fold: Applied, axis: int, rank: int) -> bool:
    """Whether a constant or a map that is aligned with the data has a size along an axis."""
    for gone in fold.related.values():
        for line in (laid_out(gone.old, rank), laid_out(gone.new, rank)):
            if any(part.shape[axis] != 1 for part in (line.scale, line.shift) if part.ndim == rank):
                return True
    for row in (was, now):
        for node in row.nodes:
            if node.op_type == "BatchNormalization" and axis == 1:
                return True
            if node.op_type not in ("Add", "Div", "Gemm", "Mul", "Sub"):
                continue
            for name in node.input[2:] if node.op_type == "Gemm" else node.input:
                values = row.side.values(row.scope, name)
                if values is None or axis - rank + values.ndim < 0:
                    continue
                if values.shape[axis - rank + values.ndim] != 1:
                    return True
    return False


def _unit(row: _Row) -> float:
    """Half a unit in the last place of 1, in the widest step among the types of the weights."""
    info: Any = ml_dtypes.finfo  # Untyped in ml_dtypes.
    eps = [2.0**-52]
    for node in row.nodes:
        for name in node.input:
            values = row.side.values(row.scope, name)
            if values is not None and data_type(values.dtype) in FLOATS:
                eps.append(float(info(values.dtype).eps))
    return max(eps) / 2


def _run(row: _Row, x: Double) -> Double:
    """What a row puts out."""
    for node, inputs, place in _with_inputs(row):
        inputs[place] = x
        x = _step(node, inputs, row.scope.opset)
    return x


def _with_inputs(row: _Row) -> Iterator[tuple[NodeProto, list[Any], int]]:
    """Yield each node of a row, its constants in float64, and the place of its data."""
    current = row.source
    for node in row.nodes:
        inputs = [_double(row, name) if name and name != current else None for name in node.input]
        place = list(node.input).index(current)
        if any(name and n != place and inputs[n] is None for n, name in enumerate(node.input)):
            raise _Unknown
        yield node, inputs, place
        current = node.output[0]


def _double(row: _Row, name: str) -> NDArray[Any] | None:
    values = row.side.values(row.scope, name)
    if values is None or data_type(values.dtype) not in FLOATS:
        return values
    return values.astype(np.float64)


def _step(node: NodeProto, inputs: list[Any], opset: int) -> Double:
    """One operator: a linear one by its definition, any other by ONNX's reference implementation,
    which has a definition of its own in every release and not always the operator's.
    """
    try:
        if is_defined(node):
            return evaluate(node, inputs, magnitude=False)
        return constants.evaluate(node, inputs, opset).astype(np.float64)
    except Exception as error:  # Whatever an implementation raises that lacks something.
        raise _Unknown from error


def _along_channels(vector: Double, rank: int) -> Double:
    return vector.reshape((1, -1, *(1,) * (rank - 2)))


def _gain(node: NodeProto, inputs: list[Any]) -> Double:
    epsilon = next((float(a.f) for a in node.attribute if a.name == "epsilon"), _EPSILON)
    factors = inputs[1] / np.sqrt(inputs[4] + epsilon)
    return _along_channels(factors, inputs[0].ndim)


def _bulk(row: _Row, x: Double, made: Double) -> Double:
    """A bound of the sum of the absolute values of all terms of what a row puts out, which is
    ``made``; it broadcasts to that.
    """
    size: Double = np.abs(x).max(initial=0, keepdims=True)
    for node, given, place in _with_inputs(row):
        inputs: list[Any] = [None if one is None else np.abs(one) for one in given]
        inputs[place] = size
        op, rank = node.op_type, made.ndim
        if op in ("Conv", "ConvTranspose"):
            sums = _along_channels(_reaching(node, inputs[1]), rank)
            size = size * sums
            if len(inputs) > 2 and inputs[2] is not None:
                size = size + _along_channels(inputs[2], rank)
        elif op in ("Gemm", "MatMul"):
            size = size * _of_product(node, inputs, place)
            if len(inputs) > 2 and inputs[2] is not None:
                size = size + inputs[2] * abs(_factor(node, "beta"))
        elif op == "BatchNormalization":
            inputs[0] = np.zeros((1,) * rank)
            mean, bias = (_along_channels(inputs[n], rank) for n in (3, 2))
            size = (size + mean) * _gain(node, inputs) + bias
        elif op in ("Add", "Sub"):
            size = inputs[0] + inputs[1]
        elif op == "Mul":
            size = inputs[0] * inputs[1]
        elif op == "Div":
            size = inputs[0] / inputs[1]
        elif op not in ("Dropout", "Identity", "Neg"):  # a norm: what it puts out, and its bias
            parts = [one.max(initial=0) for n, one in enumerate(inputs) if one is not None and n]
            size = np.abs(made).max(initial=0, keepdims=True) + float(sum(parts))
    return size


def _reaching(node: NodeProto, weight: Double) -> Double:
    """The sum of the absolute weights behind each output channel of a convolution."""
    axes = tuple(range(2, weight.ndim))
    if node.op_type == "Conv":
        vector: Double = weight.sum(axis=(1, *axes))
        return vector
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    parts = np.split(weight.sum(axis=axes), groups, 0)
    return np.concatenate([part.sum(axis=0) for part in parts])


def _of_product(node: NodeProto, inputs: list[Any], place: int) -> Double:
    """The sums of the absolute weights behind each row or column of a product."""
    weight, last = inputs[1 - place], place == 0
    turned = _factor(node, "transB" if last else "transA", 0.0) != 0
    if weight.ndim == 1:
        return np.asarray(weight.sum())
    contracted = -1 if last == turned else -2
    sums: Double = weight.sum(axis=contracted)
    sums = np.expand_dims(sums, -2 if last else -1)
    return sums * abs(_factor(node, "alpha"))


def _factor(node: NodeProto, name: str, default: float = 1.0) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if attribute.type == AttributeProto.FLOAT else float(attribute.i)
    return default
