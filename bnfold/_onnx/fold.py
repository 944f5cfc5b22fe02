"""Plan and fold a ModelProto."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto

from bnfold._core.reasons import CODES
from bnfold._core.result import EQUAL, Fold, Kept, Plan
from bnfold._core.view import Absorber
from bnfold._onnx.merge.equal import without_equals
from bnfold._onnx.merge.merging import Network, read
from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.inlining import Call, Inlined, Key, called_functions, inline, key_of
from bnfold._onnx.read.quantized import MADE_BYTES, Dequantized, dequantized
from bnfold._onnx.read.scopes import Scope, bodies, label
from bnfold._onnx.tensors import all_tensors, data_marks
from bnfold._onnx.write.applied import Applied, Rewritten
from bnfold._onnx.write.rewriting import apply
from bnfold._plan.depthwise import without_norms
from bnfold._plan.fit import settle
from bnfold._plan.planner import Moves
from bnfold._plan.summary import kept_apart, summarize
from bnfold._system.records import record

Array = NDArray[Any]
Settled = list[tuple[Graph, Moves]]
_WEIGHTED = ("BatchNormalization", "Conv", "Gemm", "MatMul")


@record(frozen=True)
class FoldedWeights:
    """The weights of a main graph by name; ``touched`` are those of operators in a fold.

    None stands for a weight that a DequantizeLinear makes: an engine computes it.
    """

    values: Mapping[str, Array | None]
    touched: frozenset[str]


@record(frozen=True)
class PlannedModel:
    """A model that has been read and planned, and can be folded in place.

    ``inlined`` is the model with the calls inlined in which something folds, and ``calls`` are
    these; None where nothing is inlined. ``marks`` has what its data files were before.
    """

    network: Network
    settled: Settled
    plan: Plan
    inlined: Inlined | None = None
    calls: frozenset[Call] = frozenset()
    given: ModelProto | None = None
    marks: Mapping[str, str] = field(default_factory=dict)

    def apply(self, later: bool = False) -> Rewritten:
        """Fold the model that was planned, in place. Large weights of a lean model may be made
        ``later``, when it is written: see `Rewritten.made`.
        """
        rewritten = apply(self.network, self.settled, later)
        rewritten.marks = self.marks
        if self.inlined is None or self.given is None:
            return rewritten
        held = list(all_tensors(self.inlined.model))
        self.given.CopyFrom(self.inlined.model)
        copies = {id(old): new for old, new in zip(held, all_tensors(self.given), strict=True)}
        rewritten.relocated = [(copies.get(id(t), t), at) for t, at in rewritten.relocated]
        into = self.inlined.named[min(self.calls)]
        step = Applied("", "inline", 0, (), (), into, into, calls=self.calls)
        rewritten.applied.insert(0, step)
        return rewritten

    def applied_to(self, folded: ModelProto) -> Plan:
        """The plan, with the operators that the folded model has: where weights were computed from
        constants, the operators that did it went, too. Calls that are inlined are counted as ever.
        """
        if self.inlined is not None:
            return self.plan
        graphs: tuple[GraphProto | FunctionProto, ...] = (folded.graph, *folded.functions)
        return replace(self.plan, after=dict(sum(map(_operators, graphs), Counter[str]())))

    def weights(self) -> FoldedWeights:
        """The weights of the main graph.

        These are the parameters of its linear operators and normalizations, and the constants of
        maps that fold. Other constants are left out: they may be sizes.
        """
        graph, _ = self.settled[0]
        made = {name for patch in self.network.merges[0].patches for name in patch.constants}
        made |= self.inlined.made if self.inlined is not None else set()
        values: dict[str, Array | None] = {}
        left = MADE_BYTES
        for name in _parameter_names(self, folded_only=False):
            if name in made:
                continue
            constant = graph.context.constants.find(graph.scope, name)
            if isinstance(constant, Constant) and constant.is_float and not constant.protected:
                values[name] = graph.context.constants.mapped(constant)
                continue
            made_of = dequantized(graph.context.constants, graph.scope, name)
            if isinstance(made_of, Dequantized):
                left -= math.prod(made_of.weight.shape) * made_of.weight.dtype.itemsize
                if left >= 0:
                    values[name] = None
        touched = frozenset(_parameter_names(self, folded_only=True))
        return FoldedWeights(values, touched & values.keys())


def prepare(
    model: ModelProto, base_dir: Path | None, equal_dims: bool = False, depthwise: bool = False
) -> PlannedModel:
    """Read and plan a model. Raises `UsageError` where it cannot be read.

    ``equal_dims`` is as in `shapes.infer`. With ``depthwise`` norms that stay are written as other
    operators. A call of a local function is inlined if something folds
    in its place that does not fold in the function for all of its calls.
    """
    marks = data_marks(model, base_dir)
    return replace(_with_calls(model, base_dir, equal_dims, depthwise), marks=marks)


def _with_calls(
    model: ModelProto, base_dir: Path | None, equal_dims: bool, depthwise: bool
) -> PlannedModel:
    """See `prepare`."""
    whole = _prepare(model, base_dir, equal_dims, depthwise)
    if not called_functions(model) & {key_of(function) for function in model.functions}:
        return whole
    everything = inline(model)
    tried = _prepare(everything.model, base_dir, equal_dims, depthwise)
    calls = _paying(whole, tried, everything)
    reasons = {
        (origin.function, origin.label, kept.kind): kept
        for kept in tried.plan.kept
        for origin in everything.origins.get(kept.node, ())
        if origin.call not in calls
    }
    before, after = _counted(tried.plan.before), _counted(tried.plan.after)
    if not calls:
        return replace(whole, plan=_with_reasons(whole, whole.plan, reasons))
    chosen, planned = everything, tried
    if calls != everything.named.keys():
        del tried, everything
        chosen = inline(model, calls)
        planned = _prepare(chosen.model, base_dir, equal_dims, depthwise)
    plan = _as_called(_with_reasons(planned, planned.plan, reasons), chosen)
    plan = replace(plan, before=before, after=after)
    return replace(planned, plan=plan, inlined=chosen, calls=calls, given=model)


def _counted(operators: Mapping[str, int]) -> dict[str, int]:
    """Operators without Constants: inlining makes copies of these, and no run executes them."""
    return {op: count for op, count in operators.items() if op != "Constant"}


def _operators(graph: GraphProto | FunctionProto) -> Counter[str]:
    """The operators of a graph and of the bodies in it, by type."""
    found = Counter(node.op_type for node in graph.node)
    for _, body in (each for node in graph.node for each in bodies(node)):
        found += _operators(body)
    return found


def _paying(whole: PlannedModel, tried: PlannedModel, everything: Inlined) -> frozenset[Call]:
    """The calls that have to be inlined for what folds only then, with the calls around them.

    A map that folds in the function itself, for all calls, needs none.
    """
    for_all = {
        (key_of(_outermost(graph.scope)), graph.view.nodes[index].label)
        for graph, moves in whole.settled
        if isinstance(_outermost(graph.scope), FunctionProto)
        for move in moves.moves
        for index in move.maps
    }
    for scope, merges in zip(whole.network.scopes, whole.network.merges, strict=True):
        function = _outermost(scope)
        if isinstance(function, FunctionProto):
            gone = [name for patch in merges.patches for name, _ in patch.gone]
            for_all |= {(key_of(function), name) for name in gone}
    needed = set[Call]()
    for maps, others in _steps(tried):
        origins = [everything.origins.get(name, ()) for name in maps]
        calls = {origin.call for each in origins for origin in each}
        alike = all(each and (each[0].function, each[0].label) in for_all for each in origins)
        if not (alike and len(calls) == 1):
            more = (o.call for name in others for o in everything.origins.get(name, ()))
            needed |= calls | set(more)
    around = set[Call]()
    for call in needed:
        while call and call not in around:
            around.add(call)
            call = call[:-1]
    return frozenset(around & everything.named.keys())


def _steps(planned: PlannedModel) -> Iterator[tuple[list[str], list[str]]]:
    """The operators that go in each move and merge, and all others that take part, by label.

    A map that is dropped as equal to one of another call is no reason to inline.
    """
    for graph, moves in planned.settled:
        names = [node.label for node in graph.view.nodes]
        for move in moves.moves:
            parts = {move.into, *move.chain, *move.crossed, *(end.node for end in move.ends)}
            yield [names[i] for i in move.maps], [names[i] for i in parts - {*move.maps}]
    for scope, merges in zip(planned.network.scopes, planned.network.merges, strict=True):
        for patch in (one for one in merges.patches if one.law != EQUAL):
            merged = [label(scope.graph.node[position]) for position in patch.nodes]
            yield [name for name, _ in patch.gone], merged


def _outermost(scope: Scope) -> GraphProto | FunctionProto:
    """The main graph, or the function that a scope is in."""
    while scope.parent is not None:
        scope = scope.parent
    return scope.graph


def _as_called(plan: Plan, inlined: Inlined) -> Plan:
    """A plan in which the operators of an inlined call have the names that they have in a function.

    The call tells where they are.
    """

    def place(name: str, graph: str) -> str:
        origins = inlined.origins.get(name)
        if not origins:
            return graph
        domain, function, _ = origins[0].function
        path = f"{domain}::{function}" if domain else function
        return f"{graph}/" * bool(graph) + f"{inlined.named[origins[0].call]}: function {path}"

    def within(name: str) -> str:
        origins = inlined.origins.get(name)
        return origins[0].label if origins else name

    folds = []
    for fold in plan.folds:
        nodes, graph = tuple(map(within, fold.nodes)), place(fold.into, fold.graph)
        folds.append(replace(fold, nodes=nodes, into=within(fold.into), graph=graph))
    kept = [replace(k, node=within(k.node), graph=place(k.node, k.graph)) for k in plan.kept]
    return replace(plan, folds=tuple(folds), kept=tuple(kept))


def _with_reasons(
    planned: PlannedModel, plan: Plan, reasons: Mapping[tuple[Key, str, str], Kept]
) -> Plan:
    """A plan in which maps in functions stay for the reason for which they would stay if inlined.

    Inlining would not help them, then. It may help where nobody has tried it.
    """
    called = called_functions(planned.network.model)
    paths = {scope.path: _outermost(scope) for scope in planned.network.scopes}

    def told(kept: Kept) -> Kept:
        function = paths[kept.graph]
        if not isinstance(function, FunctionProto) or key_of(function) not in called:
            return kept
        found = reasons.get((key_of(function), kept.node, kept.kind))
        if found is None:
            return replace(kept, advice=CODES["function-parameter"].advice)
        return replace(found, node=kept.node, graph=kept.graph)

    return replace(plan, kept=tuple(map(told, plan.kept)))


def _prepare(
    model: ModelProto, base_dir: Path | None, equal_dims: bool, depthwise: bool
) -> PlannedModel:
    """Read and plan a model as it is."""
    network = read(model, base_dir, equal_dims)
    network, settled = _settle(network)
    if depthwise:
        settled = [
            (g, without_norms(g.view, g.records, g.readings, moves, double=False))
            for g, moves in settled
        ]
    before = Counter(node.op_type for scope in network.scopes for node in scope.graph.node)
    merged = Counter(n.op_type for scope in network.scopes for n in scope.nodes if n.op_type)
    graphs = ((graph.scope.path, graph.view, moves) for graph, moves in settled)
    plan = summarize(graphs, merged)
    folds = [fold for merges in network.merges for p in merges.patches for fold in _folds(p)]
    kept = [
        kept_apart(stays, scope.path)
        for scope, merges in zip(network.scopes, network.merges, strict=True)
        for stays in merges.stays
    ]
    plan = replace(plan, folds=(*folds, *plan.folds), kept=(*plan.kept, *kept), before=dict(before))
    return PlannedModel(network, settled, plan)


def _settle(network: Network) -> tuple[Network, Settled]:
    """The moves of each graph, of which equal maps that stay are dropped until none is left."""
    settled: Settled = []
    merged = []
    for graph, merges in zip(network.graphs, network.merges, strict=True):
        patches = merges.patches
        moves = settle(graph.view, graph.readings)
        while True:
            graph, patch = without_equals(graph, moves)
            if patch is None:
                break
            patches = (*patches, patch)
            moves = settle(graph.view, graph.readings)
        settled.append((graph, moves))
        merged.append(replace(merges, patches=patches))
    graphs = tuple(graph for graph, _ in settled)
    return replace(network, graphs=graphs, merges=tuple(merged)), settled


def _folds(patch: Patch) -> Iterator[Fold]:
    """The plan's entry for a merge, or one for each map that is dropped as equal."""
    into = [patch.nodes[position] for position in patch.equal.values() or (patch.into,)]
    gone = [(one,) for one in patch.gone] if patch.equal else [patch.gone]
    for node, those in zip(into, gone, strict=True):
        assert node is not None
        names, ops = (tuple(one[k] for one in those) for k in (0, 1))
        yield Fold(names, ops, label(node), (patch.law,), patch.path)


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
    merged, equal = set[int](), set[int]()
    for patch in planned.network.merges[0].patches:
        if patch.law == EQUAL:
            equal |= {*patch.equal, *patch.equal.values()}
        else:
            merged |= patch.nodes.keys()
    for position in sorted(merged | equal):
        old = graph.scope.graph.node[position]
        if position in equal or old.op_type in _WEIGHTED or not folded_only:
            yield from filter(None, old.input)
    for index, node in enumerate(nodes):
        # The scale of a DequantizeLinear of an activation is that of a quantizer, most often.
        linear = isinstance(node.role, Absorber) and node.op != "DequantizeLinear"
        weighted = linear or node.op == "BatchNormalization"
        if index in telling if folded_only else index in concerned or weighted:
            yield from filter(None, graph.scope.nodes[graph.positions[index]].input)
