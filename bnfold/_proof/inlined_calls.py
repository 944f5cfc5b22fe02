"""Checks that calls of local functions were inlined rightly, by the inliner of the onnx package.

That one inlines all calls of both models. The two results then have to be the same but for names:
nodes in the same order, of the same type, with the same attributes, which read the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.defs import SchemaError, get_schema
from onnx.inliner import inline_local_functions

from bnfold._errors import first_line
from bnfold._onnx.read.inlining import Call, Key, inline, key_of
from bnfold._onnx.read.scopes import bodies, label
from bnfold._onnx.write.applied import Applied
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked

Told = Any
_OWN = ("", "ai.onnx")


def without_calls(
    model: ModelProto, applied: Sequence[Applied]
) -> tuple[ModelProto, dict[str, str]]:
    """The model from which a fold started: with the calls inlined that it inlined.

    And for each operator that stands in the place of a call the operator of the main graph that
    held it, both by label.
    """
    calls = frozenset[Call]().union(*(step.calls for step in applied))
    if not calls:
        return model, {}
    inlined = inline(model, calls)
    # A call begins with its position in the main graph, or with that of the node around it.
    held = {
        name: label(model.graph.node[int(origins[0].call[0])])
        for name, origins in inlined.origins.items()
    }
    return inlined.model, held


def check_inlining(original: ModelProto, started: ModelProto) -> float | Unchecked:
    """Check that two models are the same when all calls are inlined.

    Raises:
        Mismatch: they are not.
    """
    if _stored(original.graph) != _stored(started.graph):
        raise Mismatch("a constant of the main graph has changed")
    try:
        left, right = (inline_local_functions(_skeleton(each)) for each in (original, started))
    except Exception as error:  # What onnx raises there has no common base.
        return Unchecked(Obstacle.DOES_NOT_RUN, first_line(error))
    one, other = (_Meaning().of(each.graph, {}) for each in (left, right))
    if one != other:
        raise Mismatch("the inlined calls do not compute what the calls do")
    return 0.0


def _stored(graph: GraphProto) -> list[tuple[str, TensorProto]]:
    """The initializers of a graph, by name; sparse ones are in the skeleton."""
    return sorted(((t.name, t) for t in graph.initializer), key=lambda pair: pair[0])


def _skeleton(model: ModelProto) -> ModelProto:
    """A model without the numbers of its initializers, in which calls give every attribute.

    The inliner of onnx forgets the defaults of functions, and leaves those of another opset as they
    are (seen in onnx 1.23): a function has that of the model, if its operators are the same there.
    """
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = model.graph.name
    copy.graph.input.extend(model.graph.input)
    copy.graph.output.extend(model.graph.output)
    copy.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        copy.graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type))
    copy.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    defaults = {key_of(function): function.attribute_proto for function in copy.functions}
    for function in copy.functions:
        _agree(function, copy)
    for nodes in (copy.graph.node, *(function.node for function in copy.functions)):
        _complete(nodes, defaults)
    return copy


def _agree(function: FunctionProto, model: ModelProto) -> None:
    """Give a function the model's versions of opsets in which its operators are the same ones."""
    versions = {_own(entry.domain): entry.version for entry in model.opset_import}
    used, waiting = set[tuple[str, str]](), [function.node]
    while waiting:
        for node in waiting.pop():
            used.add((_own(node.domain), node.op_type))
            waiting += (graph.node for _, graph in bodies(node))
    for entry in function.opset_import:
        domain = _own(entry.domain)
        around = versions.get(domain, entry.version)
        kinds = [kind for of, kind in used if of == domain]
        if all(_since(k, around, domain) == _since(k, entry.version, domain) for k in kinds):
            entry.version = around


def _since(kind: str, version: int, domain: str) -> int:
    """The version since which an operator is what it is; that of the opset where it is unknown."""
    try:
        return int(get_schema(kind, version, domain).since_version)
    except SchemaError:
        return version


def _own(domain: str) -> str:
    return "" if domain in _OWN else domain


def _complete(nodes: Iterable[NodeProto], defaults: Mapping[Key, Iterable[AttributeProto]]) -> None:
    """Give calls the attributes that they leave to the defaults of their functions."""
    for node in nodes:
        given = {attribute.name for attribute in node.attribute}
        missing = [a for a in defaults.get(key_of(node), ()) if a.name not in given]
        node.attribute.extend(missing)
        for _, graph in bodies(node):
            _complete(graph.node, defaults)


class _Meaning:
    """What a graph computes, told without the names of its tensors.

    A tensor is told by the number of the operator that writes it; an Identity writes none.
    """

    def __init__(self) -> None:
        self._count = 0

    def of(self, graph: GraphProto, around: Mapping[str, Told], *, main: bool = True) -> list[Told]:
        """What a graph computes. ``around`` has the tensors that it sees from outside."""
        known: dict[str, Told] = dict(around)
        stored = [(t.name, t) for t in graph.initializer]
        stored += [(sparse.values.name, sparse.values) for sparse in graph.sparse_initializer]
        for number, value in enumerate(graph.input):
            known[value.name] = value.name if main else (self._next(), number)
        told: list[Told] = []
        for name, tensor in stored:
            known[name] = name if main else (self._next(), 0)
            if not main:
                bare = TensorProto()
                bare.CopyFrom(tensor)
                bare.ClearField("name")
                told.append(bare.SerializeToString(deterministic=True))
        for node in graph.node:
            if node.op_type == "Identity" and node.domain in _OWN and len(node.input) == 1:
                known[node.output[0]] = known.get(node.input[0])
                continue
            read = [known.get(name) if name else "" for name in node.input]
            while read and read[-1] == "":
                read.pop()
            within = [(name, self.of(body, known, main=False)) for name, body in bodies(node)]
            number = self._next()
            known.update((name, (number, k)) for k, name in enumerate(node.output) if name)
            domain = "" if node.domain in _OWN else node.domain
            told.append((node.op_type, domain, node.overload, read, _attributes(node), within))
        return [*told, [known.get(value.name) for value in graph.output]]

    def _next(self) -> int:
        self._count += 1
        return self._count


def _attributes(node: NodeProto) -> dict[str, bytes]:
    """The attributes of a node that are no graphs, by name."""
    found = {}
    for attribute in node.attribute:
        if attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            bare = AttributeProto()
            bare.CopyFrom(attribute)
            bare.ClearField("doc_string")
            found[attribute.name] = bare.SerializeToString(deterministic=True)
    return found
