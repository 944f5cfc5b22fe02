"""The graphs of a model: main graph, bodies of If, Loop and Scan, and local functions.

Each graph has a `Scope`. It tells who writes a name, who reads it, and where a captured name comes
from. It holds the protobuf messages themselves, so that a plan can be applied to them. `Names`
gives names that no graph uses.

What goes through all nodes of a model takes a slice of a message's names or attributes, ``[:]``: to
go through protobuf's own sequence takes five times as long, and most are short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import field

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
)

from bnfold._system.records import record


@record(eq=False)
class Scope:
    """One graph and its names.

    ``path`` is "" for the main graph, else the path to the graph. For a name defined here,
    ``readers`` lists the positions of the nodes of this graph that read it, once per read.
    ``captures`` lists the labels of nodes in nested bodies that read it. ``protected`` has the
    names of parameters that a caller may set. ``functions`` has the model's local functions, each
    named as `type_of` names a call of it.
    """

    path: str
    graph: GraphProto | FunctionProto
    parent: Scope | None
    opset: int
    nodes: list[NodeProto]
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    sparse: dict[str, SparseTensorProto] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    outputs: list[str] = field(default_factory=list)
    producers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    captures: dict[str, list[str]] = field(default_factory=dict)
    protected: set[str] = field(default_factory=set)
    functions: frozenset[str] = frozenset()

    @property
    def is_function(self) -> bool:
        """Whether this is the body of a local function."""
        return isinstance(self.graph, FunctionProto)

    def defines(self, name: str) -> bool:
        """Whether the name belongs to this graph rather than to one around it."""
        return (
            name in self.producers
            or name in self.initializers
            or name in self.inputs
            or name in self.sparse
        )

    def owner(self, name: str) -> Scope | None:
        """The innermost graph, from here outwards, that defines a name."""
        if name in self.producers or name in self.initializers:  # Most are, and are asked often.
            return self
        scope: Scope | None = self
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        return scope

    def writer(self, name: str) -> NodeProto:
        """The node of this graph that writes a name; an empty one where none does."""
        position = self.producers.get(name)
        return NodeProto() if position is None else self.nodes[position]

    def kind(self, node: NodeProto) -> str:
        """The type of an operator as `type_of` gives it; "" for the call of a local function."""
        kind = type_of(node)
        return "" if kind in self.functions else kind

    def is_read_once(self, name: str) -> bool:
        """Whether one input of one node of this graph is all that reads a name."""
        others = name in self.captures or name in self.outputs
        return len(self.readers.get(name, ())) == 1 and not others

    def origin(self, name: str) -> tuple[Scope | None, str]:
        """The tensor that Identity operators hand on under a name, and the graph that it is in."""
        owner = self.owner(name)
        while owner is not None and name in owner.producers:
            node = owner.nodes[owner.producers[name]]
            if type_of(node) != "Identity":
                break
            name = node.input[0]
            owner = owner.owner(name)
        return owner, name

    def uses(self) -> Counter[str]:
        """How often each name defined here is used.

        Nodes and nested bodies use it, the graph uses it as an output, and a quantization note uses
        it as a scale or a zero point.
        """
        counts = Counter({name: len(reads) for name, reads in self.readers.items()})
        counts.update({name: len(reads) for name, reads in self.captures.items()})
        counts.update(self.outputs)
        if isinstance(self.graph, GraphProto):
            for note in self.graph.quantization_annotation:
                counts.update(entry.value for entry in note.quant_parameter_tensor_names)
        return counts


def label(node: NodeProto) -> str:
    """The user's name for a node: its name or, without one, its type and first output."""
    if node.name:
        return node.name
    return f"{node.op_type} → {next((name for name in node.output[:] if name), '?')}"


def type_of(node: NodeProto | FunctionProto) -> str:
    """The type of an operator, with its domain if that is not the default one.

    Example: ``com.microsoft::FusedConv``. For a local function it is the type of its calls.
    """
    name = node.op_type if isinstance(node, NodeProto) else node.name
    domain = node.domain
    return f"{domain}::{name}" if domain and domain != "ai.onnx" else name


def domain_of(holder: NodeProto | FunctionProto | OperatorSetIdProto) -> str:
    """The domain of an operator, a function or an operator set; "" is the default one."""
    return "" if holder.domain == "ai.onnx" else holder.domain


QUANTIZERS = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
"""Operators that round floats to integers by given scales, by `type_of`.

onnxruntime's own are ONNX's of opset 13, and know 16 and 4 bits in every opset.
"""
DEQUANTIZERS = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
"""Operators that make floats of such integers, by `type_of`."""
# The inputs from which an operator takes only the shape or the element type.
_SHAPE_OR_TYPE = frozenset(
    [
        ("CastLike", 1),
        ("EyeLike", 0),
        ("RandomNormalLike", 0),
        ("RandomUniformLike", 0),
        ("Shape", 0),
        ("Size", 0),
    ]
)
_ASKING = frozenset(op_type for op_type, _ in _SHAPE_OR_TYPE)


def reads(node: NodeProto) -> Counter[str]:
    """How many of a node's inputs read the values of each tensor, not only its shape or type."""
    if node.op_type not in _ASKING or node.domain not in ("", "ai.onnx"):
        return Counter(node.input)
    return Counter(
        name
        for number, name in enumerate(node.input)
        if (node.op_type, number) not in _SHAPE_OR_TYPE
    )


