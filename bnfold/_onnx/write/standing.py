"""Writes the operators that are left of a chain of maps: a Mul, an Add, a norm or a Conv."""

from __future__ import annotations

from onnx import NodeProto, helper

from bnfold._core.affine import LAST
from bnfold._core.view import Affine, Carrier
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.write.edits import Editor
from bnfold._plan.fit import standing_batch_norm, standing_constants, standing_dtype
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move
from bnfold._system.records import record


@record(frozen=True)
class StandingOperator:
    """An operator that is left.

    ``node`` reads its data at input ``data`` and takes the place of the node at ``slot``; or, if it
    is ``extra``, a place ahead of that.
    """

    node: NodeProto
    data: int
    slot: int
    extra: bool = False


def operators_left(editor: Editor, graph: Graph, move: Move) -> list[int | StandingOperator]:
    """The operators between the source of a move and its end, in data order.

    These are the carriers, by index, and the operators that stand for maps. The latter take the
    slots of the last maps. Where a norm becomes two operators there may be more of them than slots:
    those come ahead of the first slot.
    """
    made = _nodes_left(editor, graph, move)
    slots = move.maps[max(0, len(move.maps) - len(made)) :]
    extra = len(made) - len(slots)
    nodes = dict(zip(slots, made[extra:], strict=True))
    left: list[int | StandingOperator] = [
        StandingOperator(node, data, graph.positions[slots[0]], True) for node, data in made[:extra]
    ]
    maps = set(move.maps)
    for index in move.chain:
        if index in nodes:
            node, data = nodes[index]
            left.append(StandingOperator(node, data, graph.positions[index]))
        elif index not in maps:
            left.append(index)
    return left


def connect_in_turn(
    editor: Editor,
    graph: Graph,
    move: Move,
    source: str,
    left: list[int | StandingOperator],
    final: str,
) -> None:
    """Let each operator read the one before it, from ``source`` to ``final``."""
    scope = graph.scope
    current = source
    for number, item in enumerate(left):
        last = number == len(left) - 1
        if isinstance(item, StandingOperator):
            output = final if last else editor.names.fresh(f"{final}_scaled")
            place = editor.insert if item.extra else editor.place
            current = place(scope, item.slot, item.node, item.data, current, output)
            continue
        position = graph.positions[item]
        role = graph.view.nodes[item].role
        assert isinstance(role, Carrier)
        editor.connect(scope, position, role.data, current)
        name = final if last else None
        current = editor.rename_output(scope, position, name, move.changes_values)


def _nodes_left(editor: Editor, graph: Graph, move: Move) -> list[tuple[NodeProto, int]]:
    """The nodes that are left of a move, each with the position of its data input.

    A map of the same type lends its node: name, notes and constants.
    """
    lenders = {op: _lenders(graph, move, op) for op in ("Mul", "Add", "Sub")}
    nodes = []
    for standing in move.stands:
        if standing.op == "BatchNormalization":
            nodes.append((_batch_norm(editor, graph, move, standing), 0))
        elif standing.op == "Conv":
            nodes.append((_depthwise(editor, graph, move, standing), 0))
        else:
            lender = lenders[standing.op].pop(0) if lenders[standing.op] else None
            nodes.append(_elementwise(editor, graph, move, standing, lender))
    return nodes


def _lenders(graph: Graph, move: Move, op: str) -> list[int]:
    """The maps of a type, for a Sub only those that subtract a constant; they lend their nodes."""
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


def _depthwise(editor: Editor, graph: Graph, move: Move, standing: Standing) -> NodeProto:
    """A Conv that scales and shifts each channel by itself."""
    spatial = graph.rank(move.maps) - 2
    node = _named(editor, graph, move, "Conv")
    node.attribute.extend(
        [
            helper.make_attribute("group", standing.channels),
            helper.make_attribute("kernel_shape", [1] * spatial),
        ]
    )
    dtype = standing_dtype(graph.view, graph.readings, move)
    weight, bias = standing_constants(graph.readings, move, standing)
    for position, values, name in (
        (1, weight.reshape(-1, 1, *(1,) * spatial), "weight"),
        (2, bias, "bias"),
    ):
        wanted = f"{node.name or 'conv'}_{name}"
        editor.store(graph.scope, node, position, None, values.astype(dtype), wanted)
    return node


def _named(editor: Editor, graph: Graph, move: Move, op: str) -> NodeProto:
    """A new operator, with a name like that of the last map."""
    last = graph.scope.nodes[graph.positions[move.maps[-1]]]
    node = NodeProto(op_type=op, domain=last.domain if last.domain == "ai.onnx" else "")
    if last.name:
        node.name = editor.names.fresh(f"{last.name}_{op.lower()}")
    node.input.extend(["", ""])
    node.output.append("")
    return node


def _elementwise(
    editor: Editor, graph: Graph, move: Move, standing: Standing, lender: int | None
) -> tuple[NodeProto, int]:
    scope, op, axis = graph.scope, standing.op, standing.map.axis
    (vector,) = standing_constants(graph.readings, move, standing)
    behind = 0 if axis in (None, LAST) else graph.rank(move.maps) - 1 - axis
    shape = () if axis is None else (vector.size, *(1,) * behind)
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
        node = _named(editor, graph, move, op)
    wanted = f"{node.name or op.lower()}_{'scale' if op == 'Mul' else 'shift'}"
    editor.store(scope, node, 1 - data, old, values, wanted)
    return node, data


def _alike(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether two shapes differ only in leading ones, and so broadcast alike."""
    rank = max(len(old), len(new))
    return (1,) * (rank - len(old)) + old == (1,) * (rank - len(new)) + new
