"""Plan and fold a ModelProto."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from bnfold._onnx._constants import Constant
from bnfold._onnx._network import Graph, Network, read
from bnfold._onnx._rewrite import Rewritten, apply
from bnfold._plan._planner import Moves
from bnfold._plan._view import Absorber
from bnfold._result import Plan
from bnfold._settle import settle
from bnfold._summary import summarize

Array = NDArray[Any]
Settled = list[tuple[Graph, Moves]]


@dataclass(frozen=True)
class Weights:
    """Weights of a main graph by name; ``touched`` are those of operators that a fold concerns."""

    values: Mapping[str, Array]
    touched: frozenset[str]


@dataclass(frozen=True)
class Planned:
    """A model that has been read and planned, and can be folded in place."""

    network: Network
    settled: Settled
    plan: Plan

    def apply(self) -> Rewritten:
        """Fold the model that was planned, in place."""
        return apply(self.network, self.settled)

    def weights(self) -> Weights:
        """The main graph's weights: parameters of its linear operators and normalizations, and the
        constants of maps that fold. Other constants may be sizes, not weights.
        """
        graph, _ = self.settled[0]
        values = {}
        for name in _parameter_names(self, folded_only=False):
            constant = graph.context.constants.find(graph.scope, name)
            if isinstance(constant, Constant) and constant.is_float and not constant.protected:
                values[name] = constant.load()
        touched = frozenset(_parameter_names(self, folded_only=True))
        return Weights(values, touched & values.keys())


def prepare(model: ModelProto, base_dir: Path | None) -> Planned:
    """Read and plan a model. Raises `UsageError` where it cannot be read."""
    network = read(model, base_dir)
    settled = [(graph, settle(graph.view, graph.readings)) for graph in network.graphs]
    before = Counter(node.op_type for scope in network.scopes for node in scope.nodes)
    graphs = ((graph.scope.path, graph.view, moves) for graph, moves in settled)
    return Planned(network, settled, summarize(graphs, before))


def _parameter_names(planned: Planned, folded_only: bool) -> Iterator[str]:
    """Inputs of operators that hold weights, in the main graph."""
    graph, moves = planned.settled[0]
    folded = {index for move in moves.moves for index in (move.into, *move.maps)}
    for index, node in enumerate(graph.view.nodes):
        weighted = isinstance(node.role, Absorber) or node.op == "BatchNormalization"
        if index in folded or (weighted and not folded_only):
            yield from filter(None, graph.scope.nodes[graph.positions[index]].input)
