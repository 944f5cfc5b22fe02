"""Parts that a Concat puts together, and what takes some of them again.

A Gather or Slice along the axis of a Concat that takes whole parts, in any order, is the Concat of
these. SpaceToDepth is a Concat of Slices: of each place in a block those numbers that stand there,
the row of the block counting most (ONNX SpaceToDepth-13).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

from onnx import NodeProto, helper

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._relation.expressions import Expression
from bnfold._relation.integers import ranges
from bnfold._relation.places import LAST
from bnfold._relation.side import attributes
from bnfold._relation.table import Joined
from bnfold._relation.turning import Turning
from bnfold._system.records import record

_LARGEST = 16
"""Blocks of more places are left as they are."""


@record(eq=False)
class Joining(Turning):
    """The tensors of one file, some of which others are put together of."""

    def rejoined(self, scope: Scope, node: NodeProto) -> bool:
        """Whether an operator is done with that takes whole parts of a Concat."""
        kind = type_of(node)
        value = self.value(scope, node.input[0]) if kind in ("Gather", "Slice") else None
        term = None if value is None else value.map
        joined = None if term is None else self.found.table.joins.get(term.base)
        if value is None or joined is None or not value.is_base:
            return False
        taken = (
            self._gathered(scope, node, joined)
            if kind == "Gather"
            else self._cut_of(scope, node, joined)
        )
        parts = None if taken is None else _whole(joined, taken)
        if not parts or not self.found.table.affords(len(parts)):
            return False
        if len(parts) == 1:
            self.give(scope, node.output[0], parts[0])
            return True
        self._join(scope, node, parts, joined)
        return True

    def _gathered(self, scope: Scope, node: NodeProto, joined: Joined) -> Sequence[int] | None:
        """Which numbers of the axis a Gather takes."""
        indices = self.side.constant(scope, node.input[1])
        axis, total = attributes(node).get("axis", 0), sum(joined.sizes)
        if indices is None or len(indices.shape) != 1 or axis % joined.rank != joined.axis:
            return None
        return [int(at) + (total if at < 0 else 0) for at in indices.load()]

    def _cut_of(self, scope: Scope, node: NodeProto, joined: Joined) -> Sequence[int] | None:
        """Which numbers of the axis a Slice takes, if it takes all of the others."""
        found = ranges(self.integers, scope, node)
        if found is None or len(found) != 1:
            return None
        ((start, end, axis, step),) = found
        if (
            axis % joined.rank != joined.axis
            or not isinstance(start, int)
            or not isinstance(end, int)
        ):
            return None
        return range(sum(joined.sizes))[start:end:step]

    def _join(
        self, scope: Scope, node: NodeProto, parts: Sequence[Expression], joined: Joined
    ) -> None:
        """A Concat of tensors that the file may not have."""
        names = [f"\0part {number} of {node.output[0]}" for number in range(len(parts))]
        shapes = self.side.shapes
        for name, part in zip(names, parts, strict=True):
            known = self.integers.sizes.bases.get(part.terms[0].base)
            sizes = (None,) * joined.rank if known is None else known
            self._hide(scope, name, tuple(s if isinstance(s, int) else None for s in sizes))
            shapes.types[scope.path, name] = shapes.type(scope, node.output[0])
            self.give(scope, name, part)
        inner = NodeProto(op_type="Concat", name=label(node), input=names, output=node.output)
        inner.attribute.append(helper.make_attribute("axis", joined.axis))
        self.node(scope, inner)

    def note_parts(self, scope: Scope, node: NodeProto, made: Expression) -> None:
        """Note what a Concat has put together, where the sizes of all parts are known."""
        rank, own = self.side.rank(scope, node.output[0]), made.map
        values = [self.value(scope, name) for name in node.input]
        if rank is None or own is None or not made.is_base:
            return
        axis = attributes(node).get("axis", 1) % rank
        sizes: list[int] = []
        parts: list[Expression] = []
        for name, value in zip(node.input, values, strict=True):
            told = self.integers.of_tensor(scope, name)
            size = told[axis] if told is not None and len(told) == rank else None
            if value is None or value.map is None or not isinstance(size, int) or not size:
                return
            sizes.append(size)
            parts.append(value)
        if sum(sizes) > LAST:
            return
        joined = Joined(axis, rank, tuple(sizes), tuple(parts))
        self.found.table.joins.setdefault(own.base, joined)

    def unblocked(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a SpaceToDepth is done with."""
        block = attributes(node).get("blocksize", 0) if type_of(node) == "SpaceToDepth" else 0
        if not 0 < block * block <= _LARGEST:
            return False
        sizes = self.side.shapes.sizes(scope, node.output[0]) or (None,) * 4
        shapes, names = self.side.shapes, []
        depth = sizes[1] // block**2 if isinstance(sizes[1], int) else None
        for row, column in itertools.product(range(block), repeat=2):
            names.append(f"\0{row}, {column} of {node.output[0]}")
            self._hide(scope, names[-1], (sizes[0], depth, *sizes[2:]))  # type: ignore[arg-type]
            shapes.types[scope.path, names[-1]] = shapes.type(scope, node.output[0])
            part = NodeProto(op_type="Slice", name=label(node), input=node.input, output=names[-1:])
            given = {
                "starts": [row, column],
                "ends": [LAST] * 2,
                "axes": [2, 3],
                "steps": [block] * 2,
            }
            part.attribute.extend(helper.make_attribute(k, v) for k, v in given.items())
            self.node(scope, part)
        join = NodeProto(op_type="Concat", name=label(node), input=names, output=node.output)
        join.attribute.append(helper.make_attribute("axis", 1))
        self.node(scope, join)
        return True


def _whole(joined: Joined, taken: Sequence[int]) -> list[Expression] | None:
    """The parts that some numbers of the axis are, one behind the other; None for others."""
    starts = itertools.accumulate(joined.sizes[:-1], initial=0)
    numbers = {start: number for number, start in enumerate(starts)}
    parts: list[Expression] = []
    place = 0
    while place < len(taken):
        first = taken[place]
        number = numbers.get(first)
        if number is None:
            return None
        size = joined.sizes[number]
        found, whole = taken[place : place + size], range(first, first + size)
        same = found == whole if isinstance(found, range) else all(map(operator.eq, found, whole))
        if len(found) < size or not same:
            return None
        parts.append(joined.parts[number])
        place += size
    return parts
