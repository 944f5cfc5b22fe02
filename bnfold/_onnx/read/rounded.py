"""Operators of ONNX that multiply integers which are rounded at run time, each as its record."""

from __future__ import annotations

from itertools import dropwhile

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from bnfold._core.operators.crossed import Crossed
from bnfold._core.operators.quantized import Dequantization, Quantization, Rescaling
from bnfold._core.operators.record import UNKNOWN, Operand, Operator, Row
from bnfold._core.pointwise import Quantizing
from bnfold._core.quantized import Grid, Quantized
from bnfold._core.reasons import Reason, Refusal
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.quantized import grid_of, is_weight
from bnfold._onnx.read.scopes import DEQUANTIZERS, QUANTIZERS, Scope, label, type_of
from bnfold._system.records import record

_CONV, _MATMUL = _SUMS = ("ConvInteger", "MatMulInteger")
_EIGHT_BITS = (0, TensorProto.INT8, TensorProto.UINT8)
# What may be folded into a linear operator, or is left out ahead of a quantizer.
_AHEAD_OF_QUANTIZER = {
    "Add",
    "BatchNormalization",
    "Clip",
    "Div",
    "Dropout",
    "Identity",
    "Mul",
    "Neg",
    "Relu",
    "Sub",
}


def _dequantize(context: Context, node: NodeProto) -> Operator:
    """A DequantizeLinear of an activation, with one scale, or one for each position of its axis."""
    if len(node.input) < 2 or is_weight(context.constants, context.scope, node):
        return UNKNOWN
    scale, zero = context.operand(node, 1), context.operand(node, 2)
    shape = context.shape(node.input[0])
    if not isinstance(scale.value, Constant) or attributes.integer(node, "block_size", 0):
        return UNKNOWN
    held = zero.value if isinstance(zero.value, Constant) else None
    try:
        grid = grid_of(node, context.opset, shape or (), scale.value, held)
    except Refusal:
        return UNKNOWN
    axis = grid.axis
    return Dequantization(
        label=label(node),
        like=shape,
        scale=scale,
        axis=axis,
        rounded=_rounded(context.scope, node),
    )


def integer_gemm(context: Context, node: NodeProto, weight: Operand) -> Reason | None:
    """Why a Gemm may not get a bias of floats, if runtimes run it on the integers of its data and
    its weight. None where they do not.

    onnxruntime does (QGemm), with no bias or one of integers. With a bias of floats it does so only
    where a quantizer follows, for then it rounds the bias itself.
    """
    runs = type_of(node) == "Gemm" and _reads_integers(context, node, weight)
    if not runs or "QuantizeLinear" in _behind(context, node):
        return None
    message = f"with a bias of floats runtimes would not run {label(node)} on its integers any more"
    return Reason("fused-operator", label(node), message)


def integer_product(context: Context, node: NodeProto, weight: Operand) -> Reason | None:
    """Why a product may not lose the scale behind it, if runtimes run it on the integers of its
    data and its weight. None where they do not.

    onnxruntime does so for MatMul and Gemm (MatMulIntegerToFloat, QGemm), but not with a Relu or a
    Clip right behind it, nor a MatMul with an Add, unless a quantizer follows: it makes the two one
    operator of floats.
    """
    if type_of(node) not in ("Gemm", "MatMul"):
        return None
    behind = [kind for kind in _behind(context, node) if kind not in ("Identity", "Dropout")]
    if not _reads_integers(context, node, weight) or "QuantizeLinear" in behind:
        return None
    left = list(dropwhile(lambda kind: kind in ("Div", "Mul", "Neg", "Sub"), behind))
    kind, moved = (left or [""])[0], len(left) < len(behind)
    if kind == "BatchNormalization":
        kind, moved = "Add", True
    joined = ("Clip", "Relu") if type_of(node) == "Gemm" else ("Add", "Clip", "Relu")
    if not moved or kind not in joined:
        return None
    message = f"with {kind} right behind it runtimes would not run {label(node)} on its integers"
    return Reason("fused-operator", label(node), message)


