"""ONNX operators that rearrange, join or pick elements, each translated into its record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from bnfold._core import index_maps
from bnfold._core.index_maps import IndexMap, Permuted, Size, regrouped
from bnfold._core.laws import Law, Mixed, Rearranged
from bnfold._core.operators.crossed import MANY, Crossed, kept_axes, parts
from bnfold._core.operators.record import UNKNOWN, Operator, Row
from bnfold._core.parts import Concatenated, Parted, Picked
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow, has, of_one
from bnfold._onnx.read.moved import ENDLESS
from bnfold._onnx.read.scopes import label


def _transpose(context: Context, node: NodeProto) -> Law:
    """The order of the axes; not known where there are others than those of the data."""
    order, shape = attributes.integers(node, "perm"), context.shape(node.input[0])
    if order is None:
        order = list(range(len(shape)))[::-1] if shape is not None else None
    elif shape is not None and sorted(order) != list(range(len(shape))):
        order = None
    return Rearranged(None if order is None else (Permuted(tuple(order)),))


def _reshape(context: Context, node: NodeProto) -> Law:
    """The index map of a Reshape, from the sizes of its input and its target; 0 copies a size."""
    before = _sizes(context, node.input[0])
    after = context.sizes(node.output[0])
    listed = attributes.integers(node, "shape") or context.integers(node, 1)
    if before is None:
        return Rearranged(None)
    if listed is not None:
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
    if before is None:
        return Rearranged(None)
    if axes is None:
        if has(node, 1) or not all(isinstance(size, int) for size in before):
            return Rearranged(None)
        axes = [axis for axis, size in enumerate(before) if size == 1]
    gone = {axis % len(before) for axis in axes} if before else set()
    inside: list[Size] = [1 if axis in gone else size for axis, size in enumerate(before)]
    outside = [size for axis, size in enumerate(before) if axis not in gone]
    return Rearranged((regrouped(inside, outside),))


def _unsqueeze(context: Context, node: NodeProto) -> Law:
    before, axes = _sizes(context, node.input[0]), _axes(context, node)
    if before is None or axes is None:
        return Rearranged(None)
    rank = len(before) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(before)
    outside: list[Size] = [1 if axis in new else next(rest) for axis in range(rank)]
    return Rearranged((regrouped(before, outside),))


def _between_depth_and_space(context: Context, node: NodeProto) -> Law:
    """DepthToSpace, and SpaceToDepth, which puts the blocks ahead of the channels."""
    shape, block = context.shape(node.input[0]), attributes.integer(node, "blocksize", 0)
    if shape is None or len(shape) != 4 or shape[1] is None or not block:
        return Rearranged(None)
    found: IndexMap
    if node.op_type == "SpaceToDepth":
        found = index_maps.space_to_depth(1, shape[1], block, blocks_first=True)
    else:
        blocks_first = attributes.text(node, "mode", "DCR") == "DCR"
        found = index_maps.depth_to_space(1, shape[1], block, blocks_first=blocks_first)
    return Rearranged(found)


def _expand(context: Context, node: NodeProto) -> Law:
    """Expand and Tile repeat elements along some axes. Along those whose size is the same ahead and
    behind, elements keep their places.

    A Tile of opset 1 says how often and along which axis with two inputs more, in the same way.
    """
    before, after = context.shape(node.input[0]), context.shape(node.output[0])
    if before is None or after is None or len(after) < len(before):
        return Mixed(None, 1.0)
    offset = len(after) - len(before)
    kept = {k: k + offset for k, n in enumerate(before) if n is not None and n == after[k + offset]}
    return Mixed(kept, 1.0)


def _concat(context: Context, node: NodeProto) -> Operator:
    shapes = [context.shape(name) for name in node.input]
    rank = next((len(shape) for shape in shapes if shape is not None), None)
    axis = attributes.integer(node, "axis", 1)
    if rank is None:
        return UNKNOWN
    axis += rank if axis < 0 else 0
    if not 0 <= axis < rank:
        return UNKNOWN
    sizes = tuple(context.size(name, axis) for name in node.input)
    data = tuple(range(len(sizes)))
    return Crossed(label=label(node), data=data, law=Concatenated(axis, sizes))


def _split(context: Context, node: NodeProto) -> Law | None:
    shape = context.shape(node.input[0])
    if shape is None or not all(node.output):
        return None
    axis = attributes.integer(node, "axis", 0)
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis < len(shape):
        return None
    known = [context.size(name, axis) for name in node.output]
    sizes = [part for part in known if part is not None]
    if len(sizes) < len(known):
        return Parted(axis, len(known))
    size = sum(sizes)  # As ONNX asks for, where that of the whole is not known.
    return Picked(axis, size, parts(sizes)) if shape[axis] in (None, size) else None


def _slice(context: Context, node: NodeProto) -> Law | None:
    """Slice. Of a step backwards to an end that says "to the end" ONNX takes nothing, and
    onnxruntime all that is ahead: only what does not vary along the axis crosses that.
    """
    shape = context.shape(node.input[0])
    if context.opset < 10:
        starts, ends, axes = (attributes.integers(node, n) for n in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (context.integers(node, k) for k in (1, 2, 3, 4))
        if any(has(node, k) and found is None for k, found in ((3, axes), (4, steps))):
            return None
    if shape is None or starts is None or ends is None:
        return None
    cut = [axis % len(shape) for axis in (range(len(starts)) if axes is None else axes)]
    size = shape[cut[0]] if len(cut) == 1 else None
    if size is None or size > MANY:
        return Mixed(kept_axes(len(shape), cut, keepdims=True), 1.0)
    step = steps[0] if steps is not None else 1
    if step < 0 and ends[0] in ENDLESS:
        return Mixed(kept_axes(len(shape), cut, keepdims=True), 1.0)
    return Picked(cut[0], size, (np.arange(size)[_bounds(starts[0], ends[0], step, size)],))


def _bounds(start: int, end: int, step: int, size: int) -> slice:
    """The elements that a Slice takes, its bounds clamped by ONNX's rules."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
    end = min(max(end + size if end < 0 else end, low), high)
    return slice(start, None if end < 0 else end, step)


