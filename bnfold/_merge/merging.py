"""Decide which linear operators of a graph become one.

Operators are visited in order. So an inner sum is merged first, and its result takes part in the
sum around it. Merged weights stay in float64 until they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Protocol

from bnfold._core.reasons import Reason
from bnfold._core.result import MERGES
from bnfold._merge import chains, sums
from bnfold._merge.chains import Chain
from bnfold._merge.graph import MergeGraph, Written
from bnfold._merge.kernels import Kernel, Obstacle, added, apart
from bnfold._merge.steps import Pool, Weighted
from bnfold._merge.sums import Joined, Sum, Term
from bnfold._merge.work import Work, cost
from bnfold._system.records import record

PARALLEL, SERIAL = MERGES


@record(frozen=True)
class Stays:
    """An operator that was not merged with others, and why."""

    node: str
    op: str
    reason: Reason


@record(frozen=True)
class Replacement:
    """One linear operator in the place of others.

    The operator computes ``kernel`` of ``source``. It writes ``output``, which has the shape of
    ``like``. It may stand at one of the positions ``slots``, which are in order. It may take the
    type and name of one of ``weighted``, the operators whose weights are in the kernel. The
    operators at the positions ``gone`` vanish. ``joined`` has the operators that are left of the
    sum around, inner before outer.
    """

    law: str
    kernel: Kernel
    weighted: Sequence[tuple[int, Weighted]]
    source: str
    output: str
    like: str
    slots: Sequence[int]
    gone: Sequence[int]
    joined: Mapping[int, Joined | None] = field(default_factory=dict)


class Writer(Protocol):
    """Carries out replacements in a framework's graph."""

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that no tensor has."""
        ...

    def write(self, replacement: Replacement) -> Written | Reason | None:
        """Carry out a replacement. Gives what has changed.

        Gives a reason, and changes nothing, if it cannot be done. Gives None, and changes nothing,
        if it would take as many operators as before.
        """
        ...


@record(frozen=True)
class _Summand:
    """A term of a sum, as a kernel of its chain's source, and the work that it takes."""

    term: Term
    chain: Chain
    kernel: Kernel
    work: Work


@record(frozen=True)
class _Bundle:
    """Branches that become one kernel, and the work of that kernel.

    Only the shape of ``kernel`` is used. Its weights are made later, from all branches at once.
    """

    branches: tuple[_Summand, ...]
    kernel: Kernel
    work: Work

    @property
    def weighted(self) -> list[tuple[int, Weighted]]:
        """The linear operators with weights in all branches."""
        return [own for branch in self.branches for own in branch.chain.weighted]


@record(frozen=True)
class _Refused:
    """A branch that is not merged with others, and why."""

    chain: Chain
    reason: Reason


@record
class _Shared:
    """All branches of a sum that read one source."""

    source: str
    space: int | None = None
    channels: int = 0
    members: list[tuple[Term, Chain]] = field(default_factory=list)


