"""Translate one operator of an exported program into its role in the neutral view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from bnfold._core import broadcast, channels
from bnfold._core.affine import AffineMap
from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, Barrier, Carrier, Crossing
from bnfold._torch.read import absorbers, crossings
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import NOTHING, Context, Read
from bnfold._torch.read.nodes import arguments, dtype_of, kind_of, shape_of
from bnfold._torch.tensors import DTYPES


def read_node(context: Context, node: Node) -> Read:
    """What is known of a node."""
    if getattr(node.target, "_schema", None) is None:
        return NOTHING
    reader = _READERS.get(kind_of(node))
    aten = getattr(node.target, "namespace", "") == "aten" and isinstance(shape_of(node), tuple)
    found = reader(context, node, arguments(node)) if aten and reader is not None else NOTHING
    if found is not NOTHING:
        return found
    crossed = crossings.crossing(context, node)
    if crossed is None:
        return NOTHING
    role = Crossing(crossed.law, tuple(range(len(crossed.data))), crossed.dtype)
    return Read(Reading(role), crossed.data, crossed.outputs)


def _carrier(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """What hands its input on: same shape, same type."""
    data = args.get("self", args.get("input"))
    assert isinstance(data, Node)
    same = shape_of(data) == shape_of(node) and dtype_of(data) == dtype_of(node)
    if not same or args.get("train", False):
        return NOTHING
    return Read(Reading(Carrier(), shape=shape_of(node)), (data,))


def _batch_norm(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """BatchNorm with tracked statistics in eval: A(γ/√(var+ε), β − μ·s) along axis 1.

    γ absent is 1, β absent is 0 (torch.nn.BatchNorm2d with affine=False). In training mode, or
    without tracked statistics, it normalizes by the batch it is given: no fixed map.
    """
    data = args["input"]
    return _fixed_norm(context, node, args, data, bool(args["training"]))


def _instance_norm(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """InstanceNorm: with tracked statistics in eval a BatchNorm, else an operator whose γ and β
    absorb.
    """
    if args["use_input_stats"] and not context.in_training(node):
        return absorbers.gamma_beta(context, node, args)
    return _fixed_norm(context, node, args, args["input"], bool(args["use_input_stats"]))


def _fixed_norm(
    context: Context, node: Node, args: dict[str, Any], data: Node, from_batch: bool
) -> Read:
    where, shape = context.label(node), shape_of(node)
    assert shape is not None
    if context.is_constant(node):  # A standardized weight, which no input changes.
        return NOTHING
    if from_batch:
        return Read(Reading(Barrier(_statistics(context, node, args, where))), (data,))
    parts = []
    for name in ("weight", "bias", "running_mean", "running_var"):
        found = context.parameter(args[name])
        if isinstance(found, Reason):
            return Read(Reading(Barrier(found)), (data,))
        parts.append(found)
    weight, bias, mean, variance = parts
    if mean is None or variance is None or len(shape) < 2:
        reason = Reason("dynamic-weight", where, f"{where} has no running statistics")
        return Read(Reading(Barrier(reason)), (data,))
    size = mean.shape[0]
    gamma = weight.load() if weight is not None else np.ones(size)
    beta = bias.load() if bias is not None else np.zeros(size)
    values = (gamma, beta, mean.load(), variance.load())
    epsilon = float(args["eps"])
    for what, vector in zip(("weight", "bias", "mean", "variance"), values, strict=True):
        if not bool(np.isfinite(vector.astype(np.float64)).all()):
            message = f"the {what} of {where} is NaN or infinite somewhere"
            return Read(Reading(Barrier(Reason("non-finite", where, message))), (data,))
    total = values[3].astype(np.float64) + epsilon
    if not bool((total > 0).all()):
        channel = int(np.argmin(total))
        message = f"variance + epsilon of {where} is {total[channel]:g} in channel {channel}"
        return Read(Reading(Barrier(Reason("non-positive-variance", where, message))), (data,))
    map_ = AffineMap.batch_norm(*values, epsilon, 1)
    if not map_.is_finite:
        reason = Reason("non-finite", where, f"the scale or shift of {where} is not finite")
        return Read(Reading(Barrier(reason)), (data,))
    kind = dtype_of(node)
    dtype = DTYPES.get(kind) if kind is not None else None
    absorber = Absorber({1: size}) if weight is not None else None
    site = absorbers.norm_site(context, node, weight, bias) if weight is not None else None
    role = Affine(map_, 0, 2, absorber, composable=dtype is not None, dtype=dtype)
    # Only a norm that has a γ could stay and hold the composition of several maps.
    return Read(Reading(role, site, shape, np.sqrt(total) if site is not None else None), (data,))


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
    def read(context: Context, node: Node, args: dict[str, Any]) -> Read:
        first, second = args["self"], args["other"]
        if op == "rsub":
            first, second = second, first
        kind = "Sub" if op == "rsub" else op
        alpha = args.get("alpha", 1)
        if args.get("rounding_mode") is not None or not isinstance(alpha, int | float):
            return NOTHING
        left, right = _number_or_constant(context, first), _number_or_constant(context, second)
        if (left is None) == (right is None) or (left is not None and kind == "Div"):
            return NOTHING
        data = second if left is not None else first
        values = left if left is not None else right
        assert values is not None
        dtype, shape, where = dtype_of(node), shape_of(data), context.label(node)
        if dtype not in DTYPES or dtype_of(data) != dtype or not isinstance(data, Node):
            return NOTHING
        # x + alpha·c, x − alpha·c; alpha multiplies the second operand.
        values = values * alpha if right is not None else values
        spread = broadcast.spread(values, shape, where)
        if isinstance(spread, Reason):
            return Read(Reading(Barrier(spread)), (data,))
        map_ = broadcast.affine(kind, spread, left is not None, where)
        if left is not None and alpha != 1 and isinstance(map_, AffineMap):
            # c ± alpha·x scales x by alpha.
            map_ = AffineMap.of(map_.scale * alpha, map_.shift, map_.axis)
        if isinstance(map_, AffineMap) and not map_.is_finite:
            map_ = Reason("non-finite", where, f"the constant of {where} has no usable reciprocal")
        if isinstance(map_, Reason):
            return Read(Reading(Barrier(map_)), (data,))
        role = Affine(map_, composable=True, dtype=DTYPES[dtype])
        return Read(Reading(role, shape=shape), (data,))

    return read


def _neg(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``−x`` is A(−1, 0)."""
    dtype = dtype_of(node)
    if dtype not in DTYPES or isinstance(context.constants.find(args["self"]), Constant):
        return NOTHING
    role = Affine(AffineMap.of(-1.0, 0.0, None), composable=True, dtype=DTYPES[dtype])
    return Read(Reading(role, shape=shape_of(node)), (args["self"],))


