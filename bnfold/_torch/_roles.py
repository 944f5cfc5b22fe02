"""Translate one operator of an exported program into its role in the neutral view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bnfold import _elementwise, _weights
from bnfold._affine import AffineMap
from bnfold._plan._reasons import Reason
from bnfold._plan._view import OPAQUE, Absorber, Affine, Barrier, Carrier
from bnfold._sites import Reading, Site
from bnfold._torch._constants import Constant, Constants
from bnfold._torch._tensors import DTYPES

NOTHING = Reading(OPAQUE)


@dataclass(frozen=True)
class Context:
    """What the readers of single operators may ask: constants, and what the user calls a node.

    ``in_training`` tells whether the module that holds a node is in training mode.
    """

    constants: Constants
    label: Callable[[Node], str]
    in_training: Callable[[Node], bool]

    def parameter(self, value: object) -> Constant | Reason | None:
        """The floating-point constant given to an operator, why it is none, None where absent."""
        if not isinstance(value, Node):
            return None
        found = self.constants.find(value)
        if isinstance(found, Constant) and not found.is_float:
            return Reason("unsupported-dtype", found.name, f"{found.name} is {found.torch_dtype}")
        return found


def read_node(context: Context, node: Node) -> tuple[Reading, object]:
    """The role of a node and the argument that is its data (for a carrier or an affine map)."""
    reader = _READERS.get(str(getattr(node.target, "__name__", "")).partition(".")[0])
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or reader is None or schema is None:
        return NOTHING, None
    if getattr(node.target, "namespace", "") != "aten" or not isinstance(shape_of(node), tuple):
        return NOTHING, None
    return reader(context, node, arguments(node))


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema.arguments, node.args, strict=False)})
    bound.update(node.kwargs)
    return bound


def shape_of(value: object) -> _elementwise.Shape | None:
    """The sizes of what a node puts out, None for those that may change from call to call."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(example, Tensor):
        return None
    sizes: Sequence[object] = example.shape
    return tuple(size if isinstance(size, int) else None for size in sizes)


def _dtype(value: object) -> torch.dtype | None:
    example = value.meta.get("val") if isinstance(value, Node) else None
    return example.dtype if isinstance(example, Tensor) else None