def typed(node: NodeProto) -> tuple[int, ...]:
    """The numbers of the inputs from which a node takes only the element type."""
    return (1,) if node.op_type == "CastLike" and node.domain in ("", "ai.onnx") else ()


def copy_of(node: NodeProto) -> NodeProto:
    """A node of its own with the same content."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def bodies(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs a node carries in its attributes, with the attribute's name."""
    for attribute in node.attribute[:]:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for number, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{number}]", graph


def defined(graph: GraphProto) -> set[str]:
    """The names that belong to a graph rather than to one around it."""
    names = {name for node in graph.node for name in node.output[:] if name}
    names.update(value.name for value in (*graph.input, *graph.initializer))
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    return names


def read_scopes(model: ModelProto) -> list[Scope]:
    """All graphs of a model, outer before inner, local functions last, each under its own path."""
    opset = opset_of(model.opset_import)
    trained = _names_in_training(model)
    scopes = list(_read_graph(model.graph, "", None, opset, model.ir_version, trained))
    for function in model.functions:
        name = "::".join(part for part in (function.domain, function.name) if part)
        overload = getattr(function, "overload", "")
        path = f"function {name}" + (f"#{overload}" if overload else "")
        scope = Scope(path, function, None, opset_of(function.opset_import), list(function.node))
        scope.inputs.update(function.input)
        scope.outputs.extend(function.output)
        scopes.extend(_index(scope, model.ir_version, trained))
    functions = frozenset(map(type_of, model.functions))
    seen: Counter[str] = Counter()
    for scope in scopes:
        scope.functions = functions
        seen[scope.path] += 1
        if seen[scope.path] > 1:
            scope.path = f"{scope.path} ({seen[scope.path]})"
    return scopes


def opset_of(imports: Iterable[OperatorSetIdProto]) -> int:
    """The version of the default operator set; 0 where it is not imported."""
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 0)


def _read_graph(
    graph: GraphProto,
    path: str,
    parent: Scope | None,
    opset: int,
    ir_version: int,
    trained: set[str],
) -> Iterator[Scope]:
    scope = Scope(path, graph, parent, opset, list(graph.node))
    scope.initializers.update((tensor.name, tensor) for tensor in graph.initializer)
    scope.sparse.update((tensor.values.name, tensor) for tensor in graph.sparse_initializer)
    scope.inputs.update(value.name for value in graph.input)
    scope.outputs.extend(value.name for value in graph.output)
    # Before IR version 4 every initializer had to be listed as an input; only since then does
    # the listing say that a caller may override it (ONNX IR specification, "Graphs").
    if ir_version >= 4:
        stored = scope.initializers.keys() | scope.sparse.keys()
        scope.protected.update(stored & scope.inputs)
    scope.protected.update(scope.initializers.keys() & trained)
    yield from _index(scope, ir_version, trained)


def _index(scope: Scope, ir_version: int, trained: set[str]) -> Iterator[Scope]:
    yield scope
    for position, node in enumerate(scope.nodes):
        for name in node.output[:]:
            if name:
                scope.producers[name] = position
    for name in scope.outputs:
        _note_capture(scope, name, "an output of its body")
    for position, node in enumerate(scope.nodes):
        for name in node.input[:]:
            if not name:
                continue
            if scope.defines(name):
                scope.readers.setdefault(name, []).append(position)
            else:
                _note_capture(scope, name, label(node))
        for attribute, graph in bodies(node):
            path = f"{scope.path}/" if scope.path else ""
            yield from _read_graph(
                graph,
                f"{path}{label(node)}.{attribute}",
                scope,
                scope.opset,
                ir_version,
                trained,
            )


def _note_capture(scope: Scope, name: str, reader: str) -> None:
    """Note that a nested body reads a name, in the graph around that defines the name."""
    owner = scope.owner(name)
    if owner is not None and owner is not scope:
        place = f"{reader} in {scope.path}"
        owner.captures.setdefault(name, []).append(place)


def _names_in_training(model: ModelProto) -> set[str]:
    """Names of the main graph that the model's training information reads or rebinds."""
    names: set[str] = set()
    for info in model.training_info:
        for binding in (*info.initialization_binding, *info.update_binding):
            names.update((binding.key, binding.value))
        for graph in (info.initialization, info.algorithm):
            for node in graph.node:
                names.update(node.input)
    return names


class Names:
    """All names in a model, of nodes and tensors alike; gives out fresh ones."""

    def __init__(self, model: ModelProto, scopes: Iterable[Scope]) -> None:
        self._taken = set(_names_of(model, scopes))
        self._last: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        """The wanted name, or the first of ``wanted_1``, ``wanted_2``, … that is not taken."""
        name, number = wanted, self._last.get(wanted, 0)
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        self._last[wanted] = number
        return name


def _names_of(model: ModelProto, scopes: Iterable[Scope]) -> Iterator[str]:
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            for node in graph.node:
                yield from (*node.input, *node.output)
            yield from (tensor.name for tensor in graph.initializer)
    for scope in scopes:
        yield from scope.initializers
        yield from scope.sparse
        yield from scope.inputs
        yield from scope.outputs
        for node in scope.nodes:
            yield node.name
            yield from node.input
            yield from node.output
        yield from (value.name for value in scope.graph.value_info)
