"""What operators make of constants.

Norms are evaluated by their definition, other operators by ONNX's own reference implementation.

Engines round differently: each adds up in its own order, and has its own exponential. What they may
have is followed through a chain (`engines`). Within that, float32 numbers are carried in float64 to
the end of the chain: where a sum cancels, two float32 evaluations may be far apart, and each of
them from the exact result. What all engines have is what the network has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from bnfold._onnx import tensors
from bnfold._onnx.read import attributes
from bnfold._onnx.read.engines import Others, dominated, spread
from bnfold._onnx.read.moved import moved
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
"""Operators that round each number of their output once at most, and so in every engine alike. A
Sum of more than two and a ScatterND that adds up do so more often (`rounds_freely`)."""
_ROUNDING = ("Add", "Div", "Mul", "Sqrt", "Sub", "Sum")
"""Those of them that round at all."""
_ROUNDED_FREELY = frozenset(NORMS).union(_MANY_ROUNDINGS.split())
"""Operators whose results are off by some units in the last place, in each engine by others."""
_JUMPING = frozenset(_JUMPS.split())
"""Operators whose results jump, or that read no numbers."""
_OF_SHAPE = ("Shape", "Size")

EVALUATED = _ROUNDED_ALIKE | _ROUNDED_FREELY | _JUMPING
"""Operators of ONNX's own domain whose first output is a constant if all inputs are."""

_ERF = np.vectorize(math.erf, otypes=[np.float64])
_FLATTENING = ("LogSoftmax", "Softmax")
_INTEGERS = frozenset(
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
)
_MOST = 1 << 23
"""What operators that read and make more numbers are in other engines is not followed, to spare
memory."""


def is_evaluated(node: NodeProto) -> bool:
    """Whether an operator is evaluated: constant inputs make its first output a constant."""
    return node.domain in ("", "ai.onnx") and node.op_type in EVALUATED | {"Identity"}


