"""Trees of Add, Sub and Sum read as one sum with signs, and written again with fewer terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from bnfold._onnx._chains import Wiring
from bnfold._plan._view import Affine, Barrier

_ADDING = ("Add", "Sub", "Sum")


@dataclass(frozen=True)
class Term:
    """One term of a sum: the tensor, 1 or −1, and which input of which node reads it."""

    tensor: str
    sign: int
    reader: int
    number: int


@dataclass(frozen=True)
class Sum:
    """``Σ ±term``. ``nodes`` are the positions of what adds, each ahead of what it reads."""

    root: int
    nodes: tuple[int, ...]
    terms: tuple[Term, ...]


def is_sum(wiring: Wiring, position: int) -> bool:
    """Whether a node adds tensors, each computed at run time or not per channel."""
    node = wiring.node(position)
    return (
        node.op_type in _ADDING
        and node.domain in ("", "ai.onnx")
        and len(node.input) > 1
        and not isinstance(wiring.roles.get(position), Affine | Barrier)
    )


def sum_at(wiring: Wiring, root: int) -> Sum | None:
    """The whole sum that a node puts out; None where it is a part of a larger one.

    A sum is the same in any order and association, but for the rounding of single additions.
    """
    (output,) = wiring.node(root).output
    alone = wiring.shared(output) is None
    if alone and any(is_sum(wiring, position) for position in wiring.readers(output)):
        return None
    nodes: list[int] = []
    terms: list[Term] = []
    todo = [(root, 1)]
    while todo:
        position, sign = todo.pop()
        nodes.append(position)
        node = wiring.node(position)
        for number, name in enumerate(node.input):
            own = -sign if node.op_type == "Sub" and number == 1 else sign
            writer = wiring.writer(name)
            if writer is not None and wiring.shared(name) is None and is_sum(wiring, writer):
                todo.append((writer, own))
            else:
                terms.append(Term(name, own, position, number))
    return Sum(root, tuple(nodes), tuple(terms))


# A part of a sum that is left: its sign and its tensor.
_Part = tuple[int, str]


def rewritten(
    wiring: Wiring,
    total: Sum,
    dropped: Collection[Term],
    replaced: Mapping[Term, str],
    fresh: Callable[[str], str],
) -> dict[int, NodeProto | None] | None:
    """The nodes of a sum without some terms, and others replaced by tensors that count positive.

    Where one operand of an Add goes, the other takes its place; a sign that is left over moves
    outward until a Sub takes it up. What is left holds other values than before and is named anew,
    but for the whole, which is the same sum. None where a Sum would have to subtract.
    """
    parts: dict[str, _Part | None] = {}
    nodes: dict[int, NodeProto | None] = {}
    terms = {(term.reader, term.number): term for term in total.terms}
    for position in reversed(total.nodes):
        node = wiring.node(position)
        output = node.output[0]
        operands: list[_Part | None] = []
        for number, name in enumerate(node.input):
            term = terms.get((position, number))
            if term is None:
                operands.append(parts[name])
            elif term in replaced:
                operands.append((term.sign, replaced[term]))
            else:
                operands.append(None if term in dropped else (1, name))
        if operands == [(1, name) for name in node.input]:
            parts[output] = (1, output)
            continue
        left = [
            (-sign if node.op_type == "Sub" and number == 1 else sign, name)
            for number, part in enumerate(operands)
            if part is not None
            for sign, name in [part]
        ]
        nodes[position] = None
        if len(left) < 2:
            parts[output] = left[0] if left else None
            continue
        joined = _joined(node, left, fresh(f"{output}_merged"))
        if joined is None:
            return None
        sign, nodes[position] = joined
        parts[output] = (sign, joined[1].output[0])
    (output,) = wiring.node(total.root).output
    whole = parts[output]
    for node in filter(None, nodes.values()):
        if whole == (1, node.output[0]):
            node.output[0] = output
            return nodes
    return None


def _joined(node: NodeProto, left: Sequence[_Part], output: str) -> tuple[int, NodeProto] | None:
    """A node that adds or subtracts what is left of another's operands, and its sign."""
    signs = {sign for sign, _ in left}
    if len(signs) > 1 and len(left) > 2:
        return None
    new = NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.output[0] = output
    if len(signs) > 1:
        new.op_type = "Sub"
        left = sorted(left, key=lambda part: -part[0])
    elif node.op_type == "Sub":
        new.op_type = "Add"
    new.input.extend(name for _, name in left)
    return (1 if len(signs) > 1 else left[0][0]), new
