"""ONNX operators that affine maps cross, each translated into a record with the law it obeys.

What decides is read from attributes, constants and known shapes; an operator of which one of these
is missing gets the part of its law that does not need it, or none.
"""

from __future__ import annotations

import math

from onnx import NodeProto, TensorProto

from bnfold._core.joins import Aligned, Blended, Summed
from bnfold._core.laws import OF_NOTHING, UNCOUNTED, Law, Mixed, Padded
from bnfold._core.operators.crossed import Crossed, Pooling, kept_axes
from bnfold._core.operators.matrices import Contraction
from bnfold._core.operators.record import UNKNOWN, Operator, Passing, Row
from bnfold._core.products import Contracted, Gated, Multiplied
from bnfold._core.windows import see_zeros
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow, has, of_one
from bnfold._onnx.read.einsum import axis_names
from bnfold._onnx.read.scopes import label, type_of
from bnfold._onnx.read.types import cast_to, conversion
from bnfold._onnx.read.windows import are_full, windows

_CHANNELS = {0: 0, 1: 1}
# From opset 11 on the value is an input.
_VALUE = {"value": 2}
# The types that add two tensors and subtract them.
_SUMS = "Add", "Sub"


def _identity(context: Context, node: NodeProto) -> Operator:
    name = node.input[0]
    return Passing(label=label(node), like=context.shape(name), tail=context.last.get(name))


def _cast(context: Context, node: NodeProto) -> Operator:
    """Cast and CastLike hand on a tensor that has the type already; a Cast between floating-point
    types has a law of its own.

    Law: the identity, if the type of what it reads is known and is the one that it is cast to.
    """
    wanted = cast_to(node) if node.op_type == "Cast" else context.type(node.input[1])
    read = context.type(node.input[0])
    same = wanted and wanted == read
    if same:
        return _identity(context, node)
    writer = context.scope.writer(node.input[0])
    exact = type_of(writer) == "Cast" and context.type(writer.input[0]) == wanted
    law = conversion(read, wanted, exact) if node.op_type == "Cast" else None
    if law is None:
        return UNKNOWN
    return Crossed(label=label(node), like=context.shape(node.input[0]), law=law)


def _dropout(context: Context, node: NodeProto) -> Operator:
    """Dropout passes its input unchanged in inference.

    Below opset 7 unless ``is_test`` is 0; from opset 7 to 11 always; from opset 12 unless the
    ``training_mode`` input is anything but a constant false (ONNX Dropout).
    """
    if context.opset < 7 and not attributes.integer(node, "is_test", 0):
        return UNKNOWN
    if context.opset >= 12:
        mode = context.given(node, 2)
        if mode is not None and (mode.protected is not None or bool(mode.load().any())):
            return UNKNOWN
    return _identity(context, node)


def sum_of_two(context: Context, node: NodeProto) -> Operator:
    """Add and Sub of two tensors that are no constants."""
    if context.opset < 7:
        return UNKNOWN
    law = Summed((1, 1 if node.op_type == "Add" else -1), aligned(context, node), _SUMS)
    return Crossed(label=label(node), data=(0, 1), law=law)


def gate(context: Context, node: NodeProto) -> Operator:
    """Mul and Div of two tensors that are no constants."""
    if context.opset < 7:
        return UNKNOWN
    law = Gated(aligned(context, node), node.op_type == "Div")
    return Crossed(label=label(node), data=(0, 1), law=law)


def product_of_two(context: Context, node: NodeProto, as_stored: bool = True) -> Operator:
    """MatMul of two tensors that are no constants. Unless they are multiplied ``as_stored``, which
    axis is which is not said, and a map has to be uniform.
    """
    shapes = [context.shape(name) for name in node.input[:2]]
    ranks = [len(shape) for shape in shapes if shape is not None and as_stored]
    law = Multiplied((ranks[0], ranks[1]) if len(ranks) == 2 else None, _is_narrow(context, node))
    return Crossed(label=label(node), data=(0, 1), law=law)


def _einsum(context: Context, node: NodeProto) -> Operator:
    """Einsum of tensors, some of which may be constants. One constant of two takes maps in."""
    weights = [context.operand(node, k) for k in range(len(node.input))]
    found = [one for one in weights if one.value is not None and one.unmerged is None]
    if len(weights) == 2 and len(found) == 1:
        (weight,) = found
        equation = attributes.text(node, "equation", "")
        names = axis_names(equation, weight.position)
        rank = len(weight.value.shape) if weight.value is not None else 0
        if rank and (names is None or len(names[0]) == rank):
            other = (1 - weight.position,)
            return Contraction(label=label(node), data=other, weight=weight, names=names)
    data = tuple(k for k in range(len(node.input)) if context.constant(node, k) is None)
    if not data:
        return UNKNOWN
    law = Contracted(len(data), _is_narrow(context, node))
    return Crossed(label=label(node), data=data, law=law)


