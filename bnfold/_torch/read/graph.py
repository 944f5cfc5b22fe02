"""An exported program read into the neutral view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from operator import getitem
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._core.operators.quantized import Quantization
from bnfold._core.operators.record import UNKNOWN, Operator, Row, Unfixed, Unweighted
from bnfold._core.parameters import Reading
from bnfold._core.reasons import Reason
from bnfold._core.view import (
    OPAQUE,
    Absorber,
    Affine,
    Barrier,
    Carrier,
    Crossing,
    Node,
    Opaque,
    Role,
    Value,
    View,
)
from bnfold._merge.stored import Load
from bnfold._plan.fit import standing_batch_norm
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move
from bnfold._torch.read import affine, crossed, linear, rearranged
from bnfold._torch.read.aliases import Memory
from bnfold._torch.read.constants import Constants
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.crossed import data_name
from bnfold._torch.read.nodes import (
    arguments,
    asked,
    foreign_norm,
    is_norm,
    is_tensor,
    kind_of,
    number_of,
    parts_of,
    places,
    reads_of,
    shape_of,
    valueless,
)
from bnfold._torch.read.quantized import DEQUANTIZERS, FAKE, QUANTIZERS

_SPACES = ("quantized_decomposed", "torchao")
"""Where operators that quantize are, beside PyTorch's own."""


def _rounds(context: Context, node: fx.Node, args: dict[str, Any]) -> Operator:
    """Data that are rounded to integers, or integers that become floats again."""
    if context.is_constant(node):
        return UNKNOWN
    where, data = context.label(node), places(node)[data_name(args)]
    message = f"{where} rounds it to integers, and no map passes that exactly"
    if kind_of(node).startswith("dequantize"):
        message = f"{where} reads integers, and no map passes that exactly"
    rounded = Reason("quantizer-between", where, message)
    if kind_of(node) in QUANTIZERS.split():
        return Quantization(label=where, data=data, rounded=rounded)
    return Unweighted(label=where, data=data, reason=rounded)


_ROUNDING = (
    "_fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams dequantize dequantize_per_token "
    "fake_quant_per_channel fused_moving_avg_obs_fake_quant quantize_per_token"
)
ROUNDED: dict[str, TorchRow] = dict.fromkeys(
    " ".join((DEQUANTIZERS, QUANTIZERS, FAKE, _ROUNDING)).split(), Row(_rounds)
)

ROWS: dict[str, TorchRow] = {
    **affine.ROWS,
    **crossed.ROWS,
    **linear.ROWS,
    **rearranged.ROWS,
    **ROUNDED,
}
"""How each operator of PyTorch is read, by its name."""


@dataclass(frozen=True)
class Graph:
    """A program and its view.

    ``nodes``, ``records`` and ``readings`` have an entry for each node of the view: the program's
    node, the operator's record, and what planning needs of it. ``holders`` has for each value of
    the view the program's node that puts it out.
    """

    program: ExportedProgram
    context: Context
    memory: Memory
    view: View
    nodes: tuple[fx.Node, ...]
    holders: tuple[fx.Node, ...]
    records: tuple[Operator, ...]
    readings: tuple[Reading, ...]

    @cached_property
    def numbers(self) -> Mapping[fx.Node, int]:
        """The place of each node among the ``nodes``."""
        return {node: number for number, node in enumerate(self.nodes)}


def read(
    program: ExportedProgram,
    module: nn.Module | None,
    exact: Mapping[str, Load] | None = None,
    graph: fx.Graph | None = None,
    kept: Mapping[fx.Node, Reason] | None = None,
) -> Graph:
    """Read a program.

    ``module`` is the module from which it was exported, None if there is none. ``exact`` has by
    name the float64 values of parameters that the program holds rounded. ``graph`` is a copy of
    the program's graph, to be read instead of it. ``kept`` says why more values may not change.
    """
    graph = program.graph if graph is None else graph
    memory = Memory(graph)
    constants = Constants(program, memory.written, exact or {})
    nodes = operators(graph)
    labels = labels_of(nodes)
    modules = dict(module.named_modules(remove_duplicate=False)) if module is not None else {}

    def in_training(node: fx.Node) -> bool:
        home = modules.get(path_of(node))
        return home.training if home is not None else bool(arguments(node).get("training", False))

    context = Context(constants, labels.__getitem__, in_training, whole=module is None)
    records = tuple(operator_of(context, node, memory.torn) for node in nodes)
    readings = tuple(record.reading() for record in records)
    holders = tuple(graph.nodes)
    pinned = {**_hooked(nodes, modules, labels), **_put_out(graph), **(kept or {})}
    values = _Values(holders, pinned, valueless(nodes, pinned, whole=module is None))
    view_nodes = tuple(
        values.node(labels[node], node, reading.role)
        for node, reading in zip(nodes, readings, strict=True)
    )
    view = View(view_nodes, values.all())
    return Graph(program, context, memory, view, nodes, holders, records, readings)


