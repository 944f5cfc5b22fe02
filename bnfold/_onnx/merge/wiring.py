"""A graph of ONNX as merging sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from onnx import NodeProto

from bnfold._core.broadcast import Shape
from bnfold._core.operators.record import UNKNOWN, Operator
from bnfold._core.reasons import Reason
from bnfold._merge import wiring
from bnfold._merge.steps import LinearStep, signs, step
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import Scope, label, reads_type
from bnfold._onnx.read.translate import translate


@dataclass
class Wiring(wiring.Wiring):
    """A graph and what each of its nodes is, by position; both change as operators merge.

    ``made`` has the names of the constants that merges have made.
    """

    context: Context
    operators: dict[int, Operator]
    made: set[str] = field(default_factory=set)

    @property
    def scope(self) -> Scope:
        """The graph."""
        return self.context.scope

    def node(self, position: int) -> NodeProto:
        """What stands at a position."""
        return self.scope.nodes[position]

    def reread(self, position: int) -> None:
        """Read a node that has changed."""
        node = self.node(position)
        self.operators[position] = translate(self.context, node)

    def reads(self, position: int) -> Sequence[str]:
        """The inputs of a node."""
        names: Sequence[str] = self.node(position).input
        return names

    def output(self, position: int) -> str | None:
        """The only output that a node has."""
        names = [name for name in self.node(position).output if name]
        return names[0] if len(names) == 1 else None

    def writer(self, tensor: str) -> int | None:
        """The node of this graph that writes a tensor as its only output."""
        position = self.scope.producers.get(tensor)
        return position if position is not None and self.output(position) == tensor else None

    def readers(self, tensor: str) -> list[int]:
        """The first two nodes that read more of a tensor than its type, once per read."""
        readers = self.scope.readers.get(tensor, ())
        return list(islice((p for p in readers if not reads_type(self.node(p), tensor)), 2))

    def shared(self, tensor: str) -> Reason | None:
        """Why a tensor may not vanish: more than one read, of its shape too, or an output. Its type
        can be read elsewhere.
        """
        scope = self.scope
        if tensor in scope.outputs:
            return Reason("graph-output", tensor, f"{tensor} is an output of the graph")
        if tensor in scope.captures:
            reader = scope.captures[tensor][0]
            return Reason("shared-output", reader, f"{tensor} is also read by {reader}")
        readers = self.readers(tensor)
        if len(readers) > 1:
            reader = label(self.node(readers[-1]))
            return Reason("shared-output", reader, f"{tensor} is also read by {reader}")
        return None

    def step(self, position: int) -> LinearStep | None:
        """What the node at a position is of its input."""
        return step(self.operators.get(position, UNKNOWN))

    def signs(self, position: int) -> tuple[int, ...] | None:
        """Those of Add, Sub and Sum, but for a map: each input is computed at run time."""
        return signs(self.operators.get(position, UNKNOWN))

    def shape(self, tensor: str) -> Shape | None:
        """The sizes of a tensor, as far as they are known."""
        return self.context.shape(tensor)

    def channel_axis(self, tensor: str, space: int) -> int | None:
        """Axis 1, of a matrix product the last."""
        if space:
            return 1
        shape = self.shape(tensor)
        return len(shape) - 1 if shape is not None else None

    def label(self, position: int) -> str:
        """The name of a node."""
        return label(self.node(position))

    def kind(self, position: int) -> str:
        """The type of a node."""
        return self.node(position).op_type
