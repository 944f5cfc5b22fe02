"""A model read into neutral views, one for each of its graphs, and planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from bnfold import _weights
from bnfold._affine import Vector
from bnfold._errors import UsageError
from bnfold._onnx._constants import Constants
from bnfold._onnx._context import Context
from bnfold._onnx._roles import Reading, read_node
from bnfold._onnx._scopes import Scope, label, read_scopes
from bnfold._onnx._shapes import infer
from bnfold._plan._planner import Move, Moves, plan
from bnfold._plan._reasons import Reason
from bnfold._plan._view import Node, Value, View


@dataclass(frozen=True)
class Graph:
    """One graph: its view, and for each node of the view where it came from.

    ``positions`` maps a node of the view to its place in ``scope.nodes``; ``readings`` holds what
    was read of it.
    """

    scope: Scope
    context: Context
    view: View
    positions: tuple[int, ...]
    readings: tuple[Reading, ...]

    def rank(self, index: int) -> int | None:
        """The rank of a node's main output, None where not known."""
        name = self.view.values[self.view.nodes[index].outputs[0]].name
        shape = self.context.shape(name)
        return len(shape) if shape is not None else None


@dataclass(frozen=True)
class Network:
    """A whole model as read, and the folder its external data is relative to."""

    model: ModelProto
    base_dir: Path | None
    scopes: tuple[Scope, ...]
    graphs: tuple[Graph, ...]


def read(model: ModelProto, base_dir: Path | None) -> Network:
    """Read every graph of a model; no large weight is loaded. Raises `UsageError` on cycles."""
    scopes = read_scopes(model)
    shapes = infer(model, scopes)
    constants = Constants(base_dir, shapes)
    graphs = tuple(_read_graph(Context(scope, constants, shapes)) for scope in scopes)
    return Network(model, base_dir, tuple(scopes), graphs)


def settle(network: Network) -> list[tuple[Graph, Moves]]:
    """Plan every graph, and plan again without the maps whose folded weights would not fit.

    Of a group that overflows or underflows the last map is refused first, so that the others may
    still fold.
    """
    return [(graph, _settle(graph)) for graph in network.graphs]


def _settle(graph: Graph) -> Moves:
    refused: dict[int, Reason] = {}
    remembered: dict[tuple[int, int], Vector] = {}
    while True:
        moves = plan(graph.view, refused)
        found = {}
        for move in moves.moves:
            reason = _refusal(graph, move, remembered)
            if reason is not None:
                found[move.maps[-1]] = reason
        if not found:
            return moves
        refused.update(found)


def _refusal(graph: Graph, move: Move, remembered: dict[tuple[int, int], Vector]) -> Reason | None:
    site = graph.readings[move.into].site if move.law == "absorb" else None
    if site is not None:

        def peaks(axis: int) -> Vector:
            key = (move.into, axis)
            if key not in remembered:
                remembered[key] = site.peaks(axis)
            return remembered[key]

        reason = site.refuses(move.map, peaks)
        if reason is not None:
            return reason
    dtype = site.dtype if site is not None else element_dtype(graph, move.maps)
    where = graph.view.nodes[move.into].label
    for vector, stands in ((move.map.scale, move.adds_mul), (move.map.shift, move.adds_add)):
        if stands and _weights.overflows(np.abs(vector), dtype):
            return Reason("overflow", where, f"the composed constants would overflow {dtype}")
    if move.adds_mul and bool(_weights.underflows(np.ones(1), move.map.scale, dtype).any()):
        return Reason("underflow", where, f"the composed scale would fall below {dtype}'s range")
    return None


def element_dtype(graph: Graph, maps: tuple[int, ...]) -> np.dtype[np.generic]:
    """The element type of the tensor a chain of standing maps acts on."""
    element = next((graph.readings[i].element for i in maps if graph.readings[i].element), 1)
    return np.dtype(helper.tensor_dtype_to_np_dtype(element))


def _read_graph(context: Context) -> Graph:
    scope = context.scope
    order = _order(scope)
    place = {position: index for index, position in enumerate(order)}
    values: dict[str, int] = {}
    nodes: list[Node] = []
    readings: list[Reading] = []
    for position in order:
        node = scope.nodes[position]
        reading = read_node(context, node)
        if reading.shape is not None and node.output:
            context.derived.setdefault(node.output[0], reading.shape)
        readings.append(reading)
        inputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.input)
        outputs = tuple(values.setdefault(n, len(values)) if n else -1 for n in node.output)
        nodes.append(Node(label(node), node.op_type, reading.role, inputs, outputs))
    outputs_of_graph = set(scope.outputs)
    view = View(
        tuple(nodes),
        tuple(_value(scope, name, place, outputs_of_graph) for name in values),
    )
    return Graph(scope, context, view, tuple(order), tuple(readings))


def _value(scope: Scope, name: str, place: Mapping[int, int], outputs: set[str]) -> Value:
    producer = scope.producers.get(name)
    readers = tuple(place[position] for position in scope.readers.get(name, ()))
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
