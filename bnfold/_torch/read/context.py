"""What the readers of single operators may ask of a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from bnfold._core.operators.record import Operand, Row
from bnfold._core.reasons import Reason, Refusal
from bnfold._torch.read.constants import Constant, Constants


@dataclass(frozen=True)
class Context:
    """Constants, and what the user calls a node.

    ``in_training`` tells whether the module that holds a node is in training mode. ``whole`` is set
    for a program that stands for itself: its fixed sizes are those of all its inputs, and the
    numbers given to its operators may be changed. Of a module neither is so.
    """

    constants: Constants
    label: Callable[[Node], str]
    in_training: Callable[[Node], bool]
    whole: bool

    def parameter(self, value: object) -> Constant | None:
        """The floating-point constant given to an operator, None where that is absent.

        Raises `Refusal` where it is none.
        """
        found = self._usable(value)
        if isinstance(found, Reason):
            raise Refusal(found)
        return found

    def operand(self, value: object, position: int) -> Operand:
        """The parameter given to an operator as its argument of a number, or why there is none."""
        found = self._usable(value)
        if isinstance(found, Reason):
            return Operand(position, missing=found)
        return Operand(position, found)

    def is_constant(self, value: object) -> bool:
        """Whether a node is the same at every call."""
        return isinstance(value, Node) and isinstance(self.constants.find(value), Constant)

    def _usable(self, value: object) -> Constant | Reason | None:
        if not isinstance(value, Node):
            return None
        found = self.constants.find(value)
        if isinstance(found, Constant) and not found.is_float:
            return Reason("unsupported-dtype", found.name, f"{found.name} is {found.torch_dtype}")
        return found


# How one kind of operator is read, from its node and its arguments by name.
TorchRow = Row[[Context, Node, dict[str, Any]]]
