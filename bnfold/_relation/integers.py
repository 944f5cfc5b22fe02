"""Integers that a file computes from sizes, such as the target of a Reshape.

They are told in words that both files share. A tensor that is a map of a base has the sizes of that
base. The first file says what these are;
where one of the files knows a number, it is one for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from bnfold._onnx.read.moved import ENDLESS
from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._onnx.read.sizes import factors
from bnfold._relation.amounts import (
    Size,
    are_equal,
    are_many,
    fits,
    plus,
    product_of,
    quotient,
    times,
)
from bnfold._relation.expressions import Expression
from bnfold._relation.side import Side, attributes
from bnfold._relation.sizes import Sizes
from bnfold._system.records import record

_LONGEST = 64
KINDS = (TensorProto.INT32, TensorProto.INT64)
_SLICE = ("starts", "ends", "axes", "steps")


@record(frozen=True)
class Numbers:
    """A scalar or a vector of integers."""

    values: tuple[Size, ...]
    is_scalar: bool = False


@record(eq=False)
class Integers:
    """What a file computes from sizes alone, and the sizes of its tensors.

    ``symbols`` has what the words of shape inference stand for, ``outlines`` the sizes of tensors
    that inference does not know.
    """

    side: Side
    sizes: Sizes
    found: dict[tuple[str, str], Numbers] = field(default_factory=dict)
    symbols: dict[str, Size] = field(default_factory=dict)
    bases: dict[tuple[str, str], int] = field(default_factory=dict)
    outlines: dict[tuple[str, str], tuple[Size | None, ...]] = field(default_factory=dict)

    def note(self, scope: Scope, name: str, base: int) -> None:
        """Note that a tensor has the sizes of a base."""
        self.bases[scope.path, name] = base
        told, known = self.side.shapes.sizes(scope, name), self.sizes.bases.get(base)
        said = self.sizes.said(base, scope, name)
        rank = self.side.rank(scope, name)
        if rank is None or known is not None:
            rank = next((len(each) for each in (known, said) if each is not None), None)
        if told is None and rank is not None:
            self.side.ranks[scope.path, name] = rank
        if rank is None or (told is not None and len(told) != rank):
            return
        own: list[Size] = []
        outline = self._outlined(scope, name, rank)
        if said is not None and len(said) == rank:
            outline = tuple(map(_better, outline, said))
        for axis, size in enumerate(told or (None,) * rank):
            told_ = self._told(size)
            own_ = _better(told_, outline[axis])
            if known is None:
                kept = self.own_size(scope, name, base, axis) if own_ is None else own_
            else:
                kept = own_ if isinstance(own_, int) else known[axis]
                self.sizes.learn(known[axis], own_)
            if isinstance(size, str) and told_ is None:
                self.symbols.setdefault(size, kept)
            own.append(kept)
        self.sizes.tell(base, own)

    def own_size(self, scope: Scope, name: str, base: int, axis: int) -> Size:
        """A name for a size that nothing tells: in the first file it is the same each time."""
        made = self.sizes.named((scope.path, name) if self.sizes.learns else (base,), axis)
        read = (self.of_tensor(scope, each) or () for each in scope.writer(name).input)
        self.sizes.open_up(scope, name, made, itertools.chain.from_iterable(read))
        return made

    def tell(self, value: Expression, told: Sequence[Size | None]) -> None:
        """Note the sizes of a tensor that is a map of a base, where all are known."""
        known = tuple(size for size in told if size is not None)
        if value.map is not None and len(known) == len(told):
            self.sizes.bases.setdefault(value.map.base, known)

    def _told(self, size: Any) -> Size | None:
        """What a size of shape inference is: a number, or a product with words."""
        if size is None or isinstance(size, int):
            return size
        number, words = factors([size])
        parts = [self.symbols.get(word) for word in words]
        known = [part for part in parts if part is not None]
        if number is None or len(known) < len(parts):
            return None
        made = product_of([number, *known])  # Inference takes each size for one above 0.
        return None if self.sizes.is_open(made) else made

    def of_tensor(self, scope: Scope, name: str) -> tuple[Size | None, ...] | None:
        """The sizes of a tensor; None for one that is not known."""
        owner = scope.owner(name)
        if owner is None:
            return None
        numbers = self.found.get((owner.path, name))
        if numbers is not None:
            return () if numbers.is_scalar else (len(numbers.values),)
        found = self._of_base(owner, name)
        said = self.sizes.told.get((owner.path, name)) if self.sizes.learns else None
        if said is None or found is None:
            return said if found is None else found
        return tuple(map(_better, found, said)) if len(found) == len(said) else found

    def _of_base(self, scope: Scope, name: str) -> tuple[Size | None, ...] | None:
        """What a tensor's base, inference and its operator tell of its sizes."""
        base = self.bases.get((scope.path, name))
        known = None if base is None else self.sizes.bases.get(base)
        told = self.side.shapes.sizes(scope, name)
        if told is None:
            return self.outlines.get((scope.path, name)) if known is None else known
        own = tuple(map(_better, map(self._told, told), self._outlined(scope, name, len(told))))
        if known is None or len(known) != len(own):
            return own
        return tuple(a if isinstance(a, int) else b for a, b in zip(own, known, strict=True))

    def is_known(self, scope: Scope, name: str) -> bool:
        """Whether inference knows all sizes of a tensor: numbers, or words that stand for some."""
        told = self.side.shapes.sizes(scope, name)
        return told is not None and all(self._told(size) is not None for size in told)

    def _outlined(self, scope: Scope, name: str, rank: int) -> tuple[Size | None, ...]:
        found = self.outlines.get((scope.path, name), ())
        return found if len(found) == rank else (None,) * rank

    def of_names(self, scope: Scope, name: str) -> Numbers | None:
        """The integers that a tensor holds; None where they are not known."""
        owner = scope.owner(name) if name else None
        if owner is None:
            return None
        key = owner.path, name
        if key not in self.found:
            stored = self.side.constant(scope, name)
            small = stored is not None and len(stored.shape) < 2 and sum(stored.shape) <= _LONGEST
            if stored is None or not small or stored.data_type not in (*KINDS, TensorProto.BOOL):
                return None
            values = stored.load()
            numbers = tuple(int(value) for value in values.reshape(-1))
            self.found[key] = Numbers(numbers, values.ndim == 0)
        return self.found[key]

    def follow(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node computes integers from sizes alone; what they are is noted."""
        rule = _RULES.get(type_of(node))
        if rule is None or not node.output[0] or any(node.output[1:]):
            return False
        kind = self.side.shapes.type(scope, node.output[0])
        if kind not in KINDS and type_of(node) != "Shape":
            return False
        try:
            made = rule(self, scope, node)
        except (IndexError, KeyError, TypeError, ValueError):  # An invalid node.
            return False
        if made is None or len(made.values) > _LONGEST:
            return False
        if not all(fits(value, 31 if kind == TensorProto.INT32 else 63) for value in made.values):
            return False  # It may be another number behind the end of its type.
        self.found[scope.path, node.output[0]] = made
        return True


def _better(one: Size | None, other: Size | None) -> Size | None:
    """Of what is known of a size the number, where one is."""
    return other if one is None or (isinstance(other, int) and not isinstance(one, int)) else one


def read_all(held: Integers, scope: Scope, node: NodeProto) -> list[Numbers] | None:
    """All that a node reads, if it is known."""
    found = [held.of_names(scope, name) for name in node.input]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else None


def _shape(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    sizes = held.of_tensor(scope, node.input[0])
    if sizes is None:
        return None
    given = attributes(node)
    taken = sizes[given.get("start", 0) : given.get("end", len(sizes))]
    known = tuple(size for size in taken if size is not None)
    return Numbers(known) if len(known) == len(taken) else None


def _count(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    sizes = held.of_tensor(scope, node.input[0])
    if sizes is None or None in sizes:
        return None
    return Numbers((product_of(size for size in sizes if size is not None),), True)


def _same(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    if type_of(node) == "Cast" and held.side.shapes.type(scope, node.input[0]) not in KINDS:
        return None
    return held.of_names(scope, node.input[0])


def _turned(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    """Squeeze, Unsqueeze, Reshape: a scalar becomes a vector of one, or the other way."""
    data, kind = held.of_names(scope, node.input[0]), type_of(node)
    if data is None:
        return None
    if kind == "Reshape":
        target = held.of_names(scope, node.input[1])
        rank = len(target.values) if target is not None else 2
        is_known = rank == 1 or (rank == 0 and len(data.values) == 1)
        return Numbers(data.values, rank == 0) if is_known else None
    if len(data.values) != 1 or data.is_scalar != (kind == "Unsqueeze"):
        return None
    axes = held.of_names(scope, node.input[1]) if len(node.input) > 1 and node.input[1] else None
    count = len(attributes(node).get("axes", ())) if axes is None else len(axes.values)
    return Numbers(data.values, kind == "Squeeze") if count == 1 or kind == "Squeeze" else None


def _gather(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    read = read_all(held, scope, node)
    if read is None or read[0].is_scalar:
        return None
    places = [place for place in read[1].values if isinstance(place, int)]
    if len(places) < len(read[1].values):
        return None
    return Numbers(tuple(read[0].values[place] for place in places), read[1].is_scalar)


def _slice(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    data = held.of_names(scope, node.input[0])
    taken = ranges(held, scope, node)
    if data is None or data.is_scalar or taken is None or len(taken) != 1:
        return None
    ((start, end, axis, step),) = taken
    if axis not in (0, -1) or not isinstance(start, int) or not isinstance(end, int):
        return None
    return Numbers(data.values[start:end:step])


def ranges(held: Integers, scope: Scope, node: NodeProto) -> list[tuple[Any, Any, int, int]] | None:
    """Start, end, axis and step of all that a Slice takes; None where they are not known."""
    named = attributes(node)
    given: list[Sequence[Any] | None] = []
    for place, name in enumerate(_SLICE, 1):
        stored = node.input[place] if place < len(node.input) else ""
        found = held.of_names(scope, stored) if stored else None
        if stored and found is None:
            return None
        given.append(named.get(name) if found is None else found.values)
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    known = all(isinstance(each, int) for each in (*axes, *steps))
    even = len(starts) == len(ends) == len(axes) == len(steps)
    if not known or not even:
        return None
    for start, end, step in zip(starts, ends, steps, strict=True):
        if step < 0 and (end in ENDLESS or (isinstance(start, int) and start < -1)):
            return None  # Engines differ there, in the latter where it begins ahead of the data.
    return list(zip(starts, ends, axes, steps, strict=True))


def _concat(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    read = read_all(held, scope, node)
    if read is None or any(each.is_scalar for each in read):
        return None
    return Numbers(tuple(value for each in read for value in each.values))


def in_pairs(read: Sequence[Numbers]) -> tuple[list[tuple[Size, ...]], bool] | None:
    """The integers of several tensors side by side, as they are broadcast."""
    count = max(len(each.values) for each in read)
    if any(len(each.values) not in (1, count) for each in read):
        return None
    wide = [each.values * (count // max(len(each.values), 1)) for each in read]
    return list(zip(*wide, strict=True)), all(each.is_scalar for each in read)


def _arithmetic(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    read = read_all(held, scope, node)
    pairs = in_pairs(read) if read is not None and scope.opset >= 7 else None
    rule = _ARITHMETIC[node.op_type]
    if pairs is None or any(map(are_many, pairs[0])):
        return None
    if node.op_type == "Div" and any(b == 0 for _, b in pairs[0]):
        return None
    return Numbers(tuple(rule(a, b) for a, b in pairs[0]), pairs[1])


_ARITHMETIC: dict[str, Callable[[Size, Size], Size]] = {
    "Add": plus,
    "Div": quotient,
    "Mul": times,
    "Sub": lambda one, other: plus(one, other, -1),
}


def _product(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    """ReduceProd of a vector."""
    data = held.of_names(scope, node.input[0])
    if data is None or data.is_scalar or len([name for name in node.input if name]) > 1:
        return None  # With axes of its own it may be left as it is.
    if attributes(node).get("noop_with_empty_axes", 0):
        return None
    return Numbers((product_of(data.values),), attributes(node).get("keepdims", 1) == 0)


def _filled(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    """ConstantOfShape of a vector."""
    shape = held.of_names(scope, node.input[0])
    value = filling(node)
    if shape is None or len(shape.values) > 1 or value is None or value.dtype.kind != "i":
        return None
    count = product_of(shape.values)
    if not isinstance(count, int) or not 0 <= count <= _LONGEST:
        return None
    return Numbers((int(value),) * count, not shape.values)


def filling(node: NodeProto) -> Any:
    """The number that a ConstantOfShape puts everywhere."""
    value = attributes(node).get("value")
    if value is None:
        return np.float32(0)
    numbers = numpy_helper.to_array(value).reshape(-1)
    return numbers[0] if numbers.size == 1 else None


def _chosen(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    """Where, if ``size == number`` tells which: a size is never below zero."""
    asked, answers = scope.writer(node.input[0]), held.of_names(scope, node.input[0])
    read = [held.of_names(scope, name) for name in (*asked.input, *node.input[1:])]
    if answers is not None:
        read = [answers, Numbers((1,), True), *read[-2:]]
    elif type_of(asked) != "Equal":
        return None
    known = [each for each in read if each is not None]
    rows = in_pairs(known) if len(known) == 4 and len(read) == 4 else None
    if rows is None:
        return None
    made: list[Size] = []
    for a, b, one, other in rows[0]:
        same = are_equal(a, b)
        if same is None:
            return None
        made.append(one if same else other)
    return Numbers(tuple(made), rows[1])


_RULES: dict[str, Callable[[Integers, Scope, NodeProto], Numbers | None]] = {
    "Add": _arithmetic,
    "Cast": _same,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _arithmetic,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic,
    "ReduceProd": _product,
    "Reshape": _turned,
    "Shape": _shape,
    "Size": _count,
    "Slice": _slice,
    "Squeeze": _turned,
    "Sub": _arithmetic,
    "Unsqueeze": _turned,
    "Where": _chosen,
}
