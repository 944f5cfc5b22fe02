"""Moves the weights that bodies of If, Loop and Scan hold into the main graph.

A body sees the tensors of the graphs around it (ONNX IR specification, "Names Within a Graph"). So
nothing changes but the place of a weight. A run may override a weight of the main graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, TensorProto

from bnfold._onnx.read.scopes import Names, read_scopes
from bnfold._onnx.tensors import FLOATS
from bnfold._run.nodes import own_names, subgraphs
from bnfold._run.operands import Operands


def hoist(model: ModelProto) -> bool:
    """Move the weights of bodies into the main graph, in place; return whether there are any.

    A weight is a tensor that a body stores and reads as weights. It stays in the body if it is
    sparse, or if the body puts it out.
    """
    operands = Operands(model.functions)
    found = [
        (body, tensor)
        for body in _bodies(model.graph)
        for tensor in _stored_weights(body, operands)
    ]
    if not found:
        return False
    names = Names(model, read_scopes(model))
    for body, tensor in found:
        old = tensor.name
        tensor.name = names.fresh(old)
        _drop(body, old)
        rename(body, old, tensor.name)
        model.graph.initializer.append(tensor)
    return True


def _bodies(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the bodies in a graph, at any depth."""
    for node in graph.node:
        for body in subgraphs(node):
            yield body
            yield from _bodies(body)


def _stored_weights(body: GraphProto, operands: Operands) -> list[TensorProto]:
    """Copies of the floats that a body stores, or holds in a Constant, and reads as weights."""
    read = {operand.name for operand in operands.within(body.node)}
    for graph in (body, *_bodies(body)):
        read.difference_update(value.name for value in (*graph.output, *graph.input))
    found = [_named(tensor, tensor.name) for tensor in body.initializer]
    for node in body.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            held = (each for each in node.attribute if each.name == "value")
            found += (_named(each.t, node.output[0]) for each in held)
    return [tensor for tensor in found if tensor.name in read and tensor.data_type in FLOATS]


def _named(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _drop(body: GraphProto, name: str) -> None:
    """Take a stored tensor, or the Constant that holds it, out of a body."""
    for place in [n for n, tensor in enumerate(body.initializer) if tensor.name == name]:
        del body.initializer[place]
    for place in [n for n, node in enumerate(body.node) if name in node.output]:
        del body.node[place]


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Let the nodes of a graph read ``new`` in place of ``old``.

    So do the nodes of its bodies, unless the body has its own tensor of the name ``old``.
    """
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for body in subgraphs(node):
            if old not in own_names(body):
                rename(body, old, new)
