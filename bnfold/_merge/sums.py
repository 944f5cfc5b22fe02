"""Trees of operators that add, as one sum with signs, and the same sum with fewer terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from bnfold._merge.graph import MergeGraph
from bnfold._system.records import record


@record(frozen=True)
class Term:
    """One term of a sum: the tensor, 1 or −1, and which input of which operator reads it."""

    tensor: str
    sign: int
    reader: int
    number: int


@record(frozen=True)
class Sum:
    """``Σ ±term``. ``nodes`` are the positions of the operators that add, outer before inner."""

    root: int
    nodes: tuple[int, ...]
    terms: tuple[Term, ...]


@record(frozen=True)
class Joined:
    """An operator that adds, as it is after the change.

    It is the sum of its operands or, if ``minus``, the first operand minus the second.
    """

    operands: tuple[str, ...]
    minus: bool
    output: str


def sum_at(graph: MergeGraph, root: int) -> Sum | None:
    """The whole sum that ends at an operator; None if it is a part of a larger sum.

    A sum has the same value in any order, except for the rounding of single additions.
    """
    output = _written(graph, root)
    alone = graph.shared(output) is None
    if alone and any(graph.signs(position) for position in graph.readers(output)):
        return None
    nodes: list[int] = []
    terms: list[Term] = []
    todo = [(root, 1)]
    while todo:
        position, sign = todo.pop()
        nodes.append(position)
        signs = graph.signs(position)
        assert signs is not None
        for number, name in enumerate(graph.reads(position)):
            writer = graph.writer(name)
            if writer is not None and graph.shared(name) is None and graph.signs(writer):
                todo.append((writer, sign * signs[number]))
            else:
                terms.append(Term(name, sign * signs[number], position, number))
    return Sum(root, tuple(nodes), tuple(terms))


# One operand that is left: its sign and its tensor.
_Part = tuple[int, str]


def rewritten(
    graph: MergeGraph,
    total: Sum,
    dropped: Collection[Term],
    replaced: Mapping[Term, str],
    fresh: Callable[[str], str],
) -> dict[int, Joined | None] | None:
    """The changes in a sum whose terms ``dropped`` go and whose terms ``replaced`` become tensors.

    The new tensors count positive. The result has by position the operator that is left, None for
    none; inner operators come before outer ones. If one of two operands goes, the other takes the
    operator's place. A minus sign that is left over moves outward, until a difference takes it up.
    Tensors inside hold other values than before, so they get fresh names; the whole sum keeps its
    name. The function gives None if this would need a difference with more than two operands.
    """
    parts: dict[str, _Part | None] = {}
    nodes: dict[int, Joined | None] = {}
    terms = {(term.reader, term.number): term for term in total.terms}
    for position in reversed(total.nodes):
        names, signs = graph.reads(position), graph.signs(position)
        output = _written(graph, position)
        assert signs is not None
        operands: list[_Part | None] = []
        for number, name in enumerate(names):
            term = terms.get((position, number))
            if term is None:
                operands.append(parts[name])
            elif term in replaced:
                operands.append((term.sign, replaced[term]))
            else:
                operands.append(None if term in dropped else (1, name))
        if operands == [(1, name) for name in names]:
            parts[output] = (1, output)
            continue
        left = [
            (own * part[0], part[1])
            for own, part in zip(signs, operands, strict=True)
            if part is not None
        ]
        nodes[position] = None
        if len(left) < 2:
            parts[output] = left[0] if left else None
            continue
        joined = _joined(left, fresh(f"{output}_merged"))
        if joined is None:
            return None
        sign, nodes[position] = joined
        parts[output] = (sign, joined[1].output)
    output = _written(graph, total.root)
    whole = parts[output]
    for position, node in nodes.items():
        if node is not None and whole == (1, node.output):
            nodes[position] = replace(node, output=output)
            return nodes
    return None


def _joined(left: Sequence[_Part], output: str) -> tuple[int, Joined] | None:
    """The sign and the operator for the operands that are left; None if no operator can do it."""
    signs = {sign for sign, _ in left}
    if len(signs) == 1:
        return left[0][0], Joined(tuple(name for _, name in left), False, output)
    if len(left) > 2:
        return None
    first, second = sorted(left, key=lambda part: -part[0])
    return 1, Joined((first[1], second[1]), True, output)


def _written(graph: MergeGraph, position: int) -> str:
    output = graph.output(position)
    assert output is not None
    return output
