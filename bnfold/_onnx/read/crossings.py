"""ONNX operators that affine maps cross, each translated into the law it obeys.

What decides is read from attributes, constants and known shapes; an operator of which one of these
is missing gets the part of its law that does not need it, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold._core.index_maps import AxisGroup, Permuted, Regrouped, Size, regrouped
from bnfold._core.joins import Aligned, Concatenated, Gated, Multiplied, Picked, Summed
from bnfold._core.laws import UNCOUNTED, Clipped, Homogeneous, Law, Mixed, Padded, Rearranged
from bnfold._core.view import Crossing
from bnfold._onnx.read import attributes, paddings
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context

_MANY = 1 << 22


def crossing(context: Context, node: NodeProto) -> Crossing | None:
    """How maps cross a node, None where no law is known."""
    reader = _READERS.get(node.op_type)
    found = reader(context, node) if reader is not None else None
    return found if found is None or isinstance(found, Crossing) else Crossing(found)


def keeps_shape(node: NodeProto) -> bool:
    """Whether a crossed operator's output has the shape of its input."""
    return node.op_type in ("Abs", "Clip", "LeakyRelu", "Relu")


def of_two(context: Context, node: NodeProto) -> Crossing | None:
    """Add, Sub, Mul and Div of two tensors that are no constants."""
    aligned = _aligned(context, node)
    if node.op_type in ("Add", "Sub"):
        if context.opset < 7:
            return None
        return Crossing(Summed((1, 1 if node.op_type == "Add" else -1), aligned), (0, 1))
    if node.op_type in ("Mul", "Div") and context.opset >= 7:
        return Crossing(Gated(aligned, node.op_type == "Div"), (0, 1))
    return None


def product(context: Context, node: NodeProto) -> Crossing:
    """MatMul of two tensors that are no constants."""
    shapes = [context.shape(name) for name in node.input[:2]]
    ranks = [len(shape) for shape in shapes if shape is not None]
    law = Multiplied((ranks[0], ranks[1]) if len(ranks) == 2 else None, _is_narrow(context, node))
    return Crossing(law, (0, 1))


def _is_narrow(context: Context, node: NodeProto) -> bool:
    """Whether sums of many numbers may leave the range of a type that holds each of them."""
    return context.type(node.input[0]) in (0, TensorProto.FLOAT16)


def _homogeneous(context: Context, node: NodeProto) -> Law:
    return Homogeneous(node.op_type == "Abs")


def _clip(context: Context, node: NodeProto) -> Law | Crossing | None:
    if context.opset < 11:
        low, high = (
            attributes.number(node, name, math.nan) if attributes.has(node, name) else None
            for name in ("min", "max")
        )
        return Clipped(low, high)
    bounds: list[float | None] = []
    movable, dtype = True, np.dtype(np.float32)
    for position in (1, 2):
        found = context.constant(node, position)
        if found is None:
            bounds.append(None)
            continue
        if not isinstance(found, Constant) or math.prod(found.shape) != 1 or not found.is_float:
            return None
        bounds.append(float(found.load().reshape(-1)[0]))
        dtype = found.dtype
        movable = movable and found.protected is None
    law = Clipped(bounds[0], bounds[1], movable)
    return Crossing(law, dtype=dtype, numbers={"min": 1, "max": 2})


def _max_pool(context: Context, node: NodeProto) -> Law | None:
    if len(node.output) > 1 and node.output[1]:
        return None
    return Mixed(_CHANNELS, 1.0, positive=True) if _windows_full(context, node) else None


def _average_pool(context: Context, node: NodeProto) -> Law | None:
    if not _windows_full(context, node):
        return None
    counted = bool(attributes.integer(node, "count_include_pad", 0))
    kernel = tuple(attributes.integers(node, "kernel_shape") or ())
    uneven = paddings.is_padded(context, node, kernel) or _ceils(node)
    return Mixed(_CHANNELS, None if counted and uneven else 1.0)


def _windows_full(context: Context, node: NodeProto) -> bool:
    """Whether every window of a pool holds an element of its input for certain.

    With ``ceil_mode`` the last one begins inside only where no stride leaps over a whole window.
    """
    kernel = attributes.integers(node, "kernel_shape")
    if kernel is None:
        return False
    if not paddings.is_padded(context, node, tuple(kernel)):
        strides = attributes.integers(node, "strides") or []
        leaps = any(stride > k for stride, k in zip(strides, kernel, strict=False))
        return not (_ceils(node) and leaps)
    if _ceils(node) or any(d != 1 for d in attributes.integers(node, "dilations") or ()):
        return False
    pads = attributes.integers(node, "pads") or []
    return all(pad < k for pad, k in zip(pads, [*kernel, *kernel], strict=False))


def _ceils(node: NodeProto) -> bool:
    return bool(attributes.integer(node, "ceil_mode", 0))