class Merger:
    """Merges in one graph, operator by operator; ``stays`` notes what does not merge."""

    def __init__(self, graph: MergeGraph, writer: Writer) -> None:
        self.graph = graph
        self.writer = writer
        self.stays: dict[tuple[str, str], Stays] = {}

    def run(self) -> None:
        """Merge what ends at each operator, in order."""
        for position in range(len(self.graph)):
            output = self.graph.output(position)
            if output is None:
                continue
            if self.graph.signs(position):
                self._sum(position, output)
            else:
                self._series(position)

    def _write(self, replacement: Replacement) -> int | Reason | None:
        """Carry out a replacement in the framework's graph and in this one.

        Gives the position of the new operator, the reason why there is none, or None if a
        replacement does not pay.
        """
        written = self.writer.write(replacement)
        if not isinstance(written, Written):
            return written
        self.graph.put(written)
        return written.into

    # Operators in series.

    def _series(self, position: int | None) -> None:
        """Merge an operator with those ahead of it, as long as that pays."""
        while position is not None:
            position = self._pair(position)

    def _pair(self, position: int) -> int | None:
        """Merge an operator with the one ahead of it and the maps between them.

        Gives the position of the result, None if nothing was merged.
        """
        graph = self.graph
        own = graph.step(position)
        if not isinstance(own, Weighted | Pool):
            return None
        ahead = chains.chain_to(graph, graph.reads(position)[own.data], whole=False)
        if not ahead.steps or not isinstance(ahead.steps[0][1], Weighted | Pool):
            return None
        steps = (*ahead.steps, (position, own))
        first, start = steps[0]
        output = graph.output(position)
        assert output is not None
        chain = Chain(output, graph.reads(first)[start.data], steps)
        if not chain.weighted or chain.entering is None or chain.space is None:
            return None
        kernel = chains.kernel_of(graph, chain, chain.entering, chain.space, exact=False)
        if isinstance(kernel, Obstacle):
            return None
        merged = cost(kernel, chain.weighted[0][1])
        before = chains.work_of(graph, chain, chain.entering, chain.space)
        names = [graph.label(p) for p, _ in chain.weighted]
        if not merged.pays(before, self._positions(output, chain.space)):
            if len(names) > 1 and {own.kernel.groups for _, own in chain.weighted} == {
                kernel.groups
            }:
                what = f"{names[0]} and {names[1]} in series: {merged.growth(before)}"
                self._stays(position, Reason("merge-cost", graph.label(position), what))
            return None
        exact = chains.kernel_of(graph, chain, chain.entering, chain.space)
        if isinstance(exact, Obstacle):
            where = graph.label(position)
            if len(names) > 1:
                what = f"{names[0]} and {names[1]} in series: {exact.message}"
                self._stays(position, Reason(exact.code, where, what))
            return None
        slots = [p for p, _ in steps]
        into = self._write(
            Replacement(SERIAL, exact, chain.weighted, chain.source, output, output, slots, slots)
        )
        if isinstance(into, Reason):
            self._stays(position, into)
            return None
        return into

    # Operators side by side.

    def _sum(self, position: int, output: str) -> None:
        """Merge branches of a sum, until none are left that may."""
        root: int | None = position
        while root is not None and self.graph.signs(root):
            total = sums.sum_at(self.graph, root)
            into = self._step(total, output) if total is not None else None
            if into is None:
                return
            self._series(into)
            root = self.graph.writer(output)

    def _step(self, total: Sum, whole: str) -> int | None:
        """Merge one group of branches of a sum; ``whole`` is the sum's tensor.

        Gives the position of the result, None if nothing was merged. Then the reasons are noted for
        branches that read the same source as another one.
        """
        shared = self._by_source(total)
        refused: list[_Refused] = []
        for one in shared.values():
            if len(one.members) > 1 and one.space is not None:
                for group in self._groups(whole, one, refused):
                    into = self._merge(total, whole, group, one.source, refused)
                    if into is not None:
                        return into
        for failed in refused:
            self._refuse(failed.chain, failed.reason)
        self._tell_blocked(total, shared)
        return None

    def _by_source(self, total: Sum) -> dict[str, _Shared]:
        """The branches of a sum, by the source that they read."""
        shared: dict[str, _Shared] = {}
        for term in total.terms:
            chain = chains.chain_to(self.graph, term.tensor)
            one = shared.setdefault(chain.source, _Shared(chain.source))
            one.members.append((term, chain))
            if one.space is None and chain.weighted:
                one.space, one.channels = chain.space, chain.entering or 0
        return shared

    def _groups(self, whole: str, shared: _Shared, refused: list[_Refused]) -> list[_Bundle]:
        """The groups of branches on one source that pay to become one kernel each."""
        assert shared.space is not None
        positions = self._positions(whole, shared.space)
        branches = []
        for term, chain in shared.members:
            if chain.space not in (None, shared.space):
                continue
            kernel = chains.kernel_of(self.graph, chain, shared.channels, shared.space)
            if isinstance(kernel, Obstacle):
                where = self.graph.label(chain.steps[-1][0])
                refused.append(_Refused(chain, Reason(kernel.code, where, kernel.message)))
                continue
            work = chains.work_of(self.graph, chain, shared.channels, shared.space)
            branches.append(_Summand(term, chain, kernel, work))
        branches.sort(key=lambda branch: (not branch.chain.weighted, -branch.kernel.size))
        groups: list[_Bundle] = []
        for branch in branches:
            failed: Reason | None = None
            for number, group in enumerate(groups):
                joined = self._joined(group, branch, positions)
                if isinstance(joined, _Bundle):
                    groups[number] = joined
                    break
                failed = failed or joined
            else:
                single = added([(branch.term.sign, branch.kernel)])
                groups.append(_Bundle((branch,), single, branch.work))
                if failed is not None and groups[0].weighted:
                    refused.append(_Refused(branch.chain, failed))
        return [group for group in groups if len(group.branches) > 1 and group.weighted]

    def _joined(self, group: _Bundle, branch: _Summand, positions: int | None) -> _Bundle | Reason:
        """A group with one more branch, or the reason why that is no kernel or does not pay."""
        names = [self._name(one.chain) for one in (group.branches[0], branch)]
        what = f"{names[0]} and {names[1]} side by side"
        obstacle = apart([group.kernel, branch.kernel])
        if obstacle is not None:
            return Reason(obstacle.code, names[1], f"{what}: {obstacle.message}")
        kernel = added([(1, group.kernel), (branch.term.sign, branch.kernel)])
        moved = kernel.inputs * kernel.strides + kernel.outputs
        merged = Work(kernel.size, moved, kernel.size)
        before = group.work + branch.work + Work(kernel.outputs, 3 * kernel.outputs)
        if not merged.pays(before, positions):
            return Reason("merge-cost", names[1], f"{what}: {merged.growth(before)}")
        return _Bundle((*group.branches, branch), kernel, merged)

    def _merge(
        self, total: Sum, whole: str, group: _Bundle, source: str, refused: list[_Refused]
    ) -> int | None:
        """Put one operator in place of the branches of a group, and take these out of the sum.

        Gives the position of the operator, None if that was not possible.
        """
        graph = self.graph
        inside = {p for branch in group.branches for p, _ in branch.chain.steps}
        slots = sorted(inside)
        gone = list(slots)
        output, like = whole, whole
        joined: dict[int, Joined | None] = {}
        if len(group.branches) == len(total.terms):
            slots.append(total.root)
            gone += total.nodes
        else:
            output = self.writer.fresh(f"{graph.output(gone[-1])}_merged")
            place = self._place(total, group, slots, output)
            if place is None:
                return None
            last, joined = place
            like = last.term.tensor
            slots = [p for p in slots if p < last.term.reader]
        kernel = added([(branch.term.sign, branch.kernel) for branch in group.branches])
        into = self._write(
            Replacement(PARALLEL, kernel, group.weighted, source, output, like, slots, gone, joined)
        )
        if isinstance(into, Reason):
            refused.append(_Refused(group.branches[0].chain, into))
            return None
        return into

    def _place(
        self, total: Sum, group: _Bundle, slots: Sequence[int], output: str
    ) -> tuple[_Summand, dict[int, Joined | None]] | None:
        """The branch whose place in the sum the new operator takes, and what is left of the sum.

        None if the rest of the sum cannot be written. A branch whose reader has more than two
        operands comes first: a reader with two operands goes if one of them goes. Then the last
        branch comes first, so that there are enough slots ahead of its reader.
        """

        def order(branch: _Summand) -> tuple[bool, int]:
            reader = branch.term.reader
            ahead = sum(slot < reader for slot in slots)
            many = len(self.graph.reads(reader)) > 2
            return many and ahead > 1, reader

        last = max(group.branches, key=lambda branch: branch.term.reader)
        for chosen in (max(group.branches, key=order), last):
            dropped = [branch.term for branch in group.branches if branch is not chosen]
            left = sums.rewritten(
                self.graph, total, dropped, {chosen.term: output}, self.writer.fresh
            )
            if left is not None:
                return chosen, left
        return None

    def _positions(self, output: str, space: int) -> int | None:
        """The number of an output's positions, None if unknown; an unknown batch counts as 1."""
        shape, channels = self.graph.shape(output), self.graph.channel_axis(output, space)
        if shape is None or len(shape) < 2:
            return None
        sizes = [n for axis, n in enumerate(shape) if axis != channels and (axis or n is not None)]
        known = [n for n in sizes if n is not None]
        return math.prod(known) if len(known) == len(sizes) else None

    # What stays.

    def _tell_blocked(self, total: Sum, shared: Mapping[str, _Shared]) -> None:
        """Note why branches end before a source that other branches read."""
        if len(total.terms) < 2:
            return
        for one in shared.values():
            for _, chain in one.members:
                for tensor, weighted, reason in chains.beyond(self.graph, chain):
                    others = shared.get(tensor)
                    if others is None or others is one:
                        continue
                    linear = reason.code != "not-mergeable"
                    if weighted or (linear and any(c.weighted for _, c in others.members)):
                        self._refuse(chain, reason)
                        break

    def _refuse(self, chain: Chain, reason: Reason) -> None:
        position = self.graph.writer(chain.tensor)
        if position is not None:
            self._stays(position, reason)

    def _stays(self, position: int, reason: Reason) -> None:
        stays = Stays(self.graph.label(position), self.graph.kind(position), reason)
        self.stays.setdefault((stays.node, reason.code), stays)

    def _name(self, chain: Chain) -> str:
        """A branch's name for the user: its last linear operator, else its last step or tensor."""
        steps = chain.weighted or chain.steps
        return self.graph.label(steps[-1][0]) if steps else chain.tensor
