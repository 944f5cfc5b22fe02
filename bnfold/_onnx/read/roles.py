"""Translate one ONNX node into its role in the neutral view."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, helper

from bnfold._core import broadcast, channels
from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.parameters import Reading, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Absorber, Affine, Barrier, Carrier
from bnfold._onnx.read import absorbers, attributes, crossings
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import label
from bnfold._onnx.tensors import FLOATS

NOTHING = Reading(OPAQUE)
# The default is a float32, as every float attribute is (ONNX BatchNormalization).
EPSILON = float(np.float32(1e-5))


def read_node(context: Context, node: NodeProto) -> Reading:
    """The role of a node; operators of other domains and calls of functions are opaque."""
    reader = _READERS.get(node.op_type, _crossing)
    if node.domain not in ("", "ai.onnx") or not node.input or not node.output:
        return NOTHING
    if attributes.depends_on_call(node):
        reason = Reason(
            "function-parameter", label(node), f"an attribute of {label(node)} is set by the call"
        )
        return Reading(Barrier(reason)) if node.op_type == "BatchNormalization" else NOTHING
    return reader(context, node)


def _identity(context: Context, node: NodeProto) -> Reading:
    return Reading(Carrier(), shape=context.shape(node.input[0]))


def _dropout(context: Context, node: NodeProto) -> Reading:
    """Dropout passes its input unchanged in inference.

    Below opset 7 unless ``is_test`` is 0; from opset 7 to 11 always; from opset 12 unless the
    ``training_mode`` input is anything but a constant false (ONNX Dropout).
    """
    if context.opset < 7 and not attributes.integer(node, "is_test", 0):
        return NOTHING
    if context.opset >= 12:
        mode = context.constant(node, 2)
        if isinstance(mode, Reason):
            return NOTHING
        if mode is not None and (mode.protected is not None or bool(mode.load().any())):
            return NOTHING
    return _identity(context, node)


def _crossing(context: Context, node: NodeProto) -> Reading:
    role = crossings.crossing(context, node)
    if role is None:
        return NOTHING
    same = crossings.keeps_shape(node)
    return Reading(role, shape=context.shape(node.input[0]) if same else None)


def _absorber(find: Callable[[Context, NodeProto], absorbers.Found | None]) -> _Reader:
    def read(context: Context, node: NodeProto) -> Reading:
        found = find(context, node)
        if found is None and node.op_type == "MatMul" and _are_dynamic(context, node):
            return Reading(crossings.product(context, node))
        if found is None:
            return NOTHING
        return Reading(found.role, found.site, shape=found.shape)

    return read


def _neg(context: Context, node: NodeProto) -> Reading:
    """``−x`` is A(−1, 0) on floats; unsigned and integer types are left alone."""
    name = node.input[0]
    element = context.type(name)
    if isinstance(context.constant(node, 0), Constant) or (element and element not in FLOATS):
        return NOTHING
    composable = bool(element) and context.opset >= 7
    role = Affine(AffineMap.of(-1.0, 0.0, None), composable=composable, dtype=_dtype(element))
    return Reading(role, shape=context.shape(name))


def _arithmetic(context: Context, node: NodeProto) -> Reading:
    """Mul, Add, Sub or Div of a tensor and a constant, on either side."""
    if len(node.input) != 2:
        return NOTHING
    found = [context.constant(node, 0), context.constant(node, 1)]
    if any(context.is_set_by_call(name) for name in node.input):
        message = f"the constant of {label(node)} is set by the call"
        return Reading(Barrier(Reason("function-parameter", label(node), message)))
    first, second = (isinstance(constant, Constant) for constant in found)
    if not first and not second:
        role_of_two = crossings.of_two(context, node)
        return Reading(role_of_two) if role_of_two is not None else NOTHING
    if first == second or (first and node.op_type == "Div"):
        return NOTHING
    constant = found[0] if first else found[1]
    assert isinstance(constant, Constant)
    if not constant.is_float:
        return NOTHING
    data = 1 if first else 0
    name, where = node.input[data], label(node)
    if constant.protected is not None:
        return Reading(Barrier(_overridable(constant.protected)))
    shape = context.shape(name)
    values = constant.load()
    if context.opset < 7:
        values_or_none = _legacy(node, values, shape, first)
        if values_or_none is None:
            reason = Reason(
                "unsupported-opset", where, f"{where} broadcasts by the rules before opset 7"
            )
            return Reading(Barrier(reason))
        values = values_or_none
    spread = broadcast.spread(values, shape, where)
    if isinstance(spread, Reason):
        return Reading(Barrier(spread))
    with np.errstate(over="ignore"):
        map_ = broadcast.affine(node.op_type, spread, first, where)
    if isinstance(map_, AffineMap) and not map_.is_finite:
        map_ = Reason("non-finite", where, f"the constant of {where} has no usable reciprocal")
    if isinstance(map_, Reason):
        return Reading(Barrier(map_))
    composable = context.opset >= 7 and (map_.axis is None or shape is not None)
    role = Affine(map_, data, composable=composable, dtype=constant.dtype)
    return Reading(role, shape=shape)


def _overridable(name: str) -> Reason:
    message = f"{name} is a parameter that a caller may override"
    return Reason("overridable-weight", name, message)


def _are_dynamic(context: Context, node: NodeProto) -> bool:
    """Whether both factors are computed at run time."""
    return not any(isinstance(context.constant(node, k), Constant) for k in (0, 1))


def _dtype(element: int) -> np.dtype[np.generic] | None:
    return np.dtype(helper.tensor_dtype_to_np_dtype(element)) if element in FLOATS else None


def _legacy(
    node: NodeProto, values: channels.Array, shape: Shape | None, constant_first: bool
) -> channels.Array | None:
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
    return values.reshape((*values.shape, *(1,) * trailing)) if trailing >= 0 else None


def _batch_norm(context: Context, node: NodeProto) -> Reading:
    """BatchNormalization with fixed statistics: A(γ/√(var+ε), β − μ·s) along axis 1.

    No map where all it reads is constant: it makes a constant. Not a fixed map: ``is_test`` = 0
    below opset 7, ``training_mode`` from opset 14, or outputs for batch statistics. Not per
    channel: ``spatial`` = 0 below opset 9.
    """
    where = label(node)
    made = context.constants.find(context.scope, node.output[0])
    if isinstance(made, Constant):
        return NOTHING if made.protected is None else Reading(Barrier(_overridable(made.protected)))
    reason = _batch_norm_mode(context, node, where)
    if reason is not None:
        return Reading(Barrier(reason))
    values: list[channels.Array] = []
    element = 0
    for position in range(1, 5):
        constant = context.parameter(node, position)
        if not isinstance(constant, Constant):
            missing = Reason("dynamic-weight", where, f"{where} lacks a parameter")
            return Reading(Barrier(constant or missing))
        if len(constant.shape) != 1 or constant.shape != (
            values[0].shape if values else constant.shape
        ):
            return Reading(
                Barrier(
                    Reason(
                        "not-per-channel", where, f"{constant.name} is not one number per channel"
                    )
                )
            )
        values.append(constant.load())
        element = constant.data_type if position == 1 else element
    gamma, beta, mean, variance = values
    epsilon = attributes.number(node, "epsilon", EPSILON)
    reason = _unusable(values, variance.astype(np.float64) + epsilon, where)
    if reason is not None:
        return Reading(Barrier(reason))
    map_ = AffineMap.batch_norm(gamma, beta, mean, variance, epsilon, 1)
    if not map_.is_finite:
        return Reading(
            Barrier(Reason("non-finite", where, f"the scale or shift of {where} is not finite"))
        )
    site = _gamma_beta(context, node, gamma.size)
    shape = context.shape(node.input[0])
    kind = context.type(node.input[0]) or (element if context.opset < 14 else 0)
    composable = kind in FLOATS and shape is not None and context.opset >= 7
    absorber = Absorber({1: gamma.size})
    role = Affine(map_, 0, 2, absorber, composable, _dtype(kind))
    deviation = np.sqrt(variance.astype(np.float64) + epsilon)
    return Reading(role, site, shape, deviation)


def _batch_norm_mode(context: Context, node: NodeProto, where: str) -> Reason | None:
    if context.opset < 7 and not attributes.integer(node, "is_test", 0):
        return Reason("training-mode", where, f"{where} has is_test = 0")
    if context.opset >= 14 and attributes.integer(node, "training_mode", 0):
        return Reason("training-mode", where, f"{where} has training_mode = 1")
    if any(node.output[1:]):
        return Reason("training-mode", where, f"{where} also puts out batch statistics")
    if context.opset < 9 and not attributes.integer(node, "spatial", 1):
        return Reason("not-per-channel", where, f"{where} has spatial = 0: statistics per element")
    shape = context.shape(node.input[0])
    if shape is not None and len(shape) < 2:
        return Reason("not-per-channel", where, f"{where} reads a tensor without a channel axis")
    return None


def _unusable(values: list[channels.Array], total: channels.Array, where: str) -> Reason | None:
    for name, vector in zip(("scale", "bias", "mean", "variance"), values, strict=True):
        if not bool(np.isfinite(vector.astype(np.float64)).all()):
            return Reason(
                "non-finite", where, f"the {name} of {where} is NaN or infinite somewhere"
            )
    if not bool((total > 0).all()):
        worst = int(np.argmin(total))
        return Reason(
            "non-positive-variance",
            where,
            f"variance + epsilon of {where} is {total[worst]:g} in channel {worst}",
        )
    return None


def _gamma_beta(context: Context, node: NodeProto, size: int) -> Site | None:
    """γ and β of a BatchNormalization that stays: ``γ·s``, ``β·s + t`` along axis 1."""
    gamma, beta = context.parameter(node, 1), context.parameter(node, 2)
    assert isinstance(gamma, Constant)
    assert isinstance(beta, Constant)
    return Site(
        label(node),
        1,
        2,
        {1: size},
        lambda axis: channels.along_axis(gamma.shape, 0),
        lambda axis: gamma.shape,
        gamma,
        beta,
        gamma.shape,
        dtype=gamma.dtype,
    )


_Reader = Callable[[Context, NodeProto], Reading]
_READERS: dict[str, _Reader] = {
    "Add": _arithmetic,
    "BatchNormalization": _batch_norm,
    "Conv": _absorber(absorbers.conv),
    "ConvTranspose": _absorber(absorbers.conv_transpose),
    "Div": _arithmetic,
    "Dropout": _dropout,
    "Gemm": _absorber(absorbers.gemm),
    "GroupNormalization": _absorber(absorbers.group_norm),
    "Identity": _identity,
    "InstanceNormalization": _absorber(absorbers.instance_norm),
    "LayerNormalization": _absorber(absorbers.layer_norm),
    "MatMul": _absorber(absorbers.matmul),
    "Mul": _arithmetic,
    "Neg": _neg,
    "Sub": _arithmetic,
}