def _reads_integers(context: Context, node: NodeProto, weight: Operand) -> bool:
    """Whether a product reads data and a weight that are integers behind a DequantizeLinear.

    Runtimes multiply integers of 8 bits alone. A type that is not known may have as many.
    """
    scope = context.scope
    writer = scope.writer(node.input[1 - weight.position])
    if weight.quantized is None or scope.kind(writer) not in DEQUANTIZERS:
        return False
    data = context.type(writer.input[0])
    if data not in _EIGHT_BITS or weight.quantized.integers.dtype not in (np.int8, np.uint8):
        return False
    return not is_weight(context.constants, scope, writer)


def _behind(context: Context, node: NodeProto) -> list[str]:
    """The types of the operators behind one, each the only reader of the one before, as far as they
    may be folded or are left out ahead of a quantizer; that quantizer is the last. So is one that
    reads other data, too, unless these are a residual.
    """
    scope, name, found = context.scope, node.output[0], list[str]()
    while name not in scope.outputs and name not in scope.captures:
        readers = scope.readers.get(name, ())
        reader = scope.nodes[readers[0]] if len(readers) == 1 else NodeProto()
        kind = type_of(reader)
        given = [k for k, one in enumerate(reader.input) if one]
        data = [k for k in given if context.constant(reader, k) is None]
        residual = len(data) > 1 and _is_residual(context, name, [reader.input[k] for k in data])
        if kind in QUANTIZERS or (kind in _AHEAD_OF_QUANTIZER and not residual):
            found.append("QuantizeLinear" if kind in QUANTIZERS else kind)
        if kind not in _AHEAD_OF_QUANTIZER or len(data) != 1:
            break
        name = reader.output[0]
    return found


def _is_residual(context: Context, name: str, data: list[str]) -> bool:
    """Whether what is added to a product is more than a bias, so that runtimes add it by itself.

    onnxruntime makes a Gemm of the product of two matrices and whatever is added that Gemm can add.
    Of one with batches it does so for a vector alone.
    """
    shapes = [context.shape(one) for one in data if one != name]
    own = context.shape(name)
    batches = own is not None and len(own) > 2
    return batches and all(shape is not None and len(shape) > 1 for shape in shapes)


@record(frozen=True)
class ScaleProduct:
    """Where dynamic quantization keeps the scale of a weight.

    The Mul at ``position`` multiplies it, its input ``number``, with the scale of what is rounded
    at run time. The Mul of sums and scales reads the sums at input ``data``. ``product`` is the
    operator that sums, ``weight`` its integers.
    """

    position: int
    number: int
    data: int
    scale: Constant
    weight: Constant
    product: NodeProto

    def laid(self, scale: NDArray[np.generic]) -> NDArray[np.generic]:
        """New scales in the shape that the product's output asks for."""
        if scale.ndim != 1 or scale.shape == self.scale.shape or self.product.op_type != _CONV:
            return scale
        return scale.reshape(-1, *(1,) * (len(self.weight.shape) - 2))


def scale_product(context: Context, node: NodeProto) -> ScaleProduct | None:
    """What a Mul multiplies, where it is the last one of a dynamic quantization; else None.

    That is ``Cast(MatMulInteger or ConvInteger)·(x·s)`` with a constant s, and nobody else reads
    what is in between.
    """
    if len(node.input) != 2 or context.opset < 10:
        return None
    for data in (0, 1):
        position = _only(context, node.input[1 - data], "Mul")
        cast = _only(context, node.input[data], "Cast")
        nodes = context.scope.nodes
        summed = _only(context, nodes[cast].input[0], *_SUMS) if cast is not None else None
        if position is None or cast is None or summed is None:
            continue
        scales, product = nodes[position], nodes[summed]
        found = [context.operand(scales, number).value for number in range(len(scales.input))]
        fixed = [(n, one) for n, one in enumerate(found) if isinstance(one, Constant)]
        weight = context.constant(product, 1)
        if len(fixed) != 1 or weight is None or len(weight.shape) < 2:
            continue
        ((number, scale),) = fixed
        if scale.data_type != attributes.integer(nodes[cast], "to", 0):
            continue
        return ScaleProduct(position, number, data, scale, weight, product)
    return None


