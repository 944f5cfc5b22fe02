"""The local probe: the old and the new operators of one fold, on the same real numbers.

The numbers are the values that the original holds there on real or drawn inputs. All operators run
in float64, one after the other, by their definition. New weights are rounded once, so the results
may differ by ``u·(|W'|∗|x| + |b'|)``; u is half a unit in the last place of the weights' type. The
largest ``|x|`` in place of each gives a bound of that. The probe states a difference in units of
this bound.

The probe is a second opinion besides the certificate's formulas. It names the wrong fold, where the
end-to-end check only says that there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from bnfold._onnx.read import evaluation
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.tensors import FLOATS, data_type
from bnfold._onnx.write.applied import Applied
from bnfold._proof.checked_model import CheckedModel, chain_between
from bnfold._proof.definitions import evaluate, is_defined
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double, FullRankMap, composed, equalities

ROUNDINGS = 2.0
"""Half units in the last place that a stored number may be off, as a certificate allows."""
# What float64 loses in a sum of some thousand terms, relative to the sum of their absolute values.
_ARITHMETIC = 2.0**-40
_ROWS = 4
_SPAN = 1
_EPSILON = float(np.float32(1e-5))
_WINDOWED = ("Conv", "ConvTranspose")
_TURNED = ("FusedGemm", "FusedMatMul", "TransposeMatMul")
# What rounding does over the steps of a recurrence has no bound here, nor in sums along any axes.
_UNBOUNDED = ("Einsum", "GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class _Chain:
    """Operators of one graph, each reading the one before; ``source`` is what the first reads."""

    model: CheckedModel
    scope: Scope
    nodes: Sequence[NodeProto]
    source: str


def source(before: CheckedModel, fold: Applied) -> str | None:
    """The tensor whose real numbers a fold is probed on; None where it cannot be probed."""
    if fold.path or fold.law not in ("absorb", "carry", "compose"):
        return None
    scope = before.scopes[fold.path]
    node = scope.nodes[fold.into]
    if node.op_type in _UNBOUNDED:
        return None
    data = [name for name in node.input if name and before.values(scope, name) is None]
    return data[0] if len(data) == 1 else None


def probe(
    before: CheckedModel, after: CheckedModel, fold: Applied, numbers: NDArray[Any]
) -> float | None:
    """How far the new operators of a fold are from the old ones, in what rounding explains.

    ``numbers`` are the values of the fold's `source` in the original. Returns None where the
    reference implementation cannot run an operator, or where no output is known. Raises `Mismatch`
    where a right fold would give another graph.
    """
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    name = source(before, fold)
    assert name is not None
    was = _Chain(before, old, _old_operators(old, fold), name)
    now = _new_chain(after, new, fold, name, was.nodes[0])
    entry, last = fold.related.get(name), was.nodes[-1].output[0]
    x = _sample(was, now, fold, numbers.astype(np.float64))
    fed = x
    if entry is not None:
        x, fed = _old_and_new_data(composed(entry.old, x.ndim), composed(entry.new, x.ndim), x)
    try:
        wanted, made = _run(was, x), _run(now, fed)
        bulk = _term_bound(now, fed, made)
    except _NotRunnable:
        return None
    if wanted.shape != made.shape:
        raise Mismatch(f"{label(was.nodes[-1])} puts out {wanted.shape}, now it is {made.shape}")
    rounded = now if now.nodes else was  # what is left out was 1 and 0 in the type that it had
    unit = ROUNDINGS * _half_unit(rounded) * max(1, len(now.nodes)) + _ARITHMETIC
    known = np.isfinite(wanted)
    worst = None
    for equality in equalities(fold.related.get(last), wanted.ndim):
        if bool((equality.old.unknown & ~equality.exempt).any()) or not known.any():
            continue
        off = np.abs(equality.old.of(wanted) - equality.new.of(made))
        off = np.where(known & np.isnan(off), np.inf, off)
        sizes = np.maximum(np.abs(made), bulk) * np.abs(equality.new.scale) + np.abs(
            equality.new.shift
        )
        sizes = np.maximum(sizes, np.abs(wanted) * np.abs(equality.old.scale))
        limits = unit * sizes + np.finfo(np.float32).tiny * (1 + np.abs(fed).max(initial=0))
        told = np.where(equality.exempt | ~known, 0.0, off / limits)
        worst = max(worst or 0.0, float(np.max(np.where(np.isnan(told), np.inf, told))))
    return worst


class _NotRunnable(Exception):
    """The reference implementation does not run an operator."""


def _old_operators(scope: Scope, fold: Applied) -> list[NodeProto]:
    """The operators of the original graph that a fold concerns, in order."""
    chain = [scope.nodes[position] for position in fold.chain]
    return [scope.nodes[fold.into], *chain] if fold.law == "absorb" else chain


def _new_chain(
    model: CheckedModel, scope: Scope, fold: Applied, name: str, first: NodeProto
) -> _Chain:
    """The operators of the folded graph that stand for the old ones.

    ``name`` is the tensor that the old operators read, ``first`` the one that reads it.
    """
    standing = chain_between(model, scope, fold.source, fold.output)
    if fold.law != "absorb":
        return _Chain(model, scope, standing, fold.source)
    position = scope.producers.get(fold.source)
    if position is None:
        raise Mismatch(f"no operator of the folded graph writes {fold.source}")
    twin = scope.nodes[position]
    number = list(first.input).index(name)
    if number >= len(twin.input):
        raise Mismatch(f"{label(twin)} does not read what {label(first)} did")
    return _Chain(model, scope, [twin, *standing], twin.input[number])


def _old_and_new_data(old: FullRankMap, new: FullRankMap, x: Double) -> tuple[Double, Double]:
    """The data of the old and of the new operators: ``F(z)`` and ``G(z)``, where ``F(z) = x``.

    float64 gives such a z up to its rounding. Where F is constant, x is that constant, and z is
    drawn. Where nothing is known of the old values, the old operators read x itself.
    """
    lost = old.unknown | (old.scale == 0)
    free = np.random.default_rng(0).normal(size=x.shape)
    z = np.where(lost, free, (x - old.shift) / np.where(lost, 1.0, old.scale))
    return np.where(old.unknown, x, old.of(z)), new.of(z)


def _sample(was: _Chain, now: _Chain, fold: Applied, x: Double) -> Double:
    """A small part of the numbers, to save time.

    It is cut along axes where all positions are treated alike: the first element of a batch, a
    corner of an image where a window fits in several times, some rows of a matrix.
    """
    fixed = {axis for axis in range(x.ndim) if _varies(was, now, fold, axis, x.ndim)}
    node = was.nodes[0]
    spans = [1 if axis == 0 else x.shape[axis] for axis in range(x.ndim)]
    if node.op_type in _WINDOWED:
        weight = was.model.values(was.scope, node.input[1])
        kernel = weight.shape[2:] if weight is not None else ()
        given = {a.name: list(a.ints) for a in node.attribute}
        dilations = given.get("dilations") or [1] * len(kernel)
        strides = given.get("strides") or [1] * len(kernel)
        for axis, (k, d, s) in enumerate(zip(kernel, dilations, strides, strict=True), start=2):
            spans[axis] = (k - 1) * d + 1 + _SPAN * s
    elif node.op_type in _TURNED:
        spans = list(x.shape)
    elif node.op_type in ("Gemm", "MatMul"):
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        rows_first = x.ndim > 1 and node.input[0] == was.source and not turned
        spans = [*([_ROWS] * (x.ndim - 1)), x.shape[-1]] if rows_first else list(x.shape)
    elif node.op_type in ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Scaler", "Sub"):
        spans[2:] = [_SPAN] * (x.ndim - 2)
    window = tuple(
        slice(None if axis in fixed else min(span, x.shape[axis]))
        for axis, span in enumerate(spans)
    )
    return x[window]


def _varies(was: _Chain, now: _Chain, fold: Applied, axis: int, rank: int) -> bool:
    """Whether a constant or a map differs along an axis of the data."""
    for relation in fold.related.values():
        # A product with batches of weights has more axes than its data.
        if any((step.axis or 0) >= rank > 0 for step in (*relation.old, *relation.new)):
            return True
        for map_ in (composed(relation.old, rank), composed(relation.new, rank)):
            if any(part.shape[axis] != 1 for part in (map_.scale, map_.shift) if part.ndim == rank):
                return True
    for chain in (was, now):
        for node in chain.nodes:
            if node.op_type == "BatchNormalization" and axis == 1:
                return True
            if node.op_type == "Scaler" and axis == rank - 1:
                return True
            if node.op_type not in ("Add", "Div", "Gemm", "Mul", "Sub"):
                continue
            for name in node.input[2:] if node.op_type == "Gemm" else node.input:
                values = chain.model.values(chain.scope, name)
                if values is None or axis - rank + values.ndim < 0:
                    continue
                if values.shape[axis - rank + values.ndim] != 1:
                    return True
    return False


def _half_unit(chain: _Chain) -> float:
    """Half a unit in the last place of 1, in the coarsest type among the weights."""
    info: Any = ml_dtypes.finfo  # ml_dtypes gives it no type.
    eps = [2.0**-52]
    for node in chain.nodes:
        for name in node.input:
            values = chain.model.values(chain.scope, name)
            if values is not None and data_type(values.dtype) in FLOATS:
                eps.append(float(info(values.dtype).eps))
    return max(eps) / 2


def _run(chain: _Chain, x: Double) -> Double:
    """The output of a chain."""
    for node, inputs, place in _operators_with_inputs(chain):
        inputs[place] = x
        x = _step(node, inputs, chain.scope.opset)
    return x


def _operators_with_inputs(chain: _Chain) -> Iterator[tuple[NodeProto, list[Any], int]]:
    """Yield each operator of a chain, its constants in float64, and its data input's number."""
    current = chain.source
    for node in chain.nodes:
        inputs = [_double(chain, name) if name and name != current else None for name in node.input]
        place = list(node.input).index(current)
        if any(name and n != place and inputs[n] is None for n, name in enumerate(node.input)):
            raise _NotRunnable
        yield node, inputs, place
        current = node.output[0]


