"""An operator of ATen with its arguments, as the rules of translation see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from bnfold._aten.writer import FLOATS, Array, Like, Writer
from bnfold._onnx.read.constants import Constant
from bnfold._torch.tensors import from_numpy, to_numpy

Made = str | Sequence[str] | None
"""The names of what an operator puts out; None where a rule does not apply."""
_TYPES = {
    1: torch.float32,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


@dataclass(frozen=True, eq=False)
class Call:
    """An operator under translation.

    ``given`` are its arguments by name, defaults included. ``likes`` are what it puts out, and
    ``used`` the numbers of its outputs that anything reads. ``names`` has the values that stand for
    nodes.
    """

    kind: str
    given: Mapping[str, Any]
    likes: Sequence[Like]
    used: frozenset[int]
    names: Mapping[Node, str]
    writer: Writer

    @property
    def like(self) -> Like:
        """What its first output is."""
        return self.likes[0]

    def value(self, name: str) -> str | None:
        """The value that is an argument, or None if it is no tensor."""
        found = self.given.get(name)
        return self.names.get(found) if isinstance(found, Node) else None

    def like_of(self, value: str) -> Like:
        """What a value is."""
        return self.writer.likes[value]

    def constant(self, name: str) -> Constant | None:
        """The constant that is an argument, or None."""
        value = self.value(name)
        return None if value is None else self.writer.constant(value)

    def whole(self, name: str) -> list[int] | None:
        """Whole numbers that are an argument; None where one of them is not known."""
        found = self.given.get(name)
        numbers = list(found) if isinstance(found, (list, tuple)) else [found]
        whole = [each for each in numbers if type(each) is int]
        return whole if len(whole) == len(numbers) else None

    def each(self, name: str, count: int, default: int) -> list[int] | None:
        """The same for each of some axes: one number may stand for all, none for the default."""
        if self.given.get(name) in (None, [], ()):
            return [default] * count
        found = self.whole(name)
        if found is None:
            return None
        found = found * count if len(found) == 1 else found
        return found if len(found) == count else None

    def write(self, op: str, inputs: Sequence[str], like: Like | None = None, **given: Any) -> str:
        """Add an operator that puts out what this one does, or another ``like``."""
        return self.writer.node(op, inputs, self.like if like is None else like, **given)

    def operand(self, name: str) -> str | None:
        """An argument in the type of what is put out; None for one that is no plain number."""
        found = self.given.get(name)
        if isinstance(found, (int, float)):
            return self.writer.number(float(found), self.like.kind)
        value = self.value(name)
        return None if value is None else self.cast(value, self.like.kind)

    def cast(self, value: str, kind: int) -> str | None:
        """A value in another type; None for one of no known type."""
        like = self.writer.likes[value]
        if not like.kind or not kind:
            return None
        if like.kind == kind:
            return value
        constant = self.writer.constant(value)
        if constant is not None and constant.is_float and kind in _TYPES:
            return self._rounded(constant, Like(kind, like.sizes))
        return self.write("Cast", [value], Like(kind, like.sizes), to=kind)

    def _rounded(self, constant: Constant, like: Like) -> str | None:
        """A constant in another type; None where it has no numbers that are near."""
        own = from_numpy(constant.load())
        rounded = own.to(_TYPES[like.kind])
        far = (rounded.double() - own.double()).abs()
        if not bool((far <= torch.finfo(rounded.dtype).eps * own.double().abs()).all()):
            return None
        values = to_numpy(rounded)
        return self.writer.held(constant.name, like, lambda: values)

    def made(self, value: str, like: Like, change: Callable[[Array], Array]) -> str | None:
        """What is computed from a constant; None for what is none."""
        constant = self.writer.constant(value)
        if constant is None or like.kind not in FLOATS:
            return None
        load = constant.load
        return self.writer.held(constant.name, like, lambda: change(load()))

    def reshaped(self, value: str, sizes: Sequence[Any]) -> str | None:
        """A value with other axes, in the same order; None where their sizes are not known."""
        like = Like(self.writer.likes[value].kind, tuple(sizes))
        if None in like.sizes:
            return None
        return self.write("Reshape", [value, ""], like, sizes=repr(like.sizes))
