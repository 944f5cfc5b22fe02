"""What both files compute, as far as it is not affine: each such value has one number, a *base*.

This is value numbering (Alpern, Wegman, Zadeck: "Detecting equality of variables in programs",
1988), up to maps: a second operator of the same kind on related data is no new value.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from bnfold._onnx.read.scopes import Scope, domain_of, type_of
from bnfold._relation.expressions import Expression
from bnfold._relation.side import Side
from bnfold._run.nodes import RANDOM as DRAWING
from bnfold._system.records import record

Array = NDArray[Any]
Ranges = tuple[tuple[int, Hashable], ...]
"""By axis, in order, which of its numbers are taken."""
Part = tuple[Hashable, Expression | None]
"""What tells an input of an operator apart, and what it is; None for a constant."""

RANDOM = frozenset((*DRAWING, "Dropout"))
"""Two of them put out other numbers, whatever they read."""
_NOTES = ("roots", "cuts", "turns", "chains", "joins", "nots", "clips", "widened")
"""What a table holds of bases besides how they are made."""
_PARTS = 1 << 16
"""So many parts of Concats are written out once more, at most, each time that a file is walked."""
OWN = "\0torch"
"""The domain of PyTorch's operators that have no other name; no file has it."""


@record(eq=False)
class Known:
    """An operator that is not affine, as the first file has it.

    ``inputs`` has None for constants and inputs that are left out. ``results`` are what its bodies
    put out, ``formal`` what they are given. ``kind`` is its type, ``numbers`` are parameters that
    a map moves. ``place`` is where the first file has it; None for another form of one that it has.
    """

    label: str
    inputs: Sequence[Expression | None]
    outputs: Sequence[int]
    kind: str = ""
    numbers: Sequence[float] = ()
    formal: Sequence[Sequence[int]] = ()
    results: Sequence[Sequence[Expression]] = ()
    is_used: bool = False
    place: tuple[Side, Scope, NodeProto] | None = None


@record(eq=False)
class Sum:
    """A sum of linear operators and bases, which became a base.

    ``own`` is what its tensor is: the base itself, or a constant in the channels where the sum does
    not depend on what it reads.
    """

    label: str
    expression: Expression
    base: int
    rank: int | None
    kind: int
    own: Expression
    is_used: bool = False


class Joined(NamedTuple):
    """What a Concat has put together: its axis, how many axes there are, and sizes and parts."""

    axis: int
    rank: int
    sizes: tuple[int, ...]
    parts: tuple[Expression, ...]


