"""Norms of constants, such as the standardized weights of a Conv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read import attributes

Array = NDArray[Any]
Double = NDArray[np.float64]
# The default is a float32, as every float attribute is.
_EPSILON = float(np.float32(1e-5))


def normalize(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """The first output of a norm, in float64 and rounded once to the type of its first input.

    Raises:
        ValueError: the norm does not allow these shapes, or its mode has no fixed meaning.
    """
    x, *rest = (None if values is None else values.astype(np.float64) for values in inputs)
    if inputs[0] is None or x is None:
        raise ValueError("it has no input")
    with np.errstate(all="ignore"):
        result = NORMS[node.op_type](node, x, rest, opset)
    if result.shape != x.shape:
        raise ValueError("its parameters do not fit its input")
    with np.errstate(over="ignore"):
        return result.astype(inputs[0].dtype)


def _batch_norm(node: NodeProto, x: Double, rest: Sequence[Double | None], opset: int) -> Double:
    """``(x − mean) / √(var + ε) · γ + β`` along axis 1 (ONNX BatchNormalization).

    The statistics are inputs. From opset 14, with ``training_mode`` 1, they are those of x itself.
    """
    training = bool(attributes.integer(node, "training_mode", 0)) and opset >= 14
    if opset < 14 and any(node.output[1:]):
        raise ValueError("it puts out statistics")
    if opset < 7 and not attributes.integer(node, "is_test", 0):
        raise ValueError("it is in training mode")
    if opset < 9 and not attributes.integer(node, "spatial", 1):
        raise ValueError("it has statistics for each element")
    vectors = [v for v in rest if v is not None]
    if x.ndim < 2 or [v.shape for v in vectors] != [(x.shape[1],)] * 4:
        raise ValueError("its parameters are not one number per channel")
    gamma, beta, mean, variance = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in vectors)
    if training:
        return _standardized(node, x, (0, *range(2, x.ndim))) * gamma + beta
    return (x - mean) / np.sqrt(variance + _epsilon(node)) * gamma + beta


def _instance_norm(node: NodeProto, x: Double, rest: Sequence[Double | None], opset: int) -> Double:
    """``x̂·γ + β`` with γ and β along axis 1, standardized over all axes behind it."""
    gamma, beta = (_on_axis_one(x, v) for v in rest)
    return _standardized(node, x, tuple(range(2, x.ndim))) * gamma + beta


def _layer_norm(node: NodeProto, x: Double, rest: Sequence[Double | None], opset: int) -> Double:
    """``x̂·γ + β``, standardized over ``axis`` and all behind it; γ and β broadcast to x."""
    first = attributes.integer(node, "axis", -1)
    if not -x.ndim <= first < x.ndim:
        raise ValueError("its axis lies outside of its input")
    found = _standardized(node, x, tuple(range(first % x.ndim, x.ndim)))
    gamma, beta = (*rest, None)[:2]
    found = found if gamma is None else found * gamma
    return found if beta is None else found + beta


def _group_norm(node: NodeProto, x: Double, rest: Sequence[Double | None], opset: int) -> Double:
    """``x̂·γ + β``, standardized over each group of channels.

    γ and β lie along axis 1. Before opset 21 they have one number per group.
    """
    count = attributes.integer(node, "num_groups", 0)
    if x.ndim < 2 or count < 1 or x.shape[1] % count:
        raise ValueError("its groups do not divide its channels")
    grouped = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
    found = _standardized(node, grouped, tuple(range(2, grouped.ndim)))
    at = grouped if opset < 21 else x
    gamma, beta = (_on_axis_one(at, v) for v in rest)
    return (found.reshape(at.shape) * gamma + beta).reshape(x.shape)


def _standardized(node: NodeProto, x: Double, axes: tuple[int, ...]) -> Double:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    standardized: Double = (x - mean) / np.sqrt(variance + _epsilon(node))
    return standardized


def _on_axis_one(x: Double, vector: Double | None) -> Double:
    if vector is None or x.ndim < 2 or vector.shape != (x.shape[1],):
        raise ValueError("its parameters are not one number per channel")
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


def _epsilon(node: NodeProto) -> float:
    return attributes.number(node, "epsilon", _EPSILON)


NORMS: dict[str, Callable[[NodeProto, Double, Sequence[Double | None], int], Double]] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
}