def _is_narrow(context: Context, node: NodeProto) -> bool:
    """Whether sums of many numbers may leave the range of a type that holds each of them."""
    return context.type(node.input[0]) in (0, TensorProto.FLOAT16)


def _pool(context: Context, node: NodeProto) -> Operator:
    """MaxPool, of which nobody reads the indices, and AveragePool."""
    kernel = attributes.integers(node, "kernel_shape")
    if not kernel or any(node.output[1:]):
        return UNKNOWN
    found = windows(context, node, kernel)
    ceils = bool(attributes.integer(node, "ceil_mode", 0))
    return Pooling(
        label=label(node),
        mean=node.op_type == "AveragePool",
        kept=len(_CHANNELS),
        windows=found,
        padded=see_zeros(found),
        counted=bool(attributes.integer(node, "count_include_pad", 0)),
        ceils="ceil_mode = 1" if ceils else "",
        full=are_full(node, found, ceils),
    )


def _global_pool(context: Context, node: NodeProto) -> Law:
    return Mixed(_CHANNELS, 1.0, positive=node.op_type == "GlobalMaxPool")


def _reduce(context: Context, node: NodeProto) -> Law | None:
    """ReduceMean, ReduceMax, ReduceMin (weight 1), ReduceSum (the number of elements).

    ONNX does not say what the mean of no elements is. onnxruntime has 0, which no shift moves, so
    none crosses a mean where there is a sign that it is one of nothing.
    """
    listed = attributes.integers(node, "axes")
    if listed is None:
        listed = context.integers(node, 1)
        if listed is None and has(node, 1):
            return None
    shape = context.shape(node.input[0])
    if not listed:
        if attributes.integer(node, "noop_with_empty_axes", 0):
            return None
        listed = list(range(len(shape))) if shape is not None else None
    extreme = node.op_type in ("ReduceMax", "ReduceMin")
    narrow = node.op_type == "ReduceSum" and _is_narrow(context, node)
    is_mean = node.op_type == "ReduceMean"
    of_nothing = is_mean and context.shapes.may_be_empty(context.scope, node.input[0])
    uneven = OF_NOTHING if is_mean else UNCOUNTED
    if shape is None or listed is None:
        weight = None if node.op_type == "ReduceSum" or of_nothing else 1.0
        return Mixed(None, weight, extreme, narrow, uneven)
    rank = len(shape)
    axes = {axis % rank for axis in listed if -rank <= axis < rank}
    places = kept_axes(rank, axes, bool(attributes.integer(node, "keepdims", 1)))
    weight = None if of_nothing else 1.0
    if node.op_type == "ReduceSum":
        sizes = [shape[axis] for axis in axes]
        known = [size for size in sizes if size is not None]
        weight = float(math.prod(known)) if len(known) == len(sizes) else None
        if weight == 0:
            return None
    return Mixed(places, weight, extreme, narrow, uneven)


