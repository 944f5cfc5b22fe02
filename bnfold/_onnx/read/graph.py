"""Read one graph of a model into the neutral view, and read it again where it has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import NodeProto

from bnfold._core.operators.record import UNKNOWN, Operator, Unfixed
from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Barrier, Node, Value, View
from bnfold._onnx.read import (
    affine,
    attributes,
    crossed,
    linear,
    microsoft,
    pointwise,
    rearranged,
    rounded,
)
from bnfold._onnx.read.context import Context, OnnxRow
from bnfold._onnx.read.fused import fused
from bnfold._onnx.read.order import sorted_positions
from bnfold._onnx.read.scopes import Scope, label, reads, type_of, typed
from bnfold._system.records import record

ROWS: dict[str, OnnxRow] = {
    **affine.ROWS,
    **crossed.ROWS,
    **linear.ROWS,
    **microsoft.ROWS,
    **pointwise.ROWS,
    **rearranged.ROWS,
    **rounded.ROWS,
}
"""How each operator of ONNX is read, by its type as `type_of` gives it."""


@record(frozen=True)
class Graph:
    """One graph and its view.

    ``positions``, ``records`` and ``readings`` have an entry for each node of the view: its
    position in ``scope.nodes``, the record of the operator, and what planning needs of it.
    ``alone`` has by position the record of each operator by itself. There, the parts of an operator
    that runtimes fuse are no barriers.
    """

    scope: Scope
    context: Context
    view: View
    positions: tuple[int, ...]
    records: tuple[Operator, ...]
    readings: tuple[Reading, ...]
    alone: Mapping[int, Operator]

    def name(self, value: int) -> str:
        """The name of a value of the view."""
        return self.view.values[value].name

    def rank(self, maps: tuple[int, ...]) -> int:
        """The rank of the tensor on which a chain of maps acts; at least one map knows it."""
        for index in maps:
            role = self.view.nodes[index].role
            assert isinstance(role, Affine)
            shape = self.context.shape(self.name(self.view.nodes[index].inputs[role.data]))
            if shape is not None:
                return len(shape)
        raise AssertionError("a map that varies along an axis was read without a rank")


def translate(context: Context, node: NodeProto) -> Operator:
    """The record of a node: the only reading of single operators.

    A row is found by the operator's type, with its domain if that is not the default domain.
    Nothing is known of operators without a row, and of calls of local functions.
    """
    kind = type_of(node)
    row = ROWS.get(kind)
    called = kind in context.scope.functions
    if row is None or called or not node.input or not node.output:
        return UNKNOWN
    if attributes.depends_on_call(node):
        if kind not in ("BatchNormalization", "ai.onnx.ml::Scaler"):
            return UNKNOWN
        message = f"an attribute of {label(node)} is set by the call"
        return Unfixed(reason=Reason("function-parameter", label(node), message))
    return row.translate(context, node)


def read_graph(context: Context) -> Graph:
    """Read a graph. Raises `UsageError` on cycles."""
    return _read(context, {}, set())


def read_on(graph: Graph, positions: Collection[int], names: Collection[str]) -> Graph:
    """The graph after the operators at some positions have changed.

    ``names`` are the tensors that the old and the new operators there read and write. The record of
    an operator depends on its node, its constants, the shapes of its tensors, and their readers. So
    an operator is read again if it has changed, if it reads or writes one of ``names``, or if a
    shape becomes known that was not.
    """
    earlier = {p: one for p, one in graph.alone.items() if p not in positions}
    return _read(graph.context, earlier, set(names))


def _read(context: Context, earlier: Mapping[int, Operator], changed: set[str]) -> Graph:
    """Read a graph, except operators read ``earlier`` none of whose tensors has ``changed``."""
    scope = context.scope
    order = [position for position in _order(scope) if scope.nodes[position].op_type]
    place = {position: index for index, position in enumerate(order)}
    values: dict[str, int] = {}
    nodes: list[Node] = []
    records: list[Operator] = []
    readings: list[Reading] = []
    alone: dict[int, Operator] = {}
    parts = fused(context)
    for position in order:
        node = scope.nodes[position]
        known = earlier.get(position)
        if known is None or not changed.isdisjoint((*node.input, *node.output)):
            known = translate(context, node)
            shape = known.output
            if shape is not None and node.output and node.output[0] not in context.derived:
                context.derived[node.output[0]] = shape
                changed.add(node.output[0])
            if known.last is not None and context.last.get(node.output[0]) != known.last:
                context.last[node.output[0]] = known.last
                changed.add(node.output[0])
        alone[position] = record = known
        reading = record.reading()
        if position in parts and isinstance(reading.role, Affine | Barrier):
            record = Unfixed(reason=parts[position], like=reading.shape)
            reading = record.reading()
        records.append(record)
        readings.append(reading)
        inputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.input)
        outputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.output)
        name = label(node)
        nodes.append(Node(name, node.op_type, reading.role, inputs, outputs, typed(node)))
    outputs_of_graph = set(scope.outputs)
    counts = {position: reads(scope.nodes[position]) for position in order}
    view = View(
        tuple(nodes),
        tuple(_value(context, name, place, counts, outputs_of_graph) for name in values),
    )
    return Graph(scope, context, view, tuple(order), tuple(records), tuple(readings), alone)


def _value(
    context: Context,
    name: str,
    place: Mapping[int, int],
    counts: Mapping[int, Mapping[str, int]],
    outputs: set[str],
) -> Value:
    """One tensor of a view; ``counts`` has by position how many inputs read each name's values."""
    scope = context.scope
    producer = scope.producers.get(name)
    readers: list[int] = []
    shape_readers: tuple[int, ...] = ()
    for position in dict.fromkeys(scope.readers.get(name, ())):
        count = counts[position].get(name, 0)
        readers += [place[position]] * count
        if not count and not typed(scope.nodes[position]):
            shape_readers += (place[position],)
    pinned, is_stored = None, name in scope.initializers
    if name in outputs:
        pinned = Reason("graph-output", name, f"{name} is an output of the graph")
    elif is_stored:
        pinned = Reason("no-linear-operator", name, f"{name} is a constant: no map goes into it")
    elif name in scope.captures:
        reader = scope.captures[name][0]
        pinned = Reason("shared-output", reader, f"{name} is also read by {reader}")
    writer = place[producer] if producer is not None else None
    shape = context.shape(name) if not is_stored else None
    return Value(name, writer, tuple(readers), pinned, shape, shape_readers)


def _order(scope: Scope) -> list[int]:
    """The positions of the nodes, each producer before its readers; in file order if that is so."""
    feeds: list[set[int]] = []
    sorted_already = True
    for position, node in enumerate(scope.nodes):
        sources = {scope.producers[n] for n in node.input if n in scope.producers}
        sorted_already = sorted_already and all(source < position for source in sources)
        feeds.append(sources)
    if sorted_already:
        return list(range(len(feeds)))
    return sorted_positions(scope.nodes, feeds)
