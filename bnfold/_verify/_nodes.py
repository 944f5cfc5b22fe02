"""Walks the nodes of a graph, those of its subgraphs included."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs held by a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield every node, then those of its subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names a node reads, captures of its subgraphs included.

    A name that a subgraph defines itself may be among them: a superset is what callers need.
    """
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from reads(inner)
        for output in graph.output:
            yield output.name


def reached(graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return the values of the main graph that depend on any of the named ones."""
    found = set(names)
    for node in graph.node:
        if not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found
