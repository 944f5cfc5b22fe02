"""Apply planned moves to the protobuf they were planned on.

Nothing is rebuilt: nodes change their inputs and outputs in place, folded nodes go, and so do the
initializers, constants and tensor notes that only they used. Every other field stays as it was. A
tensor whose values change meaning on the way gets a fresh name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.parameters import Parameter, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Carrier
from bnfold._onnx.merge.merging import Merges
from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.network import Network
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.quantized import Dequantized, spread_zero
from bnfold._onnx.write.edits import Editor, Relocated
from bnfold._onnx.write.numbers import edit_numbers
from bnfold._plan.fit import standing_batch_norm, standing_constants, standing_dtype
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move, Moves, Sides

Array = NDArray[Any]


@dataclass(frozen=True)
class Factor:
    """``scale·x + shift`` along ``axis``, or, where None, with one number each or arrays of the
    tensor's rank.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    axis: int | None


@dataclass(frozen=True)
class Related:
    """How the old and the new values of a tensor come from the same numbers, each by steps one
    after the other. Of old values whose scale is NaN nothing is known.
    """

    old: tuple[Factor, ...]
    new: tuple[Factor, ...]


@dataclass(frozen=True)
class Applied:
    """One step as it was carried out, for whoever checks it.

    ``law`` is "absorb", "compose", "carry", or "cross" for an operator that maps were carried
    across; or "merge" for a ``patch``, which changes the graph that all later steps start from.
    ``into``, ``maps`` and ``chain`` are positions in the original graph's node list; an
    operator that takes in, or lets pass, what was carried to it has no maps. In the folded graph,
    ``source`` is what the absorber puts out (for maps that stand: what the first of
    them reads; for an operator that is crossed: its main output) and ``output`` what now stands for
    the last output. ``related`` says what tensors of the original, by name, have gone through: what
    the step reads and what it puts out.
    """

    path: str
    law: str
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    source: str
    output: str
    related: Mapping[str, Related] = field(default_factory=dict)
    patch: Patch | None = None


@dataclass
class Rewritten:
    """What was done: the moves, where changed tensors lay in external files before, and the names
    of new tensors.
    """

    applied: list[Applied] = field(default_factory=list)
    relocated: list[Relocated] = field(default_factory=list)
    created: set[str] = field(default_factory=set)


def apply(network: Network, settled: Iterable[tuple[Graph, Moves]]) -> Rewritten:
    """Carry out all moves on ``network.model``, in place.

    Merged operators are there from the start. Then all maps are taken out, what has to stand
    borrows from them, then operators get their new parameters, and only then names are settled.
    """
    editor = Editor(network)
    result = Rewritten(relocated=editor.relocated, created=editor.created)
    for merges in network.merges:
        result.applied += [_merged(patch) for patch in merges.patches]
    for (graph, moves), merges in zip(settled, network.merges, strict=True):
        _GraphRewriter(editor, graph, moves, merges, result).write()
    editor.finish()
    return result


