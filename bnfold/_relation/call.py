"""An operator on related data, as the laws of passing see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope
from bnfold._relation.expressions import Array, Double
from bnfold._relation.relations import Related
from bnfold._relation.side import Side, attributes
from bnfold._system.records import record

Pair = tuple[Double, Double]


@record(frozen=True, eq=False)
class Call:
    """An operator, and how each of its inputs is related; None for constants and left-out ones.

    ``kind`` is the type of what of it is not affine. ``numbers`` and ``others`` are those of its
    parameters that a map moves, on both sides.
    """

    side: Side
    scope: Scope
    node: NodeProto
    inputs: Sequence[Related | None]
    kind: str
    numbers: Sequence[float] = ()
    others: Sequence[float] = ()

    @property
    def given(self) -> dict[str, Any]:
        """Its attributes."""
        return attributes(self.node)

    @property
    def first(self) -> Related:
        """The relation of its first input."""
        found = self.inputs[0]
        return Related() if found is None else found

    def rank(self, position: int = 0) -> int | None:
        """The number of axes of an input."""
        return self.side.rank(self.scope, self.node.input[position])

    def sizes(self, name: str) -> tuple[Any, ...] | None:
        """The sizes of a tensor, with a symbol for each that is not known."""
        return self.side.shapes.sizes(self.scope, name)

    def integers(self, position: int, attribute: str = "") -> list[int] | None:
        """Numbers that are an input in some opsets and an attribute in others; None if unknown."""
        if attribute and attribute in self.given:
            value = self.given[attribute]
            return [value] if isinstance(value, int) else [int(each) for each in value]
        if position >= len(self.node.input) or not self.node.input[position]:
            return []
        found = self.side.constant(self.scope, self.node.input[position])
        return None if found is None else [int(each) for each in found.load().reshape(-1)]

    def others_agree(self) -> bool:
        """Whether all inputs but the first are the same on both sides."""
        return all(each is None or each.is_identity for each in self.inputs[1:])


def is_off(values: Array, rank: int, axes: Sequence[int]) -> bool:
    """Whether numbers are the same along some axes of a tensor."""
    full = (1,) * (rank - values.ndim) + values.shape
    return all(full[axis] == 1 for axis in axes)


def full_rank(values: Double, rank: int) -> Double:
    return values.reshape((1,) * (rank - values.ndim) + values.shape)


def number(values: Double) -> float | None:
    return float(values.reshape(())) if values.size == 1 else None
