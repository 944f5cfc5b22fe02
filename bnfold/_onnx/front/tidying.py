"""Takes operators out of a model that hand on what they read: Identity, Dropout, Cast to the same.

Whoever read what one puts out reads what it read. A graph's outputs keep their names: there the
operator ahead gets the name, if nobody outside of the graph knows it by its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from bnfold._onnx.front.permuting import drop_unread
from bnfold._onnx.read.attributes import integer
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope, bodies, defined, read_scopes
from bnfold._onnx.read.shapes import Shapes, infer

_OF_INPUTS = 12
"""The opset from which on a Dropout's training mode is an input (ONNX, Changelog, Dropout-12)."""
_OF_INFERENCE = 7
"""The opset from which on a Dropout is one of inference (Dropout-7)."""


def tidy(model: ModelProto, base_dir: Path | None) -> dict[str, int]:
    """Take out what does nothing, in the main graph and all bodies, in place: how many by type.

    A model with training information or quantization notes stays as it is: these know tensors by
    their names.
    """
    if model.training_info or model.graph.quantization_annotation:
        return {}
    scopes = read_scopes(model)
    shapes = infer(model, scopes)
    tidier = _Tidier(scopes, shapes, Constants(base_dir, shapes))
    tidier.graph(model.graph, {})
    drop_unread(model, tidier.read)
    return dict(sorted(tidier.gone.items()))


class _Tidier:
    """Goes through a graph and its bodies."""

    def __init__(self, scopes: Sequence[Scope], shapes: Shapes, constants: Constants) -> None:
        self.gone: Counter[str] = Counter()
        self.read: set[str] = set()
        self._scopes = {id(scope.graph): scope for scope in scopes}
        self._ambiguous = set(_ambiguous(scopes))
        self._shapes = shapes
        self._constants = constants

    def graph(self, graph: GraphProto, outer: Mapping[str, str]) -> None:
        """Tidy a graph. ``outer`` has for names around it those that stand for them now."""
        scope = self._scopes[id(graph)]
        instead = {old: new for old, new in outer.items() if not scope.defines(old)}
        outputs = {value.name for value in graph.output}
        named: dict[str, str] = {}
        gone = []
        for position, node in enumerate(graph.node):
            nothing = self._does_nothing(scope, node)
            _read(node, instead)
            if nothing:
                source, made = node.input[0], node.output[0]
                if {source, made} & self._ambiguous:
                    nothing = False
                elif made not in outputs:
                    instead[made] = source
                elif source in scope.producers and source not in outputs | named.keys():
                    named[source] = made
                else:
                    nothing = False
            if nothing:
                gone.append(position)
                self.gone[node.op_type] += 1
                self.read.update(node.input[1:])
            for _, body in bodies(node):
                self.graph(body, instead)
        for position in reversed(gone):
            del graph.node[position]
        _rename(graph, named)
        _move_notes(graph, scope, instead, named)

    def _does_nothing(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node's only output is its first input, whatever that is."""
        kind = scope.kind(node)
        if not (any(node.input[:1]) and any(node.output[:1])):
            return False
        if kind == "Identity":
            return True
        if kind == "Cast":
            before = self._shapes.type(scope, node.input[0])
            return before != 0 and before == integer(node, "to", 0)
        return kind == "Dropout" and not any(node.output[1:]) and self._rests(scope, node)

    def _rests(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a Dropout drops nothing, because it does not train."""
        if scope.opset < _OF_INFERENCE:
            return integer(node, "is_test", 0) == 1
        if scope.opset < _OF_INPUTS or len(node.input) < 3 or not node.input[2]:
            return True
        mode = self._constants.find(scope, node.input[2])
        return isinstance(mode, Constant) and mode.protected is None and not mode.load().any()


def _ambiguous(scopes: Sequence[Scope]) -> Iterator[str]:
    """The names that a body has for a tensor of its own and a graph around it for another one, and
    those of tensors around a body that the body puts out as they are.
    """
    for scope in scopes:
        if scope.parent is None or isinstance(scope.graph, FunctionProto):
            continue
        own = defined(scope.graph)
        yield from (name for name in own if scope.parent.owner(name) is not None)
        yield from (name for name in scope.outputs if name not in own)


def _move_notes(
    graph: GraphProto, scope: Scope, instead: Mapping[str, str], named: Mapping[str, str]
) -> None:
    """Let the note on a tensor that is gone be on what it was, if that has none; else it goes."""
    noted = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    for number in reversed(range(len(graph.value_info))):
        value = graph.value_info[number]
        new = instead.get(value.name)
        if new is not None and new in scope.producers and new not in noted | named.keys():
            noted.add(new)
            value.name = new
        elif new is not None or value.name in named:
            del graph.value_info[number]


def _read(node: NodeProto, instead: Mapping[str, str]) -> None:
    for number, name in enumerate(node.input):
        node.input[number] = instead.get(name, name)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of a graph other names, wherever they are written or read."""
    if not names:
        return
    for node in graph.node:
        _read(node, names)
        for number, name in enumerate(node.output):
            node.output[number] = names.get(name, name)
        for _, body in bodies(node):
            own = defined(body)
            _rename(body, {old: new for old, new in names.items() if old not in own})
