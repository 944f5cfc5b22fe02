"""A model read into neutral views, one for each of its graphs, its linear operators merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from onnx import ModelProto

from bnfold._core.operators.record import Operator, Unfixed
from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Node, Value, View
from bnfold._errors import UsageError
from bnfold._onnx.merge.merging import Merges, merge
from bnfold._onnx.names import Names
from bnfold._onnx.read.constants import Constants
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.fused import fused
from bnfold._onnx.read.scopes import Scope, label, read_scopes, reads_value
from bnfold._onnx.read.shapes import infer
from bnfold._onnx.read.translate import translate


@dataclass(frozen=True)
class Graph:
    """One graph: its view, and for each node of the view where it came from.

    ``positions`` maps a node of the view to its place in ``scope.nodes``; ``operators`` holds what
    it is, and ``readings`` what planning asks of it.
    """

    scope: Scope
    context: Context
    view: View
    positions: tuple[int, ...]
    operators: tuple[Operator, ...]
    readings: tuple[Reading, ...]

    def name(self, value: int) -> str:
        """The name of a value of the view."""
        return self.view.values[value].name

    def rank(self, maps: tuple[int, ...]) -> int:
        """The rank of the tensor that a chain of maps acts on, known at one of them at least."""
        for index in maps:
            role = self.view.nodes[index].role
            assert isinstance(role, Affine)
            shape = self.context.shape(self.name(self.view.nodes[index].inputs[role.data]))
            if shape is not None:
                return len(shape)
        raise AssertionError("a map that varies along an axis was read without a rank")


@dataclass(frozen=True)
class Network:
    """A whole model as read, and the folder its external data is relative to.

    ``merges`` has an entry for each graph. Scopes and graphs are those after merging; the model
    itself is as it was.
    """

    model: ModelProto
    base_dir: Path | None
    scopes: tuple[Scope, ...]
    graphs: tuple[Graph, ...]
    names: Names
    merges: tuple[Merges, ...]


def read(model: ModelProto, base_dir: Path | None) -> Network:
    """Read every graph of a model; no large weight is loaded, but those of operators that merge.

    Raises `UsageError` on cycles.
    """
    scopes = read_scopes(model)
    shapes = infer(model, scopes)
    constants = Constants(base_dir, shapes)
    names = Names(model, scopes)
    read_graphs = [_read_merged(Context(scope, constants, shapes), names) for scope in scopes]
    graphs, merges = (tuple(part) for part in zip(*read_graphs, strict=True))
    return Network(model, base_dir, tuple(scopes), graphs, names, merges)


def _read_merged(context: Context, names: Names) -> tuple[Graph, Merges]:
    """One graph, as it is once its linear operators are merged."""
    graph = _read_graph(context)
    operators = dict(zip(graph.positions, graph.operators, strict=True))
    merges = merge(context, operators, graph.positions, names)
    return (_read_graph(context) if merges.patches else graph), merges


def _read_graph(context: Context) -> Graph:
    scope = context.scope
    order = [position for position in _order(scope) if scope.nodes[position].op_type]
    place = {position: index for index, position in enumerate(order)}
    values: dict[str, int] = {}
    nodes: list[Node] = []
    operators: list[Operator] = []
    readings: list[Reading] = []
    parts = fused(context)
    for position in order:
        node = scope.nodes[position]
        operator = translate(context, node)
        reading = operator.reading()
        if position in parts and isinstance(reading.role, Affine):
            operator = Unfixed(reason=parts[position], like=reading.shape)
            reading = operator.reading()
        if reading.shape is not None and node.output:
            context.derived.setdefault(node.output[0], reading.shape)
        operators.append(operator)
        readings.append(reading)
        inputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.input)
        outputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.output)
        nodes.append(Node(label(node), node.op_type, reading.role, inputs, outputs))
    outputs_of_graph = set(scope.outputs)
    view = View(
        tuple(nodes),
        tuple(_value(scope, name, place, outputs_of_graph) for name in values),
    )
    return Graph(scope, context, view, tuple(order), tuple(operators), tuple(readings))


def _value(scope: Scope, name: str, place: Mapping[int, int], outputs: set[str]) -> Value:
    producer = scope.producers.get(name)
    readers = tuple(
        place[position]
        for position in dict.fromkeys(scope.readers.get(name, ()))
        for _ in range(reads_value(scope.nodes[position], name))
    )
    pinned = None
    if name in outputs:
        pinned = Reason("graph-output", name, f"{name} is an output of the graph")
    elif name in scope.captures:
        reader = scope.captures[name][0]
        pinned = Reason("shared-output", reader, f"{name} is also read by {reader}")
    return Value(name, place[producer] if producer is not None else None, readers, pinned)


def _order(scope: Scope) -> list[int]:
    """Positions of the nodes, every producer before its readers; file order where that holds."""
    feeds: list[set[int]] = []
    sorted_already = True
    for position, node in enumerate(scope.nodes):
        sources = {scope.producers[n] for n in node.input if n in scope.producers}
        sorted_already = sorted_already and all(source < position for source in sources)
        feeds.append(sources)
    if sorted_already:
        return list(range(len(feeds)))
    try:
        return list(TopologicalSorter(dict(enumerate(feeds))).static_order())
    except CycleError as error:
        names = ", ".join(label(scope.nodes[p]) for p in dict.fromkeys(error.args[1]))
        raise UsageError(f"the graph has a cycle through {names}") from error
