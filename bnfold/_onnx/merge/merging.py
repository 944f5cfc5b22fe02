"""Merge linear operators of a graph of ONNX, laid down as patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from bnfold._core.operators.record import Operator
from bnfold._core.reasons import Reason
from bnfold._merge.merging import Merger, Replacement, Stays
from bnfold._merge.sums import Joined
from bnfold._onnx.merge.merged import Made, made
from bnfold._onnx.merge.patch import Patch, lay
from bnfold._onnx.merge.wiring import Wiring
from bnfold._onnx.names import Names
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import Scope, label, reads_type

# From this opset on operands broadcast as NumPy's do (ONNX Add-7).
_SINCE = 7


@dataclass(frozen=True)
class Merges:
    """What merged in one graph, in the order in which it did, and what did not."""

    patches: tuple[Patch, ...] = ()
    stays: tuple[Stays, ...] = ()


def merge(
    context: Context, operators: Mapping[int, Operator], order: Sequence[int], names: Names
) -> Merges:
    """Merge in one graph, whose ``operators`` are given by position; ``context`` follows.

    ``order`` lists positions, every producer before its readers. Nothing merges below opset 7.
    """
    if context.opset < _SINCE:
        return Merges()
    wiring = Wiring(context, dict(operators))
    writer = _PatchWriter(wiring, names)
    merger = Merger(wiring, writer, order)
    for position in order:
        merger.visit(position)
    return Merges(tuple(writer.patches), tuple(merger.stays.values()))


class _PatchWriter:
    """Lays each replacement down as a patch."""

    def __init__(self, wiring: Wiring, names: Names) -> None:
        self.wiring = wiring
        self.names = names
        self.patches: list[Patch] = []

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that the model does not use."""
        return self.names.fresh(wanted)

    def write(self, replacement: Replacement) -> int | Reason | None:
        """Lay a patch; where its operator stands, or why the weights cannot be stored. None where
        of a Sum one operand would go, and no operator.
        """
        wiring, new = self.wiring, replacement
        nodes: dict[int, NodeProto | None] = dict.fromkeys(new.gone)
        if new.output != new.like:
            wiring.context.add(new.output, [new.like])
        for position, joined in new.joined.items():
            nodes[position] = _joining(wiring.node(position), joined)
            if joined is not None and wiring.writer(joined.output) is None:
                wiring.context.add(joined.output, joined.operands)
        one = made(wiring, self.names, new.kernel, new.weighted, new.source, new.slots, new.output)
        if isinstance(one, Reason):
            return one
        if sum(node is not None for node in {**nodes, **one.nodes}.values()) == len(nodes):
            return None
        self._lay(new.law, one, nodes)
        return one.into

    def _lay(self, law: str, one: Made, nodes: Mapping[int, NodeProto | None]) -> None:
        scope, now = self.wiring.scope, {**nodes, **one.nodes}
        source = one.nodes[one.into].input[0]
        typed = _typed_like(scope, now, source)
        left = {label(node) for node in now.values() if node is not None}
        old = [(label(scope.nodes[p]), scope.nodes[p].op_type) for p in now]
        gone = tuple(one for one in old if one[0] not in left)
        patch = Patch(scope.path, law, one.into, {**now, **typed}, one.constants, gone)
        lay(patch, scope, self.wiring.context.constants)
        self.wiring.made |= patch.constants.keys()
        for position in patch.nodes:
            self.wiring.reread(position)
        self.patches.append(patch)


def _joining(node: NodeProto, joined: Joined | None) -> NodeProto | None:
    """An operator like another one that adds or subtracts what is left of its operands."""
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
    """Nodes that take the element type of a tensor which vanishes, reading that of another one: all
    that linear operators read and write is of one type.
    """
    made = {name for node in nodes.values() if node is not None for name in node.output}
    vanished = {name for position in nodes for name in scope.nodes[position].output} - made
    found = {}
    for name in sorted(vanished):
        for position in scope.readers.get(name, ()):
            if position not in nodes and reads_type(scope.nodes[position], name):
                found[position] = NodeProto()
                found[position].CopyFrom(scope.nodes[position])
                found[position].input[1] = source
    return found
