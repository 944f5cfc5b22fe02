"""Branches with weights that no input takes, so that a comparison says nothing about them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold._onnx import tensors
from bnfold._onnx.read.scopes import label
from bnfold._onnx.tensors import FLOATS
from bnfold._run.input_sets import InputSet
from bnfold._run.nodes import own_inputs, reached, reads, subgraphs
from bnfold._run.operands import Operands
from bnfold._run.perturbable_model import RunnableModel
from bnfold._run.session import EngineError
from bnfold._run.source import Source, Tap

Values: TypeAlias = Callable[[Sequence[str]], Iterable[Mapping[str, Any]]]
"""Gives the values of tensors of the original, by name, on one input set after the other."""
_TAKEN_IF = {"then_branch": True, "else_branch": False}
_Form: TypeAlias = tuple[Any, ...]


class IfBranch(NamedTuple):
    """A branch of an If in the main graph.

    It names the If by its place among the nodes, the tensor of the condition, and the attribute
    that holds the branch. It says whether the branch has weights that nothing else reads.
    """

    label: str
    place: int
    condition: str
    attribute: str
    owns_weights: bool


def branches_with_weights(model: ModelProto) -> Iterator[IfBranch]:
    """Yield the branches of a main graph in which linear operators or norms read weights.

    Only an If whose condition depends on an input counts.
    """
    graph, operands = model.graph, Operands(model.functions)
    if all(node.op_type != "If" for node in graph.node):
        return
    stored = {tensor.name: tensor for tensor in graph.initializer}
    varying = reached(graph, [value.name for value in own_inputs(graph)])
    sources = {name: {name} for name in stored}
    read, within = Counter[str](), dict[tuple[int, str], set[str]]()
    for place, node in enumerate(graph.node):
        bodies = dict(_branches(node))
        for attribute, body in bodies.items():
            names = {name for inner in body.node for name in reads(inner)} & sources.keys()
            within[place, attribute] = set().union(*(sources[name] for name in names))
            read.update(within[place, attribute])
        seen = {each for name in reads(node) if name in sources for each in sources[name]}
        if varying.isdisjoint(node.output):
            sources |= dict.fromkeys(node.output, seen)
        elif not bodies:
            read.update(seen)
    for place, node in enumerate(graph.node):
        for attribute, body in _branches(node):
            layers = any(operand.of_layer for operand in operands.within(body.node))
            if layers and node.input[0] in varying:
                alone = (stored[n] for n in within[place, attribute] if read[n] == 1)
                owns = any(map(_is_weight, chain(alone, _stored_tensors(body))))
                where = f"the {attribute} of {label(node)}"
                yield IfBranch(where, place, node.input[0], attribute, owns)


def _stored_tensors(body: GraphProto) -> Iterator[TensorProto]:
    """Yield the tensors that a body stores or holds in a Constant, also in its inner bodies."""
    yield from body.initializer
    for node in body.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
        yield from (tensor for inner in subgraphs(node) for tensor in _stored_tensors(inner))


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and len(tensor.dims) > 1


def uncompared_branches(
    branches: Sequence[IfBranch],
    original: Source,
    folded: Source,
    inputs: Sequence[InputSet],
    load: Callable[[Source], RunnableModel],
) -> Sequence[IfBranch]:
    """The branches of the original that were not compared.

    No input takes them, and the folded model has no branch of the same form. Both files have no
    taps; ``load`` opens one.
    """

    def values(names: Sequence[str]) -> Iterator[dict[str, Any]]:
        taps = tuple(Tap(name, f"{name} taken") for name in names)
        engine = load(replace(original, taps=taps, alone=True))
        for each in inputs:
            yield dict(zip(names, engine.run(each.feeds), strict=True))

    try:
        missed = never_taken(branches, values) if branches else []
    except EngineError:
        missed = list(branches)
    if not missed:
        return []
    left, right = Forms(original.proto(), original.folder), Forms(folded.proto(), folded.folder)
    kept = list(right.all())
    return [branch for branch in missed if left.of(branch) not in kept]


def never_taken(branches: Sequence[IfBranch], values: Values) -> list[IfBranch]:
    """The branches, of those given, that are taken on no input set."""
    left = list(branches)
    for found in values(list(dict.fromkeys(branch.condition for branch in left))):
        left = [b for b in left if bool(np.all(found[b.condition])) != _TAKEN_IF[b.attribute]]
        if not left:
            break
    return left


class Forms:
    """The forms of a model's branches. Two branches of the same form compute the same.

    A form says what a branch computes, without the names of its own tensors.
    """

    def __init__(self, model: ModelProto, folder: Path) -> None:
        """Take a model and the folder where its external data lies."""
        self._graph = model.graph
        self._folder = folder
        self._stored_tensors = dict(self._stored(model.graph))

    def of(self, branch: IfBranch) -> _Form:
        """The form of a branch. Raises `UsageError` where external data cannot be read."""
        bodies = dict(_branches(self._graph.node[branch.place]))
        return self._form(bodies[branch.attribute], {}, 0)

    def all(self) -> Iterator[_Form]:
        """The forms of all branches in the main graph. Raises as `of` does."""
        for node in self._graph.node:
            yield from (self._form(body, {}, 0) for _, body in _branches(node))

    def _form(self, body: GraphProto, outer: Mapping[str, Any], depth: int) -> _Form:
        """The operators of a body in order, each with its attributes and its inputs.

        An input is one of three: stored numbers, the output of an operator at a depth and a place,
        or a tensor of the main graph by its name.
        """
        known = {**outer, **{value.name: (depth, n) for n, value in enumerate(body.input)}}
        held = dict(self._stored(body))
        known |= {name: self._digest(tensor) for name, tensor in held.items()}
        rows: list[Any] = [tensor.SerializeToString() for tensor in body.sparse_initializer]

        def read(name: str) -> Any:
            if name not in known and name in self._stored_tensors:
                known[name] = self._digest(self._stored_tensors[name])
            return known.get(name, name)

        for place, node in enumerate(node for node in body.node if node.output[0] not in held):
            attributes = []
            for attribute in sorted(node.attribute, key=lambda each: each.name):
                graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                inner = [self._form(graph, known, depth + 1) for graph in graphs]
                attributes.append((attribute.name, inner or attribute.SerializeToString()))
            operator = (node.domain, node.op_type, node.overload)
            rows.append((operator, [read(name) for name in node.input], attributes))
            known |= {name: (depth, place, n) for n, name in enumerate(node.output)}
        return rows, [read(value.name) for value in body.output]

    def _stored(self, graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
        """Yield the tensors that a graph stores or holds in a Constant, by name."""
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                held = (each.t for each in node.attribute if each.name == "value")
                yield from ((node.output[0], tensor) for tensor in held)

    def _digest(self, tensor: TensorProto) -> _Form:
        values = tensors.read(tensor, self._folder)
        return values.shape, values.dtype.name, hashlib.sha256(values.tobytes()).digest()


def _branches(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    if node.op_type == "If" and node.domain in ("", "ai.onnx"):
        for attribute in node.attribute:
            if attribute.name in _TAKEN_IF:
                yield attribute.name, attribute.g