class _GraphRewriter:
    """Writes the moves of one graph. ``names`` says which tensor has taken another's place."""

    def __init__(
        self, editor: Editor, graph: Graph, moves: Moves, merges: Merges, result: Rewritten
    ) -> None:
        self.editor = editor
        self.graph = graph
        self.moves = moves
        self.merges = merges
        self.result = result
        self.names: dict[str, str] = {}
        self.inside: set[str] = set()
        self.related = {
            graph.name(value): Related(_steps(relation.old), _steps(relation.new))
            for value, relation in moves.relations.items()
        }
        self.places = {position: index for index, position in enumerate(graph.positions)}

    def write(self) -> None:
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        lines = []
        for move in self.moves.moves:
            for index in move.maps:
                editor.remove(scope, graph.positions[index])
            lines.append(_line(editor, graph, move))
        for node, sides in self.moves.sides.items():
            site = graph.readings[node].site
            if site is not None:
                position = graph.positions[node]
                _write_parameters(editor, graph, scope.nodes[position], site, sides)
        applied = []
        for move, line in zip(self.moves.moves, lines, strict=True):
            write = self._absorb if move.law == "absorb" else self._compose
            applied.append(write(move, line))
        for node, edit in self.moves.edits.items():
            edit_numbers(editor, graph, node, edit)
        self._rename()
        applied += [*self._lone_absorbers(), *self._crossings(), *self._left_as_merged()]
        self.result.applied += [self._told(step) for step in applied]

    def _lone_absorbers(self) -> Iterator[Applied]:
        """Operators that take in only what was carried to them."""
        graph, scope = self.graph, self.graph.scope
        known = {move.into for move in self.moves.moves if move.law == "absorb"}
        for node in self.moves.sides:
            if node not in known:
                into = graph.positions[node]
                output = graph.name(graph.view.nodes[node].outputs[0])
                yield Applied(scope.path, "absorb", into, (), (), output, output)

    def _crossings(self) -> Iterator[Applied]:
        graph, scope = self.graph, self.graph.scope
        crossed = dict.fromkeys(node for move in self.moves.moves for node in move.crossed)
        for node in crossed:
            into = graph.positions[node]
            output = next(name for name in scope.nodes[into].output if name)
            yield Applied(scope.path, "cross", into, (), (), output, output)

    def _left_as_merged(self) -> Iterator[Applied]:
        """Operators made by merges of which nothing but the rounding is new."""
        graph, scope = self.graph, self.graph.scope
        moved = {p for move in self.moves.moves for p in (move.into, *move.chain)}
        made = {p for patch in self.merges.patches for p, n in patch.nodes.items() if n is not None}
        constants = {name for patch in self.merges.patches for name in patch.constants}
        for position in sorted(made & self.places.keys()):
            node, index = graph.view.nodes[self.places[position]], self.places[position]
            names = {graph.name(value) for value in node.inputs if value >= 0}
            if index in moved or index in self.moves.sides or not names & constants:
                continue
            (output,) = scope.nodes[position].output
            if isinstance(node.role, Affine):
                data = graph.name(node.inputs[node.role.data])
                own = (position,)
                yield Applied(scope.path, "compose", position, own, own, data, output)
            else:
                yield Applied(scope.path, "absorb", position, (), (), output, output)

    def _told(self, step: Applied) -> Applied:
        """A step with the names that tensors have in the end, and what they have gone through."""
        read = [self.graph.view.nodes[self.places[p]] for p in (step.into, *step.chain[-1:])]
        seen = {value for node in read for value in (*node.inputs, *node.outputs) if value >= 0}
        names = {self.graph.name(value) for value in seen}
        related = {name: self.related[name] for name in names if name in self.related}
        source, output = self._now(step.source), self._now(step.output)
        return replace(step, source=source, output=output, related=related)

    def _absorb(self, move: Move, line: list[int | _Addition]) -> Applied:
        """Give the absorber the name of what it now puts out."""
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        into = graph.positions[move.into]
        old = scope.nodes[into].output[0]
        final = graph.name(graph.view.nodes[move.chain[-1]].outputs[0])
        passing = _passing_names(graph, move)
        self.inside.update((old, *passing))
        source = editor.rename_output(scope, into, None if line else final, move.changes_values)
        _string(editor, graph, move, source, line, final)
        editor.reread(scope, [old, *passing], source)
        return _applied(graph, move, source, final)

    def _compose(self, move: Move, line: list[int | _Addition]) -> Applied:
        """Put a Mul, an Add, a BatchNormalization or nothing where a chain of maps stood."""
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        first = graph.view.nodes[move.into]
        assert isinstance(first.role, Affine)
        start = first.inputs[first.role.data]
        source = self._now(graph.name(start))
        last = graph.view.nodes[move.chain[-1]].outputs[0]
        final = graph.name(last)
        passing = _passing_names(graph, move)
        self.inside.update(passing)
        if line:
            _string(editor, graph, move, source, line, final)
        elif graph.view.values[last].pinned is None and source not in self.related:
            passing.append(final)
            self.names[final] = source
        else:
            passing.append(source)
            self.names[source] = final
            producer = scope.producers[source]
            source = editor.rename_output(scope, producer, final, False, source)
        editor.reread(scope, passing, source)
        return _applied(graph, move, source, final if line else source)

    def _now(self, name: str) -> str:
        while name in self.names:
            name = self.names[name]
        return name

    def _rename(self) -> None:
        """Give tensors whose values have changed a name of their own."""
        for value in self.moves.relations:
            name = self.graph.name(value)
            if name in self.inside or name in self.names:
                continue
            scope = self.graph.scope
            new = self.editor.rename_output(scope, scope.producers[name], None, True, name)
            self.editor.reread(scope, [name], new)
            self.names[name] = new


