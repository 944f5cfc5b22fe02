"""Sizes that vary from call to call, in words that two programs share.

Each program has symbols of its own. The first that stands in the shapes of the inputs, in their
order, is ``n0`` in both, the next one ``n1``; all other sizes are expressions of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor

from bnfold._aten.writer import KINDS, Like, Size

Ranges = Mapping[str, tuple[Any, Any]]


class Sizes:
    """The sizes of one program."""

    def __init__(self, inputs: Iterable[Any], ranges: Mapping[Any, Any]) -> None:
        """``inputs`` are the example values of the inputs, ``ranges`` how far symbols may go."""
        self._names: dict[Any, Any] = {}
        for value in inputs:
            for size in value.shape if isinstance(value, Tensor) else [value]:
                if isinstance(size, SymInt):
                    for symbol in sorted(_expression(size).free_symbols, key=str):
                        name = type(symbol)(f"n{len(self._names)}", integer=True, positive=True)
                        self._names.setdefault(symbol, name)
        self.ranges: Ranges = {
            str(self._names[symbol]): (found.lower, found.upper)
            for symbol, found in ranges.items()
            if symbol in self._names
        }

    def text(self, value: Any) -> str | None:
        """A size, or another number that follows from sizes; None where data decide about it."""
        if isinstance(value, (bool, int, float)):
            return repr(value)
        if not isinstance(value, (SymInt, SymFloat, SymBool)):
            return None
        expression = _expression(value)
        if not expression.free_symbols <= self._names.keys():
            return None
        return str(expression.xreplace(self._names))

    def like(self, value: Any) -> Like:
        """The type and sizes of an example value."""
        if not isinstance(value, Tensor):
            return Like(0, ())
        if value.layout is not torch.strided:
            return Like(0, tuple(None for _ in value.shape))
        return Like(KINDS.get(value.dtype, 0), tuple(map(self._size, value.shape)))

    def _size(self, size: Any) -> Size:
        if isinstance(size, int):
            return size
        text = self.text(size)
        if text is None or text.lstrip("-").isdigit():
            return None if text is None else int(text)
        return text

    def has(self, one: Sizes) -> bool:
        """Whether all sizes that another program takes are sizes that this one takes."""
        for name, (low, high) in one.ranges.items():
            own = self.ranges.get(name, (low, high))
            if not (own[0] <= low and high <= own[1]):
                return False
        return True


def _expression(value: Any) -> Any:
    return value.node.expr
