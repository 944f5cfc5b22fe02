"""PyTorch operators as steps of a linear function of channels × space.

What is no such step, or not a usable one, says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Barrier, Carrier
from bnfold._core.windows import Window
from bnfold._merge.kernels import convolving, multiplying
from bnfold._merge.steps import Blocked, LinearStep, Mapped, Passed, Pool, Weighted
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import Context, Read
from bnfold._torch.read.nodes import arguments, dtype_of, kind_of
from bnfold._torch.tensors import DTYPES

_ACTIVATIONS = (
    "abs celu clamp clamp_max clamp_min elu erf gelu hardshrink hardsigmoid hardswish hardtanh "
    "leaky_relu log_sigmoid mish prelu relu relu6 rrelu selu sigmoid silu softplus softshrink "
    "tanh tanhshrink threshold"
)


@dataclass(frozen=True)
class Part:
    """What a node is of the tensors ``data`` that it reads: a step of one of them, or their sum
    with ``signs``.
    """

    step: LinearStep | None = None
    data: tuple[Node, ...] = ()
    signs: tuple[int, ...] | None = None


def part(context: Context, node: Node, found: Read) -> Part:
    """What a node is, of which a role was ``found``."""
    role = found.reading.role
    if isinstance(role, Affine):
        return Part(Mapped(role.map, role.steps, role.data), found.data)
    if isinstance(role, Carrier):
        return Part(Passed(role.data), found.data)
    if isinstance(role, Barrier) or getattr(node.target, "namespace", "") != "aten":
        return Part()
    kind, args = kind_of(node), arguments(node)
    data = args.get("input", args.get("self"))
    if not isinstance(data, Node) or not isinstance(node.meta.get("val"), Tensor):
        return Part()
    if kind.removesuffix("_") in _ACTIVATIONS.split():
        where = context.label(node)
        what = f"{where} ({kind}) is not linear"
        return Part(Blocked(Reason("not-mergeable", where, what), ends=True), (data,))
    if kind in _ADDING:
        return _sum(context, node, args, _ADDING[kind])
    reader = _READERS.get(kind)
    taken = reader(context, node, args) if reader is not None else None
    dtype = dtype_of(data)
    if isinstance(taken, Weighted) and (dtype is None or DTYPES.get(dtype) != taken.dtype):
        return Part()
    return Part(taken, (data,)) if taken is not None else Part()


def _sum(context: Context, node: Node, args: dict[str, Any], signs: tuple[int, int]) -> Part:
    """``x + α·y``, ``x − α·y`` and ``α·y − x`` of two tensors of one type, for α = ±1."""
    data, alpha = (args["self"], args["other"]), args.get("alpha", 1)
    dtype = dtype_of(node)
    if alpha not in (1, -1) or dtype not in DTYPES:
        return Part()
    if any(not isinstance(x, Node) or dtype_of(x) != dtype for x in data):
        return Part()
    if any(context.is_constant(x) for x in data):
        return Part()
    scaled = 0 if kind_of(node) == "rsub" else 1
    first, second = (s * alpha if k == scaled else s for k, s in enumerate(signs))
    return Part(None, data, (first, second))


def _conv(context: Context, node: Node, args: dict[str, Any]) -> LinearStep | None:
    """``b[o] + Σ W[o, i, k]·x[i]``, group j of outputs from group j of inputs
    (torch.nn.functional.conv2d).
    """
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    for found in (weight, bias):
        if isinstance(found, Reason):
            return Blocked(found)
    if not isinstance(weight, Constant) or not all(weight.shape):
        return None
    windows = _windows(args, weight.shape[2:])
    offset = bias if isinstance(bias, Constant) else None
    kernel = convolving(weight, offset, args["groups"], windows)
    return Weighted(kernel, DTYPES[weight.torch_dtype])


def _linear(context: Context, node: Node, args: dict[str, Any]) -> LinearStep | None:
    """``x·Wᵀ + b`` along the last axis (torch.nn.functional.linear)."""
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    for found in (weight, bias):
        if isinstance(found, Reason):
            return Blocked(found)
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or not all(weight.shape):
        return None
    offset = bias if isinstance(bias, Constant) else None
    kernel = multiplying(weight, offset, turned=True)
    return Weighted(kernel, DTYPES[weight.torch_dtype])


def _matmul(context: Context, node: Node, args: dict[str, Any]) -> LinearStep | None:
    """``x·W`` along the last axis of x, for a matrix W on the right (torch.matmul)."""
    weight = context.parameter(args["other"])
    if isinstance(weight, Reason):
        return None if weight.code == "dynamic-weight" else Blocked(weight)
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or not all(weight.shape):
        return None
    if context.is_constant(args["self"]):
        return None
    return Weighted(multiplying(weight), DTYPES[weight.torch_dtype])


def _average_pool(context: Context, node: Node, args: dict[str, Any]) -> LinearStep | None:
    """A fixed kernel if each output divides by the same number, that of its taps
    (torch.nn.functional.avg_pool2d).
    """
    rank = int(kind_of(node)[-2])
    taps = _each(args["kernel_size"], rank)
    windows = _windows({**args, "stride": args["stride"] or taps, "dilation": 1}, taps)
    where = context.label(node)
    if any(window.sees_zeros for window in windows) and not args["count_include_pad"]:
        what = f"{where} leaves padding out of its averages, so that borders weigh more"
        return Blocked(Reason("not-mergeable", where, what))
    if args["ceil_mode"]:
        what = f"{where} has ceil_mode=True: windows over the end are cut"
        return Blocked(Reason("not-mergeable", where, what))
    if args.get("divisor_override") is not None:
        what = f"{where} divides by a number of its own"
        return Blocked(Reason("not-mergeable", where, what))
    return Pool(windows)


def _windows(args: dict[str, Any], taps: Sequence[int]) -> tuple[Window, ...]:
    """The window along each axis of space.

    ``"same"``, for a stride of 1, pads by ``d·(k − 1)`` in all, what is odd at the end.
    """
    rank = len(taps)
    steps = _each(args["dilation"], rank)
    padding = args["padding"]
    if padding == "same":
        totals = [step * (k - 1) for step, k in zip(steps, taps, strict=True)]
        ends = [(total // 2, total - total // 2) for total in totals]
    else:
        ends = [(pad, pad) for pad in _each(0 if padding == "valid" else padding, rank)]
    strides = _each(args["stride"], rank)
    return tuple(
        Window.of(k, step, stride, end)
        for k, step, stride, end in zip(taps, steps, strides, ends, strict=True)
    )


def _each(value: int | Sequence[int], rank: int) -> list[int]:
    """An argument that is one number for all axes, or one for each."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * rank if len(numbers) == 1 else numbers


_ADDING = {"add": (1, 1), "add_": (1, 1), "sub": (1, -1), "sub_": (1, -1), "rsub": (-1, 1)}
_READERS = {
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "avg_pool3d": _average_pool,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "linear": _linear,
    "matmul": _matmul,
}
