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
from bnfold._plan._planner import Move, Moves
from bnfold._plan._view import Absorber
from bnfold._result import Fold, Kept, Plan
from bnfold._settle import settle

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
    return Planned(network, settled, _plan(network, settled))


def _parameter_names(planned: Planned, folded_only: bool) -> Iterator[str]:
    """Inputs of operators that hold weights, in the main graph."""
    graph, moves = planned.settled[0]
    folded = {index for move in moves.moves for index in (move.into, *move.maps)}
    for index, node in enumerate(graph.view.nodes):
        weighted = isinstance(node.role, Absorber) or node.op == "BatchNormalization"
        if index in folded or (weighted and not folded_only):
            yield from filter(None, graph.scope.nodes[graph.positions[index]].input)


def _plan(network: Network, settled: Settled) -> Plan:
    before = Counter(node.op_type for scope in network.scopes for node in scope.nodes)
    after = before.copy()
    folds, kept = [], []
    for graph, moves in settled:
        for move in moves.moves:
            folds.append(_fold(graph, move))
            after.subtract(graph.view.nodes[i].op for i in move.maps)
            after.update(standing.op for standing in move.stands)
        for index, reason in moves.kept.items():
            node = graph.view.nodes[index]
            kept.append(
                Kept(
                    node.label,
                    node.op,
                    reason.code,
                    reason.at,
                    reason.message,
                    reason.advice,
                    graph.scope.path,
                )
            )
    return Plan(tuple(folds), tuple(kept), dict(before), dict(+after))


def _fold(graph: Graph, move: Move) -> Fold:
    nodes = graph.view.nodes
    crossed = dict.fromkeys(nodes[i].op for i in move.carriers)
    laws = [f"carry through {op}" for op in crossed]
    if move.law == "absorb":
        laws.append(f"absorb behind {nodes[move.into].op}")
        if move.stands:
            laws.append(f"leave {' and '.join(s.op for s in move.stands)}")
    if move.law == "compose" and not move.stands:
        laws.insert(0, "drop the identity")
    elif len(move.maps) > 1 or move.law == "compose":
        laws.insert(0, "compose")
    return Fold(
        tuple(nodes[i].label for i in move.maps),
        tuple(nodes[i].op for i in move.maps),
        nodes[move.into].label,
        tuple(laws),
        graph.scope.path,
    )
