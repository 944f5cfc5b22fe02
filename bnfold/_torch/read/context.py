"""What the readers of single operators may ask of a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Absorber
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

    def parameter(self, value: object) -> Constant | Reason | None:
        """The floating-point constant given to an operator, why it is none, None where absent."""
        if not isinstance(value, Node):
            return None
        found = self.constants.find(value)
        if isinstance(found, Constant) and not found.is_float:
            return Reason("unsupported-dtype", found.name, f"{found.name} is {found.torch_dtype}")
        return found

    def is_constant(self, value: object) -> bool:
        """Whether a node is the same at every call."""
        return isinstance(value, Node) and isinstance(self.constants.find(value), Constant)


@dataclass(frozen=True)
class Read:
    """What was read of a node: its role, the tensors that are its data, in order, and those it
    puts out, if that is not the node itself.
    """

    reading: Reading
    data: tuple[Node, ...] = ()
    outputs: tuple[Node, ...] = ()


NOTHING = Read(Reading(OPAQUE))


def blocked(weight: Constant | Reason | None) -> Read:
    """An operator that would absorb, but for its weight."""
    if not isinstance(weight, Reason):
        return NOTHING
    return Read(Reading(Absorber({}, weight, weight)))
