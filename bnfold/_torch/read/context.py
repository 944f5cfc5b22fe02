"""The program around an operator, as the readers of single operators may ask about it."""

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
    """The constants of a program, and facts about its nodes.

    ``label`` gives a node's name for the user. ``in_training`` tells whether the module of a node
    is in training mode. ``whole`` is set for a program that the user gave: its fixed sizes hold for
    all inputs, and the numbers of its operators may be changed. For a program exported from a
    module neither is true.
    """

    constants: Constants
    label: Callable[[Node], str]
    in_training: Callable[[Node], bool]
    whole: bool

    def parameter(self, value: object) -> Constant | None:
        """The floating-point constant of an argument, None if the argument is absent.

        Raises `Refusal` if the argument is no such constant.
        """
        found = self._usable(value)
        if isinstance(found, Reason):
            raise Refusal(found)
        return found

    def operand(self, value: object, position: int) -> Operand:
        """The parameter of the argument at a position, or why there is none."""
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


# Reads one kind of operator, from its node and its arguments by name.
TorchRow = Row[[Context, Node, dict[str, Any]]]
