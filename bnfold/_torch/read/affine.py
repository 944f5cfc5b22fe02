"""Affine operators of PyTorch, and norms, each translated into its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Array
from bnfold._core.operators.affine import Elementwise, FixedNorm, Norm, fixed_norm, with_constant
from bnfold._core.operators.record import (
    UNKNOWN,
    Operand,
    Operator,
    Row,
    Unfixed,
    unfixed,
    unweighted,
)
from bnfold._core.reasons import Reason, Refusal
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.crossed import gate, sum_of_two
from bnfold._torch.read.nodes import dtype_of, kind_of, main_of, parts_of, places, shape_of
from bnfold._torch.tensors import DTYPES

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _batch_norm(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """BatchNorm in eval with tracked statistics, also as decompositions leave it, which puts out
    its mean and its deviation, too.

    In training mode, or without tracked statistics, it normalizes by the batch it is given: no
    fixed map. What decompositions make of an InstanceNorm does so, too, and takes maps in.
    """
    if args.get("training", False) and _sees_instances(args["input"]):
        return _norm_on_axis_one(context, node, args)
    return _fixed(context, node, args, from_batch=bool(args.get("training", False)))


def _sees_instances(data: Node) -> bool:
    """Whether a norm reads each channel of each of a batch as a channel: ``[N, C, …]`` seen as
    ``[1, N·C, …]``.
    """
    if data.op != "call_function" or kind_of(data) not in ("reshape", "view", "view_copy"):
        return False
    before, after = shape_of(data.all_input_nodes[0]), shape_of(data)
    if before is None or after is None or len(before) != len(after) or len(after) < 3:
        return False
    return after[0] == 1 and before[2:] == after[2:]


def _batch_norm_in_training(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """BatchNorm that its name says to be in training mode."""
    if context.is_constant(args["input"]):
        return UNKNOWN
    where = context.label(node)
    return Unfixed(reason=Reason("training-mode", where, f"{where} is in training mode"))


def _instance_norm(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """InstanceNorm: with tracked statistics in eval a BatchNorm, else an operator whose γ and β
    take maps in.
    """
    writes = context.is_constant(args["input"]) and args.get("running_mean") is not None
    if args["use_input_stats"] and not context.in_training(node) and not writes:
        return _norm_on_axis_one(context, node, args)
    return _fixed(context, node, args, from_batch=bool(args["use_input_stats"]))


def _fixed(context: Context, node: Node, args: dict[str, Any], from_batch: bool) -> Operator:
    """A norm by fixed statistics; γ absent is 1, β absent is 0 (torch.nn.BatchNorm2d with
    affine=False).
    """
    where, shape = context.label(node), shape_of(args["input"])
    writes = from_batch and args.get("running_mean") is not None
    if context.is_constant(args["input"]) and not writes:
        return UNKNOWN  # A standardized weight, which no input changes.
    if from_batch:
        return Unfixed(reason=_statistics(context, node, args, where))
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (context.parameter(args.get(name)) for name in names)
    if mean is None or variance is None or shape is None or len(shape) < 2:
        raise Refusal(Reason("dynamic-weight", where, f"{where} has no running statistics"))
    out = _alone(where, node)
    size = mean.shape[0]
    vectors = [
        ("weight", gamma.load() if gamma is not None else np.ones(size)),
        ("bias", beta.load() if beta is not None else np.zeros(size)),
        ("mean", mean.load()),
        ("variance", variance.load()),
    ]
    epsilon = args["eps" if "eps" in args else "epsilon"]
    map_, divisor = fixed_norm(where, vectors, float(epsilon))
    standing = None
    if gamma is not None:
        standing = Norm(label=where, gamma=Operand(1, gamma), beta=Operand(2, beta), start=1)
    kind = dtype_of(out)
    dtype = DTYPES.get(kind) if kind is not None else None
    return FixedNorm(
        label=where,
        data=places(node)["input"],
        map=map_,
        divisor=divisor,
        standing=standing,
        composable=dtype is not None,
        dtype=dtype,
    )


def _alone(where: str, node: Node) -> Node:
    """The first output of a norm. Raises `Refusal` where another one is read, or this one twice."""
    out = main_of(node)
    if out is None or (out is not node and len(parts_of(node)) > 1):
        message = f"{where} also puts out the statistics it normalizes by, and something reads them"
        raise Refusal(Reason("training-mode", where, message))
    return out


def _statistics(context: Context, node: Node, args: dict[str, Any], where: str) -> Reason:
    """Which case of ``training`` × ``track_running_stats`` keeps a norm from being fixed."""
    tracked = args.get("running_mean") is not None
    training = context.in_training(node)
    if training and tracked:
        return Reason("training-mode", where, f"{where} is in training mode")
    if training:
        message = f"{where} is in training mode, and it tracks no statistics to use in eval"
        return Reason("training-mode-untracked", where, message)
    message = f"{where} normalizes by each batch even in eval"
    message += ", and writes" if tracked else ": it tracks no"
    return Reason("untracked-statistics", where, f"{message} running statistics")


def _norm_on_axis_one(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """A norm with a γ for each place along axis 1, and perhaps a β."""
    gamma = context.operand(args["weight"], 1)
    if gamma.missing is not None:
        return unweighted(gamma.missing)
    if gamma.value is None or len(gamma.value.shape) != 1 or main_of(node) is None:
        return UNKNOWN
    return Norm(
        label=context.label(node),
        gamma=gamma,
        beta=context.operand(args["bias"], 2),
        start=1,
    )


def _layer_norm(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """LayerNorm and RMSNorm, whose γ spans the last axes. An RMSNorm has no place for a β.

    The mean and the deviation that decompositions let a LayerNorm put out do not depend on γ and β.
    """
    gamma, shape = context.parameter(args["weight"]), shape_of(args["input"])
    if gamma is None or shape is None or main_of(node) is None:
        return UNKNOWN
    return Norm(
        label=context.label(node),
        gamma=Operand(2, gamma),
        beta=context.operand(args["bias"], 3) if "bias" in args else None,
        start=len(shape) - len(gamma.shape),
    )


def _arithmetic(op: str, of_two: TorchRow) -> Callable[[Context, Node, dict[str, Any]], Operator]:
    """The reader of ``x op c`` and ``c op x`` for a constant c; else what it is ``of_two``."""

    def read(context: Context, node: Node, args: dict[str, Any]) -> Operator:
        found = _with_constant(context, node, args, op)
        return found if found is not None else of_two.read(context, node, args)

    return read


def _with_constant(context: Context, node: Node, args: dict[str, Any], op: str) -> Operator | None:
    """``x + α·c``, ``x − α·c``, ``c ± α·x``: α multiplies the second operand, of rsub the first."""
    turned, alpha = kind_of(node) == "rsub", args.get("alpha", 1)
    first, second = ("other", "self") if turned else ("self", "other")
    if args.get("rounding_mode") is not None or not isinstance(alpha, int | float):
        return None
    left, right = (_number_or_constant(context, args[name]) for name in (first, second))
    if (left is None) == (right is None) or (left is not None and op == "Div"):
        return None
    name = second if left is not None else first
    data, dtype = args[name], dtype_of(node)
    if dtype not in DTYPES or dtype_of(data) != dtype:
        return None
    where = context.label(node)
    if left is not None:
        map_ = with_constant(
            op, left, shape_of(data), where, constant_first=True, factor=float(alpha)
        )
    else:
        assert right is not None
        map_ = with_constant(op, right * alpha, shape_of(data), where)
    return Elementwise(label=where, data=places(node)[name], map=map_, dtype=DTYPES[dtype])


def _neg(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """``−x`` is A(−1, 0)."""
    dtype = dtype_of(node)
    if dtype not in DTYPES or context.is_constant(args["self"]):
        return UNKNOWN
    map_ = AffineMap.of(-1.0, 0.0, None)
    return Elementwise(label=context.label(node), map=map_, dtype=DTYPES[dtype])


def _number_or_constant(context: Context, value: object) -> Array | None:
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


_BATCH_NORMS = (
    "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
    "_native_batch_norm_legit_no_training _batch_norm_impl_index _batch_norm_no_update "
    "cudnn_batch_norm miopen_batch_norm"
)
_IN_TRAINING = "_batch_norm_with_update _batch_norm_with_update_functional"
ROWS: dict[str, TorchRow] = {
    **{kind: Row(_arithmetic("Add", sum_of_two), unfixed) for kind in ("add", "add_")},
    **{kind: Row(_arithmetic("Sub", sum_of_two), unfixed) for kind in ("rsub", "sub", "sub_")},
    **{kind: Row(_arithmetic("Mul", gate), unfixed) for kind in ("mul", "mul_")},
    **{kind: Row(_arithmetic("Div", gate), unfixed) for kind in ("div", "div_")},
    **{kind: Row(_batch_norm, unfixed) for kind in _BATCH_NORMS.split()},
    **{kind: Row(_batch_norm_in_training, unfixed) for kind in _IN_TRAINING.split()},
    "instance_norm": Row(_instance_norm, unfixed),
    **{kind: Row(_norm_on_axis_one, unweighted) for kind in ("group_norm", "native_group_norm")},
    **{kind: Row(_layer_norm, unweighted) for kind in ("layer_norm", "native_layer_norm")},
    "neg": Row(_neg),
    "rms_norm": Row(_layer_norm, unweighted),
}
