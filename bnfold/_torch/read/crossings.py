"""PyTorch operators that affine maps cross, each translated into the law it obeys.

What decides is read from arguments and shapes. The sizes that a module was exported with are those
of one example: of a module nothing is read that would be wrong for inputs of other sizes.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bnfold._core.index_maps import AxisGroup, Permuted, Regrouped, regrouped
from bnfold._core.joins import Aligned, Concatenated, Gated, Multiplied, Picked, Summed
from bnfold._core.laws import UNCOUNTED, Clipped, Homogeneous, Law, Mixed, Padded, Rearranged
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import Context
from bnfold._torch.read.nodes import arguments, dtype_of, kind_of, shape_of, sizes_of
from bnfold._torch.read.unbound import Unbound
from bnfold._torch.tensors import DTYPES

_MANY = 1 << 22


@dataclass(frozen=True)
class Crossed:
    """A law with the tensors it numbers: those read, and those put out; and their type."""

    law: Law
    data: tuple[Node, ...]
    outputs: tuple[Node, ...]
    dtype: np.dtype[Any]


def crossing(context: Context, node: Node) -> Crossed | None:
    """How maps cross a node, None where no law is known.

    All tensors on the way have one floating-point type.
    """
    reader = _READERS.get(kind_of(node))
    if reader is None or getattr(node.target, "namespace", "") != "aten":
        return None
    if any(shape_of(source) == () for source in node.all_input_nodes):
        return None
    if isinstance(node.meta.get("val"), Tensor):
        outputs: tuple[Node, ...] = (node,)
    else:
        outputs = _parts(node)
        if not outputs or any(user.target is not operator.getitem for user in node.users):
            return None
    found = reader(context, node, arguments(node))
    if found is None:
        return None
    law, data = found
    first, *others = {dtype_of(value) for value in (*data, *outputs)}
    dtype = DTYPES.get(first) if first is not None else None
    if others or dtype is None or context.is_constant(node):
        return None
    return Crossed(law, data, outputs, dtype)


def _one(args: dict[str, Any]) -> tuple[Node, ...]:
    data = args["self"] if "self" in args else args["input"]
    assert isinstance(data, Node)
    return (data,)


def _rank(node: Node) -> int:
    shape = shape_of(node)
    assert shape is not None
    return len(shape)


def _homogeneous(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """Relu, LeakyReLU and PReLU (whatever their slopes), and the even abs."""
    return Homogeneous(kind_of(node).startswith("abs")), _one(args)


def _clip(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """clamp, clamp_min, clamp_max, hardtanh and relu6, with bounds that are numbers."""
    low, high = args.get("min_val", args.get("min")), args.get("max_val", args.get("max"))
    if kind_of(node).startswith("relu6"):
        low, high = 0.0, 6.0
    if isinstance(low, Node) or isinstance(high, Node):
        return None
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    return Clipped(low, high, movable=context.whole), _one(args)


def _max_pool(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """Only if every window holds an element for certain; the indices, if any, are not used."""
    spread = [*_listed(args["dilation"]), 2 if args["ceil_mode"] else 1]
    if any(_listed(args["padding"])) and any(step != 1 for step in spread):
        return None
    return _of_windows(node, args, 1.0, positive=True)


def _average_pool(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """Padding that is counted, and a divisor of one's own, change what the weights add up to."""
    uneven = any(_listed(args["padding"])) or args["ceil_mode"]
    own = args.get("divisor_override") is not None
    return _of_windows(node, args, None if own or (args["count_include_pad"] and uneven) else 1.0)


