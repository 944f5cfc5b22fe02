"""ONNX operators as steps of a linear function of channels × space.

What is no such step, or not a usable one, says why.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Carrier, Role
from bnfold._merge.kernels import convolving, multiplying
from bnfold._merge.steps import Blocked, LinearStep, Mapped, Passed, Pool, Weighted
from bnfold._merge.windows import Window
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import label

_ACTIVATIONS = frozenset(
    [
        "Abs",
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
        "ThresholdedRelu",
    ]
)


def step(context: Context, node: NodeProto, role: Role) -> LinearStep | None:
    """What a node is of its input; None for what no linear function is near."""
    if node.domain not in ("", "ai.onnx") or attributes.depends_on_call(node):
        return None
    if isinstance(role, Affine):
        return Mapped(role.map, role.steps, role.data)
    if isinstance(role, Carrier):
        return Passed(role.data)
    if node.op_type in _ACTIVATIONS:
        what = f"{label(node)} ({node.op_type}) is not linear"
        return Blocked(Reason("not-mergeable", label(node), what), ends=True)
    reader = _READERS.get(node.op_type)
    return reader(context, node) if reader is not None else None


def _conv(context: Context, node: NodeProto) -> LinearStep | None:
    """``b[o] + Σ W[o, i, k]·x[i]``, group j of outputs from group j of inputs (ONNX Conv)."""
    weight, bias = context.parameter(node, 1), context.parameter(node, 2)
    for found in (weight, bias):
        if isinstance(found, Reason):
            return Blocked(found)
    if not isinstance(weight, Constant) or len(weight.shape) < 3:
        return None
    outputs, _, *taps = weight.shape
    groups = attributes.integer(node, "group", 1)
    if groups < 1 or outputs % groups or not all(weight.shape):
        return None
    windows = _windows(context, node, taps)
    if windows is None:
        return Blocked(_unknown_padding(node))
    offset = bias if isinstance(bias, Constant) else None
    if offset is not None and offset.shape != (outputs,):
        return None
    return Weighted(convolving(weight, offset, groups, windows), weight.dtype)


def _average_pool(context: Context, node: NodeProto) -> LinearStep | None:
    """A fixed kernel if each output divides by the same number (ONNX AveragePool)."""
    taps = attributes.integers(node, "kernel_shape")
    if not taps:
        return None
    windows = _windows(context, node, taps)
    if windows is None:
        return Blocked(_unknown_padding(node))
    padded = any(window.sees_zeros for window in windows)
    if padded and not attributes.integer(node, "count_include_pad", 0):
        what = f"{label(node)} leaves padding out of its averages, so that borders weigh more"
        return Blocked(Reason("not-mergeable", label(node), what))
    if attributes.integer(node, "ceil_mode", 0):
        what = f"{label(node)} has ceil_mode = 1: windows over the end are cut"
        return Blocked(Reason("not-mergeable", label(node), what))
    return Pool(windows)


def _matmul(context: Context, node: NodeProto) -> LinearStep | None:
    """``x·W`` along the last axis of x, for a matrix W on the right (ONNX MatMul)."""
    weight = context.parameter(node, 1)
    shape = context.shape(node.input[0])
    if isinstance(weight, Reason):
        return None if weight.code == "dynamic-weight" else Blocked(weight)
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or not all(weight.shape):
        return None
    if isinstance(context.constant(node, 0), Constant) or shape is None or len(shape) < 2:
        return None
    return Weighted(multiplying(weight), weight.dtype)


def _gemm(context: Context, node: NodeProto) -> LinearStep | None:
    """``α·x·B' + β·C`` for constants B and C, where C varies along the last axis alone or not at
    all (ONNX Gemm).
    """
    if context.opset < 7 or attributes.integer(node, "transA", 0):
        return None
    weight = context.parameter(node, 1)
    beta = attributes.number(node, "beta", 1.0)
    bias = context.parameter(node, 2) if beta != 0.0 else None
    for found in (weight, bias):
        if isinstance(found, Reason):
            return None if found.code == "dynamic-weight" else Blocked(found)
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or not all(weight.shape):
        return None
    if isinstance(context.constant(node, 0), Constant):
        return None
    turned = bool(attributes.integer(node, "transB", 0))
    alpha = attributes.number(node, "alpha", 1.0)
    offset = bias if isinstance(bias, Constant) else None
    if offset is not None and not _is_row(offset.shape, weight.shape[0 if turned else 1]):
        return None
    kernel = multiplying(weight, offset, turned=turned, alpha=alpha, beta=beta)
    return Weighted(kernel, weight.dtype)


def _is_row(shape: Sequence[int], outputs: int) -> bool:
    """Whether what has a shape is added to every row of a matrix alike."""
    *before, last = shape or (1,)
    return len(shape) <= 2 and all(n == 1 for n in before) and last in (1, outputs)


def _windows(context: Context, node: NodeProto, taps: Sequence[int]) -> tuple[Window, ...] | None:
    """The window along each axis of space; None where padding follows from sizes not known.

    ``SAME`` pads so that there are ``⌈n/stride⌉`` outputs, what is odd at the end (``SAME_UPPER``)
    or at the start; with stride 1 that takes no size (ONNX Conv, auto_pad).
    """
    rank = len(taps)
    strides = attributes.integers(node, "strides") or [1] * rank
    steps = attributes.integers(node, "dilations") or [1] * rank
    pads = attributes.integers(node, "pads") or [0] * (2 * rank)
    mode = attributes.text(node, "auto_pad", "NOTSET") or "NOTSET"
    if len(strides) != rank or len(steps) != rank or len(pads) != 2 * rank or min(pads) < 0:
        return None
    if mode in ("NOTSET", "VALID"):
        kept = pads if mode == "NOTSET" else [0] * (2 * rank)
        ends = zip(kept[:rank], kept[rank:], strict=True)
        return tuple(
            Window.of(k, step, stride, end)
            for k, step, stride, end in zip(taps, steps, strides, ends, strict=True)
        )
    shape = context.shape(node.input[0])
    sizes = shape[2:] if shape is not None and len(shape) == rank + 2 else (None,) * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    found = []
    for k, step, stride, size in zip(taps, steps, strides, sizes, strict=True):
        extent = (k - 1) * step + 1
        if stride == 1:
            total, room = extent - 1, -1
        elif size is None:
            return None
        else:
            room = (-(-size // stride) - 1) * stride - size
            total = max(room + extent, 0)
        small = total // 2
        start = small if mode == "SAME_UPPER" else total - small
        found.append(Window(-start, k, step if k > 1 else 1, stride, room))
    return tuple(found)


def _unknown_padding(node: NodeProto) -> Reason:
    what = f"the padding of {label(node)} depends on sizes that are not known"
    return Reason("unknown-shape", label(node), what)


_READERS = {"AveragePool": _average_pool, "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