def _number_or_constant(context: Context, value: object) -> channels.Array | None:
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


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_Reader = Callable[[Context, Node, dict[str, Any]], Read]
_READERS: dict[str, _Reader] = {
    "add": _arithmetic("Add"),
    "add_": _arithmetic("Add"),
    "alias": _carrier,
    "alpha_dropout": _carrier,
    "batch_norm": _batch_norm,
    "clone": _carrier,
    "contiguous": _carrier,
    "conv1d": absorbers.conv,
    "conv2d": absorbers.conv,
    "conv3d": absorbers.conv,
    "conv_transpose1d": absorbers.conv_transpose,
    "conv_transpose2d": absorbers.conv_transpose,
    "conv_transpose3d": absorbers.conv_transpose,
    "detach": _carrier,
    "div": _arithmetic("Div"),
    "div_": _arithmetic("Div"),
    "dropout": _carrier,
    "dropout_": _carrier,
    "feature_dropout": _carrier,
    "group_norm": absorbers.group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": absorbers.layer_norm,
    "linear": absorbers.linear,
    "mul": _arithmetic("Mul"),
    "mul_": _arithmetic("Mul"),
    "neg": _neg,
    "rsub": _arithmetic("rsub"),
    "sub": _arithmetic("Sub"),
    "sub_": _arithmetic("Sub"),
    "to": _carrier,
}
