"""What operators make of constants.

Norms are evaluated by their definition, other operators by ONNX's own reference implementation.

Engines round differently: each adds up in its own order, and has its own exponential. Where a sum
cancels, two float32 evaluations of a chain of operators may be far apart, and each of them from the
exact result. So what is not rounded alike everywhere is carried in float64 to the end of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bnfold._onnx import tensors
from bnfold._onnx.read.norms import NORMS, normalize

Array = NDArray[Any]
Double = NDArray[np.float64]

_ONE_ROUNDING = """
    Abs Add Clip Concat DepthToSpace Div Expand Flatten Gather GatherElements GatherND Max Min Mul
    Neg Pad ReduceMax ReduceMin Relu Reshape ScatterND Slice SpaceToDepth Split Sqrt Squeeze Sub Sum
    Tile Transpose Trilu Unsqueeze Where
"""
_MANY_ROUNDINGS = """
    Atan Cos CumSum Einsum Elu Erf Exp Gemm HardSigmoid LeakyRelu Log LogSoftmax MatMul Mean
    MeanVarianceNormalization Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean ReduceProd
    ReduceSum ReduceSumSquare Selu Sigmoid Sin Softmax Softplus Softsign Tanh
"""
_JUMPS = """
    And Cast Ceil ConstantOfShape Equal Floor Greater GreaterOrEqual Less LessOrEqual Not Or Range
    Round Shape Sign Size Xor
"""
_ROUNDED_ALIKE = frozenset(_ONE_ROUNDING.split())
"""Operators that round each number of their output once, and so the same way in every engine."""
_ROUNDED_FREELY = frozenset(NORMS).union(_MANY_ROUNDINGS.split())
"""Operators whose results are off by some units in the last place, in each engine by others."""
_OF_ROUNDED = frozenset(_JUMPS.split())
"""Operators that read what the network has: they jump, round, or read no numbers."""

EVALUATED = _ROUNDED_ALIKE | _ROUNDED_FREELY | _OF_ROUNDED
"""Operators of ONNX's own domain whose first output is a constant if all inputs are."""

_ADDING = ("Add", "Sub", "Sum")
_FLATTENING = ("LogSoftmax", "Softmax")
_WIDENED = 1 << 24
"""Operators that read more numbers are evaluated in float32 alone, to spare memory."""
_LOST_BITS = 8
"""An addend that loses so many of its 24 bits is rounded on purpose, such as by 1.5·2²³."""
_AGREED_BITS = 8
"""So many bits are the same in float32 and float64, or float32 counts: a network is never folded to
another one, and an error of 1 % shows in a comparison."""


def is_evaluated(node: NodeProto) -> bool:
    """Whether an operator is evaluated: constant inputs make its first output a constant."""
    return node.domain in ("", "ai.onnx") and node.op_type in EVALUATED | {"Identity"}


def evaluated(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """The first output of an operator on constants, in their own types.

    Raises whatever an operator raises on inputs that it cannot take.
    """
    by_rule = normalize if node.op_type in NORMS else evaluate
    return by_rule(node, inputs, opset)


def widened(
    node: NodeProto,
    inputs: Sequence[Array | None],
    wide: Sequence[Double | None],
    stepwise: Array,
    opset: int,
) -> Double | None:
    """The first output of an operator in float64; None where float32 is what counts.

    ``inputs`` and the output ``stepwise`` are in the operator's own types, ``wide`` are inputs in
    float64, as far as they are known. They are read by operators of float32 numbers that engines
    round differently, and by those behind them.

    Operators that jump read float32, as they do in the network: they would take another step. So
    does a sum in which an addend is rounded to few bits. A number is the one of float32 where that
    holds it with fewer bits than it has, or not at all, or where the two are far apart: what the
    network has there is no matter of rounding.
    """
    if not _is_widened(node, inputs, wide):
        return None
    pairs = zip(inputs, wide, strict=True)
    doubles = [_double(one) if more is None else more for one, more in pairs]
    try:
        made = np.asarray(evaluated(node, doubles, opset))
    except Exception:  # The reference knows some operators in float32 alone, and raises anything.
        return None
    if made.dtype != np.float64 or made.shape != stepwise.shape:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        normal = (made == 0) | (np.abs(made.astype(np.float32)) >= np.finfo(np.float32).tiny)
        held = normal & (np.abs(made - stepwise) <= 2.0**-_AGREED_BITS * np.abs(made))
    if node.op_type in _ADDING:
        held &= ~_absorbed(inputs, stepwise)
    return np.where(held, made, stepwise.astype(np.float64))


def _is_widened(
    node: NodeProto, inputs: Sequence[Array | None], wide: Sequence[Double | None]
) -> bool:
    kinds = _ROUNDED_FREELY if all(one is None for one in wide) else EVALUATED - _OF_ROUNDED
    read = [one for one in inputs if one is not None]
    floats = {one.dtype for one in read if tensors.data_type(one.dtype) in tensors.FLOATS}
    few = sum(one.size for one in read) <= _WIDENED
    return node.op_type in kinds and floats == {np.dtype(np.float32)} and few


def _double(values: Array | None) -> Array | None:
    return (
        values.astype(np.float64) if values is not None and values.dtype == np.float32 else values
    )


def _absorbed(inputs: Sequence[Array | None], total: Array) -> NDArray[np.bool_]:
    """Where an addend keeps so few bits that the sum rounds it."""
    lost = np.zeros(total.shape, np.bool_)
    for addend in inputs:
        if addend is not None:
            lost |= (addend != 0) & (np.abs(addend) * 2.0**_LOST_BITS < np.abs(total))
    return lost


def evaluate(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """The first output of one operator on the given values, by ONNX's reference implementation.

    Raises ``ValueError`` for a Softmax below opset 13. It makes a matrix of what it reads first,
    and the reference does not.
    """
    if node.op_type in _FLATTENING and opset < 13:
        raise ValueError(f"{node.op_type} means something else below opset 13")
    from onnx.reference import ReferenceEvaluator

    feeds = {
        name: values
        for name, values in zip(node.input, inputs, strict=True)
        if name and values is not None
    }
    infos = [
        helper.make_tensor_value_info(name, tensors.data_type(values.dtype), values.shape)
        for name, values in feeds.items()
    ]
    result = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "constant", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (values,) = ReferenceEvaluator(model).run([node.output[0]], feeds)
    return np.asarray(values)
