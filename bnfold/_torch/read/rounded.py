"""Data that are rounded to integers at every call, and those that become floats again."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from bnfold._core.operators.quantized import Quantization
from bnfold._core.operators.record import UNKNOWN, Operator, Row, Unweighted
from bnfold._core.reasons import Reason
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.crossed import data_name
from bnfold._torch.read.nodes import kind_of, places
from bnfold._torch.read.quantized import DEQUANTIZERS, FAKE, QUANTIZERS

SPACES = ("quantized_decomposed", "torchao")
"""Where operators that quantize are, beside PyTorch's own."""


def _rounds(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """Data that are rounded to integers, or integers that become floats again."""
    if context.is_constant(node):
        return UNKNOWN
    where, data = context.label(node), places(node)[data_name(args)]
    message = f"{where} rounds it to integers, and no map passes that exactly"
    if kind_of(node).startswith("dequantize"):
        message = f"{where} reads integers, and no map passes that exactly"
    rounded = Reason("quantizer-between", where, message)
    if kind_of(node) in QUANTIZERS.split():
        return Quantization(label=where, data=data, rounded=rounded)
    return Unweighted(label=where, data=data, reason=rounded)


_OTHERS = (
    "_fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams dequantize dequantize_per_token "
    "fake_quant_per_channel fused_moving_avg_obs_fake_quant quantize_per_token"
)
ROWS: dict[str, TorchRow] = dict.fromkeys(
    " ".join((DEQUANTIZERS, QUANTIZERS, FAKE, _OTHERS)).split(), Row(_rounds)
)