def operators(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes of a graph that compute something."""
    return tuple(node for node in graph.nodes if node.op == "call_function")


class _Values:
    """Numbers the tensors of a program, and notes the writer and the readers of each."""

    def __init__(
        self,
        holders: Sequence[fx.Node],
        pinned: Mapping[fx.Node, Reason],
        valueless: Set[fx.Node],
    ) -> None:
        self._valueless = valueless
        self._numbers = {node: number for number, node in enumerate(holders)}
        self._pinned = pinned
        self._producers: dict[fx.Node, int] = {}
        self._readers: dict[fx.Node, list[int]] = {}
        self._shape_readers: dict[fx.Node, list[int]] = {}
        self._parts: set[fx.Node] = set()
        self._count = 0

    def node(self, label: str, node: fx.Node, role: Role) -> Node:
        """The next node of the view. It reads tensors in the order of its arguments.

        The outputs of an operator that makes a list are the parts of the list. A node that takes a
        part from the list (getitem) then reads and writes nothing.
        """
        place, self._count = self._count, self._count + 1
        if node in self._parts:
            return Node(label, kind_of(node), OPAQUE, (), ())
        inputs, apart = list(reads_of(node)), asked(node)
        if node in self._valueless and isinstance(role, Crossing | Carrier | Opaque):
            role, apart = OPAQUE, tuple(range(len(inputs)))
        for number, source in enumerate(inputs):
            readers = self._shape_readers if number in apart else self._readers
            readers.setdefault(source, []).append(place)
        outputs = self._outputs(node, role)
        self._producers.update((output, place) for output in outputs)
        self._parts.update(output for output in outputs if output is not node)
        numbered = tuple(self._numbers[source] for source in inputs)
        written = tuple(self._numbers[output] for output in outputs)
        return Node(label, kind_of(node), role, numbered, written, asked=apart)

    def _outputs(self, node: fx.Node, role: Role) -> tuple[fx.Node, ...]:
        """What puts out the tensors of a node: itself, or the parts of the list that it makes.

        They are in the order of a law's outputs, or by number where an operator has no law.
        """
        known = isinstance(role, Crossing | Affine | Absorber | Barrier)
        if is_tensor(node) or not known:
            return (node,)
        parts = parts_of(node)
        if isinstance(role, Crossing):
            return parts
        if not parts or any(part.target is not getitem for part in parts):
            return (node,)
        return tuple(sorted(parts, key=number_of))

    def all(self) -> tuple[Value, ...]:
        """All tensors, once all nodes are known."""
        return tuple(
            Value(
                node.name,
                self._producers.get(node),
                tuple(self._readers.get(node, ())),
                self._pinned.get(node),
                shape_of(node),
                tuple(self._shape_readers.get(node, ())),
            )
            for node in self._numbers
        )


def _translate(context: Context, node: fx.Node) -> Operator:
    """The record of a node. Of operators that are not PyTorch's own nothing is known."""
    space = getattr(node.target, "namespace", "")
    rows = ROWS if space == "aten" else ROUNDED if space in _SPACES else {}
    row = rows.get(kind_of(node))
    if row is None and is_norm(node):
        return Unfixed(reason=foreign_norm(node, context.label(node)))
    if row is None or getattr(node.target, "_schema", None) is None:
        return UNKNOWN
    return row.translate(context, node, arguments(node))


def operator_of(context: Context, node: fx.Node, torn: Set[fx.Node]) -> Operator:
    """The record of a node, closed to maps if the node is ``torn``.

    A torn node hands on memory that is written, and read afterwards by an old name. Nothing crosses
    it. If it is a map itself, it stays: others see what it writes in place.
    """
    operator = _translate(context, node)
    if node not in torn:
        return operator
    if not isinstance(operator.role, Affine):
        return operator.closed()
    where = context.label(node)
    message = f"{where} writes into a tensor that is read by another name afterwards"
    return Unfixed(data=operator.data, reason=Reason("shared-output", where, message))


def clashes(graph: Graph, moves: Sequence[Move]) -> dict[int, Reason]:
    """The reasons why moves would make an operator read overwritten memory, by number.

    If a map goes, its input and its output become one tensor. A node that writes into one in place
    then also writes into the other. An operator that stands in the map's place makes a new tensor.
    """
    view, holders = graph.view, graph.holders
    joined: dict[tuple[fx.Node, fx.Node], int] = {}
    for number, move in enumerate(moves):
        for index in move.maps[: len(move.maps) - bool(move.stands)]:
            role = view.nodes[index].role
            assert isinstance(role, Affine)
            source = holders[view.nodes[index].inputs[role.data]]
            joined[source, graph.nodes[index]] = number
    gone = {graph.nodes[index] for move in moves for index in move.maps}
    found = {}
    for pair, writer in graph.memory.torn_by(list(joined), gone):
        number = joined[pair]
        label = view.nodes[moves[number].maps[-1]].label
        message = f"without {label}, {writer.name} would write into a tensor that is read elsewhere"
        found[number] = Reason("shared-output", label, message)
    return found


def written(graph: Graph, view: View, move: Move, standing: Standing) -> Sequence[str]:
    """The types of PyTorch's operators for one that a move leaves; see `Standing`."""
    if standing.op == "BatchNormalization":
        return (view.nodes[standing_batch_norm(graph.readings, move)].op,)
    if standing.op == "Conv":
        shape = view.values[view.nodes[move.maps[-1]].outputs[0]].shape or ()
        return (f"conv{len(shape) - 2}d",)
    return {"Mul": ("mul",), "ScaleShift": ("mul", "add")}.get(standing.op, ("add",))


def path_of(node: fx.Node) -> str:
    """The innermost module that a node belongs to, "" for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def paths_of(node: fx.Node) -> list[str]:
    """All modules that a node belongs to, innermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()][::-1]


