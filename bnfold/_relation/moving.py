"""Operators that only move numbers, on their way through the table.

A Reshape of a Reshape, and a Slice of a Slice, are one: what they read is looked for behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._relation import roots
from bnfold._relation.amounts import Size
from bnfold._relation.cores import Core
from bnfold._relation.expressions import Expression, of_base
from bnfold._relation.linear import Applied, apply
from bnfold._relation.matching import Form
from bnfold._relation.outlines import widened
from bnfold._relation.places import (
    REARRANGING,
    WHOLE,
    Told,
    is_same,
    kept,
    keys_of,
    order_of,
    parts_of,
    picked,
    place_of,
    sizes_behind,
    turned,
)
from bnfold._relation.side import Weight, attributes
from bnfold._relation.table import Part, key_of
from bnfold._relation.tensors import Tensors
from bnfold._system.records import record

_IN_PARTS = {
    "ArgMax": kept,
    "ArgMin": kept,
    "Gather": picked,
    "Reduce": kept,
    "Split": parts_of,
}
"""Operators that are others, one behind the other or side by side."""


@record(eq=False)
class Moving(Tensors):
    """The tensors of one file, some of which hold numbers of others."""

    def part(self, scope: Scope, node: NodeProto) -> None:
        """Go through an operator that is a part of another one."""
        raise NotImplementedError

    def moved(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """Whether an operator only moves numbers in a way that is known; it is done with, then."""
        kind = type_of(node)
        in_parts = _IN_PARTS.get("Reduce" if kind.startswith("Reduce") else kind)
        if in_parts is not None:
            parts = in_parts(self.integers, scope, node)
            for part in parts or ():
                self.part(scope, part)
            return parts is not None
        if kind == "Expand":
            return self._widened(scope, node, data)
        if kind == "Slice":
            return self._cut(scope, node, data)
        if kind == "Transpose" and turned(self.integers, scope, node) is None:
            return self._turned(scope, node, data)
        told = sizes_behind(self.integers, scope, node) if kind in REARRANGING else None
        if told is None:
            return False
        self._rearranged(scope, node, data, told)
        return True

    def _rearranged(self, scope: Scope, node: NodeProto, data: Expression, told: Told) -> None:
        """What holds the numbers of its data in the same order, in other sizes.

        One scale and shift, and those that lie along a last axis which stays, stay as they are.
        """
        before = self.integers.of_tensor(scope, node.input[0])
        keeps = bool(before) and before is not None and before[-1:] == told[-1:] != (None,)
        term, parts = data.map, roots.along_rows(data, keeps)
        if term is not None and parts is not None and not data.is_base:
            made = self._turned_base(scope, node, of_base(term.base), told)
            own = made.map
            if own is not None and made.is_base:
                made = roots.with_parts(data, own.base, parts)
                self.give(scope, node.output[0], made)
                return
        self.give(scope, node.output[0], self._turned_base(scope, node, data, told))

    def _turned_base(
        self, scope: Scope, node: NodeProto, data: Expression, told: Told
    ) -> Expression:
        root = roots.root_of(self.found.table, data)
        term, own = root.map, self._own_forms(scope, node, data, told)
        if term is not None and is_same(told, self.integers.sizes.bases.get(term.base)):
            if self.found.is_first and root.is_base and root is not data:
                self.found.also(node, own, [term.base])
            return root
        core, types = Core(node, node.input, [data]), [self.side.shapes.type(scope, node.output[0])]
        word = self.word(scope, node.input[0], root)
        keys = [(key, *types, word) for key in (keys_of(told) if root is not data else ())]
        forms = [*(Form(key, [root], core, True) for key in keys), *own]
        turn = self._of_turned(scope, node, data, told)
        if turn is not None:
            key = ("turned", turn[1], *types, self.word(scope, node.input[0], turn[0]))
            forms.append(Form(key, [turn[0]], core, True))
        (made,) = self.found.operator(scope, node, forms, types)
        roots.note(self.found.table, data, made)
        if turn is not None:
            roots.note_turn(self.found.table, turn[0], made, turn[1])
        self.integers.tell(made, told)
        return made

    def _of_turned(
        self, scope: Scope, node: NodeProto, data: Expression, told: Told
    ) -> tuple[Expression, tuple[int, ...]] | None:
        """What a rearrangement of transposed data is a Transpose of, and in which order.

        It puts in or takes away axes of one number alone; these may be put in ahead as well.
        """
        term, sizes = data.map, self.integers.sizes.bases
        turn = None if term is None else self.found.table.turns.get(term.base)
        own = None if turn is None else sizes.get(turn[0])
        if turn is None or own is None or not data.is_base or None in told:
            return None
        wide = [axis for axis in turn[1] if own[axis] != 1]
        places = [place for place, size in enumerate(told) if size != 1]
        if [own[axis] for axis in wide] != [told[place] for place in places]:
            return None
        order, ahead = list(range(len(told))), list(told)
        for place, axis in zip(places, wide, strict=True):
            order[place] = places[sorted(wide).index(axis)]
        for place, axis in zip(places, sorted(wide), strict=True):
            ahead[place] = own[axis]
        name = f"\0{node.output[0]} ahead of a Transpose"
        self._hide(scope, name, tuple(size if isinstance(size, int) else None for size in own))
        self.side.shapes.types[scope.path, name] = self.side.shapes.type(scope, node.input[0])
        root = of_base(turn[0])
        self.give(scope, name, root)
        output = f"{name}, rearranged"
        self._hide(scope, output, tuple(s if isinstance(s, int) else None for s in ahead))
        self.side.shapes.types[scope.path, output] = self.side.shapes.type(scope, node.input[0])
        inner = NodeProto(op_type="Reshape", name=label(node), input=[name], output=[output])
        made = self._turned_base(scope, inner, root, tuple(ahead))
        return (made, tuple(order)) if made.is_base else None

    def _own_forms(self, scope: Scope, node: NodeProto, data: Expression, told: Told) -> list[Form]:
        """How a rearrangement is told by its own data, whatever these are a rearrangement of."""
        core, types = Core(node, node.input, [data]), [self.side.shapes.type(scope, node.output[0])]
        word = self.word(scope, node.input[0], data)
        forms = [Form((key, *types, word), [data], core) for key in keys_of(told)]
        if len(node.input) > 1 or node.attribute:  # A part of another operator says no sizes.
            others = node.input[1:]
            words = [word, *(self.word(scope, name, None) for name in others)]
            key = key_of(node, scope.opset, words, types)
            forms.append(Form(key, [data, *(None for _ in others)], core))
        return forms

    def rows(self, scope: Scope, node: NodeProto, found: Applied, data: Expression) -> bool:
        """Whether a product is done with that reads rows of rearranged data.

        ``x·W`` is taken along the last axis of x. The other axes only say in which order the rows
        stand. So a Reshape that keeps the last axis may come ahead of the product or behind it; it
        is put behind. Of another one the rows alone count, whatever their axes.
        """
        linear, table, sizes = found.linear, self.found.table, self.integers.sizes.bases
        if linear.kind != ("product", -1, -1) or data.map is None:
            return False
        own, root = sizes.get(data.map.base), table.roots.get(data.map.base)
        parts, bias = roots.along_rows(data, True), self._along_rows(scope, found)
        if own is None or root is None or not own or bias is None or parts is None:
            return False
        before, output = sizes.get(root), node.output[0]
        if not before or own[-1] != before[-1]:
            root = self._flat(scope, node, found.data, root, own[-1])
            flat = self.integers.own_size(scope, f"\0flat of {output}", root, 0)
            before = (flat, own[-1])
            sizes.setdefault(root, before)
        rank = len(before)
        turned = replace(found, rank=rank, data_rank=rank)
        made = apply(turned, roots.with_parts(data, root, parts))
        if made is None:
            return False
        if bias.name:
            values = bias.double().reshape(-1) * found.bias_factor
            made = made.shifted(values, bias.unit / 2, bias.unit)
        closed = self.found.total(made, label(node), rank, self.side.shapes.type(scope, output))
        name = f"\0rows of {output}"
        self._hide(scope, name, (*(None,) * (rank - 1), linear.rows))
        self.integers.tell(closed, (*before[:-1], linear.rows))
        self.give(scope, name, closed)
        turn = NodeProto(op_type="Reshape", name=label(node), input=[name], output=[output])
        self._rearranged(scope, turn, closed, (*own[:-1], linear.rows))
        return True

    def _flat(self, scope: Scope, node: NodeProto, data: str, root: int, last: Size) -> int:
        """The base that has the numbers of another one as rows of a size."""
        name = f"\0flat of {node.output[0]}"
        self._hide(scope, name, (None, last if isinstance(last, int) else None))
        self.side.shapes.types[scope.path, name] = self.side.shapes.type(scope, data)
        turn = NodeProto(op_type="Reshape", name=label(node), input=[data], output=[name])
        (term,) = self._turned_base(scope, turn, of_base(root), (None, last)).terms
        return term.base

    def _hide(self, scope: Scope, name: str, sizes: tuple[int | None, ...]) -> None:
        """A tensor that the file does not have."""
        scope.inputs.add(name)
        self.side.shapes.symbols[scope.path, name] = sizes
        self.side.shapes.shapes[scope.path, name] = sizes

    def _along_rows(self, scope: Scope, found: Applied) -> Weight | None:
        """A bias of one number, or one for each row; one without a name if there is none."""
        if not found.bias:
            return Weight("", (), 0.0, lambda: np.zeros(()))
        weight = self.side.floats(scope, found.bias)
        rows = found.linear.rows
        if weight is None or weight.shape not in ((), (1,), (rows,), (1, 1), (1, rows)):
            return None
        return weight if np.all(np.isfinite(weight.double())) else None

    def _widened(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """As `moved`, for an Expand: it is told by the sizes that are new."""
        told = widened(self.integers, scope, node)
        if told is None or None in told:
            return False
        before = self.integers.of_tensor(scope, node.input[0]) or ()
        if told == before:
            self.give(scope, node.output[0], data)
            return True
        types = [self.side.shapes.type(scope, node.output[0])]
        own = (*(None,) * (len(told) - len(before)), *before)
        new = tuple(None if size == one else size for size, one in zip(told, own, strict=True))
        key = ("expanded", new, *types, self.word(scope, node.input[0], data))
        form = Form(key, [data], Core(node, node.input, [data]))
        (made,) = self.found.operator(scope, node, [form], types)
        self.integers.tell(made, told)
        self.give(scope, node.output[0], made)
        return True

    def _turned(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """As `moved`, for a Transpose: two of them are one, or none.

        It takes scale and shift along, whatever axes they lie along.
        """
        rank, table = self.side.rank(scope, node.input[0]), self.found.table
        order = order_of(node, rank)
        term = data.map
        if order is None or term is None:
            return False
        root, before = table.turns.get(term.base, (term.base, tuple(range(len(order)))))
        both = tuple(before[axis] for axis in order)
        if both == tuple(range(len(order))):
            self.give(scope, node.output[0], roots.transposed(data, root, order))
            return True
        types, plain = [self.side.shapes.type(scope, node.output[0])], of_base(term.base)
        forms = []
        for base, turn in ((term.base, order), (root, both)):
            one = of_base(base)
            key = ("turned", turn, *types, self.word(scope, node.input[0], one))
            forms.append(Form(key, [one], Core(node, node.input, [one]), base != term.base))
        (made,) = self.found.operator(scope, node, forms[: 1 + (root != term.base)], types)
        roots.note_turn(table, plain, made, order)
        own = made.map
        assert own is not None
        owner = scope.owner(node.input[0])
        if owner is not None and self.integers.of_tensor(scope, node.input[0]) is None:
            self.integers.note(owner, node.input[0], term.base)  # The order tells how many axes.
        sizes = self.integers.of_tensor(scope, node.input[0])
        if sizes is not None and len(sizes) == len(order):
            self.integers.tell(made, [sizes[axis] for axis in order])
        self.give(scope, node.output[0], roots.transposed(data, own.base, order))
        return True

    def chained(
        self, scope: Scope, node: NodeProto, data: Sequence[Part]
    ) -> tuple[int, tuple[Part, ...]] | None:
        """The axis and the parts of a Concat, those of a Concat that it reads among them.

        What is put together along one axis in several steps is put together at once. None for
        another operator, and where the table does not afford that.
        """
        rank = self.side.rank(scope, node.output[0])
        axis = attributes(node).get("axis") if type_of(node) == "Concat" else None
        if rank is None or axis is None or not -rank <= axis < rank:
            return None
        parts = [roots.parts_of(self.found.table, part, axis % rank) for part in data]
        if not self.found.table.affords(sum(len(each) for each in parts if len(each) > 1)):
            return None
        return axis % rank, tuple(itertools.chain.from_iterable(parts))

    def _cut(self, scope: Scope, node: NodeProto, data: Expression) -> bool:
        """As `moved`, for a Slice: ranges of other axes may be taken in any order."""
        place, table = place_of(self.integers, scope, node), self.found.table
        if place is None:
            return False
        if place == WHOLE:
            self.give(scope, node.output[0], data)
            return True
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