def _only(context: Context, name: str, *kinds: str) -> int | None:
    """The position of the operator of some type that writes a tensor for one reader alone."""
    scope = context.scope
    if type_of(scope.writer(name)) not in kinds or not scope.is_read_once(name):
        return None
    return scope.producers[name]


def rescaling(context: Context, node: NodeProto) -> Operator | None:
    """The Mul at the end of a dynamic quantization; None for any other."""
    found = scale_product(context, node)
    if found is None:
        return None
    shape, rank = found.scale.shape, len(found.weight.shape)
    convolves = found.product.op_type == _CONV
    own = 0 if convolves else rank - 1
    size = found.weight.shape[own]
    sums, scales = (context.shape(node.input[k]) for k in (found.data, 1 - found.data))
    if not convolves and rank != 2:
        return None
    wide = (size, *(1,) * (rank - 2)) if convolves else (size,)
    if shape in ((), (1,)):
        grid = Grid()
    elif shape == wide or (1,) * (len(shape) - len(wide)) + wide == shape:
        grid = Grid(own)
    else:
        return None
    axis = like = None
    # Scales of a higher rank than the sums would move their axes, larger ones repeat them.
    if sums is not None and scales is not None and len(scales) <= len(sums):
        axis = 1 if convolves else len(sums) - 1
        pairs = zip(reversed(scales), reversed(sums), strict=False)
        like = sums if all(n == 1 or (n == m and n is not None) for n, m in pairs) else None
    quantized = Quantized(
        found.weight, found.scale, None, grid, tuple(range(rank)), True, multiplies=True
    )
    return Rescaling(
        label=label(node),
        data=(found.data,),
        like=like,
        weight=found.weight,
        quantized=quantized,
        axis=axis,
        own=own,
    )


def _quantize(context: Context, node: NodeProto) -> Operator:
    """A quantizer of data. One with one constant scale, not block by block, takes a scale in."""
    if not node.input or context.constant(node, 0) is not None:
        return UNKNOWN
    message = f"{label(node)} rounds it to integers, and no map passes that exactly"
    rounded = Reason("quantizer-between", label(node), message)
    scale = context.constant(node, 1) if node.op_type == "QuantizeLinear" else None
    if (
        scale is None
        or scale.protected is not None
        or not scale.is_float
        or scale.shape not in ((), (1,))
        or attributes.integer(node, "block_size", 0)
    ):
        return Quantization(label=label(node), rounded=rounded)
    law = Quantizing(float(scale.load().reshape(-1)[0]), rounded)
    return Crossed(label=label(node), law=law, numbers={"scale": 1}, dtype=scale.dtype)


def _rounded(scope: Scope, node: NodeProto) -> Reason:
    """Who rounds the integers that a DequantizeLinear reads, and why maps do not pass that."""
    where, name = label(node), node.input[0]
    writer = scope.producers.get(name)
    if writer is None:
        message = f"{where} reads {name}, integers from outside: its scale takes in one number > 0"
        return Reason("quantizer-between", where, message)
    quantizer = scope.nodes[writer]
    source = scope.producers.get(quantizer.input[0]) if quantizer.input else None
    what = "puts out integers"
    if quantizer.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        read = f"what {label(scope.nodes[source])} puts out" if source is not None else "its input"
        what = f"rounds {read} to integers"
    elif quantizer.op_type.startswith("Q"):
        what = "rounds what it computes to integers"
    message = f"{label(quantizer)} {what}, and no map passes that exactly"
    return Reason("quantizer-between", label(quantizer), message)


ROWS: dict[str, OnnxRow] = {
    **dict.fromkeys(DEQUANTIZERS, Row(_dequantize)),
    **dict.fromkeys(("DynamicQuantizeLinear", *QUANTIZERS), Row(_quantize)),
}