def _merged(patch: Patch) -> Applied:
    node = patch.nodes[patch.into]
    assert node is not None
    output = node.output[0]
    gone = tuple(p for p in patch.nodes if p != patch.into)
    return Applied(patch.path, "merge", patch.into, gone, (), output, output, patch=patch)


def _steps(maps: Iterable[Map]) -> tuple[Factor, ...]:
    return tuple(
        Factor(m.scale, m.shift, m.axis if isinstance(m, AffineMap) else None) for m in maps
    )


def _passing_names(graph: Graph, move: Move) -> list[str]:
    """Tensors between the nodes of a chain. Who still reads one of them asks only for its shape or
    type, which are those of the chain's source.
    """
    return [graph.name(graph.view.nodes[index].outputs[0]) for index in move.chain[:-1]]


def _applied(graph: Graph, move: Move, source: str, final: str) -> Applied:
    maps = tuple(graph.positions[i] for i in move.maps)
    chain = tuple(graph.positions[i] for i in move.chain)
    into = graph.positions[move.into]
    return Applied(graph.scope.path, move.law, into, maps, chain, source, final)


def _write_parameters(
    editor: Editor, graph: Graph, node: NodeProto, site: Site, sides: Sides
) -> None:
    scope = graph.scope
    _write_scale(editor, graph, node, site, sides)
    weight = site.new_weight(sides.behind, sides.ahead)
    bias = site.new_bias(sides.behind, sides.ahead)
    old_weight, old_bias = _constant(site.weight_value), _constant(site.bias_value)
    weight_name = old_weight.name if old_weight else node.input[site.weight]
    if weight is not None:
        editor.store(scope, node, site.weight, old_weight, weight, f"{weight_name}_folded")
    if bias is not None and site.bias is not None:
        if site.bias_factor != 1.0:
            _reset(node, "beta")
        stem = weight_name.removesuffix(".weight")
        wanted = f"{stem}.bias" if stem != weight_name else f"{weight_name}_bias"
        if old_bias is not None:
            wanted = f"{old_bias.name}_folded"
        editor.store(scope, node, site.bias, old_bias, bias, wanted)


def _write_scale(editor: Editor, graph: Graph, node: NodeProto, site: Site, sides: Sides) -> None:
    """Multiply the scale of a quantized weight."""
    new = site.new_scale(sides.behind, sides.ahead)
    found = graph.context.dequantized(node, site.weight) if site.quantized is not None else None
    if new is None or isinstance(new, Reason) or not isinstance(found, Dequantized):
        return
    values, axis = new
    dequantizer = graph.scope.nodes[found.position]
    scale = found.scale
    if axis is not None and found.quantized.axis is None:
        zero = found.zero.load() if found.zero is not None else None
        zeros = spread_zero(dequantizer, values.size, axis, zero)
        if zeros is not None and found.zero is not None:
            name = f"{found.zero.name}_folded"
            editor.store(graph.scope, dequantizer, 2, found.zero, zeros, name)
    editor.store(graph.scope, dequantizer, 1, scale, values, f"{scale.name}_folded")


def _constant(value: Parameter | None) -> Constant | None:
    return value if isinstance(value, Constant) else None


@dataclass(frozen=True)
class _Addition:
    """An operator that has to stand: its node, where its data goes, and the slot it takes."""

    node: NodeProto
    data: int
    slot: int


def _line(editor: Editor, graph: Graph, move: Move) -> list[int | _Addition]:
    """What stands between the source of a move and its end, in data order: carriers, and the
    operators that are left, in the slots of the last maps. There are enough: a move never adds
    more operators than it removes.
    """
    slots = move.maps[len(move.maps) - len(move.stands) :]
    additions = dict(zip(slots, _additions(editor, graph, move), strict=True))
    line: list[int | _Addition] = []
    maps = set(move.maps)
    for index in move.chain:
        if index in additions:
            node, data = additions[index]
            line.append(_Addition(node, data, graph.positions[index]))
        elif index not in maps:
            line.append(index)
    return line


