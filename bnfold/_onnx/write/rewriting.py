"""Apply planned moves to the protobuf they were planned on.

Nothing is rebuilt: nodes change their inputs and outputs in place, folded nodes go, and so do the
initializers, constants and tensor notes that only they used. Every other field stays as it was. A
tensor whose values change meaning on the way gets a fresh name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import Map
from bnfold._core.pointwise import Converted
from bnfold._core.result import EQUAL
from bnfold._core.view import Affine, Crossing
from bnfold._onnx.merge.merging import Merges, Network
from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.write.applied import Applied, Factor, Related, Rewritten
from bnfold._onnx.write.edits import Editor
from bnfold._onnx.write.parameters import write_numbers, write_parameters
from bnfold._onnx.write.scales import write_scales
from bnfold._onnx.write.standing import StandingOperator, connect_in_turn, operators_left
from bnfold._plan.planner import Move, Moves


def apply(
    network: Network, settled: Iterable[tuple[Graph, Moves]], later: bool = False
) -> Rewritten:
    """Carry out all moves on ``network.model``, in place.

    The order is: merged operators come into the graph; all maps are taken out, and operators that
    are left borrow from them; operators get their new parameters; tensors get their final names.
    Weights that lie in the model's own file may be made ``later``, by whoever writes the model.
    """
    editor = Editor(network, later)
    kept = editor.constants
    result = Rewritten(relocated=kept.relocated, created=kept.created, made=kept.made)
    for merges in network.merges:
        result.applied += [step for patch in merges.patches for step in _merged(patch)]
    for (graph, moves), merges in zip(settled, network.merges, strict=True):
        _GraphRewriter(editor, graph, moves, merges, result).write()
    editor.finish()
    return result


class _GraphRewriter:
    """Writes the moves of one graph. ``names`` has by name the tensor that replaces another."""

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
            graph.name(value): Related(_factors(relation.old), _factors(relation.new))
            for value, relation in moves.relations.items()
        }
        self.places = {position: index for index, position in enumerate(graph.positions)}

    def write(self) -> None:
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        remaining = []
        for move in self.moves.moves:
            for index in move.maps:
                editor.remove(scope, graph.positions[index])
            remaining.append(operators_left(editor, graph, move))
        moved = {move.into: move for move in self.moves.moves if move.law == "absorb"}
        for node, sides in self.moves.sides.items():
            position = graph.positions[node]
            for site in graph.readings[node].sites:
                lent = self._constants_of(moved.get(node)) if node in self.moves.turned else ()
                write_parameters(editor, graph, position, site, sides, lent)
            if node in self.moves.turned:
                scope.nodes[position].op_type = self.moves.turned[node]
        write_scales(editor, graph, self.moves.sides)
        applied = []
        for move, left in zip(self.moves.moves, remaining, strict=True):
            write = self._absorb if move.law == "absorb" else self._compose
            applied.append(write(move, left))
        for node, edit in self.moves.edits.items():
            write_numbers(editor, graph, node, edit)
        self._rename()
        self._drop_conversions()
        applied += [*self._lone_absorbers(), *self._crossings(), *self._left_as_merged()]
        self.result.applied += [self._in_final_names(step) for step in applied]

    def _constants_of(self, move: Move | None) -> list[Constant]:
        """The initializers that the maps of a move read."""
        graph, scope, found = self.graph, self.graph.scope, list[Constant]()
        for name in () if move is None else map(graph.name, _read_by(graph, move.maps)):
            owner, constant = scope.owner(name), graph.context.constants.find(scope, name)
            if owner is not None and name in owner.initializers and isinstance(constant, Constant):
                found.append(constant)
        return found

    def _lone_absorbers(self) -> Iterator[Applied]:
        """The steps of operators that take in only maps that were carried to them."""
        graph, scope = self.graph, self.graph.scope
        known = {move.into for move in self.moves.moves if move.law == "absorb"}
        for node in self.moves.sides:
            if node not in known:
                into = graph.positions[node]
                output = next(name for name in scope.nodes[into].output if name)
                yield Applied(scope.path, "absorb", into, (), (), output, output)

    def _crossings(self) -> Iterator[Applied]:
        graph, scope = self.graph, self.graph.scope
        crossed = dict.fromkeys(node for move in self.moves.moves for node in move.crossed)
        pairs = self.moves.unneeded
        also = [node for pair in pairs for node in (*pair.down, *pair.between)]
        for node in dict.fromkeys((*crossed, *also)):
            into = graph.positions[node]
            seen = graph.view.nodes[node]
            role = seen.role
            output = next(name for name in scope.nodes[into].output if name)
            source = output
            if isinstance(role, Crossing) and isinstance(role.law, Converted):
                source, output = graph.name(seen.inputs[0]), graph.name(seen.outputs[0])
            reads = tuple(graph.name(value) if value >= 0 else "" for value in seen.inputs)
            yield Applied(scope.path, "cross", into, (), (), source, output, reads)

    def _left_as_merged(self) -> Iterator[Applied]:
        """The steps of merged operators in which only the rounding is new."""
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

    def _in_final_names(self, step: Applied) -> Applied:
        """A step with the final names of its tensors, and how they have changed."""
        read = [self.graph.view.nodes[self.places[p]] for p in (step.into, *step.chain[-1:])]
        seen = {value for node in read for value in (*node.inputs, *node.outputs) if value >= 0}
        names = {self.graph.name(value) for value in seen}
        related = {name: self.related[name] for name in names if name in self.related}
        source, output = self._current_name(step.source), self._current_name(step.output)
        reads = tuple(map(self._current_name, step.reads))
        return replace(step, source=source, output=output, reads=reads, related=related)

    def _drop_conversions(self) -> None:
        """Take out the conversions that nothing needs any more."""
        graph, scope = self.graph, self.graph.scope
        for pair in self.moves.unneeded:
            up = graph.positions[pair.up]
            was = scope.nodes[up].output[0]
            self.names[was] = self.editor.bypass(scope, up, scope.nodes[up].input[0])
            for index in pair.between:
                self.editor.forget(scope, scope.nodes[graph.positions[index]].output[0])
            pinned = [n for n in pair.down if self._is_pinned(n)]
            for index in (*pinned, *(n for n in pair.down if n not in pinned)):
                down = graph.positions[index]
                source, was = scope.nodes[down].input[0], scope.nodes[down].output[0]
                name = self.editor.bypass(scope, down, source)
                self.names[source if name == was else was] = name

    def _is_pinned(self, index: int) -> bool:
        values = self.graph.view.values
        return values[self.graph.view.nodes[index].outputs[0]].pinned is not None

    def _absorb(self, move: Move, left: list[int | StandingOperator]) -> Applied:
        """Write a move into an absorber, and settle the name of the absorber's output."""
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        into = graph.positions[move.into]
        old = scope.nodes[into].output[0]
        final = graph.name(graph.view.nodes[move.chain[-1]].outputs[0])
        passing = _passing_names(graph, move)
        self.inside.update((old, *passing))
        source = editor.rename_output(scope, into, None if left else final, move.changes_values)
        connect_in_turn(editor, graph, move, source, left, final)
        editor.reread(scope, [old, *passing], source)
        return _applied(graph, move, source, final)

    def _compose(self, move: Move, left: list[int | StandingOperator]) -> Applied:
        """Put a Mul, an Add, a BatchNormalization or nothing where a chain of maps stood."""
        editor, graph, scope = self.editor, self.graph, self.graph.scope
        first = graph.view.nodes[move.into]
        assert isinstance(first.role, Affine)
        start = first.inputs[first.role.data]
        source = self._current_name(graph.name(start))
        last = graph.view.nodes[move.chain[-1]].outputs[0]
        final = graph.name(last)
        passing = _passing_names(graph, move)
        self.inside.update(passing)
        if left:
            connect_in_turn(editor, graph, move, source, left, final)
        elif graph.view.values[last].pinned is None and source not in self.related:
            passing.append(final)
            self.names[final] = source
        else:
            passing.append(source)
            self.names[source] = final
            producer = scope.producers[source]
            source = editor.rename_output(scope, producer, final, False, source)
        editor.reread(scope, passing, source)
        return _applied(graph, move, source, final if left else source)

    def _current_name(self, name: str) -> str:
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


