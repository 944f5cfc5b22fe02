"""PyTorch operators that rearrange, join or pick elements, each translated into its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from bnfold._core import index_maps
from bnfold._core.index_maps import AxisGroup, Permuted, Regrouped, regrouped
from bnfold._core.laws import Law, Mixed, Rearranged
from bnfold._core.operators.crossed import MANY, kept_axes, parts
from bnfold._core.operators.record import UNKNOWN, Operator
from bnfold._core.parts import Concatenated, Picked
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.crossed import crossed, crossed_by, crossed_row, data_name
from bnfold._torch.read.nodes import (
    PERMUTATIONS,
    number_of,
    order_of,
    parts_of,
    rank_of,
    shape_of,
    sizes_of,
)

_AXIS = AxisGroup((None,), (None,))


def _permutation(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """permute, transpose, movedim and the like: run once, with another size on each axis."""
    return Rearranged((Permuted(order_of(node, _rank(args))),))


def _reshape(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: from the sizes before and after."""
    before, after = sizes_of(args[data_name(args)]), sizes_of(node)
    assert before is not None
    assert after is not None
    return Rearranged((regrouped(before, after),))


def _pixel_shuffle(context: Context, node: Node, args: dict[str, Any]) -> Law:
    at = _rank(args) - 3
    size = _size(args, at)
    if size is None:
        return Rearranged(None)
    factor = args["upscale_factor"]
    return Rearranged(index_maps.depth_to_space(at, size, factor, blocks_first=False))


def _pixel_unshuffle(context: Context, node: Node, args: dict[str, Any]) -> Law:
    at = _rank(args) - 3
    size = _size(args, at)
    if size is None:
        return Rearranged(None)
    factor = args["downscale_factor"]
    return Rearranged(index_maps.space_to_depth(at, size, factor, blocks_first=False))