def evaluated(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """The first output of an operator on constants, in their own types.

    What rounds several times is evaluated in float32 at least, and rounded to a narrower type once,
    as engines do: a sum of squares leaves the range of float16 long before its root does.

    Raises whatever an operator raises on inputs that it cannot take.
    """
    if node.op_type in NORMS:
        return normalize(node, inputs, opset)
    first = inputs[0] if inputs else None
    if first is None or not _is_narrow(first) or not rounds_freely(node):
        return evaluate(node, inputs, opset)
    longer = [
        one.astype(np.float32) if one is not None and _is_narrow(one) else one for one in inputs
    ]
    with np.errstate(over="ignore"):
        return evaluate(node, longer, opset).astype(first.dtype)


def rounds_freely(node: NodeProto) -> bool:
    """Whether an operator rounds more than once on its way to a number, of floats."""
    if node.op_type == "ScatterND":
        return attributes.text(node, "reduction", "none") in ("add", "mul")
    return node.op_type in _ROUNDED_FREELY or (node.op_type == "Sum" and len(node.input) > 2)


def rounds(node: NodeProto, made: Array) -> bool:
    """Whether engines may make different floats of the same ones: where an operator rounds more
    than once, or where not every engine rounds, in types narrower than float32.
    """
    return rounds_freely(node) or (node.op_type in _ROUNDING and _is_narrow(made))


def may_differ(node: NodeProto, made: Array) -> bool:
    """Whether engines may make other numbers of what they have: not of shapes, nor integers of
    integers.
    """
    is_float = tensors.data_type(made.dtype) in tensors.FLOATS
    return node.op_type not in _OF_SHAPE and (is_float or not rounds_freely(node))


def jumps(node: NodeProto, made: Array) -> bool:
    """Whether an operator may turn a small difference of what it reads into a large one."""
    is_cast = node.op_type == "Cast" and tensors.data_type(made.dtype) in tensors.FLOATS
    return node.op_type in _JUMPING.difference(_OF_SHAPE) and not is_cast


def refuse_undefined(node: NodeProto, inputs: Sequence[Array | None]) -> None:
    """Raise ``ValueError`` for a Cast to integers that do not hold what it reads: ONNX does not say
    what that makes, and engines make different numbers.
    """
    read = inputs[0] if inputs else None
    to = attributes.integer(node, "to", 0)
    if node.op_type != "Cast" or to not in _INTEGERS or read is None or not read.size:
        return
    if tensors.data_type(read.dtype) in tensors.FLOATS:
        dtype = helper.tensor_dtype_to_np_dtype(to)
        limits, numbers = np.iinfo(dtype), np.trunc(read.astype(np.float64))
        if not ((numbers >= limits.min) & (numbers < float(limits.max) + 1)).all():
            raise ValueError(f"{dtype} does not hold what it reads")


def is_followed(inputs: Sequence[Array | None], made: Array) -> bool:
    """Whether an operator is so small that it is followed what other engines make of it."""
    return made.size + sum(one.size for one in inputs if one is not None) <= _MOST


def widened(
    node: NodeProto,
    inputs: Sequence[Array | None],
    wide: Sequence[Double | None],
    own: Array,
    others: Others | None,
    opset: int,
) -> Double | None:
    """The first output of an operator in float64; None where float32 is what counts.

    ``inputs`` and the output ``own`` are in the operator's own types, ``wide`` are inputs in
    float64, as far as they are known. ``others`` are outputs in other engines, None where all have
    the same: what all have is what the network has. So a number is the one of float64 only within
    what engines differ by, where float32 holds it with all its bits, and where it is no sum whose
    largest term rounds the others.
    """
    if others is None or not _is_widened(node, inputs, wide):
        return None
    pairs = zip(inputs, wide, strict=True)
    doubles = [_double(one) if more is None else more for one, more in pairs]
    try:
        made = np.asarray(evaluated(node, doubles, opset))
        rounded = dominated(node, doubles, made, lambda one, read: evaluated(one, read, opset))
    except Exception:  # The reference knows some operators in float32 alone, and raises anything.
        return None
    if made.dtype != np.float64 or made.shape != own.shape:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        normal = (made == 0) | (np.abs(made.astype(np.float32)) >= np.finfo(np.float32).tiny)
        apart = 2 * np.maximum(spread(own, others), np.spacing(np.abs(own)))
        held = normal & ~rounded & (np.abs(made - own) <= apart)
    return np.where(held, made, own.astype(np.float64))


def _is_widened(
    node: NodeProto, inputs: Sequence[Array | None], wide: Sequence[Double | None]
) -> bool:
    read = [one for one in inputs if one is not None]
    floats = {one.dtype for one in read if tensors.data_type(one.dtype) in tensors.FLOATS}
    begins = rounds_freely(node) or any(one is not None for one in wide)
    return begins and floats == {np.dtype(np.float32)}


def _is_narrow(values: Array) -> bool:
    return values.dtype.itemsize < 4 and tensors.data_type(values.dtype) in tensors.FLOATS


def _double(values: Array | None) -> Array | None:
    return (
        values.astype(np.float64) if values is not None and values.dtype == np.float32 else values
    )


def evaluate(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """The first output of one operator on the given values, by ONNX's reference implementation.

    That has Erf in float32 alone, so it is computed here. What only moves numbers is moved here
    (`moved`).

    Raises ``ValueError`` for a Softmax below opset 13. It makes a matrix of what it reads first,
    and the reference does not.
    """
    if node.op_type in _FLATTENING and opset < 13:
        raise ValueError(f"{node.op_type} means something else below opset 13")
    if node.op_type == "Erf" and inputs[0] is not None:
        return np.asarray(_ERF(inputs[0])).astype(inputs[0].dtype)
    known = moved(node, inputs, opset)
    if known is not None:
        return np.asarray(known)
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
    with np.errstate(all="ignore"):
        (values,) = ReferenceEvaluator(model).run([node.output[0]], feeds)
    return np.asarray(values)