def _adaptive_pool(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    return _of_windows(node, args, 1.0, positive="max" in kind_of(node))


def _of_windows(
    node: Node, args: dict[str, Any], weight: float | None, positive: bool = False
) -> _Found | None:
    """A pool over the last axes, as many as its name says (``max_pool2d``)."""
    if not _is_first_alone(node):
        return None
    data = _one(args)
    kept = range(_rank(data[0]) - _dimensions(node))
    return Mixed({axis: axis for axis in kept}, weight, positive), data


def _is_first_alone(node: Node) -> bool:
    """Whether of several outputs the first is used alone, and in one place."""
    if isinstance(node.meta.get("val"), Tensor):
        return True
    return [_number(part) for part in _parts(node)] == [0]


def _parts(node: Node) -> tuple[Node, ...]:
    """What is taken from a list and used."""
    return tuple(user for user in node.users if user.users)


def _number(part: Node) -> int:
    """Which element of a list a getitem takes."""
    number = part.args[1]
    assert isinstance(number, int)
    return number


def _dimensions(node: Node) -> int:
    """The number of spatial axes that an operator is named after."""
    found = re.search(r"\dd", kind_of(node))
    assert found is not None
    return int(found[0][0])


def _reduction(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """mean, amax, amin, max and min of an axis (weight 1), sum (the number of elements).

    Of a module the number of elements may change from call to call.
    """
    if not _is_first_alone(node):
        return None
    data, kind = _one(args), kind_of(node)
    shape = shape_of(data[0])
    assert shape is not None
    if "other" in args:
        return None
    axes = {axis % len(shape) for axis in _listed(args.get("dim"))} or set(range(len(shape)))
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    places = {a: a if args.get("keepdim") else place for place, a in enumerate(kept)}
    weight: float | None = 1.0
    if kind.startswith("sum"):
        sizes = [size for axis in axes if (size := shape[axis]) is not None]
        known = context.whole and len(sizes) == len(axes) and math.prod(sizes) > 0
        weight = float(math.prod(sizes)) if known else None
    extreme = kind.startswith(("amax", "amin", "max", "min"))
    return Mixed(places, weight, positive=extreme, uneven=UNCOUNTED), data


def _upsample(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """Interpolation along all axes but the first two, by weights that add up to 1."""
    return Mixed({0: 0, 1: 1}, 1.0), _one(args)


def _moved_along(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """Flip and roll: elements change places along some axes."""
    data, axes = _one(args), _listed(args["dims"])
    gone = {axis % _rank(node) for axis in axes}
    kept = {axis: axis for axis in range(_rank(node)) if axis not in gone}
    return Mixed(kept if axes else None, 1.0), data


def _pad(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """The amounts belong to pairs of axes from the last on. Of a module they may be 0 for the
    example and not for other inputs.
    """
    data, amounts = _one(args), args["pad"] if "pad" in args else args["padding"]
    rank = _rank(node)
    padded = {
        rank - 1 - place // 2
        for place, amount in enumerate(amounts)
        if amount != 0 or not context.whole
    }
    constant = kind_of(node) in ("pad", "constant_pad_nd")
    if args.get("mode", "constant") != "constant" or not constant:
        return Mixed({axis: axis for axis in range(rank) if axis not in padded}, 1.0), data
    value = args["value"] if args["value"] is not None else 0.0
    if isinstance(value, Node):
        return None
    return Padded(float(value), frozenset(padded), movable=context.whole), data


def _permutation(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """permute, transpose, movedim and the like: the order is what becomes of marked axes."""
    data = _one(args)
    sizes = range(2, 2 + _rank(data[0]))
    more, named = (
        node.args[1:],
        {k: v for k, v in node.kwargs.items() if k not in ("self", "input")},
    )
    assert callable(node.target)
    marked = node.target(torch.empty(tuple(sizes), device="meta"), *more, **named)
    return Rearranged((Permuted(tuple(size - 2 for size in marked.shape)),)), data


def _reshape(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: the sizes before and after."""
    data = _one(args)
    before, after = sizes_of(data[0]), sizes_of(node)
    assert before is not None
    assert after is not None
    return Rearranged((regrouped(before, after),)), data


def _pixel_shuffle(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """``[…, C·r², H, W]`` to ``[…, C, H·r, W·r]``: channel ``c·r² + i·r + j`` goes to place (i, j)
    of each block of channel c (torch.nn.PixelShuffle).
    """
    data, r = _one(args), args["upscale_factor"]
    shape = shape_of(data[0])
    assert shape is not None
    size, at = shape[-3], len(shape) - 3
    if size is None:
        return Rearranged(None), data
    inside = Regrouped((*[_AXIS] * at, AxisGroup((size,), (size // (r * r), r, r)), _AXIS, _AXIS))
    order = (*range(at), at, at + 3, at + 1, at + 4, at + 2)
    block = AxisGroup((None, r), (None,))
    outside = Regrouped((*[_AXIS] * (at + 1), block, block))
    return Rearranged((inside, Permuted(order), outside)), data


def _pixel_unshuffle(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """``[…, C, H·r, W·r]`` to ``[…, C·r², H, W]``, the inverse of pixel_shuffle."""
    data, r = _one(args), args["downscale_factor"]
    shape = shape_of(data[0])
    assert shape is not None
    size, at = shape[-3], len(shape) - 3
    if size is None:
        return Rearranged(None), data
    block = AxisGroup((None,), (None, r))
    inside = Regrouped((*[_AXIS] * (at + 1), block, block))
    order = (*range(at), at, at + 2, at + 4, at + 1, at + 3)
    outside = Regrouped((*[_AXIS] * at, AxisGroup((size, r, r), (size * r * r,)), _AXIS, _AXIS))
    return Rearranged((inside, Permuted(order), outside)), data


def _channel_shuffle(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """``[N, g·n, …]`` seen as ``[N, g, n, …]``, g and n exchanged (torch.nn.ChannelShuffle)."""
    data, groups = _one(args), args["groups"]
    shape = shape_of(data[0])
    assert shape is not None
    size, rest = shape[1], len(shape) - 2
    if size is None or not isinstance(groups, int):
        return Rearranged(None), data
    inside = Regrouped((_AXIS, AxisGroup((size,), (groups, size // groups)), *[_AXIS] * rest))
    outside = Regrouped((_AXIS, AxisGroup((size // groups, groups), (size,)), *[_AXIS] * rest))
    order = (0, 2, 1, *range(3, 3 + rest))
    return Rearranged((inside, Permuted(order), outside)), data


def _expand(context: Context, node: Node, args: dict[str, Any]) -> _Found:
    """Elements are repeated along axes of size 1; along the others every one keeps its place."""
    data = _one(args)
    before, after = sizes_of(data[0]), sizes_of(node)
    assert before is not None
    assert after is not None
    offset = len(after) - len(before)
    kept = {k: k + offset for k, size in enumerate(before) if size == after[k + offset]}
    return Mixed(kept, 1.0), data


def _cat(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    data = tuple(args["tensors"])
    rank, axis = _rank(node), args["dim"] % max(_rank(node), 1)
    shapes = [shape_of(source) for source in data]
    sizes = tuple(shape[axis] for shape in shapes if shape is not None and len(shape) == rank)
    if len(sizes) < len(data):  # An empty vector joins tensors of any rank.
        return None
    return Concatenated(axis, sizes), data


def _split(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """split, chunk, split_with_sizes and tensor_split; each part is read once at most."""
    data = _one(args)
    axis = args["dim"] % _rank(data[0])
    parts, size = _sizes_along(node.meta["val"], axis), _size_along(data[0], axis)
    numbers = [_number(part) for part in _parts(node)]
    if parts is None or size is None or sum(parts) != size or len(set(numbers)) < len(numbers):
        return None
    ends = np.cumsum(parts)
    places = [np.arange(end - part, end) for end, part in zip(ends, parts, strict=True)]
    return Picked(axis, size, tuple(places[number] for number in numbers)), data


def _sizes_along(tensors: Sequence[Tensor], axis: int) -> list[int] | None:
    sizes: list[object] = [tensor.shape[axis] for tensor in tensors]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _size_along(node: Node, axis: int) -> int | None:
    shape = shape_of(node)
    assert shape is not None
    return shape[axis]


def _cut(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """Slice and narrow, their bounds clamped as Python clamps those of a slice."""
    data = _one(args)
    axis = args["dim"] % _rank(node)
    size, start = _size_along(data[0], axis), args["start"] or 0
    if "length" in args:
        end, step = (start + args["length"] if _are_numbers(start, args["length"]) else None), 1
        if end is not None and start < 0 <= end:
            end = None
    else:
        end, step = args["end"], args["step"]
    if size is None or size > _MANY or not _are_numbers(start, step, 0 if end is None else end):
        return _picking(data, axis, None, None)
    return _picking(data, axis, size, np.arange(size)[slice(start, end, step)])


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int) for value in values)


def _index_select(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    data = _one(args)
    axis = args["dim"] % _rank(node)
    size, index = _size_along(data[0], axis), context.constants.find(args["index"])
    if size is None or not isinstance(index, Constant) or len(index.shape) != 1:
        return _picking(data, axis, None, None)
    return _picking(data, axis, size, index.load().astype(np.intp))


def _picking(
    data: tuple[Node, ...], axis: int, size: int | None, places: np.ndarray[Any, Any] | None
) -> _Found:
    """Some elements along an axis; where it is not known which, a map may not vary along it."""
    if size is None or places is None:
        return Mixed({k: k for k in range(_rank(data[0])) if k != axis}, 1.0), data
    return Picked(axis, size, (places,)), data


def _select(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    data, index = _one(args), args["index"]
    axis = args["dim"] % _rank(data[0])
    if not isinstance(index, int):
        return None
    return Unbound(axis, _size_along(data[0], axis), (index,)), data


def _unbind(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """Each part is read once at most."""
    data, numbers = _one(args), tuple(_number(part) for part in _parts(node))
    axis = args["dim"] % _rank(data[0])
    if len(set(numbers)) < len(numbers):
        return None
    return Unbound(axis, _size_along(data[0], axis), numbers), data


def _sum_of_two(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """add, sub and rsub of two tensors, of which neither is a constant."""
    data = _two(context, args, "self", "other")
    if data is None or args["alpha"] != 1:
        return None
    kind = kind_of(node)
    signs = (-1, 1) if kind.startswith("rsub") else (1, -1 if kind.startswith("sub") else 1)
    return Summed(signs, _aligned(node, data)), data


def _product_of_two(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """Mul and div of two tensors, of which neither is a constant."""
    data = _two(context, args, "self", "other")
    if data is None or args.get("rounding_mode") is not None:
        return None
    quotient = kind_of(node).startswith("div")
    return Gated(_aligned(node, data), quotient), data


def _matmul(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """matmul, mm and bmm of two tensors, of which neither is a constant."""
    data = _two(context, args, "self", "other" if "other" in args else "mat2")
    return None if data is None else (Multiplied((_rank(data[0]), _rank(data[1]))), data)


def _attention(context: Context, node: Node, args: dict[str, Any]) -> _Found | None:
    """``softmax(q·kᵀ)·v`` mixes the values of each channel by weights that add up to 1.

    With a mask they may add up to 0, where all is masked.
    """
    value = args["value"]
    if args["dropout_p"] != 0 or not isinstance(value, Node):
        return None
    weight = None if args["attn_mask"] is not None else 1.0
    return Mixed({_rank(value) - 1: _rank(node) - 1}, weight), (value,)


def _two(context: Context, args: dict[str, Any], *names: str) -> tuple[Node, ...] | None:
    found = tuple(args[name] for name in names if isinstance(args[name], Node))
    return found if len(found) == 2 and not any(map(context.is_constant, found)) else None


def _aligned(node: Node, data: tuple[Node, ...]) -> Aligned:
    return Aligned(tuple(shape_of(source) for source in data), shape_of(node))


def _listed(value: object) -> list[int]:
    """An argument that is one number for all axes, or one for each."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]


_AXIS = AxisGroup((None,), (None,))
_Found = tuple[Law, tuple[Node, ...]]
_Reader = Callable[[Context, Node, dict[str, Any]], _Found | None]
_GROUPS: dict[_Reader, str] = {
    _homogeneous: "abs abs_ leaky_relu leaky_relu_ prelu relu relu_",
    _clip: "clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ hardtanh hardtanh_ "
    "relu6 relu6_",
    _max_pool: "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices",
    _average_pool: "avg_pool1d avg_pool2d avg_pool3d",
    _adaptive_pool: "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    _reduction: "amax amin max mean min sum",
    _upsample: "upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa "
    "_upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d",
    _moved_along: "flip roll",
    _pad: "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d",
    _permutation: "mT movedim numpy_T permute swapaxes swapdims t transpose",
    _reshape: "flatten reshape reshape_as squeeze unflatten unsqueeze view view_as",
    _pixel_shuffle: "pixel_shuffle",
    _pixel_unshuffle: "pixel_unshuffle",
    _channel_shuffle: "channel_shuffle",
    _expand: "expand expand_as",
    _cat: "cat concat concatenate",
    _split: "chunk split split_with_sizes tensor_split",
    _cut: "narrow slice",
    _index_select: "index_select",
    _select: "select",
    _unbind: "unbind",
    _sum_of_two: "add add_ rsub sub sub_",
    _product_of_two: "div div_ mul mul_",
    _matmul: "bmm matmul mm",
    _attention: "scaled_dot_product_attention",
}
_READERS = {kind: reader for reader, kinds in _GROUPS.items() for kind in kinds.split()}