def _double(chain: _Chain, name: str) -> NDArray[Any] | None:
    """A constant; floats are in float64. None for a tensor that is not constant."""
    values = chain.model.values(chain.scope, name)
    if values is None or data_type(values.dtype) not in FLOATS:
        return values
    return values.astype(np.float64)


def _step(node: NodeProto, inputs: list[Any], opset: int) -> Double:
    """The output of one operator.

    A linear operator runs by its definition, any other by ONNX's reference implementation. The
    reference is not trusted with linear operators: it changes from release to release.
    """
    try:
        if is_defined(node):
            return evaluate(node, inputs, magnitude=False)
        return evaluation.evaluate(node, inputs, opset).astype(np.float64)
    except Exception as error:  # An implementation may raise anything.
        raise _NotRunnable from error


def _along_channels(vector: Double, rank: int) -> Double:
    """A vector on axis 1 of a tensor of a rank; on the only axis where there is one."""
    return vector.reshape((1, -1, *(1,) * (rank - 2)) if rank > 1 else (-1,))


def _gain(node: NodeProto, inputs: list[Any]) -> Double:
    """``scale / √(var + ε)`` of a BatchNormalization, on axis 1."""
    epsilon = next((float(a.f) for a in node.attribute if a.name == "epsilon"), _EPSILON)
    factors = inputs[1] / np.sqrt(inputs[4] + epsilon)
    return _along_channels(factors, inputs[0].ndim)


