"""The sizes of what both files compute, and what each file tells the other about them.

The first file runs only where some sizes are the same, and what it puts out matters only there: a
product tells that two axes are as long, and a Reshape to named sizes that these are the sizes of
what it reads. The second file may know more than the first about a tensor that both have.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from bnfold._onnx.read.scopes import Scope
from bnfold._relation.amounts import Size, holds, name_of, named, replaced

Ints = tuple[int | None, ...]


@dataclass(eq=False)
class Sizes:
    """What is known of sizes while the files are walked, the first one maybe more than once.

    Attributes:
        bases: the sizes of bases, of both files.
        equal: by the name of a size what it is, too, wherever the first file runs.
        tensors: the tensor by which the first file came to a base.
        told: what the second file knows of tensors of the first.
        learns: whether it is the first file that is walked.
        is_certain: whether all that the first file puts out needs the operator that is walked.
        is_new: whether the second file has told something that the first did not know.
    """

    bases: dict[int, tuple[Size, ...]] = field(default_factory=dict)
    equal: dict[Hashable, Size] = field(default_factory=dict)
    tensors: dict[int, tuple[str, str]] = field(default_factory=dict)
    told: dict[tuple[str, str], Ints] = field(default_factory=dict)
    learns: bool = True
    is_certain: bool = False
    is_new: bool = False

    def begin(self) -> None:
        """The first file is walked from its beginning: bases have new numbers."""
        self.bases.clear()
        self.tensors.clear()
        self.learns, self.is_new = True, False

    def learn(self, one: Size | None, other: Size | None) -> None:
        """Note that two amounts are the same wherever the first file runs."""
        if not (self.learns and self.is_certain) or one is None or other is None:
            return
        one, other = replaced(one, self.equal), replaced(other, self.equal)
        for name, meant in ((name_of(one), other), (name_of(other), one)):
            if name is not None and not holds(meant, name):
                self.equal[name] = meant
                return

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
            self.told[tensor] = plain
            self.is_new = True
