"""The order of nodes: whoever writes a tensor stands ahead of whoever reads it.

ONNX asks for this order in every graph. Some converters do not keep it, and onnxruntime runs their
files all the same. Shape inference, and whatever else goes through the nodes once, needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from bnfold._errors import UsageError
from bnfold._onnx.read.scopes import bodies, copy_of, label


def sorted_positions(nodes: Sequence[NodeProto], sources: Sequence[Collection[int]]) -> list[int]:
    """The positions of nodes, each behind its ``sources``; in file order as far as that goes.

    Raises `UsageError` on cycles.
    """
    order: list[int] = []
    entered, left = set[int](), set[int]()
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            position = waiting[-1]
            if position in entered:
                waiting.pop()
                if position not in left:
                    left.add(position)
                    order.append(position)
                continue
            entered.add(position)
            for source in sorted(sources[position], reverse=True):
                if source not in entered:
                    waiting.append(source)
                elif source not in left:
                    raise _cycle(nodes, waiting, entered - left, source)
    return order


def put_in_order(model: ModelProto) -> None:
    """Put the nodes of every graph of a model in order, in place: bodies and functions as well.

    A graph that is in order stays as it is. Raises `UsageError` on cycles.
    """
    for nodes, order in list(_out_of_order(model)):
        copies = [copy_of(nodes[position]) for position in order]
        del nodes[:]
        nodes.extend(copies)


def in_order(model: ModelProto) -> ModelProto:
    """The model itself if every graph of it is in order, else a copy that is.

    Raises `UsageError` on cycles.
    """
    if next(_out_of_order(model), None) is None:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    put_in_order(copy)
    return copy


def _out_of_order(model: ModelProto) -> Iterator[tuple[Any, list[int]]]:
    """Yield the nodes of each graph that is not in order, and the order. Bodies come first."""
    yield from _search(model.graph.node, set())
    for function in model.functions:
        yield from _search(function.node, set())


def _search(nodes: Any, read: set[str]) -> Iterator[tuple[Any, list[int]]]:
    """Search some nodes and their bodies; ``read`` gets the names that they take from outside."""
    reads: list[set[str]] = []
    written, missing = set[str](), set[str]()
    early = False
    for node in nodes:
        names = set(node.input)
        for _, body in bodies(node):
            inner = {value.name for value in body.output}
            yield from _search(body.node, inner)
            names |= inner - _given(body)
        names.discard("")
        missing |= names - written
        early = early or not missing.isdisjoint(node.output)
        written.update(node.output)
        reads.append(names)
    read |= missing - written
    if early:
        writers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
        sources = [{writers[name] for name in names if name in writers} for names in reads]
        yield nodes, sorted_positions(nodes, sources)


def _given(graph: GraphProto) -> set[str]:
    """The names of a body's own tensors that no node writes."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def _cycle(
    nodes: Sequence[NodeProto], waiting: Sequence[int], open_: Collection[int], source: int
) -> UsageError:
    """The error for nodes that wait for each other; the open ones have been reached already."""
    place = len(waiting) - 1 - list(reversed(waiting)).index(source)
    through = sorted({position for position in waiting[place:] if position in open_})
    names = ", ".join(label(nodes[position]) for position in through)
    return UsageError(f"the graph has a cycle through {names}")
