"""Decide which linear operators of a graph become one, and lay them down as patches.

Operators are looked at in order, so that what an inner sum has become takes part in the sum around
it. Merged weights stay in float64 until they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import NodeProto

from bnfold._merge._kernel import Kernel, Obstacle, added, apart
from bnfold._merge._work import Work
from bnfold._onnx import _sums
from bnfold._onnx._chains import Chain, Wiring, cost
from bnfold._onnx._context import Context
from bnfold._onnx._linear import Pool, Weighted
from bnfold._onnx._merged import Made, made
from bnfold._onnx._names import Names
from bnfold._onnx._patch import Patch, lay
from bnfold._onnx._scopes import Scope, label, reads_type
from bnfold._onnx._sums import Sum, Term
from bnfold._plan._reasons import Reason
from bnfold._plan._view import Role
from bnfold._result import MERGES

# From this opset on operands broadcast as NumPy's do (ONNX Add-7).
_SINCE = 7
PARALLEL, SERIAL = MERGES


@dataclass(frozen=True)
class Stays:
    """An operator that was not merged with others, and why."""

    path: str
    node: str
    op: str
    reason: Reason


@dataclass(frozen=True)
class Merges:
    """What merged in one graph, in the order in which it did, and what did not."""

    patches: tuple[Patch, ...] = ()
    stays: tuple[Stays, ...] = ()


def merge(
    context: Context, roles: Mapping[int, Role], order: Sequence[int], names: Names
) -> Merges:
    """Merge in one graph, of which ``roles`` are known by position; ``context`` follows.

    ``order`` lists positions, every producer before its readers. Nothing merges below opset 7.
    """
    if context.opset < _SINCE:
        return Merges()
    merger = _Merger(Wiring(context, dict(roles)), order, names)
    for position in order:
        merger.visit(position)
    return Merges(tuple(merger.patches), tuple(merger.stays.values()))


@dataclass(frozen=True)
class _Branch:
    """A term of a sum as a kernel of what it reads in the end, and what it takes to compute."""

    term: Term
    chain: Chain
    kernel: Kernel
    work: Work


@dataclass(frozen=True)
class _Group:
    """Branches that become one kernel, and what that takes; of ``kernel`` the shape is of use, its
    weights are better made from all branches at once.
    """

    branches: tuple[_Branch, ...]
    kernel: Kernel
    work: Work

    @property
    def weighted(self) -> list[tuple[int, Weighted]]:
        """The linear operators with weights in all branches."""
        return [own for branch in self.branches for own in branch.chain.weighted]


@dataclass(frozen=True)
class _Refused:
    """A branch that is not merged with others, and why."""

    chain: Chain
    reason: Reason


@dataclass
class _Shared:
    """All branches of a sum on one source."""

    source: str
    space: int | None = None
    channels: int = 0
    members: list[tuple[Term, Chain]] = field(default_factory=list)


class _Merger:
    def __init__(self, wiring: Wiring, order: Sequence[int], names: Names) -> None:
        self.wiring = wiring
        self.names = names
        self.rank = {position: number for number, position in enumerate(order)}
        self.patches: list[Patch] = []
        self.stays: dict[tuple[str, str], Stays] = {}

    def visit(self, position: int) -> None:
        """Merge what ends at a node."""
        node = self.wiring.node(position)
        if not node.op_type or len(node.output) != 1:
            return
        if _sums.is_sum(self.wiring, position):
            self._sum(position)
        else:
            self._series(position)

    # Operators in series.

    def _series(self, position: int | None) -> None:
        """Merge an operator with those ahead of it, as long as that pays."""
        while position is not None:
            position = self._pair(position)

    def _pair(self, position: int) -> int | None:
        """Merge an operator with the one ahead of it, and the maps between them. Where the result
        stands, None if there is none.
        """
        wiring = self.wiring
        own = wiring.step(position)
        if not isinstance(own, Weighted | Pool):
            return None
        ahead = wiring.chain(wiring.node(position).input[own.data])
        linear = [k for k, (_, step) in enumerate(ahead.steps) if isinstance(step, Weighted | Pool)]
        if not linear:
            return None
        steps = (*ahead.steps[linear[-1] :], (position, own))
        first, start = steps[0]
        (output,) = wiring.node(position).output
        chain = Chain(output, wiring.node(first).input[start.data], steps)
        if not chain.weighted or chain.entering is None or chain.space is None:
            return None
        kernel = wiring.kernel(chain, chain.entering, chain.space, exact=False)
        if isinstance(kernel, Obstacle):
            return None
        merged = cost(kernel, chain.weighted[0][1])
        before = wiring.work(chain, chain.entering, chain.space)
        names = [label(wiring.node(p)) for p, _ in chain.weighted]
        if not merged.pays(before, self._positions(output, chain.space)):
            if len(names) > 1 and {own.kernel.groups for _, own in chain.weighted} == {
                kernel.groups
            }:
                what = f"{names[0]} and {names[1]} in series: {merged.growth(before)}"
                self._stays(position, Reason("merge-cost", label(wiring.node(position)), what))
            return None
        exact = wiring.kernel(chain, chain.entering, chain.space)
        if isinstance(exact, Obstacle):
            where = label(wiring.node(position))
            if len(names) > 1:
                what = f"{names[0]} and {names[1]} in series: {exact.message}"
                self._stays(position, Reason(exact.code, where, what))
            return None
        slots = [p for p, _ in steps]
        one = made(wiring, self.names, exact, chain.weighted, chain.source, slots, output)
        if isinstance(one, Reason):
            self._stays(position, one)
            return None
        self._lay(SERIAL, one, dict.fromkeys(slots))
        return one.into

    # Operators side by side.

    def _sum(self, root: int) -> None:
        """Merge branches of a sum, until none are left that may."""
        (output,) = self.wiring.node(root).output
        while (total := _sums.sum_at(self.wiring, root)) is not None:
            into = self._step(total)
            if into is None:
                return
            self._series(into)
            root = self.wiring.scope.producers[output]
            if not _sums.is_sum(self.wiring, root):
                return

    def _step(self, total: Sum) -> int | None:
        """Merge some branches of a sum; where they stand now, None if none do. Then it is told
        why, where two of them at least read the same.
        """
        shared = self._by_source(total)
        refused: list[_Refused] = []
        for one in shared.values():
            if len(one.members) > 1 and one.space is not None:
                for group in self._groups(total, one, refused):
                    into = self._merge(total, group, one, refused)
                    if into is not None:
                        return into
        for failed in refused:
            self._refuse(failed.chain, failed.reason)
        self._tell_blocked(total, shared)
        return None

    def _by_source(self, total: Sum) -> dict[str, _Shared]:
        """The branches of a sum by what they read in the end."""
        shared: dict[str, _Shared] = {}
        for term in total.terms:
            chain = self.wiring.chain(term.tensor)
            one = shared.setdefault(chain.source, _Shared(chain.source))
            one.members.append((term, chain))
            if one.space is None and chain.weighted:
                one.space, one.channels = chain.space, chain.entering or 0
        return shared

    def _groups(self, total: Sum, shared: _Shared, refused: list[_Refused]) -> list[_Group]:
        """Sort the branches on one source into groups that pay to be one kernel each."""
        (output,) = self.wiring.node(total.root).output
        assert shared.space is not None
        positions = self._positions(output, shared.space)
        branches = []
        for term, chain in shared.members:
            if chain.space not in (None, shared.space):
                continue
            kernel = self.wiring.kernel(chain, shared.channels, shared.space)
            if isinstance(kernel, Obstacle):
                where = label(self.wiring.node(chain.steps[-1][0]))
                refused.append(_Refused(chain, Reason(kernel.code, where, kernel.message)))
                continue
            work = self.wiring.work(chain, shared.channels, shared.space)
            branches.append(_Branch(term, chain, kernel, work))
        branches.sort(key=lambda branch: (not branch.chain.weighted, -branch.kernel.size))
        groups: list[_Group] = []
        for branch in branches:
            failed: Reason | None = None
            for number, group in enumerate(groups):
                joined = self._joined(group, branch, positions)
                if isinstance(joined, _Group):
                    groups[number] = joined
                    break
                failed = failed or joined
            else:
                single = added([(branch.term.sign, branch.kernel)])
                groups.append(_Group((branch,), single, branch.work))
                if failed is not None and groups[0].weighted:
                    refused.append(_Refused(branch.chain, failed))
        return [group for group in groups if len(group.branches) > 1 and group.weighted]

    def _joined(self, group: _Group, branch: _Branch, positions: int | None) -> _Group | Reason:
        """A group with one more branch, or why that is no kernel or does not pay."""
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
        return _Group((*group.branches, branch), kernel, merged)

    def _merge(
        self, total: Sum, group: _Group, shared: _Shared, refused: list[_Refused]
    ) -> int | None:
        """Put one operator where the branches of a group were, and take them out of the sum."""
        wiring = self.wiring
        inside = {p for branch in group.branches for p, _ in branch.chain.steps}
        slots = sorted(inside, key=self.rank.__getitem__)
        nodes: dict[int, NodeProto | None] = dict.fromkeys(slots)
        (whole,) = wiring.node(total.root).output
        output = whole
        if len(group.branches) == len(total.terms):
            slots.append(total.root)
            nodes |= dict.fromkeys(total.nodes)
        else:
            output = self.names.fresh(f"{wiring.node(slots[-1]).output[0]}_merged")
            place = self._place(total, group, slots, output)
            if place is None:
                return None
            last, left = place
            slots = [p for p in slots if self.rank[p] < self.rank[last.term.reader]]
            nodes |= left
            wiring.context.add(output, [last.term.tensor])
            for position in reversed(total.nodes):
                node = left.get(position)
                if node is not None and node.output[0] != whole:
                    wiring.context.add(node.output[0], node.input)
        kernel = added([(branch.term.sign, branch.kernel) for branch in group.branches])
        one = made(wiring, self.names, kernel, group.weighted, shared.source, slots, output)
        if isinstance(one, Reason):
            refused.append(_Refused(group.branches[0].chain, one))
            return None
        if sum(node is not None for node in {**nodes, **one.nodes}.values()) == len(nodes):
            return None  # As many operators as before: of a Sum one operand went.
        self._lay(PARALLEL, one, nodes)
        return one.into

    def _place(
        self, total: Sum, group: _Group, slots: Sequence[int], output: str
    ) -> tuple[_Branch, dict[int, NodeProto | None]] | None:
        """The branch of a group whose place in the sum the new operator takes, and what is left of
        the sum; None where that cannot be written.

        That of an operand among more than two, if there is one, as a node with two goes with either
        of them; of those the last, so that there are slots enough ahead of its reader.
        """

        def order(branch: _Branch) -> tuple[bool, int]:
            reader = branch.term.reader
            ahead = sum(self.rank[slot] < self.rank[reader] for slot in slots)
            many = len(self.wiring.node(reader).input) > 2
            return many and ahead > 1, self.rank[reader]

        last = max(group.branches, key=lambda branch: self.rank[branch.term.reader])
        for chosen in (max(group.branches, key=order), last):
            dropped = [branch.term for branch in group.branches if branch is not chosen]
            left = _sums.rewritten(
                self.wiring, total, dropped, {chosen.term: output}, self.names.fresh
            )
            if left is not None:
                return chosen, left
        return None

    def _lay(self, law: str, one: Made, nodes: Mapping[int, NodeProto | None]) -> None:
        scope, now = self.wiring.scope, {**nodes, **one.nodes}
        source = one.nodes[one.into].input[0]
        typed = _typed_like(scope, now, source)
        left = {label(node) for node in now.values() if node is not None}
        old = [(label(scope.nodes[p]), scope.nodes[p].op_type) for p in now]
        gone = tuple(one for one in old if one[0] not in left)
        patch = Patch(scope.path, law, one.into, {**now, **typed}, one.constants, gone)
        lay(patch, scope, self.wiring.context.constants)
        self.wiring.made |= patch.constants.keys()
        for position in patch.nodes:
            self.wiring.reread(position)
        self.patches.append(patch)

    def _positions(self, output: str, space: int) -> int | None:
        """How many positions an output has, where its sizes are known; a free batch counts as 1."""
        shape = self.wiring.context.shape(output)
        if shape is None or len(shape) < 2:
            return None
        batch, *rest = shape
        sizes = rest[1:] if space else rest[:-1]
        if None in sizes:
            return None
        return math.prod(n for n in (batch, *sizes) if n is not None)

    # What stays.

    def _tell_blocked(self, total: Sum, shared: Mapping[str, _Shared]) -> None:
        """Say of branches that would read what others read why they do not get there."""
        if len(total.terms) < 2:
            return
        for one in shared.values():
            for _, chain in one.members:
                for tensor, weighted, reason in self.wiring.beyond(chain):
                    others = shared.get(tensor)
                    if others is None or others is one:
                        continue
                    linear = reason.code != "not-mergeable"
                    if weighted or (linear and any(c.weighted for _, c in others.members)):
                        self._refuse(chain, reason)
                        break

    def _refuse(self, chain: Chain, reason: Reason) -> None:
        position = self.wiring.writer(chain.tensor)
        if position is not None:
            self._stays(position, reason)

    def _stays(self, position: int, reason: Reason) -> None:
        node = self.wiring.node(position)
        stays = Stays(self.wiring.scope.path, label(node), node.op_type, reason)
        self.stays.setdefault((stays.node, reason.code), stays)

    def _name(self, chain: Chain) -> str:
        """What a user calls a branch: its linear operator, else what it ends in."""
        steps = chain.weighted or chain.steps
        return label(self.wiring.node(steps[-1][0])) if steps else chain.tensor


def _typed_like(
    scope: Scope, nodes: Mapping[int, NodeProto | None], source: str
) -> dict[int, NodeProto]:
    """Nodes that take the element type of a tensor which vanishes, reading that of another one: all
    that linear operators read and write is of one type.
    """
    made = {name for node in nodes.values() if node is not None for name in node.output}
    vanished = {name for position in nodes for name in scope.nodes[position].output} - made
    found = {}
    for name in sorted(vanished):
        for position in scope.readers.get(name, ()):
            if position not in nodes and reads_type(scope.nodes[position], name):
                found[position] = NodeProto()
                found[position].CopyFrom(scope.nodes[position])
                found[position].input[1] = source
    return found