def _term_bound(chain: _Chain, x: Double, made: Double) -> Double:
    """A bound of the sum of the absolute values of all terms of a chain's output.

    ``x`` is the data of the chain and ``made`` its output. The bound broadcasts to ``made``.
    """
    size: Double = np.abs(x).max(initial=0, keepdims=True)
    for node, given, place in _operators_with_inputs(chain):
        inputs: list[Any] = [None if one is None else np.abs(one) for one in given]
        inputs[place] = size
        op, rank = node.op_type, made.ndim
        if op in ("Conv", "ConvTranspose"):
            sums = _along_channels(_kernel_sums(node, inputs[1]), rank)
            size = size * sums
            if len(inputs) > 2 and inputs[2] is not None:
                size = size + _along_channels(inputs[2], rank)
        elif op in ("Gemm", "MatMul"):
            size = size * _product_sums(node, inputs, place)
            if len(inputs) > 2 and inputs[2] is not None:
                size = size + inputs[2] * abs(_factor(node, "beta"))
        elif op == "BatchNormalization":
            inputs[0] = np.zeros((1,) * rank)
            mean, bias = (_along_channels(inputs[n], rank) for n in (3, 2))
            size = (size + mean) * _gain(node, inputs) + bias
        elif op == "Scaler":
            size = evaluate(node, [size], magnitude=True)
        elif op in ("Add", "Sub"):
            size = inputs[0] + inputs[1]
        elif op == "Mul":
            size = inputs[0] * inputs[1]
        elif op == "Div":
            size = inputs[0] / inputs[1]
        elif op not in (
            "Cast",
            "CastLike",
            "Dropout",
            "Identity",
            "Neg",
        ):  # a norm: its output, and its bias
            parts = [one.max(initial=0) for n, one in enumerate(inputs) if one is not None and n]
            size = np.abs(made).max(initial=0, keepdims=True) + float(sum(parts))
    return size


def _kernel_sums(node: NodeProto, weight: Double) -> Double:
    """The sum of the weights of each output channel of a convolution.

    ``weight`` holds absolute values. The result has one number per output channel.
    """
    axes = tuple(range(2, weight.ndim))
    if node.op_type == "Conv":
        vector: Double = weight.sum(axis=(1, *axes))
        return vector
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    parts = np.split(weight.sum(axis=axes), groups, 0)
    return np.concatenate([part.sum(axis=0) for part in parts])


def _product_sums(node: NodeProto, inputs: list[Any], place: int) -> Double:
    """The sum of the weights of each output column of a Gemm or MatMul, or of each output row.

    ``inputs`` holds absolute values; ``place`` is the number of the data input.
    """
    weight, last = inputs[1 - place], place == 0
    turned = _factor(node, "transB" if last else "transA", 0.0) != 0
    if weight.ndim == 1:
        return np.asarray(weight.sum())
    contracted = -1 if last == turned else -2
    sums: Double = weight.sum(axis=contracted)
    sums = np.expand_dims(sums, -2 if last else -1)
    return sums * abs(_factor(node, "alpha"))


def _factor(node: NodeProto, name: str, default: float = 1.0) -> float:
    """The number in an attribute of a node, or the default."""
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if attribute.type == AttributeProto.FLOAT else float(attribute.i)
    return default
