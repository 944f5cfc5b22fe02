"""Operators that only move numbers, told by where each number goes rather than by how it is said.

Reshape, Flatten, Squeeze and Unsqueeze keep the row-major order: two of them are the same if they
put out the same sizes. Slice and Split take ranges of axes, and reductions some axes, however these
are written.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.side import Side, attributes

REARRANGING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_LAST = 2**31 - 1
"""From here on an end means the end of the axis."""


def place_of(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """What tells such an operator apart besides its data; None for others, and if not known."""
    kind = type_of(node)
    if kind in REARRANGING:
        return _sizes(side, scope, node)
    if kind == "Slice":
        return _ranges(side, scope, node)
    if kind == "Split":
        return _parts(side, scope, node)
    if kind.startswith("Reduce"):
        return _reduced(side, scope, node)
    return None


def _reduced(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """The axes that a reduction takes away, in order."""
    rank, held = side.rank(scope, node.input[0]), attributes(node)
    axes: Any = held.get("axes")
    if len(node.input) > 1 and node.input[1]:
        found = side.constant(scope, node.input[1])
        axes = None if found is None else found.load().reshape(-1)
    if rank is None or axes is None or not len(axes):
        return None
    told = tuple(sorted(int(axis) % rank for axis in axes))
    return node.op_type, told, held.get("keepdims", 1) == 1


def _sizes(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """The sizes that a rearrangement puts out, one of which may be open: the others tell it."""
    before, after = (side.shapes.sizes(scope, n) for n in (node.input[0], node.output[0]))
    if after is None:
        return None
    told = [_told(side, size, before or ()) for size in after]
    for known in (_is_number, _is_told):  # All others tell one that is left.
        if sum(not known(size) for size in told) == 1:
            told = [size if known(size) else None for size in told]
            break
    if told.count(None) > 1 or 0 in told:
        return None
    return "rearranged", tuple(told)


def _is_number(size: Hashable) -> bool:
    return isinstance(size, int)


def _is_told(size: Hashable) -> bool:
    """Whether a size is told without those of the data."""
    return isinstance(size, (int, str))


def _told(side: Side, size: Any, before: tuple[Any, ...]) -> Hashable | None:
    """A size: a number, that of an input of the model, or that of an axis of the data."""
    if isinstance(size, int):
        return size
    if size in side.words:
        return side.words[size]
    return ("axis", before.index(size)) if size is not None and size in before else None


def is_absolute(place: Hashable) -> bool:
    """Whether the sizes of a rearrangement are told without those of its data."""
    assert isinstance(place, tuple)
    return not any(isinstance(size, tuple) and size[0] == "axis" for size in place[1])


def _ranges(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """The range that a Slice takes of each axis."""
    rank, held = side.rank(scope, node.input[0]), attributes(node)
    sizes = side.shapes.shape(scope, node.input[0])
    given: list[list[int] | None] = []
    for place, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        stored = node.input[place] if place < len(node.input) else ""
        found = side.constant(scope, stored) if stored else None
        if stored and found is None:
            return None
        value: Any = held.get(name) if found is None else found.load().reshape(-1)
        given.append(None if value is None else [int(each) for each in value])
    starts, ends, axes, steps = given
    if rank is None or starts is None or ends is None:
        return None
    told: dict[int, Hashable] = {}
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (place if axes is None else axes[place]) % rank
        step = 1 if steps is None else steps[place]
        size = None if sizes is None else sizes[axis]
        if size is not None:
            taken = range(size)[start:end:step]
            if (taken.start, taken.stop, taken.step) == (0, size, 1):
                continue
            told[axis] = ("numbers", len(taken), taken[0] if len(taken) else 0, step)
        else:
            told[axis] = ("as written", min(end, _LAST), start, step)
    return "ranges", tuple(sorted(told.items()))


def _parts(side: Side, scope: Scope, node: NodeProto) -> Hashable | None:
    """The sizes of the parts of a Split."""
    rank = side.rank(scope, node.input[0])
    shapes = [side.shapes.shape(scope, name) if name else None for name in node.output]
    if rank is None or any(shape is None for shape in shapes):
        return None
    axis = attributes(node).get("axis", 0) % rank
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    return None if None in sizes else ("parts", axis, tuple(sizes))
