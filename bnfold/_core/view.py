"""The neutral view of a network, on which the planner works. It knows no framework.

The readers of ONNX and PyTorch translate each graph into nodes with roles. The planner sees ranks,
channel counts and small parameter vectors, never a large weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.laws import Law, Spot
from bnfold._core.reasons import Reason
from bnfold._system.records import record


@record(frozen=True)
class InputSide:
    """How a linear operator takes in a map of its input number ``data``.

    ``channels`` gives the size of each input axis whose positions have weights of their own:
    ``{1: 64}`` for a Conv of 64 input channels. ``scale_blocked`` says why the weight may not be
    changed. ``shift_blocked`` says why a shift cannot be taken in, for example zero padding.
    ``image`` is set for an operator without a bias: for a shift of the input it gives the shift of
    the output that has the same effect. ``rank`` is that of the input, where the operator tells it.
    """

    data: int
    channels: Mapping[int, int]
    scale_blocked: Reason | None = None
    shift_blocked: Reason | None = None
    image: Callable[[AffineMap], AffineMap] | None = field(default=None, compare=False)
    rank: int | None = None


@record(frozen=True)
class Absorber:
    """An operator whose parameters can take in an affine map of its output.

    It is a linear operator, or a normalization with its own γ and β. ``channels`` gives the size of
    each output axis whose positions have parameters of their own. ``scale_blocked`` and
    ``shift_blocked`` say why its weight or its bias may not be changed. ``bias_free`` says that a
    shift costs no operator; for a MatMul it costs an Add. ``ahead`` is set for a linear operator
    whose weight can also take in a map of its input. ``varying_blocked`` and ``signed_blocked`` say
    why it takes no scale that varies along an axis, and none that is not positive. ``becomes`` is
    the type that it needs for a bias, "" where it has a place for one or can have none.

    An operator may add the input number ``beside`` to what it computes, and then apply an
    ``activation``, before it puts out anything. What it takes in behind itself is a map of what it
    computes: a map of its output has to pass the activation first, and its scale goes to the input
    ``beside``, too.
    """

    channels: Mapping[int, int]
    scale_blocked: Reason | None = None
    shift_blocked: Reason | None = None
    bias_free: bool = True
    ahead: InputSide | None = None
    activation: Crossing | None = None
    beside: int | None = None
    varying_blocked: Reason | None = None
    signed_blocked: Reason | None = None
    becomes: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it puts out what it computes."""
        return self.activation is None and self.beside is None


@record(frozen=True)
class Receiver:
    """An operator whose parameters can take in a map of its input, and none of its output: an LSTM,
    whose gates are no linear functions.
    """

    ahead: InputSide


@record(frozen=True)
class Affine:
    """A per-channel affine operator on input number ``data``.

    ``operations`` counts its elementwise operations: 2 for a BatchNorm, 1 for a Mul. ``absorber``
    is set when the operator, if it stays, could absorb later maps: a BatchNorm with its γ and β.
    ``composable`` says whether it may be written anew as a Mul and an Add. The constants of these
    would be of ``dtype`` (None if not known). ``renewable`` says whether an operator with an
    absorber may be written anew as what it is, with the numbers of another map.
    """

    map: AffineMap
    data: int = 0
    operations: int = 1
    absorber: Absorber | None = None
    composable: bool = True
    dtype: np.dtype[Any] | None = None
    renewable: bool = True


@record(frozen=True)
class Carrier:
    """An operator that hands its input number ``data`` through unchanged (Identity, Dropout).

    Law: ``f(A(x)) = A(f(x))`` for every map A on any axis, scale and shift alike.
    """

    data: int = 0


@record(frozen=True)
class Crossing:
    """An operator that maps cross by a law.

    ``data`` are the inputs that the law counts from 0. ``numbers`` says where the operator keeps
    each number that the law may change, by the name of the law's field. A field that is not listed
    is in the attribute of the same name. ``dtype`` is the type of these numbers.
    """

    law: Law
    data: tuple[int, ...] = (0,)
    dtype: np.dtype[Any] | None = None
    numbers: Mapping[str, Spot] = field(default_factory=dict)

    @cached_property
    def counted(self) -> Mapping[int, int]:
        """How the law counts each input of data."""
        return {position: number for number, position in enumerate(self.data)}


@record(frozen=True)
class Barrier:
    """An affine operator that is not a fixed per-channel map, with the reason to report."""

    reason: Reason


@record(frozen=True)
class Opaque:
    """Any other operator: nothing passes."""


Role = Absorber | Receiver | Affine | Carrier | Crossing | Barrier | Opaque
OPAQUE = Opaque()


# Python's search for cycles passes over a tuple of integers, and over what holds no more than it.
_ALONE = (0,)


@record(frozen=True)
class Node:
    """One operator: its label for the user, its type, its role, and the values it reads and writes.

    Values are indices into `View.values`; -1 marks an absent input or output. ``typed`` are the
    numbers of the inputs from which it takes only the element type, which may as well be that of
    another tensor. ``asked`` are those that have to be there for their shape or type alone.
    """

    label: str
    op: str
    role: Role
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    typed: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()

    @property
    def unread(self) -> tuple[int, ...]:
        """The numbers of the inputs whose values it does not read. No map arrives at one."""
        return (*self.typed, *self.asked)

    @cached_property
    def reads(self) -> Mapping[int, Sequence[int]]:
        """The numbers of the inputs at which it reads what each value holds."""
        unread = self.unread
        if len(self.inputs) == 1 and not unread:
            return {self.inputs[0]: _ALONE}
        found: dict[int, list[int]] = {}
        for position, value in enumerate(self.inputs):
            if position not in unread:
                found.setdefault(value, []).append(position)
        return found


@record(frozen=True)
class Value:
    """One tensor: who writes it and who reads it.

    ``producer`` is the node that writes it. ``readers`` has one entry for each read: a node that
    reads the tensor twice is listed twice. A node that asks only for its shape or its type is no
    reader, because no affine map changes these. ``shape_readers`` are the nodes that ask for its
    shape. ``pinned`` says why the tensor may not change. ``shape`` has the sizes, None for each
    unknown one. It is None for a stored tensor or an unknown rank.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    pinned: Reason | None = None
    shape: Shape | None = None
    shape_readers: tuple[int, ...] = ()


@record(frozen=True)
class View:
    """One graph: nodes with every producer before its readers, and the values between them."""

    nodes: tuple[Node, ...]
    values: tuple[Value, ...] = field(repr=False)
