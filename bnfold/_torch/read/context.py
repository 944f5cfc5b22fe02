"""The program around an operator, as the readers of single operators may ask about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from bnfold._core.operators.record import Operand, Row
from bnfold._core.reasons import Reason, Refusal
from bnfold._torch.read.constants import Constant, Constants
from bnfold._torch.read.nodes import shape_of
from bnfold._torch.read.quantized import Dequantized, dequantized


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
        integers = self.dequantized(value)
        if isinstance(integers, Reason):
            return Operand(position, missing=integers)
        if found is None or integers is None:
            return Operand(position, found)
        message = f"{found.name} is dequantized when the model runs"
        reason = Reason("quantized-weight", found.name, message)
        if not self.whole:
            return Operand(position, missing=reason)
        return Operand(position, found, None, integers.quantized, reason)

    def weight(self, value: object, position: int) -> Operand:
        """The operand that is a weight. Raises `Refusal` if it may not change."""
        found = self.operand(value, position)
        if found.missing is not None:
            raise Refusal(found.missing)
        return found

    def dequantized(self, value: object) -> Dequantized | Reason | None:
        """What of a constant may change that comes from integers, or why it may not.

        None for others, and for a vector, which is small: it becomes one of floats.
        """
        if not isinstance(value, Node) or len(shape_of(value) or ()) < 2:
            return None
        return dequantized(self.constants, value)

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