def _global_pool(context: Context, node: NodeProto) -> Law:
    return Mixed(_CHANNELS, 1.0, positive=node.op_type == "GlobalMaxPool")


def _reduce(context: Context, node: NodeProto) -> Law | None:
    """ReduceMean, ReduceMax, ReduceMin (weight 1), ReduceSum (the number of elements)."""
    listed = _axes(context, node)
    if listed is _UNKNOWN:
        return None
    shape = context.shape(node.input[0])
    if not listed:
        if attributes.integer(node, "noop_with_empty_axes", 0):
            return None
        listed = list(range(len(shape))) if shape is not None else None
    extreme = node.op_type in ("ReduceMax", "ReduceMin")
    narrow = node.op_type == "ReduceSum" and _is_narrow(context, node)
    if shape is None or listed is None:
        weight = None if node.op_type == "ReduceSum" else 1.0
        return Mixed(None, weight, extreme, narrow, UNCOUNTED)
    assert isinstance(listed, list)
    rank = len(shape)
    axes = {axis % rank for axis in listed if -rank <= axis < rank}
    kept = [axis for axis in range(rank) if axis not in axes]
    if attributes.integer(node, "keepdims", 1):
        places = {axis: axis for axis in kept}
    else:
        places = {axis: place for place, axis in enumerate(kept)}
    weight = 1.0
    if node.op_type == "ReduceSum":
        sizes = [shape[axis] for axis in axes]
        known = [size for size in sizes if size is not None]
        weight = float(math.prod(known)) if len(known) == len(sizes) else None
        if weight == 0:
            return None
    return Mixed(places, weight, extreme, narrow, UNCOUNTED)


def _axes(context: Context, node: NodeProto) -> list[int] | object | None:
    """The axes of a reduction, Squeeze or Unsqueeze: None if absent, `_UNKNOWN` if not constant."""
    attribute = attributes.integers(node, "axes")
    if attribute is not None:
        return attribute
    return _listed(context, node, 1)


def _listed(context: Context, node: NodeProto, position: int) -> list[int] | object | None:
    """The integers of a constant input: None if absent, `_UNKNOWN` if not constant."""
    found = context.constant(node, position)
    if found is None:
        return None
    if not isinstance(found, Constant) or found.protected is not None or len(found.shape) > 1:
        return _UNKNOWN
    return [int(value) for value in found.load().reshape(-1)]


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
    if not plain or weight is None:
        return Mixed(None, weight)
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
    if not isinstance(found, Constant) or found.protected is not None or not found.shape:
        return None
    values = [float(value) for value in found.load().reshape(-1)]
    return values or None


def _pad(context: Context, node: NodeProto) -> Law | Crossing | None:
    shape = context.shape(node.input[0])
    pads, padded = _pads(context, node), None
    if isinstance(pads, list) and shape is not None:
        padded = _padded_axes(context, node, pads, len(shape))
    mode = attributes.text(node, "mode", "constant")
    if mode in ("reflect", "edge", "wrap"):
        if padded is None:
            return Mixed(None, 1.0)
        rank = len(shape) if shape is not None else 0
        return Mixed({axis: axis for axis in range(rank) if axis not in padded}, 1.0)
    if mode != "constant":
        return None
    if context.opset < 11:
        return Padded(attributes.number(node, "value", 0.0), padded)
    found = context.constant(node, 2)
    if found is None:
        return Crossing(Padded(0.0, padded, movable=_is_float(context, node)), numbers={"value": 2})
    if not isinstance(found, Constant) or math.prod(found.shape) != 1:
        return None
    value = float(found.load().reshape(-1)[0])
    law = Padded(value, padded, movable=found.protected is None and found.is_float)
    return Crossing(law, dtype=found.dtype if found.is_float else None, numbers={"value": 2})


def _is_float(context: Context, node: NodeProto) -> bool:
    return context.type(node.input[0]) == 1


def _pads(context: Context, node: NodeProto) -> list[int] | object | None:
    attribute = attributes.integers(node, "pads")
    return attribute if attribute is not None else _listed(context, node, 1)


def _padded_axes(
    context: Context, node: NodeProto, pads: list[int], rank: int
) -> frozenset[int] | None:
    listed = _listed(context, node, 3)
    if listed is _UNKNOWN:
        return None
    axes = list(range(rank)) if listed is None else listed
    assert isinstance(axes, list)
    if len(pads) != 2 * len(axes):
        return None
    half = len(axes)
    return frozenset(axis % rank for k, axis in enumerate(axes) if pads[k] or pads[half + k])


def _transpose(context: Context, node: NodeProto) -> Law:
    order = attributes.integers(node, "perm")
    if order is None:
        shape = context.shape(node.input[0])
        order = list(range(len(shape)))[::-1] if shape is not None else None
    return Rearranged(None if order is None else (Permuted(tuple(order)),))


