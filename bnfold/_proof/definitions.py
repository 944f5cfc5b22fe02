"""Linear operators by their definition in the ONNX specification, in float64 with NumPy.

Nothing here is shared with the code that folds and merges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bnfold._onnx.read.scopes import label, type_of
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double

_EPSILON = float(np.float32(1e-5))
_EVERY: tuple[Any, ...] = (slice(None),)
Attributes = Mapping[str, Any]
Operands = list["Double | None"]


def evaluate(node: NodeProto, operands: Operands, magnitude: bool) -> Double:
    """The output of an operator.

    A Cast counts as one to the type that its data has: who evaluates one has to know that. With
    ``magnitude`` the operands are bounds of absolute values, and so is the result: it bounds
    the terms that the operator sums. Raises `Mismatch` where this module has no definition of the
    operator.
    """
    known = [operand for operand in operands if operand is not None]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if not is_defined(node) or not known:
        raise Mismatch(f"{label(node)} ({node.op_type}) is not linear")
    if magnitude:
        operands = [None if operand is None else np.abs(operand) for operand in operands]
        attributes = {
            name: abs(value) if name in ("alpha", "beta") else value
            for name, value in attributes.items()
        }
    return _DEFINITIONS[type_of(node)](operands, attributes, magnitude)


def is_defined(node: NodeProto) -> bool:
    """Whether this module has a definition of an operator."""
    return type_of(node) in _DEFINITIONS


def _unchanged(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    return _operand(operands, 0)


def _operand(operands: Operands, number: int) -> Double:
    operand = operands[number] if number < len(operands) else None
    if operand is None:
        raise Mismatch("an operand is missing")
    return operand


def _negated(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    return _operand(operands, 0) if magnitude else -_operand(operands, 0)


def _sum(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    total = _operand(operands, 0)
    for number in range(1, len(operands)):
        total = total + _operand(operands, number)
    return total


def _difference(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    left, right = _operand(operands, 0), _operand(operands, 1)
    return left + right if magnitude else left - right


def _product(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    return _operand(operands, 0) * _operand(operands, 1)


def _quotient(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    return np.asarray(_operand(operands, 0) / _operand(operands, 1))


def _batch_norm(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """``(x − mean) / √(var + ε) · scale + bias`` along axis 1; a vector is one channel."""
    x = _operand(operands, 0)
    scale, bias, mean, variance = (
        _operand(operands, k).reshape((1, -1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,))
        for k in range(1, 5)
    )
    centred = x + mean if magnitude else x - mean
    deviation = np.sqrt(variance + attributes.get("epsilon", _EPSILON))
    return np.asarray(centred / deviation * scale + bias)


def _scaler(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """``(x − offset)·scale`` along the last axis."""
    offset, scale = (np.asarray(attributes[name], np.float64) for name in ("offset", "scale"))
    x = _operand(operands, 0)
    return (x + np.abs(offset)) * np.abs(scale) if magnitude else (x - offset) * scale


def _matmul(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    return np.asarray(_operand(operands, 0) @ _operand(operands, 1))


def _gemm(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """``α·A'·B' + β·C``."""
    left, right = _operand(operands, 0), _operand(operands, 1)
    left = left.T if attributes.get("transA", 0) else left
    right = right.T if attributes.get("transB", 0) else right
    total = attributes.get("alpha", 1.0) * (left @ right)
    beta = attributes.get("beta", 1.0)
    if len(operands) > 2 and operands[2] is not None and beta != 0:
        total = total + beta * operands[2]
    return np.asarray(total)


def _conv(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """``y[o, p] = b[o] + Σ W[o, i, k]·x[g·(Cin/groups) + i, stride·p + dilation·k − pad]``."""
    x, weight = _operand(operands, 0), _operand(operands, 1)
    groups = attributes.get("group", 1)
    outputs, per_group, *taps = weight.shape
    if x.ndim != weight.ndim or x.shape[1] != per_group * groups:
        raise Mismatch(f"a kernel of shape {weight.shape} does not read a tensor of {x.shape}")
    windows = [window for _, window in _windows(x, taps, attributes)]
    space = windows[0].shape[2:]
    read = np.stack(windows, axis=2).reshape(len(x), groups, per_group * len(windows), -1)
    kernels = weight.reshape(groups, outputs // groups, per_group * len(windows))
    result = (kernels @ read).reshape(len(x), outputs, *space)
    return _with_bias(result, operands)


def _with_bias(result: Double, operands: Operands) -> Double:
    if len(operands) > 2 and operands[2] is not None:
        return np.asarray(result + operands[2].reshape((1, -1, *(1,) * (result.ndim - 2))))
    return result


def _conv_transpose(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """``y[g·O + o, stride·p + dilation·k − pad] = b[g·O + o] + Σ W[i, o, k]·x[i, p]``.

    The sum runs over the channels i of the group g, and over all places p and taps k that write to
    the same output position.
    """
    x, weight = _operand(operands, 0), _operand(operands, 1)
    groups = attributes.get("group", 1)
    inputs, per_group, *taps = weight.shape
    if x.ndim != weight.ndim or x.shape[1] != inputs:
        raise Mismatch(f"a kernel of shape {weight.shape} does not read a tensor of {x.shape}")
    space, rank = x.shape[2:], len(taps)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    kernels = weight.reshape(groups, inputs // groups, -1).swapaxes(1, 2)
    terms = (kernels @ x.reshape(len(x), groups, inputs // groups, -1)).reshape(
        len(x), groups * per_group, *taps, *space
    )
    reach = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(space, strides, taps, dilations, strict=True)
    ]
    starts, sizes = _transposed_crop(space, reach, strides, attributes)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    whole = np.zeros((len(x), groups * per_group, *map(max, reach, ends)))
    for tap in itertools.product(*map(range, taps)):
        places = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip(tap, dilations, space, strides, strict=True)
        )
        whole[_EVERY * 2 + places] += terms[_EVERY * 2 + tap]
    cut = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    return _with_bias(whole[_EVERY * 2 + cut], operands)


def _transposed_crop(
    space: tuple[int, ...], reach: list[int], strides: list[int], attributes: Attributes
) -> tuple[list[int], list[int]]:
    """The part that a ConvTranspose keeps of all that its kernel writes: its start and its sizes.

    Raises `Mismatch` for ``auto_pad`` with a kernel that spans less than a stride. Nothing can be
    cut off there, and implementations disagree about the sizes.
    """
    rank = len(space)
    mode = attributes.get("auto_pad", b"NOTSET").decode() or "NOTSET"
    more = attributes.get("output_padding", [0] * rank)
    full = [n + m for n, m in zip(reach, more, strict=True)]
    if "output_shape" not in attributes and not mode.startswith("SAME"):
        pads = attributes.get("pads", [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        starts = pads[:rank]
        sizes = [n - a - b for n, a, b in zip(full, starts, pads[rank:], strict=True)]
    else:
        same = [n * s for n, s in zip(space, strides, strict=True)]
        sizes = attributes.get("output_shape", same)
        totals = [n - size for n, size in zip(full, sizes, strict=True)]
        if "output_shape" in attributes:
            totals = [max(total, 0) for total in totals]
        elif min(totals) < 0:
            raise Mismatch(f"auto_pad is not defined for {full} to be cut to {sizes}")
        starts = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    if min(sizes) < 1:
        raise Mismatch(f"no output of {sizes} is cut from {full}")
    return starts, sizes


def _average_pool(operands: Operands, attributes: Attributes, magnitude: bool) -> Double:
    """The mean of each window. Padding counts only where ``count_include_pad`` says so."""
    x, taps = _operand(operands, 0), attributes["kernel_shape"]
    if attributes.get("ceil_mode", 0):
        raise Mismatch("an AveragePool with ceil_mode 1 has no definition here")
    total = sum(window for _, window in _windows(x, taps, attributes))
    if attributes.get("count_include_pad", 0):
        return np.asarray(total / np.prod(taps))
    ones = np.ones_like(x)
    return np.asarray(total / sum(window for _, window in _windows(ones, taps, attributes)))


def _windows(
    x: Double, taps: list[int], attributes: Attributes
) -> list[tuple[tuple[int, ...], Double]]:
    """For each tap of a kernel: its position, and the inputs that it reads for all outputs."""
    rank = len(taps)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    for axis in range(rank) if mode != "NOTSET" else ():
        size, stride = x.shape[2 + axis], strides[axis]
        total = max((-(-size // stride) - 1) * stride + extents[axis] - size, 0)
        total = 0 if mode == "VALID" else total
        small, large = total // 2, total - total // 2
        ends = (large, small) if mode == "SAME_LOWER" else (small, large)
        pads[axis], pads[axis + rank] = ends
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    counts = [(padded.shape[2 + axis] - extents[axis]) // strides[axis] + 1 for axis in range(rank)]
    if min(counts) < 1:
        raise Mismatch(f"a kernel of {taps} does not fit into {x.shape}")
    found = []
    for tap in itertools.product(*map(range, taps)):
        starts = [k * d for k, d in zip(tap, dilations, strict=True)]
        cut = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, counts, strides, strict=True)
        )
        found.append((tap, padded[_EVERY * 2 + cut]))
    return found


_Definition = Callable[[Operands, Attributes, bool], NDArray[np.float64]]
_DEFINITIONS: dict[str, _Definition] = {
    "Add": _sum,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _unchanged,
    "CastLike": _unchanged,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _quotient,
    "Dropout": _unchanged,
    "Gemm": _gemm,
    "Identity": _unchanged,
    "MatMul": _matmul,
    "Mul": _product,
    "Neg": _negated,
    "Sub": _difference,
    "Sum": _sum,
    "ai.onnx.ml::Scaler": _scaler,
}
