"""Maps that stay and are equal: all but the first go, and their readers read the first."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

from onnx import NodeProto

from bnfold._core.result import EQUAL
from bnfold._core.view import Affine
from bnfold._onnx.merge.merging import reread
from bnfold._onnx.merge.patch import Patch, lay
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.scopes import copy_of, label, type_of
from bnfold._plan.planner import Moves

# Runtimes look for the whole pattern that such a map is part of.
_PART = "fused-operator"
_COMMUTATIVE = ("Add", "Mul")


def without_equals(graph: Graph, moves: Moves) -> tuple[Graph, tuple[Patch, ...]]:
    """A graph in which of equal maps that stay the first alone is left, and a patch for each other.

    Law: two operators of one type with the same attributes put out the same bits if each input of
    one is the tensor that the other reads there, or both are constants of one type, shape and
    content; of an Add or a Mul in any order. Then one may go where nothing asks for its output by
    name: no output of the graph, no body of an If, Loop or Scan.

    Only maps that stay as they are take part, of tensors that stay as they are: one that folds
    costs nothing, and the other might not fold in its place. Two maps that the fold itself writes
    may come out equal: the next fold drops one of them.
    """
    scope = graph.scope
    first: dict[Hashable, int] = {}
    patches = []
    for index in _as_written(graph, moves):
        position = graph.positions[index]
        known = first.setdefault(_identity(graph, scope.nodes[position]), position)
        value = graph.view.values[graph.view.nodes[index].outputs[0]]
        if known != position and value.pinned is None:
            patches.append(_patch(graph, known, position))
            lay(patches[-1], scope, graph.context.constants)
    return (reread(graph, patches) if patches else graph), tuple(patches)


def _as_written(graph: Graph, moves: Moves) -> Iterator[int]:
    """The maps of a view that stay, and around which nothing changes, in data order."""
    busy = {*moves.sides, *moves.edits, *moves.turned}
    for move in moves.moves:
        busy |= {move.into, *move.maps, *move.chain, *move.crossed}
        busy |= {end.node for end in move.ends}
    for pair in moves.unneeded:
        busy |= {pair.up, *pair.down, *pair.between}
    for index in sorted(moves.kept.keys() - busy):
        node = graph.view.nodes[index]
        plain = isinstance(node.role, Affine) and moves.kept[index].code != _PART
        if (
            plain
            and len(node.outputs) == 1
            and moves.relations.keys().isdisjoint((*node.inputs, *node.outputs))
        ):
            yield index


def _identity(graph: Graph, node: NodeProto) -> Hashable:
    """What an operator computes, and of what."""
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    operands = [_operand(graph, name) for name in node.input]
    if node.op_type in _COMMUTATIVE and not attributes:
        operands.sort(key=lambda operand: isinstance(operand, str))
    return type_of(node), tuple(attributes), tuple(operands)


def _operand(graph: Graph, name: str) -> Hashable:
    """A tensor: its name, or the type, shape and content of a constant that nobody may set."""
    found = graph.context.constants.find(graph.scope, name) if name else None
    if not isinstance(found, Constant) or found.protected is not None:
        return name
    values = found.load()
    content = hashlib.sha256(values.tobytes()).digest()
    return found.data_type, values.shape, content


def _patch(graph: Graph, first: int, second: int) -> Patch:
    """What lets the readers of the second of two equal operators read the first."""
    scope = graph.scope
    kept, gone = scope.nodes[first], scope.nodes[second]
    nodes: dict[int, NodeProto | None] = {first: copy_of(kept), second: None}
    for position in dict.fromkeys(scope.readers.get(gone.output[0], ())):
        reader = nodes[position] = copy_of(scope.nodes[position])
        for number, name in enumerate(reader.input):
            if name == gone.output[0]:
                reader.input[number] = kept.output[0]
    return Patch(scope.path, EQUAL, first, nodes, {}, ((label(gone), gone.op_type),))
