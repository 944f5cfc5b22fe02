"""Rows of linear operators between a tensor and what they read in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from onnx import NodeProto

from bnfold._affine import IDENTITY
from bnfold._merge._kernel import Kernel, Obstacle, averaging, between, composed, mapped
from bnfold._merge._work import Work
from bnfold._onnx._context import Context
from bnfold._onnx._linear import Blocked, Mapped, Passed, Pool, Step, Weighted, step
from bnfold._onnx._roles import read_node
from bnfold._onnx._scopes import Scope, label, reads_type
from bnfold._plan._reasons import Reason
from bnfold._plan._view import OPAQUE, Role

# How far upstream a branch that cannot be merged is followed, to say why.
_LOOKED_AT = 16


@dataclass(frozen=True)
class Chain:
    """Steps one after the other, by position, from what ``source`` holds to ``tensor``."""

    tensor: str
    source: str
    steps: tuple[tuple[int, Step], ...] = ()

    @property
    def weighted(self) -> list[tuple[int, Weighted]]:
        """The linear operators with weights among the steps."""
        return [(position, step) for position, step in self.steps if isinstance(step, Weighted)]

    @property
    def space(self) -> int | None:
        """How many axes of space it acts on (0: a matrix product); None where any number fits."""
        for _, taken in self.steps:
            if isinstance(taken, Weighted):
                return len(taken.kernel.windows)
            if isinstance(taken, Pool):
                return len(taken.windows)
        return None

    @property
    def entering(self) -> int | None:
        """How many channels it reads, where its own weights tell."""
        return next((step.kernel.inputs for _, step in self.weighted), None)


@dataclass
class Wiring:
    """A graph and the role of each of its nodes, by position; both change as operators merge.

    ``made`` has the names of the constants that merges have made.
    """

    context: Context
    roles: dict[int, Role]
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
        self.roles[position] = read_node(self.context, node).role if node.op_type else OPAQUE

    def step(self, position: int) -> Step | None:
        """What the node at a position is of its input."""
        return step(self.context, self.node(position), self.roles.get(position, OPAQUE))

    def writer(self, tensor: str) -> int | None:
        """The node of this graph that writes a tensor as its only output."""
        position = self.scope.producers.get(tensor)
        if position is None or [n for n in self.node(position).output if n] != [tensor]:
            return None
        return position

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

    def readers(self, tensor: str) -> list[int]:
        """The first two nodes that read more of a tensor than its type, once per read."""
        readers = self.scope.readers.get(tensor, ())
        return list(islice((p for p in readers if not reads_type(self.node(p), tensor)), 2))

    def chain(self, tensor: str) -> Chain:
        """The linear operators upstream of a tensor that are read by no one else."""
        steps: list[tuple[int, Step]] = []
        current = tensor
        while self.shared(current) is None:
            position = self.writer(current)
            taken = self.step(position) if position is not None else None
            if position is None or taken is None or isinstance(taken, Blocked):
                break
            if not self._goes_on(position, taken, steps):
                break
            steps.append((position, taken))
            current = self.node(position).input[taken.data]
        return Chain(tensor, current, tuple(reversed(steps)))

    def beyond(self, chain: Chain) -> Iterator[tuple[str, bool, Reason]]:
        """Tensors further upstream of a chain, whether weights lie between, and what keeps the
        chain from reaching them.
        """
        current, reason = chain.source, self.shared(chain.source)
        weighted = bool(chain.weighted)
        for number in range(_LOOKED_AT):
            position = self.writer(current)
            taken = self.step(position) if position is not None else None
            if position is None or taken is None:
                return
            if isinstance(taken, Blocked):
                if taken.ends and (number or any(not _is_passed(s) for _, s in chain.steps)):
                    return
                reason = reason or taken.reason
            if reason is None:
                return
            weighted |= isinstance(taken, Weighted) or (
                isinstance(taken, Blocked) and not taken.ends
            )
            current = self.node(position).input[taken.data]
            yield current, weighted, reason

    def kernel(
        self, chain: Chain, channels: int, space: int, exact: bool = True
    ) -> Kernel | Obstacle:
        """All steps of a chain as one kernel; unless ``exact``, one that may differ at borders."""
        total: Kernel | None = None
        for position, taken in chain.steps:
            entering = channels if total is None else total.outputs
            own = self.own_kernel(position, taken, entering, space)
            obstacle = own if isinstance(own, Obstacle) else None
            if isinstance(own, Kernel) and total is not None:
                obstacle = between(total, own, exact)
            if isinstance(obstacle, Obstacle):
                where = label(self.node(position))
                return Obstacle(obstacle.code, f"at {where}, {obstacle.message}")
            assert isinstance(own, Kernel)
            total = own if total is None else composed(total, own)
        return total or mapped(channels, IDENTITY, space)

    def own_kernel(
        self, position: int, taken: Step, channels: int, space: int
    ) -> Kernel | Obstacle:
        """One step as a kernel."""
        if isinstance(taken, Weighted) and len(taken.kernel.windows) == space:
            return taken.kernel
        if isinstance(taken, Pool) and len(taken.windows) == space:
            return averaging(channels, taken.windows)
        if isinstance(taken, Passed):
            return mapped(channels, IDENTITY, space)
        if isinstance(taken, Mapped):
            if taken.map.axis is None or (
                taken.map.axis == self._channel_axis(position, taken, space)
                and taken.map.scale.size == channels
            ):
                return mapped(channels, taken.map, space)
            return Obstacle("axis-mismatch", "the map does not act on channels")
        return Obstacle("not-mergeable", "other axes are acted on")

    def work(self, chain: Chain, channels: int, space: int) -> Work:
        """What the steps of a chain cost for one position that comes out."""
        total = Work()
        for position, taken in chain.steps:
            own = self.own_kernel(position, taken, channels, space)
            assert isinstance(own, Kernel)
            total = total.at(own.strides) + cost(own, taken)
            channels = own.outputs
        return total

    def _channel_axis(self, position: int, taken: Mapped, space: int) -> int | None:
        if space:
            return 1
        shape = self.context.shape(self.node(position).input[taken.data])
        return len(shape) - 1 if shape is not None else None

    def _goes_on(self, position: int, taken: Step, later: Sequence[tuple[int, Step]]) -> bool:
        """Whether a step ahead of others acts on the same axes as they do."""
        space = Chain("", "", tuple(later)).space
        if space is None or isinstance(taken, Passed):
            return True
        if isinstance(taken, Mapped):
            axis = self._channel_axis(position, taken, space)
            return taken.map.axis is None or taken.map.axis == axis
        return Chain("", "", ((position, taken),)).space == space


def cost(kernel: Kernel, taken: Step) -> Work:
    """What one step costs for one of its own output positions."""
    moved = kernel.inputs * kernel.strides + kernel.outputs
    if isinstance(taken, Weighted):
        return Work(kernel.size, moved, kernel.size)
    if isinstance(taken, Pool):
        return Work(kernel.size, moved)
    return Work(kernel.outputs * taken.steps, moved) if isinstance(taken, Mapped) else Work()


def _is_passed(taken: Step) -> bool:
    return isinstance(taken, Passed)
