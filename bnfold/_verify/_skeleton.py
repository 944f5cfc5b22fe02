"""Turns a model's weights into inputs, so that one session can run it with many weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import onnx
from onnx import helper

from bnfold._verify._nodes import reads
from bnfold._verify._noise import Array


def feed_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Change `model` so that the named values of its main graph are inputs, and return those fed.

    An initializer is dropped; a node that produces a weight goes, and so do those that only it
    needed. Names that the main graph does not compute, true inputs and outputs of the graph are
    left as they are.
    """
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    initializers |= {tensor.values.name for tensor in graph.sparse_initializer}
    made = {name for node in graph.node for name in node.output if name}
    kept = {value.name for value in graph.output}
    fed = {
        name: array
        for name, array in weights.items()
        if name in initializers | made and name not in kept
    }
    listed = {value.name for value in graph.input}
    for name, array in fed.items():
        if name not in listed:
            element = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, element, array.shape))
    _keep(graph.initializer, [t for t in graph.initializer if t.name not in fed])
    _keep(
        graph.sparse_initializer, [t for t in graph.sparse_initializer if t.values.name not in fed]
    )
    _keep(graph.value_info, [v for v in graph.value_info if v.name not in fed])
    _drop_makers(graph, fed)
    return fed


def reached(graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return the values of the main graph that depend on any of the named ones."""
    found = set(names)
    for node in graph.node:
        if not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found


def _drop_makers(graph: onnx.GraphProto, fed: Mapping[str, Array]) -> None:
    """Drop the nodes that nobody needs once the fed names are inputs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output) or fed.keys() >= {name for name in node.output if name}:
            continue
        for index, name in enumerate(node.output):
            if name in fed:
                node.output[index] = f"{name}/unfed"
        needed.update(name for name in reads(node) if name not in fed)
        kept.append(node)
    _keep(graph.node, kept[::-1])


def _keep(field: Any, items: list[Any]) -> None:
    if len(items) < len(field):
        del field[:]
        field.extend(items)