def _carrier(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """What hands its input on: same shape, same type."""
    data = args.get("self", args.get("input"))
    same = shape_of(data) == shape_of(node) and _dtype(data) == _dtype(node)
    if not same or args.get("train", False):
        return NOTHING, None
    return Reading(Carrier(), shape=shape_of(node)), data


def _conv(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``A∘Conv``: ``W[o]·s_o``, ``s·b + t``; output channels on axis 1, or 0 without a batch.

    Exact for every rank, stride, dilation, padding and group (torch.nn.functional.conv2d).
    """
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return _blocked(weight)
    shape = weight.shape
    return _behind(
        context, node, args, weight, shape[0], _weights.along_axis(shape, 0), len(shape) - 1
    )


def _conv_transpose(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``A∘ConvTranspose`` on a weight ``[Cin, Cout/groups, k…]``; see `_weights.conv_transpose`."""
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return _blocked(weight)
    shape, groups = weight.shape, args["groups"]
    layout = _weights.conv_transpose(shape, groups)
    return _behind(context, node, args, weight, shape[1] * groups, layout, len(shape) - 1)


def _linear(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``A∘Linear``: rows of the weight ``[out, in]``, and the bias; output channels on the last
    axis (torch.nn.functional.linear).
    """
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return _blocked(weight)
    if len(weight.shape) != 2:
        return NOTHING, None
    layout = _weights.along_axis(weight.shape, 0)
    return _behind(context, node, args, weight, weight.shape[0], layout, 1)


def _behind(
    context: Context,
    node: Node,
    args: dict[str, Any],
    weight: Constant,
    size: int,
    layout: _weights.Layout,
    from_end: int,
) -> tuple[Reading, object]:
    """An operator with a weight and a bias vector, its channels counted from the last axis."""
    shape = shape_of(node)
    assert shape is not None
    axis = len(shape) - from_end
    bias = context.parameter(args["bias"])
    if not weight.is_float or (isinstance(bias, Constant) and bias.shape != (size,)):
        return NOTHING, None
    blocked = bias if isinstance(bias, Reason) else None
    site = Site(
        context.label(node),
        1,
        2,
        {axis: size},
        lambda _: layout,
        lambda _: (size,),
        weight,
        bias if isinstance(bias, Constant) else None,
        (size,),
        dtype=DTYPES[weight.torch_dtype],
    )
    return Reading(Absorber({axis: size}, blocked, blocked), site, shape), None


def _layer_norm(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``A∘LayerNorm``: ``γ·s``, ``β·s + t`` along the axes that γ spans, the last ones."""
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    shape = shape_of(node)
    if weight is None or shape is None:
        return NOTHING, None
    if not isinstance(weight, Constant):
        return _blocked(weight)
    gamma = weight.shape
    offset = len(shape) - len(gamma)
    channels = {offset + j: n for j, n in enumerate(gamma)}
    site = Site(
        context.label(node),
        2,
        3,
        channels,
        lambda axis: _weights.along_axis(gamma, max(axis - offset, 0)),
        lambda axis: _weights.along_axis(gamma, axis - offset).along,
        weight,
        bias if isinstance(bias, Constant) else None,
        gamma,
        dtype=DTYPES[weight.torch_dtype],
    )
    blocked = bias if isinstance(bias, Reason) else None
    return Reading(Absorber(channels, blocked, blocked), site, shape), None


def _group_norm(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``A∘GroupNorm``: ``γ·s``, ``β·s + t`` on axis 1, one number per channel."""
    return _gamma_beta(context, node, args)


def _gamma_beta(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    if weight is None:
        return NOTHING, None
    if not isinstance(weight, Constant):
        return _blocked(weight)
    if len(weight.shape) != 1:
        return NOTHING, None
    site = _norm_site(context, node, weight, bias if isinstance(bias, Constant) else None)
    blocked = bias if isinstance(bias, Reason) else None
    role = Absorber({1: weight.shape[0]}, blocked, blocked)
    return Reading(role, site, shape_of(node)), None


def _norm_site(context: Context, node: Node, weight: Constant, bias: Constant | None) -> Site:
    fixed = weight.shape
    return Site(
        context.label(node),
        1,
        2,
        {1: fixed[0]},
        lambda _: _weights.along_axis(fixed, 0),
        lambda _: fixed,
        weight,
        bias,
        fixed,
        dtype=DTYPES[weight.torch_dtype],
    )


def _batch_norm(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """BatchNorm with tracked statistics in eval: A(γ/√(var+ε), β − μ·s) along axis 1.

    γ absent is 1, β absent is 0 (torch.nn.BatchNorm2d with affine=False). In training mode, or
    without tracked statistics, it normalizes by the batch it is given: no fixed map.
    """
    data = args["input"]
    return _fixed_norm(context, node, args, data, bool(args["training"]))


def _instance_norm(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """InstanceNorm: with tracked statistics in eval a BatchNorm, else an operator whose γ and β
    absorb.
    """
    if args["use_input_stats"] and not context.in_training(node):
        return _gamma_beta(context, node, args)
    return _fixed_norm(context, node, args, args["input"], bool(args["use_input_stats"]))


def _fixed_norm(
    context: Context, node: Node, args: dict[str, Any], data: object, from_batch: bool
) -> tuple[Reading, object]:
    where, shape = context.label(node), shape_of(node)
    assert shape is not None
    if from_batch:
        return Reading(Barrier(_statistics(context, node, args, where))), data
    parts = []
    for name in ("weight", "bias", "running_mean", "running_var"):
        found = context.parameter(args[name])
        if isinstance(found, Reason):
            return Reading(Barrier(found)), data
        parts.append(found)
    weight, bias, mean, variance = parts
    if mean is None or variance is None or len(shape) < 2:
        reason = Reason("dynamic-weight", where, f"{where} has no running statistics")
        return Reading(Barrier(reason)), data
    size = mean.shape[0]
    gamma = weight.load() if weight is not None else np.ones(size)
    beta = bias.load() if bias is not None else np.zeros(size)
    values = (gamma, beta, mean.load(), variance.load())
    epsilon = float(args["eps"])
    for what, vector in zip(("weight", "bias", "mean", "variance"), values, strict=True):
        if not bool(np.isfinite(vector.astype(np.float64)).all()):
            message = f"the {what} of {where} is NaN or infinite somewhere"
            return Reading(Barrier(Reason("non-finite", where, message))), data
    total = values[3].astype(np.float64) + epsilon
    if not bool((total > 0).all()):
        channel = int(np.argmin(total))
        message = f"variance + epsilon of {where} is {total[channel]:g} in channel {channel}"
        return Reading(Barrier(Reason("non-positive-variance", where, message))), data
    map_ = AffineMap.batch_norm(*values, epsilon, 1)
    if not map_.is_finite:
        reason = Reason("non-finite", where, f"the scale or shift of {where} is not finite")
        return Reading(Barrier(reason)), data
    kind = _dtype(node)
    dtype = DTYPES.get(kind) if kind is not None else None
    absorber = Absorber({1: size}) if weight is not None else None
    site = _norm_site(context, node, weight, bias) if weight is not None else None
    role = Affine(map_, 0, 2, absorber, composable=dtype is not None, dtype=dtype)
    # Only a norm that has a γ could stay and hold the composition of several maps.
    return Reading(role, site, shape, np.sqrt(total) if site is not None else None), data


def _statistics(context: Context, node: Node, args: dict[str, Any], where: str) -> Reason:
    """Which case of ``training`` × ``track_running_stats`` keeps a norm from being fixed."""
    tracked, training = args["running_mean"] is not None, context.in_training(node)
    if training and tracked:
        return Reason("training-mode", where, f"{where} is in training mode")
    if training:
        message = f"{where} is in training mode, and it tracks no statistics to use in eval"
        return Reason("training-mode-untracked", where, message)
    return Reason(
        "untracked-statistics",
        where,
        f"{where} normalizes by each batch even in eval: it tracks no running statistics",
    )


def _arithmetic(op: str) -> _Reader:
    def read(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
        first, second = args["self"], args["other"]
        if op == "rsub":
            first, second = second, first
        kind = "Sub" if op == "rsub" else op
        alpha = args.get("alpha", 1)
        if args.get("rounding_mode") is not None or not isinstance(alpha, int | float):
            return NOTHING, None
        left, right = _number_or_constant(context, first), _number_or_constant(context, second)
        if (left is None) == (right is None) or (left is not None and kind == "Div"):
            return NOTHING, None
        data = second if left is not None else first
        values = left if left is not None else right
        assert values is not None
        dtype, shape, where = _dtype(node), shape_of(data), context.label(node)
        if dtype not in DTYPES or _dtype(data) != dtype or not isinstance(data, Node):
            return NOTHING, None
        # x + alpha·c, x − alpha·c; alpha multiplies the second operand.
        values = values * alpha if right is not None else values
        spread = _elementwise.spread(values, shape, where)
        if isinstance(spread, Reason):
            return Reading(Barrier(spread)), data
        map_ = _elementwise.affine(kind, spread, left is not None, where)
        if left is not None and alpha != 1 and isinstance(map_, AffineMap):
            # c ± alpha·x scales x by alpha.
            map_ = AffineMap.of(map_.scale * alpha, map_.shift, map_.axis)
        if isinstance(map_, AffineMap) and not map_.is_finite:
            map_ = Reason("non-finite", where, f"the constant of {where} has no usable reciprocal")
        if isinstance(map_, Reason):
            return Reading(Barrier(map_)), data
        role = Affine(map_, composable=True, dtype=DTYPES[dtype])
        return Reading(role, shape=shape), data

    return read


def _neg(context: Context, node: Node, args: dict[str, Any]) -> tuple[Reading, object]:
    """``−x`` is A(−1, 0)."""
    dtype = _dtype(node)
    if dtype not in DTYPES or isinstance(context.constants.find(args["self"]), Constant):
        return NOTHING, None
    role = Affine(AffineMap.of(-1.0, 0.0, None), composable=True, dtype=DTYPES[dtype])
    return Reading(role, shape=shape_of(node)), args["self"]


def _number_or_constant(context: Context, value: object) -> _weights.Array | None:
    """The values of a number or of a constant tensor in float64; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return np.asarray(float(value))
    if not isinstance(value, Node):
        return None
    found = context.constants.find(value)
    if not isinstance(found, Constant):
        return None
    if not found.is_float and found.torch_dtype not in _INTEGERS:
        return None
    return found.load().astype(np.float64)


def _blocked(weight: Constant | Reason | None) -> tuple[Reading, object]:
    """An operator that would absorb, but for its weight."""
    if not isinstance(weight, Reason):
        return NOTHING, None
    return Reading(Absorber({}, weight, weight)), None


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_Reader = Callable[[Context, Node, dict[str, Any]], tuple[Reading, object]]
_READERS: dict[str, _Reader] = {
    "add": _arithmetic("Add"),
    "add_": _arithmetic("Add"),
    "alias": _carrier,
    "alpha_dropout": _carrier,
    "batch_norm": _batch_norm,
    "clone": _carrier,
    "contiguous": _carrier,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "detach": _carrier,
    "div": _arithmetic("Div"),
    "div_": _arithmetic("Div"),
    "dropout": _carrier,
    "dropout_": _carrier,
    "feature_dropout": _carrier,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "mul": _arithmetic("Mul"),
    "mul_": _arithmetic("Mul"),
    "neg": _neg,
    "rsub": _arithmetic("rsub"),
    "sub": _arithmetic("Sub"),
    "sub_": _arithmetic("Sub"),
    "to": _carrier,
}