def _resize(context: Context, node: NodeProto) -> Law | None:
    """Interpolation: weights that add up to 1, along the axes whose size changes.

    An axis is left alone where its scale is exactly 1, or where a size is asked for and equals the
    one it has. Of a crop with extrapolation only the scale passes, its value being 0.
    """
    weight: float | None = 1.0
    if attributes.text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        if attributes.number(node, "extrapolation_value", 0.0) != 0:
            return None
        weight = None
    plain = (
        not attributes.has(node, "axes")
        and attributes.text(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    )
    if not plain or weight is None:  # No axis is said to be left alone, whatever the sizes.
        return Mixed({}, weight)
    scales = _scales(context, node)
    if scales is not None:
        return Mixed({k: k for k, scale in enumerate(scales) if scale == 1.0}, weight)
    before, after = context.shape(node.input[0]), context.shape(node.output[0])
    sized = node.op_type == "Resize" and len(node.input) > 3 and bool(node.input[3])
    if before is None or after is None or len(before) != len(after) or not sized:
        return Mixed(None, weight)
    same = {k: k for k, n in enumerate(before) if n is not None and n == after[k]}
    return Mixed(same, weight)


def _scales(context: Context, node: NodeProto) -> list[float] | None:
    attribute = attributes.numbers(node, "scales")
    if attribute is not None:
        return attribute
    position = 2 if node.op_type == "Resize" and context.opset >= 11 else 1
    found = context.constant(node, position)
    if found is None or found.protected is not None or not found.shape:
        return None
    values = [float(value) for value in found.load().reshape(-1)]
    return values or None


def _pad(context: Context, node: NodeProto) -> Operator:
    """Pad. Where no pad is positive it only cuts off, and no value shows."""
    shape = context.shape(node.input[0])
    pads, padded = _pads(context, node), None
    if pads is not None and shape is not None:
        padded = _padded_axes(context, node, pads, len(shape))
    mode = attributes.text(node, "mode", "constant")
    where = label(node)
    cuts = bool(pads) and min(pads or ()) < 0 and max(pads or ()) <= 0
    if mode in ("reflect", "edge", "wrap") or (mode == "constant" and cuts):
        if padded is None:
            return Crossed(label=where, law=Mixed(None, 1.0))
        kept = kept_axes(len(shape or ()), padded, keepdims=True)
        return Crossed(label=where, law=Mixed(kept, 1.0))
    if mode != "constant":
        return UNKNOWN
    if context.opset < 11:
        law = Padded(attributes.number(node, "value", 0.0), padded)
        return Crossed(label=where, law=law)
    found = context.given(node, 2)
    if found is None:
        law = Padded(0.0, padded, movable=context.type(node.input[0]) == TensorProto.FLOAT)
        return Crossed(label=where, law=law, numbers=_VALUE)
    if math.prod(found.shape) != 1:
        return UNKNOWN
    value = float(found.load().reshape(-1)[0])
    law = Padded(value, padded, movable=found.protected is None and found.is_float)
    dtype = found.dtype if found.is_float else None
    return Crossed(label=where, law=law, numbers=_VALUE, dtype=dtype)


def _pads(context: Context, node: NodeProto) -> list[int] | None:
    attribute = attributes.integers(node, "pads")
    return attribute if attribute is not None else context.integers(node, 1)


def _padded_axes(
    context: Context, node: NodeProto, pads: list[int], rank: int
) -> frozenset[int] | None:
    axes = context.integers(node, 3) if has(node, 3) else list(range(rank))
    if axes is None or len(pads) != 2 * len(axes):
        return None
    half = len(axes)
    return frozenset(axis % rank for k, axis in enumerate(axes) if pads[k] or pads[half + k])


def _sum(context: Context, node: NodeProto) -> Operator:
    if context.opset < 7:
        return UNKNOWN
    count = len(node.input)
    law = Summed((1,) * count, aligned(context, node), _SUMS if count == 2 else None)
    return Crossed(label=label(node), data=tuple(range(count)), law=law)


def blended(context: Context, node: NodeProto, ordered: bool) -> Operator:
    """Max, Min or Mean of branches. Below opset 8 nothing broadcasts, and no map passes."""
    if context.opset < 8:
        return UNKNOWN
    law = Blended(aligned(context, node), ordered)
    return Crossed(label=label(node), data=tuple(range(len(node.input))), law=law)


def _mean(context: Context, node: NodeProto) -> Operator:
    return blended(context, node, ordered=False)


def aligned(context: Context, node: NodeProto) -> Aligned:
    """How the inputs of an operator broadcast to what it puts out."""
    shapes = tuple(context.shape(name) for name in node.input)
    output = context.shape(node.output[0])
    if output is None and None not in shapes:
        ranks = [len(shape) for shape in shapes if shape is not None]
        output = (None,) * max(ranks)
    return Aligned(shapes, output)


ROWS: dict[str, OnnxRow] = {
    "AveragePool": Row(_pool),
    "Cast": Row(_cast),
    "CastLike": Row(_cast),
    "Dropout": Row(_dropout),
    "Einsum": Row(_einsum),
    "GlobalAveragePool": of_one(_global_pool),
    "GlobalMaxPool": of_one(_global_pool),
    "Identity": Row(_identity),
    "MaxPool": Row(_pool),
    "Mean": Row(_mean),
    "Pad": Row(_pad),
    "ReduceMax": of_one(_reduce),
    "ReduceMean": of_one(_reduce),
    "ReduceMin": of_one(_reduce),
    "ReduceSum": of_one(_reduce),
    "Resize": of_one(_resize),
    "Sum": Row(_sum),
    "Upsample": of_one(_resize),
}
