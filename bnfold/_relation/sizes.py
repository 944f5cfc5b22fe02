"""The sizes of what both files compute, and what each file tells the other about them.

The first file runs only where some sizes are the same, and what it puts out matters only there: a
product tells that two axes are as long, and a Reshape to named sizes that these are the sizes of
what it reads. The second file may know more than the first about a tensor that both have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import field

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.amounts import (
    Size,
    even_quotient,
    holds,
    name_of,
    named,
    product_of,
    replaced,
)
from bnfold._system.records import record

Ints = tuple[int | None, ...]
_KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")
_LEAVING = frozenset(
    (
        *("Compress", "ConstantOfShape", "Expand", "If", "Loop", "NonMaxSuppression", "NonZero"),
        *("OneHot", "Pad", "Range", "Resize", "Scan", "SequenceAt", "Slice", "Split", "Tile"),
        *("TopK", "Unique"),
    )
)
"""Operators that may put out nothing, whatever they read."""


@record(eq=False)
class Sizes:
    """What is known of sizes while the files are walked, the first one maybe more than once.

    Attributes:
        bases: the sizes of bases, of both files.
        equal: by the name of a size what it is, too, wherever the first file runs.
        tensors: the tensor by which the first file came to a base.
        told: numbers that sizes of tensors of the first file are, wherever it runs, as the second
            knows them or a product of the first asks for them.
        asked: how many of these the products of the first file have told.
        learns: whether it is the first file that is walked.
        is_certain: whether all that the first file puts out needs the operator that is walked.
        is_new: whether the second file has told something that the first did not know.
        inputs: the names of the sizes of the model's inputs, of which none is empty.
        doubted: names in the target of a Reshape that copies a size where a 0 is asked for: what it
            puts out may have another size.
        open: names of sizes that may well be 0, such as how many numbers a NonZero finds.
    """

    bases: dict[int, tuple[Size, ...]] = field(default_factory=dict)
    equal: dict[Hashable, Size] = field(default_factory=dict)
    tensors: dict[int, tuple[str, str]] = field(default_factory=dict)
    told: dict[tuple[str, str], Ints] = field(default_factory=dict)
    asked: int = 0
    learns: bool = True
    is_certain: bool = False
    is_new: bool = False
    inputs: set[Hashable] = field(default_factory=set)
    doubted: set[Hashable] = field(default_factory=set)
    open: set[Hashable] = field(default_factory=set)

    def begin(self) -> None:
        """The first file is walked from its beginning: bases have new numbers."""
        self.bases.clear()
        self.tensors.clear()
        self.open.clear()
        self.learns, self.is_new = True, False

    def learn(self, one: Size | None, other: Size | None) -> None:
        """Note that two amounts are the same wherever the first file runs."""
        if not (self.learns and self.is_certain) or one is None or other is None:
            return
        if any(holds(size, name) for size in (one, other) for name in self.doubted):
            return
        one, other = replaced(one, self.equal), replaced(other, self.equal)
        for name, meant in ((name_of(one), other), (name_of(other), one)):
            if name is not None and not holds(meant, name):
                self.equal[name] = meant
                return

    def ask(
        self, tensor: tuple[str, str], own: Sequence[Size | None], axis: int, size: int
    ) -> None:
        """Note that a tensor of the first file has to have a size where it runs."""
        held = self.told.get(tensor, (None,) * len(own))
        if self.learns and self.is_certain and len(held) == len(own) and held[axis] is None:
            told = list(held)
            told[axis] = size
            self.told[tensor] = tuple(told)
            self.asked += 1

    def learn_of_all(self, ones: Sequence[Size | None], others: Sequence[Size | None]) -> None:
        """Note that two tensors have as many numbers: sizes of inputs may be divided by."""
        known = [[size for size in sizes if size is not None] for sizes in (ones, others)]
        if len(known[0]) < len(ones) or len(known[1]) < len(others):
            return
        wholes = [product_of(sizes) for sizes in known]
        for one, other in (wholes, wholes[::-1]):
            if one != other and self.is_positive(other):
                self.learn(even_quotient(one, other), 1)

    def is_positive(self, size: Size) -> bool:
        """Whether an amount is known to be above 0, where no input of the model is empty."""
        if isinstance(size, int):
            return size > 0
        return all(f > 0 and self.inputs.issuperset(product) for product, f in size.terms)

    def doubt(self, size: Size) -> None:
        """Note that a Reshape to a size may put out another one, unless that is above 0."""
        if not isinstance(size, int) and not self.is_positive(size):
            self.doubted.update(name for product, _ in size.terms for name in product)

    def open_up(self, scope: Scope, name: str, size: Size, read: Iterable[Size | None]) -> None:
        """Note that a size of a tensor may be 0: its operator may leave nothing, or read nothing.

        ``read`` are the sizes of what that reads. Those of the model's inputs are not 0.
        """
        node = scope.writer(name)
        leaves = type_of(node) in _LEAVING or node.domain not in _KNOWN_DOMAINS
        given = not node.op_type and scope.path and not name.startswith("\0")
        if not isinstance(size, int) and (leaves or given or any(map(self.is_open, read))):
            names = {name for product, _ in size.terms for name in product}
            self.open.update(names - self.inputs)

    def is_open(self, size: Size | None) -> bool:
        """Whether a size may well be 0."""
        return size is not None and any(holds(size, name) for name in self.open)

    def named(self, own: tuple[Hashable, ...], axis: int) -> Size:
        """The size of an axis of a tensor, by a name that no other has, or what that is, too."""
        return replaced(named(("size", *own, axis)), self.equal)

    def said(self, base: int, scope: Scope, name: str) -> Ints | None:
        """What the second file has told of a tensor of the first, by which this comes to a base."""
        if not self.learns:
            return None
        return self.told.get(self.tensors.setdefault(base, (scope.path, name)))

    def tell(self, base: int, sizes: Sequence[Size]) -> None:
        """Note the sizes of a base."""
        known, tensor = self.bases.get(base), self.tensors.get(base)
        self.bases[base] = tuple(sizes)
        if self.learns or tensor is None:
            return
        plain = tuple(size if isinstance(size, int) else None for size in sizes)
        held = () if known is None else known
        if known is None or any(
            size is not None and not isinstance(one, int)
            for size, one in zip(plain, held, strict=True)
        ):
            self.told[tensor] = _both(plain, self.told.get(tensor))
            self.is_new = True


def _both(one: Ints, other: Ints | None) -> Ints:
    """What is known of the sizes of a tensor from two sides."""
    if other is None or len(other) != len(one):
        return one
    return tuple(b if a is None else a for a, b in zip(one, other, strict=True))