def _reshape(context: Context, node: NodeProto) -> Law:
    """The index map of a Reshape: what it copies (0) or asks for, next to what it reads."""
    before = _sizes(context, node.input[0])
    after = context.sizes(node.output[0])
    listed = attributes.integers(node, "shape") or _listed(context, node, 1)
    if before is None:
        return Rearranged(None)
    if isinstance(listed, list):
        copies = not attributes.integer(node, "allowzero", 0)
        known = after if after is not None and len(after) == len(listed) else [None] * len(listed)
        after = []
        for axis, size in enumerate(listed):
            if size == 0 and copies:
                after.append(before[axis] if axis < len(before) else None)
            else:
                after.append(size if size > 0 else known[axis])
    return Rearranged(None if after is None else (regrouped(before, after),))


def _flatten(context: Context, node: NodeProto) -> Law:
    before = _sizes(context, node.input[0])
    if before is None:
        return Rearranged(None)
    axis = attributes.integer(node, "axis", 1)
    axis += len(before) if axis < 0 else 0
    return Rearranged((regrouped(before, [_joined(before[:axis]), _joined(before[axis:])]),))


def _joined(sizes: Sequence[Size]) -> Size:
    """The size of several axes as one."""
    if len(sizes) == 1:
        return sizes[0]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _squeeze(context: Context, node: NodeProto) -> Law:
    before, axes = _sizes(context, node.input[0]), _axes(context, node)
    if before is None or axes is _UNKNOWN:
        return Rearranged(None)
    if axes is None:
        if not all(isinstance(size, int) for size in before):
            return Rearranged(None)
        axes = [axis for axis, size in enumerate(before) if size == 1]
    assert isinstance(axes, list)
    gone = {axis % len(before) for axis in axes} if before else set()
    inside: list[Size] = [1 if axis in gone else size for axis, size in enumerate(before)]
    outside = [size for axis, size in enumerate(before) if axis not in gone]
    return Rearranged((regrouped(inside, outside),))


def _unsqueeze(context: Context, node: NodeProto) -> Law:
    before, axes = _sizes(context, node.input[0]), _axes(context, node)
    if before is None or not isinstance(axes, list):
        return Rearranged(None)
    rank = len(before) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(before)
    outside: list[Size] = [1 if axis in new else next(rest) for axis in range(rank)]
    return Rearranged((regrouped(before, outside),))


def _depth_to_space(context: Context, node: NodeProto) -> Law:
    """``[N, C, H, W]`` to ``[N, C/b², H·b, W·b]``; in mode DCR channel c holds block ``c div
    (C/b²)`` of channel ``c mod (C/b²)``, in mode CRD the other way round (ONNX DepthToSpace).
    """
    shape, block = context.shape(node.input[0]), attributes.integer(node, "blocksize", 0)
    if shape is None or len(shape) != 4 or shape[1] is None or not block:
        return Rearranged(None)
    rest = shape[1] // (block * block)
    first_blocks = attributes.text(node, "mode", "DCR") == "DCR"
    split: tuple[Size, ...] = (block, block, rest) if first_blocks else (rest, block, block)
    order = (0, 3, 4, 1, 5, 2) if first_blocks else (0, 1, 4, 2, 5, 3)
    inside = Regrouped((_one, AxisGroup((shape[1],), split), _one, _one))
    outside = Regrouped((_one, _one, _merge(block), _merge(block)))
    return Rearranged((inside, Permuted(order), outside))


def _space_to_depth(context: Context, node: NodeProto) -> Law:
    """``[N, C, H, W]`` to ``[N, C·b², H/b, W/b]``, the blocks ahead of the channels."""
    shape, block = context.shape(node.input[0]), attributes.integer(node, "blocksize", 0)
    if shape is None or len(shape) != 4 or shape[1] is None or not block:
        return Rearranged(None)
    apart = AxisGroup((None,), (None, block))
    inside = Regrouped((_one, _one, apart, apart))
    together = AxisGroup((block, block, shape[1]), (block * block * shape[1],))
    return Rearranged(
        (inside, Permuted((0, 3, 5, 1, 2, 4)), Regrouped((_one, together, _one, _one)))
    )


_one = AxisGroup((None,), (None,))


def _merge(block: int) -> AxisGroup:
    return AxisGroup((None, block), (None,))


def _expand(context: Context, node: NodeProto) -> Law:
    """Elements are repeated along axes of size 1; along the others every one keeps its place."""
    before, after = context.shape(node.input[0]), context.shape(node.output[0])
    if before is None or after is None or len(after) < len(before):
        return Mixed(None, 1.0)
    offset = len(after) - len(before)
    kept = {k: k + offset for k, n in enumerate(before) if n is not None and n == after[k + offset]}
    return Mixed(kept, 1.0)


