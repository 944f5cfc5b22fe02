"""The graph of a draft as merging sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from torch.fx import Node

from bnfold._core.broadcast import Shape
from bnfold._core.operators.record import UNKNOWN, Operator
from bnfold._core.reasons import Reason
from bnfold._merge import wiring
from bnfold._merge.steps import LinearStep, signs, step
from bnfold._torch.program.draft import Draft, fresh
from bnfold._torch.read.aliases import Memory
from bnfold._torch.read.constants import Constants
from bnfold._torch.read.context import Context
from bnfold._torch.read.graph import labels_of, operator_of
from bnfold._torch.read.nodes import arguments, kind_of, reads_of, shape_of


class Wiring(wiring.Wiring):
    """Positions are those of the operators at first; a tensor goes by the name of the node that
    wrote it at first, and keeps it where another node takes that one's place.
    """

    def __init__(self, draft: Draft, constants: Constants, memory: Memory) -> None:
        """Read a draft that is the program still."""
        self.memory = memory
        self.constants = constants
        nodes = [node for node in draft.nodes.values() if node.op == "call_function"]
        self.places: list[Node | None] = list(nodes)
        self._positions = {node: position for position, node in enumerate(nodes)}
        self._holders = dict(draft.nodes)
        self._names = {node: name for name, node in draft.nodes.items()}
        self._taken = set(draft.nodes)
        self._labels = labels_of(nodes)
        self._operators: dict[Node, Operator] = {}
        self._context = Context(constants, self._labels.__getitem__, _in_training, whole=True)

    def node(self, position: int) -> Node:
        """What stands at a position."""
        node = self.places[position]
        assert node is not None
        return node

    def holder(self, tensor: str) -> Node:
        """The node that a tensor is the output of."""
        return self._holders[tensor]

    def knows(self, tensor: str) -> bool:
        """Whether there is such a tensor by now."""
        return tensor in self._holders

    def position(self, node: Node) -> int | None:
        """Where an operator stands."""
        return self._positions.get(node)

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that no tensor has had."""
        name = fresh(wanted, self._taken)
        self._taken.add(name)
        return name

    def put(self, position: int, node: Node, tensor: str, label: str) -> None:
        """Know a node that takes a place, and what it writes."""
        self.places[position] = node
        self._positions[node] = position
        self._holders[tensor] = node
        self._names[node] = tensor
        self._labels[node] = label

    def take(self, position: int) -> None:
        """Know that nothing stands at a position any more."""
        node = self.node(position)
        self.places[position] = None
        del self._positions[node]
        if self._holders[self._names[node]] is node:
            del self._holders[self._names[node]]

    def reads(self, position: int) -> Sequence[str]:
        """The tensors that a node reads, in the order of its arguments; "" for new parameters."""
        return [self._names.get(node, "") for node in reads_of(self.node(position))]

    def output(self, position: int) -> str | None:
        """The tensor that a node puts out."""
        node = self.places[position]
        return self._names[node] if node is not None else None

    def writer(self, tensor: str) -> int | None:
        """The operator that puts a tensor out."""
        node = self._holders.get(tensor)
        return self._positions.get(node) if node is not None else None

    def readers(self, tensor: str) -> list[int]:
        """The first two operators that read a tensor, once per read."""
        return [self._positions[user] for user in islice(self._users(tensor), 2)]

    def shared(self, tensor: str) -> Reason | None:
        """Why a tensor may not vanish: more than one read, of its shape too, or an output."""
        if any(user.op == "output" for user in self._holders[tensor].users):
            return Reason("graph-output", tensor, f"{tensor} is an output of the model")
        readers = self.readers(tensor)
        if len(readers) > 1:
            reader = self.label(readers[-1])
            return Reason("shared-output", reader, f"{tensor} is also read by {reader}")
        return None

    def step(self, position: int) -> LinearStep | None:
        """What the node at a position is of its input."""
        return step(self._operator(position))

    def signs(self, position: int) -> tuple[int, ...] | None:
        """Those of add, sub and rsub of two tensors, where nobody sees the memory written into."""
        return signs(self._operator(position))

    def shape(self, tensor: str) -> Shape | None:
        """The sizes of a tensor, as far as they are fixed."""
        return shape_of(self._holders[tensor])

    def channel_axis(self, tensor: str, space: int) -> int | None:
        """The axis ahead of those of space, with a batch or without."""
        shape = self.shape(tensor)
        return len(shape) - 1 - space if shape is not None else None

    def label(self, position: int) -> str:
        """What a user calls a node."""
        return self._labels[self.node(position)]

    def kind(self, position: int) -> str:
        """The name of an operator."""
        return kind_of(self.node(position))

    def _users(self, tensor: str) -> Iterator[Node]:
        """Operators that read a tensor, once per read."""
        node = self._holders[tensor]
        for user in node.users:
            if user.op == "call_function":
                yield from (user for source in reads_of(user) if source is node)

    def _operator(self, position: int) -> Operator:
        node = self.places[position]
        if node is None:
            return UNKNOWN
        if node not in self._operators:
            self._operators[node] = operator_of(self._context, node, self.memory.torn)
        return self._operators[node]


def _in_training(node: Node) -> bool:
    return bool(arguments(node).get("training", False))
