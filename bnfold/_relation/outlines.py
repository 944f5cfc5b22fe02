"""The sizes that operators put out which leave all numbers as they are."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.amounts import Size, even_quotient, product_of
from bnfold._relation.integers import Integers
from bnfold._relation.side import attributes


def broadcast(one: Sequence[Size | None], other: Sequence[Size | None]) -> tuple[Size | None, ...]:
    """The sizes of two tensors that are broadcast together; None for one that is not known."""
    rank = max(len(one), len(other))
    pairs = zip(
        (*(1,) * (rank - len(one)), *one), (*(1,) * (rank - len(other)), *other), strict=True
    )
    return tuple(_wider(a, b) for a, b in pairs)


def _wider(one: Size | None, other: Size | None) -> Size | None:
    """The size of an axis that is broadcast: 1 goes with any other, and a number with itself."""
    if one == 1 or other == 1:
        return other if one == 1 else one
    numbers = [size for size in (one, other) if isinstance(size, int)]
    return numbers[0] if numbers else one if one == other else None


def widened(held: Integers, scope: Scope, node: NodeProto) -> tuple[Size | None, ...] | None:
    """The sizes that an Expand puts out: those of its data, where 1 is asked for."""
    sizes, asked = held.of_tensor(scope, node.input[0]), held.of_names(scope, node.input[1])
    return None if sizes is None or asked is None else broadcast(sizes, asked.values)


def _with_axes(
    held: Integers, scope: Scope, node: NodeProto, before: tuple[Size | None, ...]
) -> tuple[Size | None, ...] | None:
    """The sizes behind a Squeeze or Unsqueeze of known axes; None for others."""
    kind, axes = type_of(node), attributes(node).get("axes")
    if len(node.input) > 1 and node.input[1] and kind != "Reshape":
        found = held.of_names(scope, node.input[1])
        axes = None if found is None else found.values
    if kind not in ("Squeeze", "Unsqueeze") or axes is None:
        return None
    rank = len(before) + (len(axes) if kind == "Unsqueeze" else 0)
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in axes):
        return None
    places = {axis % rank for axis in axes}
    if kind == "Squeeze":
        return tuple(size for axis, size in enumerate(before) if axis not in places)
    if len(places) != len(axes):
        return None
    left = iter(before)
    return tuple(1 if axis in places else next(left) for axis in range(rank))


def rearranged(held: Integers, scope: Scope, node: NodeProto) -> tuple[Size | None, ...] | None:
    """The sizes that a Reshape, Flatten, Squeeze or Unsqueeze puts out; None for one not told.

    A size in the target that may be 0 tells nothing: 0 stands for the size that is there.
    """
    before = held.of_tensor(scope, node.input[0])
    after = held.of_tensor(scope, node.output[0])
    if after is None and before is not None:
        after = _with_axes(held, scope, node, before)
    target = held.of_names(scope, node.input[1]) if type_of(node) == "Reshape" else None
    if target is not None and (after is None or len(after) == len(target.values)):
        keeps = not attributes(node).get("allowzero", 0)
        told = list(after or (None,) * len(target.values))
        for axis, size in enumerate(target.values):
            if isinstance(told[axis], int) or size == -1:
                continue
            if size == 0 and keeps:
                own = before[axis] if before is not None and axis < len(before) else None
                told[axis] = own if own is not None else told[axis]
            elif isinstance(size, int) or (size.is_size and not held.sizes.is_open(size)):
                told[axis] = size
        after = tuple(told)
    if after is None:
        return None
    if after.count(None) == 1 and before is not None and None not in before:
        others = product_of(size for size in after if size is not None)
        whole = product_of(size for size in before if size is not None)
        rest = even_quotient(whole, others) if others != 0 else None
        after = tuple(rest if size is None else size for size in after)
    return after


def parts(held: Integers, scope: Scope, node: NodeProto) -> list[int] | None:
    """How many places of its axis each output of a Split has; None where that is not known.

    They are told, or else even parts; from opset 18 on the last one may be smaller.
    """
    given, count = attributes(node), len(node.output)
    told: Sequence[Size] | None = given.get("split")
    if len(node.input) > 1 and node.input[1]:
        found = held.of_names(scope, node.input[1])
        told = None if found is None else found.values
        if told is None:
            return None
    sizes = held.of_tensor(scope, node.input[0])
    size = None if sizes is None else sizes[given.get("axis", 0)]
    if told is None and isinstance(size, int) and (size % count == 0 or "num_outputs" in given):
        even = -(-size // count)
        told = [*[even] * (count - 1), size - even * (count - 1)]
    if told is None or len(told) != count:
        return None
    known = [each for each in told if isinstance(each, int) and each >= 0]
    return known if len(known) == count else None
