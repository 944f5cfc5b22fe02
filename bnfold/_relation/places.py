"""Operators that only move numbers, told by where each number goes rather than by how it is said.

Reshape, Flatten, Squeeze and Unsqueeze keep the row-major order: two of them are the same if they
put out the same sizes. A Slice takes ranges of axes, and reductions some axes, however these are
written. A Split is a Slice for each part, and a Gather of one place is one, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from onnx import NodeProto, helper

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._relation.amounts import Size
from bnfold._relation.integers import Integers, ranges
from bnfold._relation.outlines import parts, rearranged
from bnfold._relation.side import Side, attributes

REARRANGING = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
LAST = 2**31 - 1
"""From here on an end means the end of the axis."""
Told = tuple[Size | None, ...]
WHOLE: Hashable = ("ranges", ())
"""The place of a Slice that takes all there is."""


def place_of(held: Integers, scope: Scope, node: NodeProto) -> Hashable | None:
    """What tells such an operator apart besides its data; None for others, and if not known."""
    kind = type_of(node)
    if kind == "Slice":
        return _ranges(held, scope, node)
    if kind.startswith(("ArgM", "Reduce")):
        return _reduced(held.side, scope, node)
    return None


def _reduced(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """The axes that a reduction takes away, in order."""
    rank, held = side.rank(scope, node.input[0]), attributes(node)
    axes: Any = [held.get("axis", 0)] if node.op_type.startswith("Arg") else held.get("axes")
    if len(node.input) > 1 and node.input[1]:
        found = side.constant(scope, node.input[1])
        axes = None if found is None else found.load().reshape(-1)
    if rank is None or axes is None or not len(axes):
        return None
    told = tuple(sorted(int(axis) % rank for axis in axes))
    last = held.get("select_last_index", 0)
    return node.op_type, told, held.get("keepdims", 1) == 1, last


def sizes_behind(held: Integers, scope: Scope, node: NodeProto) -> Told | None:
    """The sizes that a rearrangement puts out, one of which may be open: the others tell it."""
    told = (turned if type_of(node) == "Transpose" else rearranged)(held, scope, node)
    return None if told is None or told.count(None) > 1 or 0 in told else told


def order_of(node: NodeProto, rank: int | None) -> tuple[int, ...] | None:
    """Which axis of its data each axis is that a Transpose puts out; None if not known."""
    order = attributes(node).get("perm")
    if order is None and rank is not None:
        return tuple(range(rank))[::-1]
    if order is None or sorted(order) != list(range(len(order))) or rank not in (None, len(order)):
        return None
    return tuple(order)


def turned(held: Integers, scope: Scope, node: NodeProto) -> Told | None:
    """The sizes that a Transpose puts out which moves only axes of one number; None for others.

    The order of all numbers stays.
    """
    before = held.of_tensor(scope, node.input[0])
    if before is None:
        return None
    order = order_of(node, len(before))
    if order is None:
        return None
    wide = [axis for axis in order if before[axis] != 1]
    return tuple(before[axis] for axis in order) if wide == sorted(wide) else None


def keys_of(told: Told) -> Iterator[Hashable]:
    """What tells a rearrangement apart: all sizes, and all but one, which these tell.

    The data tell how many numbers there are.
    """
    if None in told:
        yield "rearranged", told
        return
    yield "rearranged", told
    for axis in range(len(told)):
        yield "rearranged", (*told[:axis], None, *told[axis + 1 :])


def is_same(told: Told, own: Told | None) -> bool:
    """Whether a rearrangement puts out the sizes that its data have: all but one tell that one."""
    if own is None or len(told) != len(own):
        return False
    return sum(a is None or a != b for a, b in zip(told, own, strict=True)) <= 1


def _ranges(held: Integers, scope: Scope, node: NodeProto) -> Hashable | None:
    """The range that a Slice takes of each axis."""
    rank, bounds = held.side.rank(scope, node.input[0]), ranges(held, scope, node)
    sizes = held.of_tensor(scope, node.input[0])
    if rank is None or bounds is None:
        return None
    told: dict[int, Hashable] = {}
    for start, end, axis, step in bounds:
        axis %= rank
        size = None if sizes is None or len(sizes) != rank else sizes[axis]
        if all(isinstance(each, int) for each in (size, start, end)):
            taken = range(size)[start:end:step]  # type: ignore[arg-type]
            if (taken.start, taken.stop, taken.step) == (0, size, 1):
                continue
            count, begin = len(taken), taken[0] if len(taken) else 0
            told[axis] = ("numbers", count, begin, step if count > 1 else 1)
            continue
        if step > 0 and (end == size or (isinstance(end, int) and end > LAST)):
            end = LAST
        if (start, end, step) != (0, LAST, 1):
            told[axis] = ("as written", end, start, step)
    return "ranges", tuple(sorted(told.items(), key=lambda pair: pair[0]))


def parts_of(held: Integers, scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """The Slice that each output of a Split is; None where the sizes are not known."""
    rank, sizes = held.side.rank(scope, node.input[0]), parts(held, scope, node)
    if rank is None or sizes is None:
        return None
    axis, start = attributes(node).get("axis", 0) % rank, 0
    made = []
    for name, size in zip(node.output, sizes, strict=True):
        if name:
            made.append(_slice_of(node, name, start, start + size, axis))
        start += size
    return made


def _slice_of(node: NodeProto, name: str, start: int, end: int, axis: int) -> NodeProto:
    """A Slice of what another operator reads, with its bounds as attributes."""
    made = NodeProto(op_type="Slice", name=label(node), input=node.input[:1], output=[name])
    for key, value in (("starts", start), ("ends", end), ("axes", axis)):
        made.attribute.append(helper.make_attribute(key, [value]))
    return made


def kept(held: Integers, scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """A reduction that takes its axes away as one that keeps them, and a Squeeze behind it."""
    place = _reduced(held.side, scope, node)
    if not isinstance(place, tuple) or attributes(node).get("keepdims", 1) != 0:
        return None
    sizes, name = held.of_tensor(scope, node.input[0]), f"\0whole of {node.output[0]}"
    if sizes is None:
        return None
    told = tuple(1 if axis in place[1] else size for axis, size in enumerate(sizes))
    _hide(held, scope, name, told, node.output[0])
    whole = NodeProto(op_type=node.op_type, name=label(node), input=node.input, output=[name])
    whole.attribute.extend(each for each in node.attribute if each.name != "keepdims")
    squeeze = NodeProto(op_type="Squeeze", name=label(node), input=[name], output=node.output)
    return [whole, squeeze] if sizes_behind(held, scope, squeeze) is not None else None


def _hide(held: Integers, scope: Scope, name: str, sizes: Told, like: str) -> None:
    """A tensor that the file does not have, of the type of another one."""
    shapes = held.side.shapes
    scope.inputs.add(name)
    held.outlines[scope.path, name] = sizes
    plain = tuple(size if isinstance(size, int) else None for size in sizes)
    shapes.symbols[scope.path, name] = shapes.shapes[scope.path, name] = plain
    shapes.types[scope.path, name] = shapes.type(scope, like)


def picked(held: Integers, scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """A Gather of one place as a Slice and, of a scalar place, a Squeeze behind it."""
    at, rank = held.of_names(scope, node.input[1]), held.side.rank(scope, node.input[0])
    if at is None or rank is None or len(at.values) != 1 or not isinstance(at.values[0], int):
        return None
    start, axis = at.values[0], attributes(node).get("axis", 0) % rank
    end = start + 1 if start != -1 else LAST
    if not at.is_scalar:
        return [_slice_of(node, node.output[0], start, end, axis)]
    sizes, name = held.of_tensor(scope, node.input[0]), f"\0one of {node.output[0]}"
    if sizes is None:
        return None
    _hide(held, scope, name, (*sizes[:axis], 1, *sizes[axis + 1 :]), node.output[0])
    squeeze = NodeProto(op_type="Squeeze", name=label(node), input=[name], output=node.output)
    if sizes_behind(held, scope, squeeze) is None:
        return None
    return [_slice_of(node, name, start, end, axis), squeeze]