def _gather(context: Context, node: NodeProto) -> Law | None:
    shape, indices = context.shape(node.input[0]), context.constant(node, 1)
    if shape is None or not shape or context.constant(node, 0) is not None:
        return None
    axis = attributes.integer(node, "axis", 0) % len(shape)
    size = shape[axis]
    if indices is not None and len(indices.shape) < 2 and indices.protected is None:
        places = indices.load().astype(np.intp).reshape(-1)
        if size is not None and size <= MANY and bool((np.abs(places) <= size).all()):
            return Picked(axis, size, (places % size,), gone=not indices.shape)
    more = context.shape(node.input[1])
    if more is None:
        return Mixed(None, 1.0)
    places_of = {k: k if k < axis else k + len(more) - 1 for k in range(len(shape)) if k != axis}
    return Mixed(places_of, 1.0)


def _axes(context: Context, node: NodeProto) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze: None if absent or not constant."""
    attribute = attributes.integers(node, "axes")
    return attribute if attribute is not None else context.integers(node, 1)


def _sizes(context: Context, name: str) -> list[Size] | None:
    """The sizes of a tensor, with a word for each unknown size; None for an unknown rank."""
    sizes = context.sizes(name)
    if sizes is None:
        return None
    return [f"own {axis}" if size is None else size for axis, size in enumerate(sizes)]


ROWS: dict[str, OnnxRow] = {
    "Concat": Row(_concat),
    "DepthToSpace": of_one(_between_depth_and_space),
    "Expand": of_one(_expand),
    "Flatten": of_one(_flatten),
    "Gather": of_one(_gather),
    "Reshape": of_one(_reshape),
    "Slice": of_one(_slice),
    "SpaceToDepth": of_one(_between_depth_and_space),
    "Split": of_one(_split),
    "Squeeze": of_one(_squeeze),
    "Tile": of_one(_expand),
    "Transpose": of_one(_transpose),
    "Unsqueeze": of_one(_unsqueeze),
}