def labels_of(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """The user's name for each node: its module, and the node too if the module has several."""
    count = Counter(path_of(node) for node in nodes)
    return {
        node: path
        if (path := path_of(node)) and count[path] == 1
        else f"{path}: {node.name}"
        if path
        else node.name
        for node in nodes
    }


def _put_out(graph: fx.Graph) -> dict[fx.Node, Reason]:
    """The reasons why the outputs of a program may not change."""
    output = next(node for node in graph.nodes if node.op == "output")
    return {
        node: Reason("graph-output", node.name, f"{node.name} is an output of the model")
        for node in output.all_input_nodes
    }


def _hooked(
    nodes: tuple[fx.Node, ...], modules: dict[str, nn.Module], labels: dict[fx.Node, str]
) -> dict[fx.Node, Reason]:
    """The reasons why tensors that a module's hooks see may not change.

    A forward pre-hook sees the inputs of its module. Other hooks see inputs and outputs. For a norm
    only the outputs count for other hooks: the norm itself may go, and its input then changes.
    """
    pinned = {}
    for path, module in modules.items():
        after = bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
        before = (after and not isinstance(module, _BatchNorm | _InstanceNorm)) or any(
            not isinstance(hook, WeightNorm | SpectralNorm)
            for hook in module._forward_pre_hooks.values()
        )
        if not path or not (after or before):
            continue
        inside = {node for node in nodes if path in paths_of(node)}
        reason = Reason("shared-output", path, f"a hook on {path} sees it")
        for node in nodes:
            leaves = node in inside and any(user not in inside for user in node.users)
            enters = node not in inside and any(user in inside for user in node.users)
            if (after and leaves) or (before and enters):
                pinned[node] = reason
    return pinned
