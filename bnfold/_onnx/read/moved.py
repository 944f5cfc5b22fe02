"""What operators that only move or fill numbers make of constants, without ONNX's reference.

That imports two hundred modules to evaluate its first operator, which takes longer than most models
do, and sizes and paddings of most models come from a few of these operators. No number is rounded
here, so there is one right result. What is unusual is left to the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from bnfold._onnx.read import attributes

Array = NDArray[Any]
_Given = Sequence[Array | None]
ENDLESS = (2**31 - 1, 2**63 - 1)
"""Ends of a Slice that say "to the end". With a step backwards ONNX takes nothing there, and
onnxruntime all that is ahead."""
_SLICE_WITH_INPUTS, _RESHAPE_WITH_INPUT, _UNSQUEEZE_WITH_INPUT = 10, 5, 13


def moved(node: NodeProto, inputs: _Given, opset: int) -> Array | None:
    """The first output of an operator on the given values; None where this is for the reference.

    Raises whatever NumPy raises where an operator cannot take what it reads, and ``ValueError`` for
    a Slice backwards of which engines make something else.
    """
    row = _ROWS.get(node.op_type)
    if row is None or any(attribute.ref_attr_name for attribute in node.attribute):
        return None
    return row(node, inputs, opset)


def _transpose(node: NodeProto, inputs: _Given, _: int) -> Array | None:
    (data,) = inputs
    return None if data is None else data.transpose(attributes.integers(node, "perm"))


def _unsqueeze(node: NodeProto, inputs: _Given, opset: int) -> Array | None:
    given = opset >= _UNSQUEEZE_WITH_INPUT
    axes, data = _row(inputs, 1) if given else attributes.integers(node, "axes"), inputs[0]
    if data is None or not axes or axes != sorted(axes) or axes[0] < 0:
        return None
    return np.expand_dims(data, tuple(axes))


def _concat(node: NodeProto, inputs: _Given, _: int) -> Array | None:
    parts, axis = [part for part in inputs if part is not None], attributes.integer(node, "axis", 0)
    alike = {(part.dtype, part.ndim) for part in parts}
    if len(parts) < len(inputs) or len(alike) != 1 or not -parts[0].ndim <= axis < parts[0].ndim:
        return None
    return np.concatenate(parts, axis)


def _reshape(node: NodeProto, inputs: _Given, opset: int) -> Array | None:
    shape, data = _row(inputs, 1), inputs[0]
    if opset < _RESHAPE_WITH_INPUT or data is None or shape is None or 0 in shape:
        return None
    return data.reshape(shape)


def _slice(_: NodeProto, inputs: _Given, opset: int) -> Array | None:
    starts, ends, data = _row(inputs, 1), _row(inputs, 2), inputs[0]
    if opset < _SLICE_WITH_INPUTS or data is None or starts is None or ends is None:
        return None
    axes, steps = (
        _row(inputs, at) if len(inputs) > at and inputs[at] is not None else usual
        for at, usual in ((3, [*range(len(starts))]), (4, [1] * len(starts)))
    )
    if axes is None or steps is None:
        return None
    places = {axis % max(data.ndim, 1) for axis in axes}
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(places):
        return None
    if any(not -data.ndim <= axis < data.ndim for axis in axes):
        return None
    taken = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0 and (end in ENDLESS or start < -data.shape[axis]):
            raise ValueError("engines take other elements")
        taken[axis] = slice(start, end, step)
    return data[tuple(taken)]


def _cast(node: NodeProto, inputs: _Given, _: int) -> Array | None:
    (data,) = inputs
    target = attributes.integer(node, "to", 0)
    if data is None or helper.np_dtype_to_tensor_dtype(data.dtype) != target:
        return None
    return data


def _filled(node: NodeProto, inputs: _Given, _: int) -> Array | None:
    shape = _row(inputs, 0)
    held = next((a.t for a in node.attribute if a.name == "value"), None)
    value = np.zeros(1, np.float32) if held is None else numpy_helper.to_array(held)
    if shape is None or value.shape != (1,):
        return None
    return np.full(shape, value[0], value.dtype)


def _row(inputs: _Given, at: int) -> list[int] | None:
    """The integers of an input that is a row of them, else None."""
    given = inputs[at] if at < len(inputs) else None
    if given is None or given.ndim != 1 or given.dtype not in (np.int64, np.int32):
        return None
    numbers: list[int] = given.tolist()
    return numbers


_ROWS: dict[str, Callable[[NodeProto, _Given, int], Array | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
