"""Operators that only move numbers, on their way through the table.

A Reshape of a Reshape, and a Slice of a Slice, are one: what they read is looked for behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation import roots
from bnfold._relation.cores import Core
from bnfold._relation.expressions import Expression
from bnfold._relation.matching import Form
from bnfold._relation.places import (
    REARRANGING,
    is_same,
    keys_of,
    parts_of,
    picked,
    place_of,
    sizes_behind,
)
from bnfold._relation.tensors import Tensors


@dataclass(eq=False)
class Moving(Tensors):
    """The tensors of one file, some of which hold numbers of others."""

    def moved(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """Whether an operator only moves numbers in a way that is known; it is done with, then."""
        kind = type_of(node)
        if kind in ("Split", "Gather"):
            parts = (parts_of if kind == "Split" else picked)(self.integers, scope, node)
            for part in parts or ():
                read = self.closed(scope, part.input[0])
                if read is None or not self.moved(scope, part, read):
                    raise AssertionError(f"{kind} has parts that are known, and one is not")
            return parts is not None
        if kind == "Expand":
            return self._widened(scope, node, data)
        if kind == "Slice":
            return self._cut(scope, node, data)
        told = sizes_behind(self.integers, scope, node) if kind in REARRANGING else None
        if told is None:
            return False
        root = roots.root_of(self.found.table, data)
        term = root.map
        if term is not None and is_same(told, self.integers.sizes.bases.get(term.base)):
            self.give(scope, node.output[0], root)
            return True
        core, types = Core(node, node.input, [data]), [self.side.shapes.type(scope, node.output[0])]
        forms = [
            Form(
                (key, *types, self.word(scope, node.input[0], read)), [read], core, read is not data
            )
            for read in ([data] if root is data else [root, data])
            for key in keys_of(told)
        ]
        (made,) = self.found.operator(scope, node, forms, types)
        roots.note(self.found.table, data, made)
        self.integers.tell(made, told)
        self.give(scope, node.output[0], made)
        return True

    def _widened(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """As `moved`, for an Expand: it is told by the sizes that it puts out."""
        told = self.integers.wide(scope, node)
        if told is None or None in told:
            return False
        if told == self.integers.of_tensor(scope, node.input[0]):
            self.give(scope, node.output[0], data)
            return True
        types = [self.side.shapes.type(scope, node.output[0])]
        key = ("expanded", told, *types, self.word(scope, node.input[0], data))
        form = Form(key, [data], Core(node, node.input, [data]))
        (made,) = self.found.operator(scope, node, [form], types)
        self.integers.tell(made, told)
        self.give(scope, node.output[0], made)
        return True

    def _cut(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """As `moved`, for a Slice: ranges of other axes may be taken in any order."""
        place, table = place_of(self.integers, scope, node), self.found.table
        if place is None:
            return False
        name, types = node.output[0], [self.side.shapes.type(scope, node.output[0])]
        core = Core(node, node.input, [data])
        forms = [Form((place, *types, self.word(scope, node.input[0], data)), [data], core)]
        whole = roots.whole_of(table, data, place)
        if whole is not None:
            root, both = whole
            word = self.word(scope, node.input[0], root)
            forms.append(Form((both, *types, word), [root], core, True))
        (made,) = self.found.operator(scope, node, forms, types)
        roots.note_cut(table, data, made, place)
        self.give(scope, name, made)
        return True
