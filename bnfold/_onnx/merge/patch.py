"""Replace operators in a graph as read. The protobuf is not changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from onnx import NodeProto, TensorProto

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope
from bnfold._system.records import record


@record(frozen=True)
class Patch:
    """What one merge, or dropping all maps that are found equal at once, does to a graph.

    ``path`` is that of the graph.

    ``nodes`` has by position the node that stands there now, None for none. ``constants`` are new
    constants for these nodes. Their values are float64, not yet rounded; their element type is the
    one in which they will be stored. ``into`` is the position of the new linear operator, ``law``
    the kind of merge. ``gone`` has the labels and types of the operators that vanish. ``equal`` has
    for each map that is dropped, by position, that of the map that is equal to it and stays: so an
    operator that reads many of them is copied once. ``into`` is the first of those, then.
    """

    path: str
    law: str
    into: int
    nodes: Mapping[int, NodeProto | None]
    constants: Mapping[str, Constant]
    gone: tuple[tuple[str, str], ...] = ()
    equal: Mapping[int, int] = field(default_factory=dict)


def lay(patch: Patch, scope: Scope, constants: Constants) -> None:
    """Carry out a patch: change a graph's nodes, writers, readers and constants as read."""
    for name, constant in patch.constants.items():
        stored = TensorProto(name=name, data_type=constant.data_type, dims=constant.shape)
        scope.initializers[name] = stored
        constants.add(scope, constant)
    read: dict[str, None] = {}
    for position in patch.nodes:
        old = scope.nodes[position]
        read |= dict.fromkeys(old.input)
        for name in old.output:
            if scope.producers.get(name) == position:
                del scope.producers[name]
    for name in read.keys() & scope.readers.keys():
        scope.readers[name] = [p for p in scope.readers[name] if p not in patch.nodes]
    for position, node in patch.nodes.items():
        scope.nodes[position] = NodeProto() if node is None else node
        if node is not None:
            scope.producers.update((name, position) for name in node.output if name)
    for position, node in patch.nodes.items():
        for name in node.input if node is not None else ():
            if name and scope.defines(name):
                scope.readers.setdefault(name, []).append(position)