def _additions(editor: Editor, graph: Graph, move: Move) -> list[tuple[NodeProto, int]]:
    """The nodes that are left of a move, each with the position of its data input.

    A map of the same type lends its node: name, notes and constants.
    """
    lenders = {op: _lenders(graph, move, op) for op in ("Mul", "Add", "Sub")}
    additions = []
    for standing in move.stands:
        if standing.op == "BatchNormalization":
            additions.append((_batch_norm(editor, graph, move, standing), 0))
        else:
            lender = lenders[standing.op].pop(0) if lenders[standing.op] else None
            additions.append(_elementwise(editor, graph, move, standing, lender))
    return additions


def _lenders(graph: Graph, move: Move, op: str) -> list[int]:
    """The maps of a type; of a Sub only those that subtract a constant."""
    found = []
    for index in move.maps:
        role = graph.view.nodes[index].role
        assert isinstance(role, Affine)
        if graph.view.nodes[index].op == op and (op != "Sub" or role.data == 0):
            found.append(index)
    return found


def _batch_norm(editor: Editor, graph: Graph, move: Move, standing: Standing) -> NodeProto:
    scope = graph.scope
    node = NodeProto()
    lender = graph.positions[standing_batch_norm(graph.readings, move)]
    editor.borrow(scope, lender, node, range(1, 5))
    for position, vector in enumerate(standing_constants(graph.readings, move, standing), start=1):
        old = graph.context.constant(node, position)
        assert isinstance(old, Constant)
        wanted = f"{old.name}_folded"
        editor.store(scope, node, position, old, vector.astype(old.dtype), wanted)
    return node


def _elementwise(
    editor: Editor, graph: Graph, move: Move, standing: Standing, lender: int | None
) -> tuple[NodeProto, int]:
    scope, op, axis = graph.scope, standing.op, standing.map.axis
    (vector,) = standing_constants(graph.readings, move, standing)
    shape = () if axis is None else (vector.size, *(1,) * (graph.rank(move.maps) - 1 - axis))
    values = vector.astype(standing_dtype(graph.view, graph.readings, move)).reshape(shape)
    node, data, old = NodeProto(), 0, None
    if lender is not None:
        role = graph.view.nodes[lender].role
        assert isinstance(role, Affine)
        data = role.data
        editor.borrow(scope, graph.positions[lender], node, [1 - data])
        found = graph.context.constant(node, 1 - data)
        old = found if isinstance(found, Constant) else None
        if old is not None and _alike(old.shape, shape):
            values = values.reshape(old.shape)
    else:
        last = scope.nodes[graph.positions[move.maps[-1]]]
        node.op_type, node.domain = op, last.domain
        if last.name:
            node.name = editor.names.fresh(f"{last.name}_{op.lower()}")
        node.input.extend(["", ""])
        node.output.append("")
    wanted = f"{node.name or op.lower()}_{'scale' if op == 'Mul' else 'shift'}"
    editor.store(scope, node, 1 - data, old, values, wanted)
    return node, data


def _string(
    editor: Editor,
    graph: Graph,
    move: Move,
    source: str,
    line: list[int | _Addition],
    final: str,
) -> None:
    """Chain carriers and additions from ``source`` to ``final``."""
    scope = graph.scope
    current = source
    for number, item in enumerate(line):
        last = number == len(line) - 1
        if isinstance(item, _Addition):
            output = final if last else editor.names.fresh(f"{final}_scaled")
            current = editor.place(scope, item.slot, item.node, item.data, current, output)
            continue
        position = graph.positions[item]
        role = graph.view.nodes[item].role
        assert isinstance(role, Carrier)
        editor.connect(scope, position, role.data, current)
        name = final if last else None
        current = editor.rename_output(scope, position, name, move.changes_values)


def _alike(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether two shapes mean the same under broadcasting, but for leading ones."""
    rank = max(len(old), len(new))
    return (1,) * (rank - len(old)) + old == (1,) * (rank - len(new)) + new


def _reset(node: NodeProto, attribute: str) -> None:
    """Drop an attribute, so that its default holds again."""
    for number, candidate in enumerate(node.attribute):
        if candidate.name == attribute:
            del node.attribute[number]
            return