@record(eq=False)
class Table:
    """All values of the first file, and those that the second has besides.

    Attributes:
        operators: what is not affine, by what tells it apart.
        sums: sums of linear operators, by the bases that they read.
        readers: the sums of the first file that read a base.
        expanded: sums that read other sums, as they read what these do; those that were looked
            for: behind the bases ``followed``, and each once, by the base that it is, in ``seen``.
        definitions: the sums of both files, by the base that they are.
        roots: by a base whose numbers another one has, in the same order but with other axes, that
            other one.
        cuts: by a base that is a part of another one, that other one, and the range of each axis.
        turns: by a base that is another one transposed, that other one, and the order of its axes.
        chains: by a base that is a Concat, its axis and its parts, with those of a Concat among
            them along the same axis: what tells each one apart, and what it is.
        joins: by a base that is a Concat, what it is put together of.
        nots: by a base that is a Not, of what.
        clips: by a base that is a Clip or a Relu, of what, and its bounds.
        types: the element type of each base.
        constants: the bases of constants that a graph puts out, by their numbers, type and shape.
        widened: by a base that is data of another type, stored in a wider one, and by that type,
            what the data are.
        parts_left: how many parts of a Concat may yet be written out in the place of a Concat that
            reads it, or takes parts of it. A file of N of these may ask for N².
        noted: what the first file alone has noted of bases; None until it has been walked.
    """

    operators: dict[Hashable, list[Known]] = field(default_factory=dict)
    sums: dict[frozenset[int], list[Sum]] = field(default_factory=dict)
    readers: dict[int, list[Sum]] = field(default_factory=dict)
    expanded: dict[frozenset[int], list[tuple[Sum, Expression]]] = field(default_factory=dict)
    followed: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    definitions: dict[int, Sum] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    cuts: dict[int, tuple[int, Ranges]] = field(default_factory=dict)
    turns: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    chains: dict[int, tuple[int, tuple[Part, ...]]] = field(default_factory=dict)
    joins: dict[int, Joined] = field(default_factory=dict)
    nots: dict[int, Expression] = field(default_factory=dict)
    clips: dict[int, tuple[Expression, float, float]] = field(default_factory=dict)
    types: list[int] = field(default_factory=list)
    widened: dict[tuple[int, int], Expression] = field(default_factory=dict)
    constants: dict[Hashable, int] = field(default_factory=dict)
    parts_left: int = _PARTS
    noted: dict[str, dict[Any, Any]] | None = None

    def reset(self) -> None:
        """Forget what the second file has used, and what it has noted of bases.

        Where it is not the first one, what it notes may be wrong: no other output may rest on it.
        """
        self.parts_left = _PARTS
        if self.noted is None:
            self.noted = {name: dict(getattr(self, name)) for name in _NOTES}
        for name, notes in self.noted.items():
            setattr(self, name, dict(notes))
        for known in itertools.chain.from_iterable(self.operators.values()):
            known.is_used = False
        for held in itertools.chain.from_iterable(self.sums.values()):
            held.is_used = False

    def affords(self, count: int) -> bool:
        """Whether so many parts of a Concat may be written out; they are counted."""
        if count > self.parts_left:
            return False
        self.parts_left -= count
        return True

    def fresh(self, kind: int) -> int:
        """A new base, whose numbers have an element type; 0 if that is not known."""
        self.types.append(kind)
        return len(self.types) - 1

    def stored(self, content: Hashable) -> int:
        """The base of a constant."""
        if content not in self.constants:
            self.constants[content] = self.fresh(0)
        return self.constants[content]


def key_of(
    node: NodeProto, opset: int, inputs: Sequence[Hashable], types: Sequence[int]
) -> Hashable:
    """What two operators have in common that put out the same: type, attributes, and data.

    ``opset`` is the version of the operator's domain: of one that ONNX does not define, every
    version may define the operator anew. ``types`` are the element types of what it puts out.

    Attributes that are left out have the defaults of the operator's definition.
    """
    given = {a.name: _frozen(a) for a in node.attribute[:] if not (a.HasField("g") or a.graphs)}
    version, defaults = _defined(node.op_type, domain_of(node), opset)
    given = {**defaults, **given}
    if type_of(node) == "Shape":  # onnxruntime says it in files of opsets that have no such.
        given.setdefault("start", repr(0))
    outputs = tuple((bool(name), kind) for name, kind in zip(node.output, types, strict=True))
    kind = type_of(node), getattr(node, "overload", "")
    return kind, version, outputs, tuple(sorted(given.items())), tuple(inputs)


@lru_cache(maxsize=1024)
def _defined(kind: str, domain: str, opset: int) -> tuple[int, Mapping[str, Hashable]]:
    """The version of an operator's definition, and the defaults of its attributes."""
    if onnx.defs.has(kind, domain):
        with suppress(onnx.defs.SchemaError):
            schema = onnx.defs.get_schema(kind, opset, domain)
            defaults = ((name, each.default_value) for name, each in schema.attributes.items())
            return schema.since_version, {n: _frozen(value) for n, value in defaults if value.name}
    return opset if domain else 0, {}


def _frozen(attribute: onnx.AttributeProto) -> Hashable:
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return fingerprint(onnx.numpy_helper.to_array(value))
    if isinstance(value, (str, bytes, int, float)):
        return repr(value)
    content: bytes = attribute.SerializeToString(deterministic=True)
    return content


def fingerprint(values: Array) -> Hashable:
    """What tells the numbers of a constant apart."""
    data = np.ascontiguousarray(values)
    content = repr(data.tolist()).encode() if data.dtype.hasobject else data.tobytes()
    return values.dtype.name, values.shape, hashlib.sha256(content).hexdigest()
