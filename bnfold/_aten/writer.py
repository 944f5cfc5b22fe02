"""Writes a program of PyTorch as operators that the proof reads.

What is written is no file, and nothing runs it. Each operator means what ONNX defines. One that
ONNX does not have, or that no rule translates, stands in a domain of its own, with all its
arguments as text: two of them are the same if these are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import Shapes
from bnfold._relation.side import Side
from bnfold._relation.table import OWN

Array = NDArray[Any]
Size = int | str | None

OPSET = 23
"""The operators are those of this version of ONNX."""
KINDS: dict[torch.dtype, int] = {
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}
"""ONNX's element type for one of PyTorch; 0 stands for all others."""
_PORTS = ("input ", "output ", "check ")
FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


class Like(NamedTuple):
    """An element type, and a size for each axis: a number, an expression, or None."""

    kind: int
    sizes: tuple[Size, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.sizes)

    @property
    def is_real(self) -> bool:
        """Whether it has numbers of floating point."""
        return self.kind in FLOATS


@dataclass(eq=False)
class Writer:
    """Writes operators in order. ``label`` names the one of the program that is being written."""

    model: ModelProto = field(default_factory=lambda: ModelProto(ir_version=10))
    label: str = ""
    checks: int = 0
    likes: dict[str, Like] = field(default_factory=dict)
    _constants: dict[str, Constant] = field(default_factory=dict)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def node(self, op: str, inputs: Sequence[str], like: Like, **given: Any) -> str:
        """Add an operator with one output; gives the name of the output."""
        return self.several(op, inputs, [like], **given)[0]

    def several(
        self, op: str, inputs: Sequence[str], likes: Sequence[Like], domain: str = "", **given: Any
    ) -> list[str]:
        """Add an operator; gives the names of what it puts out."""
        names = [self._named(like) for like in likes]
        self.model.graph.node.append(
            helper.make_node(op, inputs, names, name=self.label, domain=domain, **given)
        )
        return names

    def opaque(self, op: str, inputs: Sequence[str], likes: Sequence[Like], told: str) -> list[str]:
        """Add an operator without a translation; ``told`` is all that tells it apart."""
        return self.several(op, inputs, likes, OWN, told=told)

    def drawn(self, op: str, inputs: Sequence[str], likes: Sequence[Like], told: str) -> list[str]:
        """The same of one that may put out other numbers for the same data."""
        return self.several(op, inputs, likes, f"{OWN}.drawn", told=told)

    def input(self, number: int, like: Like) -> str:
        """Add an input of the program; gives its name."""
        name = f"input {number}"
        self._port(self.model.graph.input, name, like)
        self.likes[name] = like
        return name

    def output(self, number: int, value: str) -> None:
        """Make a value an output of the program."""
        self._result(f"output {number}", value)

    def check(self, value: str) -> None:
        """Note that the program looks at a value, and ends where it does not hold."""
        self.checks += 1
        self._result(f"check {self.checks}", value)

    def _result(self, name: str, value: str) -> None:
        like = self.likes[value]
        self.model.graph.node.append(helper.make_node("Identity", [value], [name]))
        self._port(self.model.graph.output, name, like)
        self.likes[name] = like

    def _port(self, ports: Any, name: str, like: Like) -> None:
        sizes = [size if isinstance(size, int) else None for size in like.sizes]
        ports.append(helper.make_tensor_value_info(name, like.kind, sizes))

    def _named(self, like: Like) -> str:
        name = self._fresh("value")
        self.likes[name] = like
        return name

    def _fresh(self, name: str) -> str:
        """A name that nothing has. Parameters and buffers may have any, those of ports included."""
        made = name
        while made in self.likes or made == "value" or made.startswith(_PORTS):
            made = f"{name} #{next(self._count)}"
        return made

    def held(self, name: str, like: Like, load: Callable[[], Array]) -> str:
        """Add a constant that is read when it is asked for; gives its name.

        Its numbers may have more digits than its type: they are what the type's are rounded from.
        """
        name = self._fresh(name)
        shape = tuple(size for size in like.sizes if isinstance(size, int))
        self.model.graph.initializer.append(TensorProto(name=name, data_type=like.kind, dims=shape))
        self._constants[name] = Constant(name, shape, like.kind, load)
        self.likes[name] = like
        return name

    def number(self, value: float, kind: int) -> str:
        """Add a number that an operator takes as an argument, as its type of numbers holds it.

        PyTorch computes with such a number in float32 at least.
        """
        wide = kind == TensorProto.DOUBLE
        kind = kind if wide else int(TensorProto.FLOAT)
        numbers = np.asarray(value, np.float64 if wide else np.float32)
        return self.held(f"{value!r}", Like(kind, ()), lambda: numbers)

    def integers(self, values: Sequence[int]) -> str:
        """Add whole numbers that an operator takes."""
        numbers = np.asarray(values, np.int64)
        like = Like(int(TensorProto.INT64), numbers.shape)
        return self.held(f"{list(values)}", like, lambda: numbers)

    def constant(self, name: str) -> Constant | None:
        """The constant of a name, or None."""
        return self._constants.get(name)

    def mark(self) -> int:
        """Where the operators end by now."""
        return len(self.model.graph.node)

    def back(self, mark: int) -> None:
        """Take out the operators that were added since."""
        del self.model.graph.node[mark:]

    def _last_axis(self, node: NodeProto) -> int:
        return self.likes[node.input[0]].rank - 1

    def side(self, opset: int = OPSET) -> Side:
        """What was written, for the proof, as operators of a version of ONNX.

        Older versions may have some in other forms: then they are others, and nothing is proved.
        So is one that an older version has in the same form, with another meaning.
        """
        for node in self.model.graph.node if opset < _BY_AXIS else ():
            if node.op_type in _NORMALIZED and node.attribute[0].i != self._last_axis(node):
                node.attribute.append(helper.make_attribute("told", "along one axis"))
        self.model.opset_import.append(helper.make_opsetid("", opset))
        (scope,) = read_scopes(self.model)
        shapes = Shapes()
        for name, like in self.likes.items():
            known = [None if size == 0 else size for size in like.sizes]
            shapes.types["", name] = like.kind
            shapes.symbols["", name] = tuple(known)
            shapes.shapes["", name] = tuple(s if isinstance(s, int) else None for s in known)
        constants = Constants(None, shapes)
        for constant in self._constants.values():
            constants.add(scope, constant)
        return Side([scope], constants, shapes)


_NORMALIZED = ("LogSoftmax", "Softmax")
_BY_AXIS = 13
"""Before this version these take all axes from theirs on for one (ONNX Softmax-11)."""


def exact(name: str, value: float, kind: int) -> dict[str, Any]:
    """An attribute of ONNX, which holds a float32, and besides a number that this would round."""
    more = {f"exact_{name}": repr(value)} if kind == TensorProto.DOUBLE else {}
    return {name: float(value), **more}
