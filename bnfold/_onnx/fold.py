"""Plan and fold a ModelProto."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from bnfold._core.result import Fold, Plan
from bnfold._core.view import Absorber
from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.network import Network, read
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.quantized import MADE_BYTES, Dequantized, dequantized
from bnfold._onnx.read.scopes import label
from bnfold._onnx.write.applied import Rewritten
from bnfold._onnx.write.rewriting import apply
from bnfold._plan.fit import settle
from bnfold._plan.planner import Moves
from bnfold._plan.summary import kept_apart, summarize

Array = NDArray[Any]
Settled = list[tuple[Graph, Moves]]
_WEIGHTED = ("BatchNormalization", "Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class FoldedWeights:
    """The weights of a main graph by name; ``touched`` are those of operators in a fold.

    None stands for a weight that a DequantizeLinear makes: an engine computes it.
    """

    values: Mapping[str, Array | None]
    touched: frozenset[str]


@dataclass(frozen=True)
class PlannedModel:
    """A model that has been read and planned, and can be folded in place."""

    network: Network
    settled: Settled
    plan: Plan

    def apply(self) -> Rewritten:
        """Fold the model that was planned, in place."""
        return apply(self.network, self.settled)

    def weights(self) -> FoldedWeights:
        """The weights of the main graph.

        These are the parameters of its linear operators and normalizations, and the constants of
        maps that fold. Other constants are left out: they may be sizes.
        """
        graph, _ = self.settled[0]
        made = {name for patch in self.network.merges[0].patches for name in patch.constants}
        values: dict[str, Array | None] = {}
        left = MADE_BYTES
        for name in _parameter_names(self, folded_only=False):
            if name in made:
                continue
            constant = graph.context.constants.find(graph.scope, name)
            if isinstance(constant, Constant) and constant.is_float and not constant.protected:
                values[name] = constant.load()
                continue
            made_of = dequantized(graph.context.constants, graph.scope, name)
            if isinstance(made_of, Dequantized):
                left -= math.prod(made_of.weight.shape) * made_of.weight.dtype.itemsize
                if left >= 0:
                    values[name] = None
        touched = frozenset(_parameter_names(self, folded_only=True))
        return FoldedWeights(values, touched & values.keys())


def prepare(model: ModelProto, base_dir: Path | None) -> PlannedModel:
    """Read and plan a model. Raises `UsageError` where it cannot be read."""
    network = read(model, base_dir)
    settled = [(graph, settle(graph.view, graph.readings)) for graph in network.graphs]
    before = Counter(node.op_type for scope in network.scopes for node in scope.graph.node)
    merged = Counter(n.op_type for scope in network.scopes for n in scope.nodes if n.op_type)
    graphs = ((graph.scope.path, graph.view, moves) for graph, moves in settled)
    plan = summarize(graphs, merged)
    folds = [_fold(patch) for merges in network.merges for patch in merges.patches]
    kept = [
        kept_apart(stays, scope.path)
        for scope, merges in zip(network.scopes, network.merges, strict=True)
        for stays in merges.stays
    ]
    plan = replace(plan, folds=(*folds, *plan.folds), kept=(*plan.kept, *kept), before=dict(before))
    return PlannedModel(network, settled, plan)


def _fold(patch: Patch) -> Fold:
    """The plan's entry for a merge."""
    node = patch.nodes[patch.into]
    assert node is not None
    names, ops = ([one[k] for one in patch.gone] for k in (0, 1))
    return Fold(tuple(names), tuple(ops), label(node), (patch.law,), patch.path)


def _parameter_names(planned: PlannedModel, folded_only: bool) -> Iterator[str]:
    """The names of inputs that hold weights, in the main graph.

    With ``folded_only`` they are the weights in which an error of a fold would show. The constant
    of a single Mul or Add that goes into an operator with weights is left out: it may be far too
    small to show.
    """
    graph, moves = planned.settled[0]
    nodes = graph.view.nodes
    concerned, telling = set(), set()
    for move in moves.moves:
        concerned |= {move.into, *move.maps}
        norms = {index for index in move.maps if nodes[index].op == "BatchNormalization"}
        telling |= {move.into} | norms if move.law == "absorb" else set(move.maps)
    merged = {p for patch in planned.network.merges[0].patches for p in patch.nodes}
    for position in sorted(merged):
        old = graph.scope.graph.node[position]
        if old.op_type in _WEIGHTED or not folded_only:
            yield from filter(None, old.input)
    for index, node in enumerate(nodes):
        # The scale of a DequantizeLinear of an activation is that of a quantizer, most often.
        linear = isinstance(node.role, Absorber) and node.op != "DequantizeLinear"
        weighted = linear or node.op == "BatchNormalization"
        if index in telling if folded_only else index in concerned or weighted:
            yield from filter(None, graph.scope.nodes[graph.positions[index]].input)
