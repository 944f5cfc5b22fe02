"""Affine operators of ONNX, and norms, each translated into its record."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold._core.affine import LAST, AffineMap
from bnfold._core.broadcast import Array, Shape
from bnfold._core.operators.affine import Elementwise, FixedNorm, Norm, fixed_norm, with_constant
from bnfold._core.operators.record import (
    UNKNOWN,
    Operand,
    Operator,
    Row,
    unfixed,
    unusual,
    unweighted,
)
from bnfold._core.reasons import Reason, Refusal
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context, OnnxRow, overridable
from bnfold._onnx.read.crossed import gate, sum_of_two
from bnfold._onnx.read.rounded import rescaling
from bnfold._onnx.read.scopes import label
from bnfold._onnx.tensors import FLOATS

# The default is a float32, as every float attribute is (ONNX BatchNormalization).
EPSILON = float(np.float32(1e-5))


def _neg(context: Context, node: NodeProto) -> Operator:
    """``−x`` is A(−1, 0) on floats; unsigned and integer types are left alone."""
    name = node.input[0]
    element = context.type(name)
    if context.constant(node, 0) is not None or (element and element not in FLOATS):
        return UNKNOWN
    return Elementwise(
        label=label(node),
        like=context.shape(name),
        map=AffineMap.of(-1.0, 0.0, None),
        composable=bool(element) and context.opset >= 7,
        dtype=_dtype(element),
    )


def _scaler(context: Context, node: NodeProto) -> Operator:
    """``(x − offset)·scale`` is A(scale, −offset·scale), one number for all or one per feature
    along the last axis (ai.onnx.ml Scaler).

    Exact for x of float32. It puts out float32 whatever it reads: of another type it is a Cast too,
    and stays. Features of a tensor with more than two axes are no channels: onnxruntime counts them
    through the whole tensor.
    """
    where, name = label(node), node.input[0]
    if context.constant(node, 0) is not None:
        return UNKNOWN
    element, shape = context.type(name), context.shape(name)
    if element != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(element).lower() if element else "a type not known"
        message = f"{where} reads {kind} and puts out float32: it is a Cast as well"
        raise Refusal(Reason("unsupported-dtype", where, message))
    offset, scale = (
        np.asarray(attributes.numbers(node, key) or [], np.float64) for key in ("offset", "scale")
    )
    if offset.size != scale.size or not scale.size:
        message = f"{where} has {offset.size} offsets and {scale.size} scales"
        raise Refusal(Reason("not-per-channel", where, message))
    axis = None
    if scale.size > 1:
        if shape is None:
            message = f"{where} has {scale.size} features, and the rank of {name} is not known"
            raise Refusal(Reason("unknown-shape", where, message))
        axis = len(shape) - 1
        if axis not in (0, 1) or shape[axis] not in (None, scale.size):
            message = (
                f"{where} has {scale.size} features, but {name} is no matrix of so many columns"
            )
            raise Refusal(Reason("not-per-channel", where, message))
    map_ = AffineMap.of(scale, -offset * scale, axis)
    if not map_.is_finite:
        message = f"the scale or shift of {where} is not finite"
        raise Refusal(Reason("non-finite", where, message))
    return Elementwise(
        label=where,
        like=shape,
        map=map_,
        operations=2,
        composable=context.opset >= 7,
        dtype=np.dtype(np.float32),
    )


def _arithmetic(context: Context, node: NodeProto) -> Operator:
    """Mul, Add, Sub or Div of a tensor and a constant, on either side; or of two tensors."""
    if len(node.input) != 2:
        return UNKNOWN
    where = label(node)
    if any(context.is_set_by_call(name) for name in node.input):
        message = f"the constant of {where} is set by the call"
        raise Refusal(Reason("function-parameter", where, message))
    first, second = (context.constant(node, position) for position in (0, 1))
    if first is None and second is None:
        if node.op_type in ("Add", "Sub"):
            return sum_of_two(context, node)
        last = rescaling(context, node) if node.op_type == "Mul" else None
        return last or gate(context, node)
    constant = first or second
    assert constant is not None
    constant_first = first is not None
    if (first is not None and second is not None) or (constant_first and node.op_type == "Div"):
        return UNKNOWN
    if not constant.is_float:
        return UNKNOWN
    if constant.protected is not None:
        raise Refusal(overridable(constant.protected))
    data = 1 if constant_first else 0
    shape = context.shape(node.input[data])
    values: Array | None = constant.load()
    if context.opset < 7:
        values = _legacy(node, constant.load(), shape, constant_first)
    if values is None:
        message = f"{where} broadcasts by the rules before opset 7"
        raise Refusal(Reason("unsupported-opset", where, message))
    tail = context.last.get(node.input[data]) if shape is None else None
    map_ = with_constant(
        node.op_type, values, shape, where, constant_first=constant_first, last=tail
    )
    return Elementwise(
        label=where,
        data=(data,),
        like=shape,
        map=map_,
        tail=tail,
        composable=context.opset >= 7,
        dtype=constant.dtype,
    )


def _dtype(element: int) -> np.dtype[np.generic] | None:
    return np.dtype(helper.tensor_dtype_to_np_dtype(element)) if element in FLOATS else None


def _legacy(
    node: NodeProto, values: Array, shape: Shape | None, constant_first: bool
) -> Array | None:
    """Give a constant the shape that the broadcasting of opset 1 to 6 means.

    Without ``broadcast`` both shapes agree. With it the second operand's axes are the first's
    from ``axis`` on (ONNX Add-1, Add-6). None where that cannot be told.
    """
    if not attributes.integer(node, "broadcast", 0):
        return values if shape == values.shape else None
    if not attributes.has(node, "axis"):
        return None if constant_first else values
    if constant_first or shape is None:
        return None
    start = attributes.integer(node, "axis", 0)
    start += len(shape) if start < 0 else 0
    trailing = len(shape) - start - values.ndim
    if start < 0 or trailing < 0:
        return None
    return values.reshape((*values.shape, *(1,) * trailing))


def _batch_norm(context: Context, node: NodeProto) -> Operator:
    """BatchNormalization with fixed statistics.

    No map where all it reads is constant: it makes a constant. Not a fixed map: ``is_test`` = 0
    below opset 7, ``training_mode`` from opset 14, or outputs for batch statistics. Not per
    channel: ``spatial`` = 0 below opset 9, but where all sizes behind the channels are 1. A vector
    is one channel: its four parameters are one number each. Nor where a tensor has more channels,
    or fewer, than there are statistics: no runtime runs that.
    """
    where = label(node)
    made = context.constants.find(context.scope, node.output[0])
    if isinstance(made, Constant):
        if made.protected is not None:
            raise Refusal(overridable(made.protected))
        return UNKNOWN
    _check_mode(context, node, where)
    constants: list[Constant] = []
    for position in range(1, 5):
        constant = context.vector(node, position)
        if constant is None:
            raise Refusal(Reason("dynamic-weight", where, f"{where} lacks a parameter"))
        single = all(size == 1 for size in constant.shape[1:])
        single = single and (len(constant.shape) == 1 or _each_its_own(context, node))
        if not constant.shape or not single or constant.shape != (constants or [constant])[0].shape:
            message = f"{constant.name} is not one number per channel"
            raise Refusal(Reason("not-per-channel", where, message))
        constants.append(constant)
    names = ("scale", "bias", "mean", "variance")
    vectors = [(name, one.load().reshape(-1)) for name, one in zip(names, constants, strict=True)]
    epsilon = attributes.number(node, "epsilon", EPSILON)
    map_, divisor = fixed_norm(where, vectors, epsilon)
    gamma, beta, *_ = constants
    shape = context.shape(node.input[0])
    vector = shape is not None and len(shape) == 1
    if vector and gamma.shape != (1,):
        message = f"{where} reads a vector, which is one channel, and has {gamma.shape[0]}"
        raise Refusal(Reason("not-per-channel", where, message))
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if channels not in (None, gamma.shape[0]):
        message = f"{where} has {gamma.shape[0]} statistics for {channels} channels: it cannot run"
        raise Refusal(Reason("not-per-channel", where, message))
    standing = Norm(label=where, gamma=Operand(1, gamma), beta=Operand(2, beta), start=1)
    kind = context.type(node.input[0]) or (gamma.data_type if context.opset < 14 else 0)
    return FixedNorm(
        label=where,
        like=shape,
        map=map_,
        divisor=divisor,
        standing=None if vector or len(gamma.shape) > 1 else standing,
        composable=kind in FLOATS and shape is not None and context.opset >= 7,
        dtype=_dtype(kind),
    )


def _check_mode(context: Context, node: NodeProto, where: str) -> None:
    """Raise a `Refusal` where a BatchNormalization is no fixed map, or has no channels."""
    if context.opset < 7 and not attributes.integer(node, "is_test", 0):
        raise Refusal(Reason("training-mode", where, f"{where} has is_test = 0"))
    if context.opset >= 14 and attributes.integer(node, "training_mode", 0):
        raise Refusal(Reason("training-mode", where, f"{where} has training_mode = 1"))
    if any(node.output[1:]):
        raise Refusal(Reason("training-mode", where, f"{where} also puts out batch statistics"))
    shape = context.shape(node.input[0])
    single = shape is not None and len(shape) > 1 and all(size == 1 for size in shape[2:])
    if _each_its_own(context, node) and not single:
        message = f"{where} has spatial = 0: statistics per element"
        raise Refusal(Reason("not-per-channel", where, message))
    if shape == ():
        message = f"{where} reads a tensor without a channel axis"
        raise Refusal(Reason("not-per-channel", where, message))


def _each_its_own(context: Context, node: NodeProto) -> bool:
    """Whether a BatchNormalization has statistics for each element, not for each channel."""
    return context.opset < 9 and not attributes.integer(node, "spatial", 1)


def _norm_on_axis_one(context: Context, node: NodeProto) -> Operator:
    """InstanceNormalization and GroupNormalization, with γ and β along axis 1.

    In opset 18 to 20 those of a GroupNormalization are per group, which only a uniform map leaves
    so.
    """
    gamma = context.parameter(node, 1)
    if gamma is None:
        return UNKNOWN
    if len(gamma.shape) != 1:
        raise Refusal(unusual(gamma))
    grouped = node.op_type == "GroupNormalization" and context.opset < 21
    return _norm(context, node, gamma, None if grouped else 1)


def _layer_norm(context: Context, node: NodeProto) -> Operator:
    return _norm_on_last_axes(context, node, 1, 2)


def _rms_norm(context: Context, node: NodeProto) -> Operator:
    """RMSNormalization, which onnxruntime calls SimplifiedLayerNormalization. It has no β."""
    return _norm_on_last_axes(context, node, 1, None)


def _skip_norm(context: Context, node: NodeProto) -> Operator:
    """The norms of onnxruntime that first add up two tensors and a bias. γ and β are along the last
    axis, and of the first output alone: another is the sum itself.
    """
    gamma = context.parameter(node, 2)
    if gamma is not None and len(gamma.shape) != 1:
        raise Refusal(unusual(gamma))
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    return _norm_on_last_axes(context, node, 2, None if simplified else 3)


def _norm_on_last_axes(
    context: Context, node: NodeProto, gamma_at: int, beta_at: int | None
) -> Operator:
    """A norm whose γ is aligned with the input from the right, so that its axis j is axis
    ``rank − len(γ) + j``, and that of a vector is the last whatever the rank. γ and β are the
    inputs of these numbers.
    """
    gamma = context.parameter(node, gamma_at)
    shape = context.shape(node.input[0])
    if gamma is None or (shape is not None and len(shape) < len(gamma.shape)):
        return UNKNOWN
    start = len(shape) - len(gamma.shape) if shape is not None else None
    if shape is None and len(gamma.shape) == 1:
        start = LAST
    return _norm(context, node, gamma, start, gamma_at, beta_at)


def _norm(
    context: Context,
    node: NodeProto,
    gamma: Constant,
    start: int | None,
    gamma_at: int = 1,
    beta_at: int | None = 2,
) -> Operator:
    if not node.output[0]:
        return UNKNOWN
    beta = context.operand(node, beta_at).shaped(gamma.shape) if beta_at is not None else None
    shape = context.shape(node.input[0])
    return Norm(
        label=label(node),
        like=shape,
        gamma=Operand(gamma_at, gamma),
        beta=beta,
        start=start,
    )


ROWS: dict[str, OnnxRow] = {
    "Add": Row(_arithmetic, unfixed),
    "BatchNormalization": Row(_batch_norm, unfixed),
    "Div": Row(_arithmetic, unfixed),
    "GroupNormalization": Row(_norm_on_axis_one, unweighted),
    "InstanceNormalization": Row(_norm_on_axis_one, unweighted),
    "LayerNormalization": Row(_layer_norm, unweighted),
    "Mul": Row(_arithmetic, unfixed),
    "Neg": Row(_neg),
    "RMSNormalization": Row(_rms_norm, unweighted),
    "SimplifiedLayerNormalization": Row(_rms_norm, unweighted),
    "Sub": Row(_arithmetic, unfixed),
    "ai.onnx.ml::Scaler": Row(_scaler, unfixed),
    "com.microsoft::SkipLayerNormalization": Row(_skip_norm, unweighted),
    "com.microsoft::SkipSimplifiedLayerNormalization": Row(_skip_norm, unweighted),
}
