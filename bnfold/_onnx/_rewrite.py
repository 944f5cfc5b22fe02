"""Apply planned moves to the protobuf they were planned on.

Nothing is rebuilt: nodes change their inputs and outputs in place, folded nodes go, and so do the
initializers, constants and tensor notes that only they used. Every other field stays as it was. A
tensor whose values change meaning on the way gets a fresh name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._affine import Vector
from bnfold._onnx._edit import Editor, Relocated
from bnfold._onnx._network import Graph, Network, element_dtype
from bnfold._onnx._sites import Site
from bnfold._plan._planner import Move, Moves
from bnfold._plan._reasons import Reason
from bnfold._plan._view import Affine, Carrier

Array = NDArray[Any]


@dataclass(frozen=True)
class Applied:
    """One move as it was carried out, for whoever checks it.

    ``into``, ``maps`` and ``chain`` are positions in the original graph's node list. In the folded
    graph, ``source`` is what the absorber puts out (for a composition: what the first of its
    operators reads) and ``output`` what the last map put out before.
    """

    path: str
    law: str
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    source: str
    output: str


@dataclass
class Rewritten:
    """What was done: the moves, where changed tensors lay in external files before, and the names
    of new tensors.
    """

    applied: list[Applied] = field(default_factory=list)
    relocated: list[Relocated] = field(default_factory=list)
    created: set[str] = field(default_factory=set)


def apply(network: Network, settled: Iterable[tuple[Graph, Moves]]) -> Rewritten:
    """Carry out all moves on ``network.model``, in place."""
    editor = Editor(network)
    result = Rewritten(relocated=editor.relocated, created=editor.created)
    for graph, moves in settled:
        for move in moves.moves:
            if move.law == "absorb":
                result.applied.append(_absorb(editor, graph, move))
            else:
                result.applied.append(_compose(editor, graph, move))
    editor.finish()
    return result


def _absorb(editor: Editor, graph: Graph, move: Move) -> Applied:
    """Write the absorber's new parameters and give it the name of what it now puts out."""
    scope = graph.scope
    node = scope.nodes[graph.positions[move.into]]
    site = graph.readings[move.into].site
    carriers = [c for c in move.chain if c not in move.maps]
    final = scope.nodes[graph.positions[move.chain[-1]]].output[0]
    for index in move.maps:
        editor.remove(scope, graph.positions[index])
    if site is not None:
        _write_parameters(editor, graph, node, site, move)
    added = _additions(editor, graph, move)
    fresh = not move.map.is_identity
    alone = not carriers and not added
    source = editor.rename_output(
        scope, graph.positions[move.into], final if alone else None, fresh
    )
    _string(editor, graph, source, carriers, added, final, fresh)
    return _applied(graph, move, source, final)


def _compose(editor: Editor, graph: Graph, move: Move) -> Applied:
    """Put a Mul, an Add, both or nothing where a chain of standing maps was."""
    scope = graph.scope
    first = graph.view.nodes[move.into].role
    assert isinstance(first, Affine)
    source = scope.nodes[graph.positions[move.into]].input[first.data]
    carriers = [c for c in move.chain if c not in move.maps]
    last = graph.view.nodes[move.chain[-1]].outputs[0]
    final = graph.view.values[last].name
    for index in move.maps:
        editor.remove(scope, graph.positions[index])
    added = _additions(editor, graph, move)
    if carriers or added:
        _string(editor, graph, source, carriers, added, final, not move.map.is_identity)
    elif graph.view.values[last].pinned is None:
        readers = {graph.positions[r] for r in graph.view.values[last].readers}
        editor.reread(scope, sorted(readers), final, source)
        final = source
    else:
        editor.rename_output(scope, scope.producers[source], final, False)
        source = final
    return _applied(graph, move, source, final)


def _applied(graph: Graph, move: Move, source: str, final: str) -> Applied:
    maps = tuple(graph.positions[i] for i in move.maps)
    chain = tuple(graph.positions[i] for i in move.chain)
    into = graph.positions[move.into]
    return Applied(graph.scope.path, move.law, into, maps, chain, source, final)


def _write_parameters(
    editor: Editor, graph: Graph, node: NodeProto, site: Site, move: Move
) -> None:
    scope = graph.scope
    weight, bias = site.new_weight(move.map), site.new_bias(move.map)
    weight_name = site.weight_value.name if site.weight_value else node.input[site.weight]
    if weight is not None:
        editor.store(scope, node, site.weight, site.weight_value, weight, f"{weight_name}_folded")
    if bias is not None and site.bias is not None:
        if site.bias_factor != 1.0:
            _reset(node, "beta")
        stem = weight_name.removesuffix(".weight")
        wanted = f"{stem}.bias" if stem != weight_name else f"{weight_name}_bias"
        if site.bias_value is not None:
            wanted = f"{site.bias_value.name}_folded"
        editor.store(scope, node, site.bias, site.bias_value, bias, wanted)


@dataclass(frozen=True)
class _Addition:
    """An operator that has to stand: its node, where its constant goes, and the slot it takes."""

    node: NodeProto
    data: int
    slot: int


def _additions(editor: Editor, graph: Graph, move: Move) -> list[_Addition]:
    """The Mul and Add that stand where the maps stood.

    A map of the same type lends its node (name, notes and constant); slots are those of the last
    maps, of which there are always enough: a move never adds more operators than it removes.
    """
    wanted = [("Mul", move.map.scale)] if move.adds_mul else []
    wanted += [("Add", move.map.shift)] if move.adds_add else []
    slots = [graph.positions[i] for i in move.maps[len(move.maps) - len(wanted) :]]
    return [
        _addition(editor, graph, move, op, vector, slot)
        for (op, vector), slot in zip(wanted, slots, strict=True)
    ]


def _addition(
    editor: Editor, graph: Graph, move: Move, op: str, vector: Vector, slot: int
) -> _Addition:
    scope = graph.scope
    site = graph.readings[move.into].site if move.law == "absorb" else None
    dtype = site.dtype if site is not None else element_dtype(graph, move.maps)
    shape: tuple[int, ...] = ()
    if move.map.axis is not None:
        rank = graph.rank(move.into)
        assert rank is not None
        shape = (vector.size, *(1,) * (rank - 1 - move.map.axis))
    values = vector.astype(dtype).reshape(shape)
    lender = next((i for i in move.maps if graph.view.nodes[i].op == op), None)
    node, data, old = NodeProto(), 0, None
    if lender is not None:
        role = graph.view.nodes[lender].role
        assert isinstance(role, Affine)
        data = role.data
        editor.borrow(scope, graph.positions[lender], node, 1 - data)
        found = graph.context.constant(node, 1 - data)
        old = found if not isinstance(found, Reason) else None
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
    return _Addition(node, data, slot)


def _string(
    editor: Editor,
    graph: Graph,
    source: str,
    carriers: list[int],
    added: list[_Addition],
    final: str,
    fresh: bool,
) -> None:
    """Chain carriers and additions from ``source`` to ``final``."""
    scope = graph.scope
    current = source
    for number, index in enumerate(carriers):
        position = graph.positions[index]
        role = graph.view.nodes[index].role
        assert isinstance(role, Carrier)
        editor.connect(scope, position, role.data, current)
        last = number == len(carriers) - 1 and not added
        current = editor.rename_output(scope, position, final if last else None, fresh)
    for number, addition in enumerate(added):
        last = number == len(added) - 1
        output = final if last else editor.names.fresh(f"{final}_scaled")
        current = editor.place(scope, addition.slot, addition.node, addition.data, current, output)


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
