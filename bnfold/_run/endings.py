"""The part at the end of two models that is the same in both, and the tensors ahead of it.

An ArgMax, a mask, a sequence or random numbers at the end hide errors, or cannot be compared. Where
both models go on alike from some tensors on, they agree if these tensors do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

import onnx

from bnfold._onnx.tensors import node_tensors
from bnfold._run.nodes import drawing, own_names, reads, subgraphs


class Ahead(NamedTuple):
    """A tensor of the original, and the tensor of the folded model at the same place."""

    original: str
    folded: str


class Endings:
    """Walks back through two models as long as they are the same."""

    def __init__(self, original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
        """Take both. Large weights may be missing in them; those count as different."""
        self._sides = _Side(original), _Side(folded)
        self._same_opsets = _opsets(original) == _opsets(folded)
        self._drawing: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []

    def ahead(self, output: str) -> list[Ahead] | None:
        """The tensors from which on both models compute an output alike.

        The list is empty if they compute it alike from the inputs on. None where their last
        operators differ already.

        Operators are the same if type, attributes, bodies and functions are, and if their constants
        hold the same bytes. An Identity counts as nothing. An operator that draws numbers is the
        same as one other alone, for two of them draw other numbers: that holds across all outputs
        that were asked for.
        """
        if not self._same_opsets:
            return None
        start = Ahead(output, output)
        waiting, seen, found = [start], set[Ahead](), list[Ahead]()
        while waiting:
            pair = self._sources(waiting.pop())
            if pair in seen:
                continue
            seen.add(pair)
            inputs = self._inputs(pair)
            if inputs is None or not self._draws_alone(pair, seen):
                found.append(pair)
            else:
                waiting += inputs
        return None if self._sources(start) in found else found

    def _draws_alone(self, pair: Ahead, seen: Collection[Ahead]) -> bool:
        """Whether no other pair has one of two operators that draw numbers."""
        left, right = self._sides
        one, other = left.makers.get(pair.original), right.makers.get(pair.folded)
        if one is None or other is None or not left.draws(one):
            return True
        makers = [(left.makers.get(each.original), right.makers.get(each.folded)) for each in seen]
        is_alone = all((a is one) == (b is other) for a, b in [*makers, *self._drawing])
        if is_alone:
            self._drawing.append((one, other))
        return is_alone

    def _sources(self, pair: Ahead) -> Ahead:
        left, right = self._sides
        return Ahead(left.source(pair.original), right.source(pair.folded))

    def _inputs(self, pair: Ahead) -> list[Ahead] | None:
        """What the makers of two tensors read, if the makers are the same, else None."""
        left, right = self._sides
        one, other = left.makers.get(pair.original), right.makers.get(pair.folded)
        if one is None or other is None:
            return [] if one is other and self._same_origin(pair) else None
        if left.form(one, pair.original) != right.form(other, pair.folded):
            return None
        captured = left.captured(one) | right.captured(other)
        pairs = [Ahead(*names) for names in zip(one.input, other.input, strict=True) if all(names)]
        pairs += [Ahead(name, name) for name in sorted(captured)]
        captures = [pair for pair in pairs if pair.original in captured]
        stored = [n for n in captures if left.is_stored(n.original) or right.is_stored(n.folded)]
        if not self.same_constants(one, other) or not all(map(self._same_origin, stored)):
            return None
        return pairs

    def same_constants(self, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
        """Whether two operators, one of each model, read the same stored constants."""
        left, right = self._sides
        pairs = [Ahead(*names) for names in zip(one.input, other.input, strict=False)]
        return len(one.input) == len(other.input) and all(
            self._same_origin(pair)
            for pair in pairs
            if left.is_stored(pair.original) or right.is_stored(pair.folded)
        )

    def _same_origin(self, pair: Ahead) -> bool:
        left, right = self._sides
        origin = left.origin(pair.original)
        return origin is not None and origin == right.origin(pair.folded)


Functions: TypeAlias = Mapping[tuple[str, str, str], object]


def stored_functions(model: onnx.ModelProto) -> Functions:
    """The local functions of a model, by domain, name and overload.

    What stands for one equals what stands for another only if both are the same.
    """
    return {
        (each.domain, each.name, each.overload): object()
        if any(map(_is_external, node_tensors(each.node)))
        else each.SerializeToString(deterministic=True)
        for each in model.functions
    }


def operator_form(node: onnx.NodeProto, functions: Functions) -> tuple[object, ...]:
    """What two operators of two models have to share to be the same.

    An operator with bodies, or a call, needs all functions to be the same. An operator whose data
    lie in other files is never the same.
    """
    if any(map(_is_external, node_tensors([node]))):
        return (object(),)
    key = node.domain, node.op_type, node.overload
    inner = any(True for _ in subgraphs(node)) or key in functions
    attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
    return key, functions if inner else None, attributes, [bool(name) for name in node.input]


class _Side:
    """One of the two models.

    Attributes:
        makers: who makes a tensor of the main graph, by its name.
        draws: tells whether a node draws random numbers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.makers = dict[str, onnx.NodeProto]()
        for node in graph.node:
            self.makers |= dict.fromkeys(filter(None, node.output), node)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = {value.name for value in graph.input}
        self._functions = stored_functions(model)
        self._sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.draws = drawing(model)

    def source(self, name: str) -> str:
        """The tensor that a name stands for, ahead of any Identity."""
        while (node := self.makers.get(name)) is not None and _is_identity(node):
            name = node.input[0]
        return name

    def is_stored(self, name: str) -> bool:
        name = self.source(name)
        return name in self._stored or name in self._sparse

    def origin(self, name: str) -> object:
        """What tells a tensor that no operator makes from others, None where nothing does."""
        name = self.source(name)
        given, tensor = name if name in self._inputs else "", self._stored.get(name)
        if tensor is None:
            return (given, b"") if given and name not in self._sparse else None
        if _is_external(tensor):
            return None
        unnamed = onnx.TensorProto()
        unnamed.CopyFrom(tensor)
        unnamed.ClearField("name")
        unnamed.ClearField("doc_string")
        return given, unnamed.SerializeToString(deterministic=True)

    def form(self, node: onnx.NodeProto, output: str) -> tuple[object, ...]:
        """What two operators have to share, if these outputs of them are to be the same."""
        return *operator_form(node, self._functions), list(node.output).index(output)

    def captured(self, node: onnx.NodeProto) -> set[str]:
        """The tensors of the main graph that the bodies of a node read."""
        names = set[str]()
        for body in subgraphs(node):
            inner = {name for each in body.node for name in reads(each)}
            names |= (inner | {value.name for value in body.output}) - own_names(body)
        return {name for name in names if name in self.makers or self.origin(name) is not None}


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _is_identity(node: onnx.NodeProto) -> bool:
    return node.op_type == "Identity" and node.domain in ("", "ai.onnx")


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    plain = {"ai.onnx": ""}
    return {plain.get(each.domain, each.domain): each.version for each in model.opset_import}
