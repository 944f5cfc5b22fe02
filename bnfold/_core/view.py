"""The neutral view of a network that the planner works on; it knows no framework.

Readers (ONNX today) translate each graph into nodes with roles. The planner sees ranks, channel
counts and small parameter vectors, never a large weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.laws import Law
from bnfold._core.reasons import Reason


@dataclass(frozen=True)
class InputSide:
    """How a linear operator takes in a map of its input number ``data``.

    ``channels`` maps each input axis that its weight has own entries for to its size.
    ``scale_blocked`` and ``shift_blocked`` say why its weight may not be changed, or why a shift is
    not exact (zero padding). ``image`` is set where the operator has no bias to take the shift: it
    gives the map of the output that a shift of the input amounts to.
    """

    data: int
    channels: Mapping[int, int]
    scale_blocked: Reason | None = None
    shift_blocked: Reason | None = None
    image: Callable[[AffineMap], AffineMap] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Absorber:
    """An operator whose parameters can take in an affine map of its output: a linear operator,
    or a normalization with its own γ and β.

    ``channels`` maps each output axis that has its own parameters to its size. ``scale_blocked``
    and ``shift_blocked`` say why its weight or its bias may not be changed. ``bias_free`` means
    that a shift costs nothing; otherwise a new shift needs an operator of its own (MatMul).
    ``ahead`` is set for a linear operator whose weight can take in a map of its input too.
    """

    channels: Mapping[int, int]
    scale_blocked: Reason | None = None
    shift_blocked: Reason | None = None
    bias_free: bool = True
    ahead: InputSide | None = None


@dataclass(frozen=True)
class Affine:
    """A per-channel affine operator on input number ``data``.

    ``steps`` counts its elementwise operations (2 for a BatchNorm, 1 for a Mul). ``absorber`` is
    set when the operator, left standing, could itself absorb later maps (BatchNorm's γ and β).
    ``composable`` says whether it may be rewritten as a Mul and an Add, whose constants would be
    of ``dtype`` (None where not known).
    """

    map: AffineMap
    data: int = 0
    operations: int = 1
    absorber: Absorber | None = None
    composable: bool = True
    dtype: np.dtype[Any] | None = None


@dataclass(frozen=True)
class Carrier:
    """An operator that hands its input number ``data`` through unchanged (Identity, Dropout).

    Law: ``f(A(x)) = A(f(x))`` for every map A on any axis, scale and shift alike.
    """

    data: int = 0


@dataclass(frozen=True)
class Crossing:
    """An operator that maps cross by a law; ``data`` are the inputs that the law numbers.

    ``numbers`` says where the operator keeps each number that the law may change: at an input, by
    its number, or in an attribute, by its name; what is not said is in an attribute named as the
    law's field. ``dtype`` is the type that such numbers have.
    """

    law: Law
    data: tuple[int, ...] = (0,)
    dtype: np.dtype[Any] | None = None
    numbers: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Barrier:
    """An affine operator that is no fixed per-channel map, with the reason to report."""

    reason: Reason


@dataclass(frozen=True)
class Opaque:
    """Any other operator: nothing passes."""


Role = Absorber | Affine | Carrier | Crossing | Barrier | Opaque
OPAQUE = Opaque()


@dataclass(frozen=True)
class Node:
    """One operator: what the user calls it, its type, role, and the values it reads and writes.

    Values are indices into `View.values`; -1 marks an absent input or output. ``typed`` are the
    numbers of inputs of which it takes no more than the element type.
    """

    label: str
    op: str
    role: Role
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    typed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Value:
    """One tensor: who writes it, every read of it, why it may not change (if so), and, unless it is
    stored, its sizes as far as they are known.

    ``readers`` has one entry per read, so a node that reads a tensor twice is listed twice. Whoever
    asks only for its shape or type is no reader: no affine map changes either. ``shape_readers``
    are those that ask for its shape.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    pinned: Reason | None = None
    shape: Shape | None = None
    shape_readers: tuple[int, ...] = ()


@dataclass(frozen=True)
class View:
    """One graph: nodes with every producer before its readers, and the values between them."""

    nodes: tuple[Node, ...]
    values: tuple[Value, ...] = field(repr=False)
