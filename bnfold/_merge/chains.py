"""Chains: linear operators one after the other, from a source tensor to a tensor."""

from __future__ import annotations

from collections.abc import Iterator

from bnfold._core.affine import IDENTITY
from bnfold._core.reasons import Reason
from bnfold._merge.graph import MergeGraph
from bnfold._merge.kernels import Kernel, Obstacle, averaging, between, composed, mapped
from bnfold._merge.steps import Blocked, LinearStep, Mapped, Passed, Pool, Weighted
from bnfold._merge.work import Work, cost
from bnfold._system.records import record

# To say why a branch cannot be merged, so many operators upstream are looked at.
_LOOKED_AT = 16


@record(frozen=True)
class Chain:
    """Steps one after the other, each with its position, from ``source`` to ``tensor``."""

    tensor: str
    source: str
    steps: tuple[tuple[int, LinearStep], ...] = ()

    @property
    def weighted(self) -> list[tuple[int, Weighted]]:
        """The linear operators with weights among the steps."""
        return [(position, step) for position, step in self.steps if isinstance(step, Weighted)]

    @property
    def space(self) -> int | None:
        """How many axes of space it acts on: 0 for a matrix product, None if any number fits."""
        found = (_space(taken) for _, taken in self.steps)
        return next((space for space in found if space is not None), None)

    @property
    def entering(self) -> int | None:
        """How many channels it reads; None without weights that tell."""
        return next((step.kernel.inputs for _, step in self.weighted), None)


def chain_to(graph: MergeGraph, tensor: str, whole: bool = True) -> Chain:
    """The longest chain to a tensor of linear operators that no one else reads.

    Not ``whole``: it begins with the last convolution, product or pool ahead of the tensor.
    """
    steps: list[tuple[int, LinearStep]] = []
    current, space = tensor, None
    while graph.shared(current) is None:
        position = graph.writer(current)
        taken = graph.step(position) if position is not None else None
        if position is None or taken is None or isinstance(taken, Blocked):
            break
        if not _goes_on(graph, position, taken, space):
            break
        steps.append((position, taken))
        current = graph.reads(position)[taken.data]
        space = _space(taken) if space is None else space
        if not whole and isinstance(taken, Weighted | Pool):
            break
    return Chain(tensor, current, tuple(reversed(steps)))


def beyond(graph: MergeGraph, chain: Chain) -> Iterator[tuple[str, bool, Reason]]:
    """Tensors further upstream than the source of a chain.

    Each comes with two facts: whether weights lie between, and the reason why the chain ends
    before it.
    """
    current, reason = chain.source, graph.shared(chain.source)
    weighted = bool(chain.weighted)
    for number in range(_LOOKED_AT):
        position = graph.writer(current)
        taken = graph.step(position) if position is not None else None
        if position is None or taken is None:
            return
        if isinstance(taken, Blocked):
            if taken.ends and (number or any(not _is_passed(s) for _, s in chain.steps)):
                return
            reason = reason or taken.reason
        if reason is None:
            return
        weighted |= isinstance(taken, Weighted) or (isinstance(taken, Blocked) and not taken.ends)
        current = graph.reads(position)[taken.data]
        yield current, weighted, reason


def kernel_of(
    graph: MergeGraph, chain: Chain, channels: int, space: int, exact: bool = True
) -> Kernel | Obstacle:
    """All steps of a chain as one kernel, or what prevents that.

    Without ``exact`` the kernel may be wrong at the borders.
    """
    total: Kernel | None = None
    for position, taken in chain.steps:
        entering = channels if total is None else total.outputs
        own = own_kernel(graph, position, taken, entering, space)
        obstacle = own if isinstance(own, Obstacle) else None
        if isinstance(own, Kernel) and total is not None:
            obstacle = between(total, own, exact)
        if isinstance(obstacle, Obstacle):
            where = graph.label(position)
            return Obstacle(obstacle.code, f"at {where}, {obstacle.message}")
        assert isinstance(own, Kernel)
        total = own if total is None else composed(total, own)
    return total or mapped(channels, IDENTITY, space)


def own_kernel(
    graph: MergeGraph, position: int, taken: LinearStep, channels: int, space: int
) -> Kernel | Obstacle:
    """One step as a kernel, or what prevents that."""
    if isinstance(taken, Weighted) and len(taken.kernel.windows) == space:
        return taken.kernel
    if isinstance(taken, Pool) and len(taken.windows) == space:
        return averaging(channels, taken.windows)
    if isinstance(taken, Passed):
        return mapped(channels, IDENTITY, space)
    if isinstance(taken, Mapped):
        if taken.map.axis is None or (
            taken.map.axis == graph.channel_axis(graph.reads(position)[taken.data], space)
            and taken.map.scale.size == channels
        ):
            return mapped(channels, taken.map, space)
        return Obstacle("axis-mismatch", "the map does not act on channels")
    return Obstacle("not-mergeable", "other axes are acted on")


def work_of(graph: MergeGraph, chain: Chain, channels: int, space: int) -> Work:
    """The work of a chain for one output position."""
    total = Work()
    for position, taken in chain.steps:
        own = own_kernel(graph, position, taken, channels, space)
        assert isinstance(own, Kernel)
        total = total.at(own.strides) + cost(own, taken)
        channels = own.outputs
    return total


def _goes_on(graph: MergeGraph, position: int, taken: LinearStep, space: int | None) -> bool:
    """Whether a step acts on the same axes as later ones, which have ``space`` axes of space."""
    if space is None or isinstance(taken, Passed):
        return True
    if isinstance(taken, Mapped):
        axis = graph.channel_axis(graph.reads(position)[taken.data], space)
        return taken.map.axis is None or taken.map.axis == axis
    return _space(taken) == space


def _space(taken: LinearStep) -> int | None:
    """How many axes of space one step acts on; None if any number fits."""
    if isinstance(taken, Weighted):
        return len(taken.kernel.windows)
    return len(taken.windows) if isinstance(taken, Pool) else None


def _is_passed(taken: LinearStep) -> bool:
    return isinstance(taken, Passed)
