"""Maps that stay and are equal: all but the first go, and their readers read the first."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping

from onnx import NodeProto

from bnfold._core.result import EQUAL
from bnfold._core.view import Affine
from bnfold._onnx.merge.merging import reread
from bnfold._onnx.merge.patch import Patch, lay
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.scopes import Scope, copy_of, label, type_of
from bnfold._plan.planner import Moves

# Runtimes look for the whole pattern that such a map is part of.
_PART = "fused-operator"
_COMMUTATIVE = ("Add", "Mul")


def without_equals(graph: Graph, moves: Moves) -> tuple[Graph, Patch | None]:
    """A graph in which of equal maps that stay the first alone is left, and its patch.

    The patch is None where no two are equal.

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
    equal: dict[int, int] = {}
    instead: dict[str, str] = {}
    for index in _as_written(graph, moves):
        position = graph.positions[index]
        node = scope.nodes[position]
        known = first.setdefault(_identity(graph, node, instead), position)
        value = graph.view.values[graph.view.nodes[index].outputs[0]]
        if known != position and value.pinned is None:
            equal[position] = known
            instead[node.output[0]] = scope.nodes[known].output[0]
    if not equal:
        return graph, None
    patch = _patch(scope, equal, instead)
    lay(patch, scope, graph.context.constants)
    return reread(graph, [patch]), patch


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


def _identity(graph: Graph, node: NodeProto, instead: Mapping[str, str]) -> Hashable:
    """What an operator computes, and of what; ``instead`` has tensors that are equal to others."""
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    operands = [_operand(graph, instead.get(name, name)) for name in node.input]
    if node.op_type in _COMMUTATIVE and not attributes:
        operands.sort(key=lambda operand: isinstance(operand, str))
    return type_of(node), tuple(attributes), tuple(operands)


def _operand(graph: Graph, name: str) -> Hashable:
    """A tensor: its name, or the type, shape and content of a constant that nobody may set, and
    that all engines have.
    """
    found = graph.context.constants.find(graph.scope, name) if name else None
    if not isinstance(found, Constant) or found.protected is not None or found.is_free:
        return name
    values = found.load()
    content = hashlib.sha256(values.tobytes()).digest()
    return found.data_type, values.shape, content


def _patch(scope: Scope, equal: Mapping[int, int], instead: Mapping[str, str]) -> Patch:
    """What takes out maps, and lets their readers read the maps that are equal to them."""
    readers = {position for name in instead for position in scope.readers.get(name, ())}
    nodes: dict[int, NodeProto | None] = {}
    for position in sorted({*equal, *equal.values(), *readers}):
        node = nodes[position] = None if position in equal else copy_of(scope.nodes[position])
        for number, name in enumerate(node.input if node is not None else ()):
            if name in instead and node is not None:
                node.input[number] = instead[name]
    gone = tuple((label(scope.nodes[p]), scope.nodes[p].op_type) for p in equal)
    into = next(iter(equal.values()))
    return Patch(scope.path, EQUAL, into, nodes, {}, gone, equal)
