"""One picture of two drawings: which operator of one is which of the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from bnfold._report.page.drawing import Drawing, Operator

BEFORE, AFTER, BOTH = 1, 2, 3
"""In which of the two networks an operator or an edge is."""
_FARTHEST = 64
"""So many operators that have gone are looked through for the way of an edge."""


@dataclass(frozen=True)
class Picture:
    """The operators of two drawings, each once.

    Attributes:
        operators: the operators, as in the first drawing where they are there.
        sides: in which of the two each is.
        edges: from, to, in which of the two, and the operators that are gone which the edge of the
            second drawing now skips.
        first: by number in the first drawing that in the picture.
        second: the same for the second drawing.
    """

    operators: Sequence[Operator]
    sides: Sequence[int]
    edges: Sequence[tuple[int, int, int, tuple[int, ...]]]
    first: Sequence[int]
    second: Sequence[int]


def paired(first: Drawing, second: Drawing) -> Picture:
    """Put two drawings into one picture, in an order in which each operator is behind its data."""
    twins = dict(_twins(first.operators, second.operators))
    mine = {there: here for here, there in twins.items()}
    order: list[tuple[int | None, int | None]] = []
    waiting = iter(range(len(second.operators)))
    placed = set[int]()

    def new_ones(until: int) -> None:
        """Put in what only the second drawing has, ahead of an operator of it."""
        for there in waiting:
            if there == until:
                return
            if there not in mine and there not in placed:
                placed.add(there)
                order.append((None, there))

    farthest = -1
    for here in range(len(first.operators)):
        there = twins.get(here)
        if there is not None and there > farthest:
            new_ones(there)
            farthest = there
        order.append((here, there))
    new_ones(-1)
    mapped = [{}, {}]  # type: list[dict[int, int]]
    for number, pair in enumerate(order):
        for side, at in enumerate(pair):
            if at is not None:
                mapped[side][at] = number
    operators = [
        first.operators[a] if a is not None else second.operators[b or 0] for a, b in order
    ]
    sides = [BEFORE * (a is not None) + AFTER * (b is not None) for a, b in order]
    before = {(mapped[0][a], mapped[0][b]) for a, b in first.edges}
    after = {(mapped[1][a], mapped[1][b]) for a, b in second.edges}
    readers = defaultdict[int, list[int]](list)
    for a, b in sorted(before):
        readers[a].append(b)
    gone = {number for number, side in enumerate(sides) if side == BEFORE}
    edges = []
    for a, b in sorted(before | after):
        side = BEFORE * ((a, b) in before) + AFTER * ((a, b) in after)
        way = _way(a, b, readers, gone) if side == AFTER else ()
        edges.append((a, b, side, way))
    return Picture(
        operators,
        sides,
        edges,
        [mapped[0][k] for k in range(len(first.operators))],
        [mapped[1][k] for k in range(len(second.operators))],
    )


def _way(
    start: int, end: int, readers: dict[int, list[int]], gone: Collection[int]
) -> tuple[int, ...]:
    """The operators that are gone between two that stay, on a shortest way; () if there is none."""
    came = {start: start}
    queue = [start]
    for at in queue:
        for reader in readers[at]:
            if reader == end:
                way = []
                while at != start:
                    way.append(at)
                    at = came[at]
                return tuple(reversed(way))
            if reader in gone and reader not in came and len(came) <= _FARTHEST:
                came[reader] = at
                queue.append(reader)
    return ()


def _twins(ones: Sequence[Operator], others: Sequence[Operator]) -> Sequence[tuple[int, int]]:
    """Pairs of operators that are the same: by name, by what they write, or by their place."""
    found: dict[int, int] = {}
    taken = set[int]()

    def pair(one: int, other: int) -> None:
        found[one] = other
        taken.add(other)

    for key_of in (_name, _first_output):
        keys = [Counter(map(key_of, side)) for side in (ones, others)]
        at = {key_of(operator): k for k, operator in enumerate(others)}
        for k, operator in enumerate(ones):
            key = key_of(operator)
            if k in found or key is None or any(count[key] != 1 for count in keys):
                continue
            if at[key] not in taken:
                pair(k, at[key])
    for graph in dict.fromkeys(operator.graph for operator in ones):
        left = [k for k, o in enumerate(ones) if o.graph == graph]
        right = [k for k, o in enumerate(others) if o.graph == graph]
        for run, across in _gaps(left, right, found, taken):
            kinds = [ones[k].op for k in run], [others[k].op for k in across]
            for a, b, size in SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks():
                for k in range(size):
                    pair(run[a + k], across[b + k])
    return sorted(found.items())


def _gaps(
    left: Sequence[int], right: Sequence[int], found: dict[int, int], taken: Collection[int]
) -> Sequence[tuple[list[int], list[int]]]:
    """Runs of operators without a twin, between operators that have one."""
    places = {k: number for number, k in enumerate(right)}
    gaps: list[tuple[list[int], list[int]]] = []
    run: list[int] = []
    begin = 0
    for k in (*left, None):
        if k is not None and k not in found:
            run.append(k)
            continue
        end = len(right) if k is None else places.get(found[k], begin)
        across = [other for other in right[begin:end] if other not in taken]
        if run and across:
            gaps.append((run, across))
        run, begin = [], max(begin, end)
    return gaps


def _name(operator: Operator) -> tuple[str, str, bool] | None:
    port = operator.op in ("input", "output")
    return operator.graph, operator.name, port


def _first_output(operator: Operator) -> tuple[str, str, str] | None:
    if not operator.outputs:
        return None
    return operator.graph, operator.outputs[0], operator.op