def _concat(context: Context, node: NodeProto) -> Crossing | None:
    shapes = [context.shape(name) for name in node.input]
    rank = next((len(shape) for shape in shapes if shape is not None), None)
    axis = attributes.integer(node, "axis", 1)
    if rank is None:
        return None
    axis += rank if axis < 0 else 0
    sizes = tuple(
        shape[axis] if shape is not None and axis < len(shape) else None for shape in shapes
    )
    return Crossing(Concatenated(axis, sizes), tuple(range(len(sizes))))


def _split(context: Context, node: NodeProto) -> Law | None:
    shape = context.shape(node.input[0])
    if shape is None or not all(node.output):
        return None
    axis = attributes.integer(node, "axis", 0)
    axis += len(shape) if axis < 0 else 0
    size = shape[axis]
    sizes: list[int] = []
    for name in node.output:
        out = context.shape(name)
        part = out[axis] if out is not None and axis < len(out) else None
        if part is None:
            return None
        sizes.append(part)
    if size is None or sum(sizes) != size:
        return None
    ends = np.cumsum(sizes)
    return Picked(
        axis,
        size,
        tuple(np.arange(end - part, end) for end, part in zip(ends, sizes, strict=True)),
    )


def _slice(context: Context, node: NodeProto) -> Law | None:
    shape = context.shape(node.input[0])
    if context.opset < 10:
        starts, ends = (attributes.integers(node, name) for name in ("starts", "ends"))
        axes: object = attributes.integers(node, "axes")
        steps: object = None
    else:
        starts, ends, axes, steps = (  # type: ignore[assignment]
            _listed(context, node, position) for position in (1, 2, 3, 4)
        )
    if shape is None or not isinstance(starts, list) or not isinstance(ends, list):
        return None
    if axes is _UNKNOWN or steps is _UNKNOWN:
        return None
    listed = axes if isinstance(axes, list) else list(range(len(starts)))
    strides = steps if isinstance(steps, list) else [1] * len(starts)
    cut = [axis % len(shape) for axis in listed]
    kept = {axis: axis for axis in range(len(shape)) if axis not in cut}
    size = shape[cut[0]] if len(cut) == 1 else None
    if size is None or size > _MANY:
        return Mixed(kept, 1.0)
    return Picked(cut[0], size, (np.arange(size)[_bounds(starts[0], ends[0], strides[0], size)],))


def _bounds(start: int, end: int, step: int, size: int) -> slice:
    """The elements that a Slice takes, its bounds clamped by ONNX's rules."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
    end = min(max(end + size if end < 0 else end, low), high)
    return slice(start, None if end < 0 else end, step)


def _gather(context: Context, node: NodeProto) -> Law | None:
    shape, indices = context.shape(node.input[0]), context.constant(node, 1)
    if shape is None or not shape or isinstance(context.constant(node, 0), Constant):
        return None
    axis = attributes.integer(node, "axis", 0) % len(shape)
    size = shape[axis]
    if isinstance(indices, Constant) and len(indices.shape) < 2 and indices.protected is None:
        places = indices.load().astype(np.intp).reshape(-1)
        if size is not None and size <= _MANY and bool((np.abs(places) <= size).all()):
            return Picked(axis, size, (places % size,), gone=not indices.shape)
    more = context.shape(node.input[1])
    if more is None:
        return Mixed(None, 1.0)
    places_of = {k: k if k < axis else k + len(more) - 1 for k in range(len(shape)) if k != axis}
    return Mixed(places_of, 1.0)


def _sum(context: Context, node: NodeProto) -> Crossing | None:
    if context.opset < 8:
        return None
    count = len(node.input)
    return Crossing(Summed((1,) * count, _aligned(context, node)), tuple(range(count)))


def _aligned(context: Context, node: NodeProto) -> Aligned:
    shapes = tuple(context.shape(name) for name in node.input)
    output = context.shape(node.output[0])
    if output is None and None not in shapes:
        ranks = [len(shape) for shape in shapes if shape is not None]
        output = (None,) * max(ranks)
    return Aligned(shapes, output)


def _sizes(context: Context, name: str) -> list[Size] | None:
    """The sizes of what a node reads; those not known have a word each."""
    sizes = context.sizes(name)
    if sizes is None:
        return None
    return [f"own {axis}" if size is None else size for axis, size in enumerate(sizes)]


_UNKNOWN = object()
_CHANNELS = {0: 0, 1: 1}
_Reader = Callable[[Context, NodeProto], Law | Crossing | None]
_READERS: dict[str, _Reader] = {
    "Abs": _homogeneous,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LeakyRelu": _homogeneous,
    "MaxPool": _max_pool,
    "PRelu": _homogeneous,
    "Pad": _pad,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Relu": _homogeneous,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
