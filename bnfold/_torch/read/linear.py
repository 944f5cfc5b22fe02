"""Linear and recurrent operators of PyTorch, each translated into its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from bnfold._core.operators.linear import Convolution, Product
from bnfold._core.operators.matrices import gemm, matmul
from bnfold._core.operators.record import UNKNOWN, Operand, Operator, Row, unmerged, unweighted
from bnfold._core.operators.recurrent import Recurrent
from bnfold._core.reasons import Reason
from bnfold._core.windows import Window
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.crossed import product_of_two
from bnfold._torch.read.nodes import dtype_of, kind_of, listed, places, rank_of, shape_of, windows
from bnfold._torch.tensors import DTYPES


def _convolution(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """A convolution, with channels on axis 1, or 0 without a batch."""
    weight = context.weight(args["weight"], 1)
    if weight.value is None:
        return UNKNOWN
    shape = weight.value.shape
    transposed = args.get("transposed", kind_of(node).startswith("conv_transpose"))
    return Convolution(
        label=context.label(node),
        data=places(node)["input"],
        weight=weight,
        bias=context.operand(args["bias"], 2),
        kernel=shape,
        groups=args["groups"],
        windows=_windows(args, shape[2:]),
        transposed=transposed,
        axis=rank_of(node) - (len(shape) - 1),
        dtype=_dtype(args["input"]),
    )


def _any_convolution(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """The one operator that decompositions make of convolutions and transposed ones."""
    row = TRANSPOSED if args["transposed"] else CONVOLUTION
    return row.translate(context, node, args)


def _windows(args: dict[str, Any], taps: Sequence[int]) -> tuple[Window, ...] | None:
    """The windows of a convolution, or those of the one that a transposed one is the transpose of,
    if it puts out what such a one reads and no more.
    """
    if any(listed(args.get("output_padding"))):
        return None
    return windows(taps, args["stride"], args["padding"], args["dilation"])


def _linear(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """``x·Wᵀ + b`` along the last axis, the weight ``[out, in]`` (torch.nn.functional.linear)."""
    weight = context.weight(args["weight"], 1)
    if weight.value is None or len(weight.value.shape) != 2:
        return UNKNOWN
    rank = rank_of(node)
    return Product(
        label=context.label(node),
        data=places(node)["input"],
        weight=weight,
        columns={rank - 1: 0},
        summed=1,
        along=rank - 1,
        rank=rank,
        bias=context.operand(args["bias"], 2),
        bias_shape=weight.value.shape[:1],
        dtype=_dtype(args["input"]),
    )


def _matmul(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """matmul, mm and bmm of two tensors, or with a constant on one side.

    Of a module no writer changes the constant: it belongs to no submodule's linear operator. An mm
    becomes the addmm that has a place for its bias.
    """
    if args.get("out_dtype") is not None:
        return UNKNOWN
    of_two = product_of_two.read(context, node, args)
    if of_two is not UNKNOWN:
        return of_two
    operands = args["self"], args["other" if "other" in args else "mat2"]
    left, right = map(context.is_constant, operands)
    if left == right:
        return UNKNOWN
    weight, data = context.operand(operands[right], int(right)), operands[left]
    if weight.missing is not None and weight.missing.code == "quantized-weight":
        return unmerged(weight.missing)
    if weight.value is None:
        return UNKNOWN
    product = matmul(context.label(node), weight, shape_of(data), writable=context.whole)
    if kind_of(node) == "mm":
        product = replace(product, bias=Operand(0), becomes="addmm")
    return replace(product, dtype=_dtype(data))


def _addmm(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """``β·c + α·A·B`` of a constant matrix A or B. c is the first that it reads, and the bias.

    Of a module no writer changes the constants.
    """
    operands = args["mat1"], args["mat2"]
    left, right = map(context.is_constant, operands)
    numbers = args["alpha"], args["beta"]
    known = context.whole and args.get("out_dtype") is None and left != right
    if not known or not all(isinstance(number, int | float) for number in numbers):
        return UNKNOWN
    weight, bias = context.operand(operands[right], int(right)), context.operand(args["self"], 0)
    alpha, beta = map(float, numbers)
    product = gemm(context.label(node), weight, bias, (False, False), alpha, beta)
    placed = replace(weight, position=1 + right)
    return replace(product, data=(1 + left,), weight=placed, dtype=_dtype(operands[left]))


def _recurrent(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """LSTM, GRU and RNN of one tensor, batch first or not. Of each layer, and in it of each
    direction, the parameters are ``w_ih [gates·hidden, inputs]``, w_hh, with biases b_ih and b_hh,
    and with a projection w_hr. The first layer alone reads the input.
    """
    if "input" not in args:  # A packed sequence.
        return UNKNOWN
    parameters, where = args["params"], context.label(node)
    directions = 1 + args["bidirectional"]
    each = len(parameters) // (directions * args["num_layers"])
    first, starts = places(node)["params"][0], range(0, each * directions, each)
    weights = tuple(context.operand(parameters[k], first + k) for k in starts)
    message = f"{where} has no biases, which the shift would go into"
    none = Operand(-1, missing=Reason("no-linear-operator", where, message))
    biases = tuple(
        context.operand(parameters[k + 2], first + k + 2) if args["has_biases"] else none
        for k in starts
    )
    data = places(node)["input"]
    return Recurrent(label=where, data=data, weights=weights, biases=biases)


def _dtype(data: Node) -> np.dtype[Any] | None:
    dtype = dtype_of(data)
    return DTYPES.get(dtype) if dtype is not None else None


CONVOLUTION, TRANSPOSED = Row(_convolution, unmerged), Row(_convolution, unweighted)
ROWS: dict[str, TorchRow] = {
    **{f"conv{k}d": CONVOLUTION for k in (1, 2, 3)},
    **{f"conv_transpose{k}d": TRANSPOSED for k in (1, 2, 3)},
    **{kind: Row(_any_convolution) for kind in ("_convolution", "convolution")},
    "addmm": Row(_addmm, unmerged),
    "linear": Row(_linear, unmerged),
    **{kind: Row(_matmul) for kind in ("bmm", "matmul", "mm")},
    **{kind: Row(_recurrent) for kind in ("gru", "lstm", "rnn_relu", "rnn_tanh")},
}
