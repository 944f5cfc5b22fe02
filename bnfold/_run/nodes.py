"""Walks the nodes of a graph and of its subgraphs, and follows values through a main graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import onnx

from bnfold._onnx.read.scopes import opset_of, read_scopes, type_of
from bnfold._onnx.read.shapes import infer
from bnfold._run.dropouts import training

OWN = ("", "ai.onnx")
"""The domain of ONNX's own operators, as files have it."""
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs held by a node (If, Loop, Scan)."""
    for attribute in node.attribute[:]:
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


def drawing(model: onnx.ModelProto) -> Callable[[onnx.NodeProto], bool]:
    """Whether a node of a model's main graph draws random numbers.

    It does itself, in one of its bodies, or in a function that it calls. So does a Dropout in
    training.
    """
    drawn, in_training = set(RANDOM), training(model)
    local = set(map(type_of, model.functions))

    def draws(node: onnx.NodeProto, opset: int) -> bool:
        return any(
            type_of(each) in drawn or (type_of(each) not in local and in_training(each, opset))
            for each in all_nodes([node])
        )

    def calls(function: onnx.FunctionProto) -> bool:
        return any(draws(node, opset_of(function.opset_import)) for node in function.node)

    todo = list(model.functions)
    drawn -= local
    while found := {type_of(each) for each in todo if calls(each)}:
        drawn |= found
        todo = [each for each in todo if type_of(each) not in found]
    return lambda node: draws(node, opset_of(model.opset_import))


def own_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph that no initializer has a value for."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in stored]


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, itself or in its subgraphs.

    Names that a subgraph defines itself may be among them. Callers need no more than a superset.
    """
    names: list[str] = node.input[:]
    for graph in subgraphs(node):
        for inner in graph.node:
            names += reads(inner)
        names += [output.name for output in graph.output]
    return names


def own_names(body: onnx.GraphProto) -> set[str]:
    """The names of a subgraph's own tensors. They hide equal names of the graphs around it."""
    found = {value.name for value in body.input}
    found.update(tensor.name for tensor in body.initializer)
    found.update(tensor.values.name for tensor in body.sparse_initializer)
    found.update(name for node in body.node for name in node.output[:])
    return found


class Flow:
    """The nodes of a main graph with their inputs and outputs, to follow values through it.

    Attributes:
        rows: the nodes in order, each with the names that it reads and the names of its outputs.
            What it multiplies by a constant of zeros counts as not read.
    """

    def __init__(self, graph: onnx.GraphProto, zeros: Collection[str] = ()) -> None:
        """Take a graph, and the names of constants that hold nothing but zeros."""
        self.rows = [
            (node, _felt(node, zeros), list(filter(None, node.output))) for node in graph.node
        ]

    def reached(self, names: Collection[str]) -> set[str]:
        """Return the values that depend on any of the named ones."""
        found = set(names)
        for _, inputs, outputs in self.rows:
            if not found.isdisjoint(inputs):
                found.update(outputs)
        return found

    def leading(self, names: Collection[str]) -> set[str]:
        """Return the values that any of the named ones depends on, and those themselves."""
        found = set(names)
        for _, inputs, outputs in reversed(self.rows):
            if not found.isdisjoint(outputs):
                found.update(inputs)
        return found


_FACTORS: Mapping[str, Mapping[int, tuple[int, ...]]] = {
    "BatchNormalization": {1: (0, 3, 4)},
    "Conv": {1: (0,)},
    "ConvTranspose": {1: (0,)},
    "Gemm": {0: (1,), 1: (0,)},
    "GroupNormalization": {1: (0,)},
    "InstanceNormalization": {1: (0,)},
    "LayerNormalization": {1: (0,)},
    "MatMul": {0: (1,), 1: (0,)},
    "Mul": {0: (1,), 1: (0,)},
}
"""By operator: the number of an input, and the numbers of those that it is multiplied with."""


def _felt(node: onnx.NodeProto, zeros: Collection[str]) -> list[str]:
    """The names that a node reads, without those that it multiplies by zeros."""
    factors = _FACTORS.get(node.op_type, {}) if node.domain in OWN else {}
    lost = {
        other
        for place, others in factors.items()
        if place < len(node.input) and node.input[place] in zeros
        for other in others
    }
    if not lost:
        return reads(node)
    return [name for place, name in enumerate(node.input) if place not in lost]


def reached(graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return the values of the main graph that depend on any of the named ones."""
    return Flow(graph).reached(names)


def random_values(model: onnx.ModelProto) -> set[str]:
    """Return the values of the main graph that depend on random numbers drawn while it runs."""
    makers = filter(drawing(model), model.graph.node)
    drawn = {name for node in makers for name in node.output[:] if name}
    return reached(model.graph, drawn) if drawn else set()


def always_empty(
    model: onnx.ModelProto, outputs: Collection[str], weights: Collection[str]
) -> list[str]:
    """Return the outputs that hold no number whatever the inputs are: one of their sizes, as it
    follows from the operators, is 0.

    One on which a weight acts that acts on no other output is none of them, for nobody has seen it.
    What meets an empty tensor acts on nothing.
    """
    shapes = infer(model, read_scopes(model))
    empty = {name for name in outputs if shapes.empty.get(("", name))}
    flow, found = Flow(model.graph), []
    seen = flow.leading(set(outputs) - empty)
    for output in sorted(empty):
        acting = {output}
        for _, inputs, made in reversed(flow.rows):
            if not acting.isdisjoint(made):
                none = [name for name in inputs if shapes.empty.get(("", name))]
                acting.update(none or inputs)
        if acting.intersection(weights) <= seen:
            found.append(output)
    return found