def _channel_shuffle(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """``[N, g·n, …]`` seen as ``[N, g, n, …]``, g and n exchanged (torch.nn.ChannelShuffle)."""
    groups, size, rest = args["groups"], _size(args, 1), _rank(args) - 2
    if size is None or not isinstance(groups, int):
        return Rearranged(None)
    inside = Regrouped((_AXIS, AxisGroup((size,), (groups, size // groups)), *[_AXIS] * rest))
    outside = Regrouped((_AXIS, AxisGroup((size // groups, groups), (size,)), *[_AXIS] * rest))
    order = (0, 2, 1, *range(3, 3 + rest))
    return Rearranged((inside, Permuted(order), outside))


def _expand(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """Expand repeats elements along axes of size 1. Along other axes they keep their places."""
    before, after = sizes_of(args[data_name(args)]), sizes_of(node)
    assert before is not None
    assert after is not None
    offset = len(after) - len(before)
    kept = {k: k + offset for k, size in enumerate(before) if size == after[k + offset]}
    return Mixed(kept, 1.0)


def _cat(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    data = tuple(args["tensors"])
    rank, axis = rank_of(node), args["dim"] % max(rank_of(node), 1)
    shapes = [shape_of(source) for source in data]
    sizes = tuple(shape[axis] for shape in shapes if shape is not None and len(shape) == rank)
    if len(sizes) < len(data):  # An empty vector joins tensors of any rank.
        return UNKNOWN
    return crossed(context, node, Concatenated(axis, sizes), "tensors")


def _split(context: Context, node: Node, args: dict[str, Any]) -> Law | None:
    """split, chunk, split_with_sizes and tensor_split; each part is read once at most."""
    axis = args["dim"] % _rank(args)
    sizes, size = _sizes_along(node.meta["val"], axis), _size(args, axis)
    numbers = [number_of(part) for part in parts_of(node)]
    if sizes is None or size is None or sum(sizes) != size or len(set(numbers)) < len(numbers):
        return None
    known = parts(sizes)
    return Picked(axis, size, tuple(known[number] for number in numbers))


def _sizes_along(tensors: Sequence[Tensor], axis: int) -> list[int] | None:
    sizes: list[object] = [tensor.shape[axis] for tensor in tensors]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _cut(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """Slice and narrow. Bounds are clamped as in a Python slice."""
    axis = args["dim"] % rank_of(node)
    size, start = _size(args, axis), args["start"] or 0
    if "length" in args:
        end, step = (start + args["length"] if _are_numbers(start, args["length"]) else None), 1
        if end is not None and start < 0 <= end:
            end = None
    else:
        end, step = args["end"], args["step"]
    if size is None or size > MANY or not _are_numbers(start, step, 0 if end is None else end):
        return _unknown_part(args, axis)
    return Picked(axis, size, (np.arange(size)[slice(start, end, step)],))


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int) for value in values)


def _index_select(context: Context, node: Node, args: dict[str, Any]) -> Law:
    axis = args["dim"] % rank_of(node)
    size, index = _size(args, axis), context.constants.find(args["index"])
    if size is None or not isinstance(index, Constant) or len(index.shape) != 1:
        return _unknown_part(args, axis)
    return Picked(axis, size, (index.load().astype(np.intp),))


def _unknown_part(args: dict[str, Any], axis: int) -> Law:
    """Unknown elements along an axis: a map may not vary along it."""
    return Mixed(kept_axes(_rank(args), [axis], keepdims=True), 1.0)


def _select(context: Context, node: Node, args: dict[str, Any]) -> Law | None:
    """Select takes one element along an axis. The axis vanishes."""
    index, axis = args["index"], args["dim"] % _rank(args)
    return _single(args, axis, [index]) if isinstance(index, int) else None


def _unbind(context: Context, node: Node, args: dict[str, Any]) -> Law | None:
    """Unbind takes single elements along an axis, each at most once. The axis vanishes."""
    numbers = [number_of(part) for part in parts_of(node)]
    if len(set(numbers)) < len(numbers):
        return None
    return _single(args, args["dim"] % _rank(args), numbers)


def _single(args: dict[str, Any], axis: int, numbers: Sequence[int]) -> Law:
    places = tuple(np.asarray([number], np.intp) for number in numbers)
    return Picked(axis, _size(args, axis), places, gone=True)


def _rank(args: dict[str, Any]) -> int:
    """The rank of an operator's data."""
    return rank_of(args[data_name(args)])


def _size(args: dict[str, Any], axis: int) -> int | None:
    """The size of an axis of an operator's data; None if it may change."""
    shape = shape_of(args[data_name(args)])
    assert shape is not None
    return shape[axis]


_RESHAPES = (
    "_unsafe_view flatten reshape reshape_as squeeze squeeze_copy unflatten unsqueeze "
    "unsqueeze_copy view view_as view_copy"
)
_SPLITS = "chunk split split_copy split_with_sizes split_with_sizes_copy tensor_split"
ROWS: dict[str, TorchRow] = {
    **{kind: crossed_by(_permutation) for kind in PERMUTATIONS.split()},
    **{kind: crossed_by(_reshape) for kind in _RESHAPES.split()},
    "pixel_shuffle": crossed_by(_pixel_shuffle),
    "pixel_unshuffle": crossed_by(_pixel_unshuffle),
    "channel_shuffle": crossed_by(_channel_shuffle),
    **{kind: crossed_by(_expand) for kind in ("expand", "expand_as", "expand_copy")},
    **{kind: crossed_row(_cat) for kind in ("cat", "concat", "concatenate")},
    **{kind: crossed_by(_split) for kind in _SPLITS.split()},
    **{kind: crossed_by(_cut) for kind in ("narrow", "narrow_copy", "slice", "slice_copy")},
    "index_select": crossed_by(_index_select),
    **{kind: crossed_by(_select) for kind in ("select", "select_copy")},
    **{kind: crossed_by(_unbind) for kind in ("unbind", "unbind_copy")},
}
