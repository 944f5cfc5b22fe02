"""Merge the linear operators of an ONNX graph; each merge is a patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, NodeProto

from bnfold._core.operators.record import UNKNOWN
from bnfold._core.reasons import Reason
from bnfold._merge.graph import MergeGraph, Operator, Written
from bnfold._merge.merging import Merger, Replacement, Stays
from bnfold._merge.steps import LinearForm, linear_form
from bnfold._merge.sums import Joined
from bnfold._onnx.merge.merged import Made, made
from bnfold._onnx.merge.patch import Patch, lay
from bnfold._onnx.read.constants import Constants
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.graph import Graph, read_graph, read_on, translate
from bnfold._onnx.read.scopes import Names, Scope, label, read_scopes, typed
from bnfold._onnx.read.shapes import infer
from bnfold._system.records import record


@record(frozen=True)
class Network:
    """A whole model as read.

    ``base_dir`` is the folder of its external data. ``merges`` has an entry for each graph. Scopes
    and graphs are those after merging. The model itself is not changed.
    """

    model: ModelProto
    base_dir: Path | None
    scopes: tuple[Scope, ...]
    graphs: tuple[Graph, ...]
    names: Names
    merges: tuple[Merges, ...]
    equal_dims: bool = False


def read(model: ModelProto, base_dir: Path | None, equal_dims: bool = False) -> Network:
    """Read every graph of a model. Large weights are loaded only for operators that merge.

    ``equal_dims`` is as in `shapes.infer`. Raises `UsageError` on cycles.
    """
    scopes = read_scopes(model)
    shapes = infer(model, scopes, equal_dims)
    constants = Constants(base_dir, shapes)
    names = Names(model, scopes)
    found = [_read_merged(Context(scope, constants, shapes), names) for scope in scopes]
    merged, merges = (tuple(part) for part in zip(*found, strict=True))
    return Network(model, base_dir, tuple(scopes), merged, names, merges, equal_dims)


def _read_merged(context: Context, names: Names) -> tuple[Graph, Merges]:
    """One graph after its linear operators are merged, and the merges."""
    graph = read_graph(context)
    merges = merge(graph, names)
    return (reread(graph, merges.patches) if merges.patches else graph), merges


# From this opset on operands broadcast as NumPy's do (ONNX Add-7).
_SINCE = 7


@record(frozen=True)
class Merges:
    """The merges of one graph, in order, and the operators that stay."""

    patches: tuple[Patch, ...] = ()
    stays: tuple[Stays, ...] = ()


def merge(graph: Graph, names: Names) -> Merges:
    """Merge in one graph, and change its scope and constants. Nothing merges below opset 7."""
    if graph.context.opset < _SINCE:
        return Merges()
    writer = _PatchWriter(graph, names)
    merger = Merger(MergeGraph(graph.view, writer.describe), writer)
    merger.run()
    return Merges(tuple(writer.patches), tuple(merger.stays.values()))


def reread(graph: Graph, patches: Sequence[Patch]) -> Graph:
    """The graph as it is once patches are laid."""
    nodes = [graph.scope.graph.node[position] for patch in patches for position in patch.nodes]
    nodes += [node for patch in patches for node in patch.nodes.values() if node is not None]
    positions = {position for patch in patches for position in patch.nodes}
    names = {name for node in nodes for name in (*node.input, *node.output) if name}
    return read_on(graph, positions, names)


class _PatchWriter:
    """Tells what the operators of a graph compute, and makes a patch for each replacement.

    Positions in a patch are those of the nodes in the file.
    """

    def __init__(self, graph: Graph, names: Names) -> None:
        self.context = graph.context
        self.scope = graph.scope
        self.names = names
        self.patches: list[Patch] = []
        self._positions = graph.positions
        self._places = {position: place for place, position in enumerate(graph.positions)}
        self._records = list(graph.records)
        self._made: set[str] = set()

    def describe(self, place: int) -> LinearForm:
        """What the operator at a place of the view computes now."""
        return linear_form(self._records[place])

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that the model does not use."""
        return self.names.fresh(wanted)

    def write(self, replacement: Replacement) -> Written | Reason | None:
        """Make a patch and lay it. Gives what has changed, or why the weights cannot be stored.

        Gives None if only an operand of a Sum would go, and no operator.
        """
        new, context = replacement, self.context
        nodes: dict[int, NodeProto | None] = dict.fromkeys(self._positions[p] for p in new.gone)
        if new.output != new.like:
            context.add(new.output, [new.like])
        for place, joined in new.joined.items():
            position = self._positions[place]
            nodes[position] = _joining(self.scope.nodes[position], joined)
            if joined is not None and joined.output not in self.scope.producers:
                context.add(joined.output, joined.operands)
        weighted = [(self._positions[place], taken) for place, taken in new.weighted]
        slots = [self._positions[place] for place in new.slots]
        one = made(
            context, self.names, self._made, new.kernel, weighted, new.source, slots, new.output
        )
        if isinstance(one, Reason):
            return one
        if sum(node is not None for node in {**nodes, **one.nodes}.values()) == len(nodes):
            return None
        return self._written(self._lay(new.law, one, nodes))

    def _lay(self, law: str, one: Made, nodes: Mapping[int, NodeProto | None]) -> Patch:
        scope, now = self.scope, {**nodes, **one.nodes}
        source = one.nodes[one.into].input[0]
        retyped = _typed_like(scope, now, source)
        left = {label(node) for node in now.values() if node is not None}
        old = [(label(scope.nodes[p]), scope.nodes[p].op_type) for p in now]
        gone = tuple(one for one in old if one[0] not in left)
        patch = Patch(scope.path, law, one.into, {**now, **retyped}, one.constants, gone)
        lay(patch, scope, self.context.constants)
        self._made.update(patch.constants)
        self.patches.append(patch)
        return patch

    def _written(self, patch: Patch) -> Written:
        """The changes of a patch in neutral form, with its operators read again."""
        operators: dict[int, Operator | None] = {}
        names: set[str] = set()
        for position, node in patch.nodes.items():
            place = self._places[position]
            if node is None:
                operators[place], self._records[place] = None, UNKNOWN
                continue
            taken = typed(node)
            reads = tuple("" if k in taken else name for k, name in enumerate(node.input))
            writes = tuple(filter(None, node.output))
            operators[place] = Operator(label(node), node.op_type, reads, writes)
            self._records[place] = translate(self.context, node)
            names.update(filter(None, (*reads, *writes)))
        shapes = {name: self.context.shape(name) for name in names}
        return Written(self._places[patch.into], operators, shapes)


def _joining(node: NodeProto, joined: Joined | None) -> NodeProto | None:
    """A copy of a node that adds or subtracts the operands that are left."""
    if joined is None:
        return None
    new = NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.input.extend(joined.operands)
    new.output[0] = joined.output
    if joined.minus:
        new.op_type = "Sub"
    elif node.op_type == "Sub":
        new.op_type = "Add"
    return new


def _typed_like(
    scope: Scope, nodes: Mapping[int, NodeProto | None], source: str
) -> dict[int, NodeProto]:
    """New nodes for those that take the element type of a tensor that vanishes, by position.

    They take the type of ``source`` instead: linear operators read and write one type.
    """
    made = {name for node in nodes.values() if node is not None for name in node.output}
    vanished = {name for position in nodes for name in scope.nodes[position].output} - made
    found = {}
    for name in sorted(vanished):
        for position in scope.readers.get(name, ()):
            node = scope.nodes[position]
            for number in typed(node) if position not in nodes else ():
                if node.input[number] == name:
                    found[position] = NodeProto()
                    found[position].CopyFrom(node)
                    found[position].input[number] = source
    return found