def _merged(patch: Patch) -> Iterator[Applied]:
    """The step of a merge, or one for each map that is dropped as equal."""
    law, others = "merge", tuple(position for position in patch.nodes if position != patch.into)
    steps: list[tuple[int, tuple[int, ...]]] = [(patch.into, others)]
    if patch.law == EQUAL:
        law, steps = "equal", [(into, (gone,)) for gone, into in patch.equal.items()]
    for into, maps in steps:
        node = patch.nodes[into]
        assert node is not None
        output = node.output[0]
        yield Applied(patch.path, law, into, maps, (), output, output, patch=patch)


def _factors(maps: Iterable[Map]) -> tuple[Factor, ...]:
    return tuple(
        Factor(m.scale, m.shift, m.axis if isinstance(m, AffineMap) else None) for m in maps
    )


def _read_by(graph: Graph, maps: Iterable[int]) -> list[int]:
    """The values that some operators read."""
    return [value for one in maps for value in graph.view.nodes[one].inputs if value >= 0]


def _passing_names(graph: Graph, move: Move) -> list[str]:
    """The tensors between the nodes of a chain.

    A node that still reads one of them asks only for its shape or type. These are the same for the
    chain's source.
    """
    return [graph.name(graph.view.nodes[index].outputs[0]) for index in move.chain[:-1]]


def _applied(graph: Graph, move: Move, source: str, final: str) -> Applied:
    maps = tuple(graph.positions[i] for i in move.maps)
    chain = tuple(graph.positions[i] for i in move.chain)
    into = graph.positions[move.into]
    return Applied(graph.scope.path, move.law, into, maps, chain, source, final)
