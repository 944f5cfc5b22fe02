"""The lists of a graph after an edit: what has gone leaves them, and nodes stand in order again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from onnx import FunctionProto, GraphProto, NodeProto, helper

from bnfold._onnx.read.scopes import Scope, copy_of


def clean(
    scope: Scope,
    gone: Collection[int],
    dropped: Collection[str],
    vanished: Mapping[str, str | None],
) -> None:
    """Take nodes that have ``gone`` and ``dropped`` constants out of a graph, and the notes on
    tensors that have ``vanished``; the note on one with a new name gets that.
    """
    graph = scope.graph
    _delete(graph.node, sorted(gone))
    kept = set()
    for number, value in enumerate(graph.value_info):
        if value.name in vanished:
            new = vanished[value.name]
            if new is None:
                continue
            value.name = new
        kept.add(number)
    _delete(graph.value_info, [n for n in range(len(graph.value_info)) if n not in kept])
    if isinstance(graph, FunctionProto):
        return
    _delete(graph.initializer, [n for n, t in enumerate(graph.initializer) if t.name in dropped])
    few = graph.sparse_initializer
    _delete(few, [n for n, t in enumerate(few) if t.values.name in dropped])
    _delete(graph.input, [n for n, v in enumerate(graph.input) if v.name in dropped])
    notes = graph.quantization_annotation
    _delete(notes, [n for n, note in enumerate(notes) if note.tensor_name in vanished])


def unread(graph: GraphProto) -> set[str]:
    """The initializers of a graph that are no inputs, and that no operator of the graph reads.

    What operators of its bodies read is not what it reads.
    """
    known = {value.name for value in (*graph.input, *graph.output)}
    known.update(name for node in graph.node for name in node.input)
    return {tensor.name for tensor in graph.initializer if tensor.name not in known}


def list_unread(graph: GraphProto, before: Collection[str]) -> None:
    """Make inputs of the initializers of a graph that no operator reads any more.

    So they had to be before IR version 4 (ONNX IR, "Graphs"). onnxruntime knows those that are no
    inputs by the operators of the graph that read them alone, and refuses a model with any other,
    also where a body reads it. Those that were unread ``before`` stay as they were.
    """
    names = unread(graph).difference(before)
    for tensor in graph.initializer:
        if tensor.name in names:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)


def sort(scope: Scope, early: Collection[int]) -> list[int]:
    """Move nodes that make constants ahead of the nodes that read these constants, which are the
    ``early`` ones. Gives for each place the position of its node before.
    """
    nodes, late = scope.graph.node, set[int]()
    order: list[int] = []
    for position in range(len(nodes)):
        if position in early:
            chain = _constants_behind(scope, position) - late
            order += sorted(chain)
            late |= chain
        if position not in late:
            order.append(position)
    sorted_nodes = [copy_of(nodes[position]) for position in order]
    del nodes[:]
    nodes.extend(sorted_nodes)
    return order


def prepend(scope: Scope, first: Iterable[NodeProto]) -> None:
    """Put nodes ahead of all others."""
    nodes = [*first, *(copy_of(node) for node in scope.graph.node)]
    del scope.graph.node[:]
    scope.graph.node.extend(nodes)


def insert(scope: Scope, inserted: Iterable[NodeProto]) -> None:
    """Put each of some nodes ahead of the first node that reads what it writes."""
    waiting = {node.output[0]: node for node in inserted}
    nodes: list[NodeProto] = []
    for node in scope.graph.node:
        nodes += [waiting.pop(name) for name in node.input if name in waiting]
        nodes.append(copy_of(node))
    del scope.graph.node[:]
    scope.graph.node.extend(nodes)


def _constants_behind(scope: Scope, slot: int) -> set[int]:
    """The positions of nodes behind ``slot`` on which the node in the slot depends."""
    found: set[int] = set()
    todo = list(scope.nodes[slot].input)
    while todo:
        position = scope.producers.get(todo.pop(), -1)
        if position > slot and position not in found:
            found.add(position)
            todo += scope.nodes[position].input
    return found


def _delete(items: Any, numbers: list[int]) -> None:
    """Delete elements of a repeated field, from the back, neighbours together."""
    end = len(numbers)
    while end:
        start = end - 1
        while start and numbers[start - 1] == numbers[start] - 1:
            start -= 1
        del items[numbers[start] : numbers[end - 1] + 1]
        end = start
