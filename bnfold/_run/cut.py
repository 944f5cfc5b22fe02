"""Cuts a model at operators that do not run: what they read it puts out, what they write it takes.

Two models agree if the same unknown operators read the same in both, and if both do the same with
what these write. What they write is drawn then, alike for both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from bnfold._onnx.read.scopes import label, read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._run.endings import operator_form, stored_functions
from bnfold._run.hints import Hints
from bnfold._run.hoist import rename
from bnfold._run.nodes import all_nodes, reads

_PLACES = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1}
"""The input of an operator that holds indices."""


class Written(NamedTuple):
    """A tensor that an operator writes: the name of the input in its place, its type and shape."""

    alias: str
    element: int
    shape: tuple[int | None, ...] | None


class CutNode(NamedTuple):
    """An operator to cut out: its first output, and the names of what it reads and writes.

    The names are those of new outputs and inputs of the model. ``read`` maps them to tensors.
    """

    output: str
    read: Sequence[tuple[str, str]]
    written: Sequence[Written]


@dataclass(frozen=True)
class Cut:
    """Cuts some operators out of a main graph.

    ``like`` gives tensors, by the alias of what is written, whose shape the run itself tells: an
    operator draws that as it runs, and no input takes its place.
    """

    nodes: Sequence[CutNode]
    like: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[str]:
        """The names of the new inputs."""
        found = [each.alias for node in self.nodes for each in node.written]
        return [alias for alias in found if alias not in self.like]

    def __call__(self, model: onnx.ModelProto) -> None:
        """Cut, in place. An output of the model that such an operator writes is left out."""
        graph = model.graph
        cut = {node.output: node for node in self.nodes}
        kept, renamed, gone = [], list[tuple[str, str]](), set[str]()
        taps = [pair for node in self.nodes for pair in node.read]
        for node in graph.node:
            found = cut.get(next(filter(None, node.output), ""))
            if found is None:
                kept.append(node)
                continue
            outputs = [name for name in node.output if name]
            gone.update(outputs)
            for name, written in zip(outputs, found.written, strict=True):
                renamed.append((name, written.alias))
                if written.alias in self.like:
                    like = [self.like[written.alias]]
                    kept.append(helper.make_node("RandomNormalLike", like, [written.alias]))
                else:
                    graph.input.append(helper.make_tensor_value_info(*written))
        for alias, name in taps:
            kept.append(helper.make_node("Identity", [name], [alias]))
        outputs_left = [value for value in graph.output if value.name not in gone]
        values_left = [value for value in graph.value_info if value.name not in gone]
        for values, items in (
            (graph.node, kept),
            (graph.output, outputs_left),
            (graph.value_info, values_left),
        ):
            del values[:]
            values.extend(items)
        for old, new in renamed:
            rename(graph, old, new)
        for alias, _ in taps:
            graph.output.add(name=alias)


def cuts(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    kinds: Collection[tuple[str, str]],
    alike: bool = False,
) -> tuple[Cut, Cut] | None:
    """How to cut two models at all operators of some kinds, given by domain and type.

    With ``alike``, what an operator writes has the shape of the first float that it reads, where
    its sizes are not known.

    An operator whose bodies, or a call whose function, holds such an operator is cut out itself.
    None where the two do not have the same ones, with the same attributes, bodies and functions.
    """
    ours, theirs = (list(_nodes(model, kinds)) for model in (original, folded))
    by_name = {node.output[0]: node for node in theirs}
    in_order = [node.output[0] for node in theirs] == [node.output[0] for node in ours]
    if alike and not in_order:
        return None
    if by_name.keys() == {node.output[0] for node in ours}:
        theirs = [by_name[node.output[0]] for node in ours]
    if not ours or _forms(original, ours) != _forms(folded, theirs):
        return None
    if _put_out(original, ours) != _put_out(folded, theirs):
        return None
    typed = _Types(original)
    names = _unique([label(node) for node in ours])
    left, right = list[CutNode](), list[CutNode]()
    likes: tuple[dict[str, str], dict[str, str]] = {}, {}
    for name, one, other in zip(names, ours, theirs, strict=True):
        captured = sorted({*reads(one)} & typed.names - {*one.input})
        if captured != sorted({*reads(other)} & typed.names - {*other.input}):
            return None
        written = [
            Written(f"output {n} of {name}", *typed.of(tensor, one))
            for n, tensor in enumerate(one.output)
            if tensor
        ]
        for found, node in ((left, one), (right, other)):
            read = [(f"input {n} of {name}", t) for n, t in enumerate(node.input) if t]
            read += [(f"{t} in {name}", t) for t in captured]
            found.append(CutNode(next(filter(None, node.output)), read, written))
        place = typed.first_float(one)
        for each in written if alike and place is not None else ():
            if each.element in _FLOATS and (each.shape is None or None in each.shape):
                likes[0][each.alias], likes[1][each.alias] = one.input[place], other.input[place]
    return Cut(left, likes[0]), Cut(right, likes[1])


def _holding(
    model: onnx.ModelProto, kinds: Collection[tuple[str, str]]
) -> list[onnx.FunctionProto]:
    """The local functions that hold an operator of some kinds, also through other functions."""
    found, more = list[onnx.FunctionProto](), True
    while more:
        calls = {(function.domain, function.name) for function in found}
        wanted = {*kinds, *calls}
        new = [
            function
            for function in model.functions
            if function not in found and any(_is(node, wanted) for node in all_nodes(function.node))
        ]
        more = bool(new)
        found += new
    return found


def _nodes(model: onnx.ModelProto, kinds: Collection[tuple[str, str]]) -> Iterator[onnx.NodeProto]:
    calls = {(function.domain, function.name) for function in _holding(model, kinds)}
    wanted = {*kinds, *calls}
    for node in model.graph.node:
        if any(_is(inner, wanted) for inner in all_nodes([node])):
            yield node


def _put_out(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[int | None]:
    """For each output of some nodes, which output of the model it is."""
    places = {value.name: n for n, value in enumerate(model.graph.output)}
    return [places.get(name) for node in nodes for name in node.output]


def _is(node: onnx.NodeProto, kinds: Collection[tuple[str, str]]) -> bool:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type) in kinds


def _forms(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[object]:
    """What some operators of two models have to share to be the same."""
    functions = stored_functions(model)
    return [(operator_form(n, functions), [bool(name) for name in n.output]) for n in nodes]


def _unique(labels: Sequence[str]) -> list[str]:
    return [f"{each} ({n})" if labels.count(each) > 1 else each for n, each in enumerate(labels)]


class _Types:
    """The types and shapes of tensors that unknown operators write, as far as they can be told."""

    def __init__(self, model: onnx.ModelProto) -> None:
        scopes = read_scopes(model)
        (self._main,) = (scope for scope in scopes if not scope.path)
        self._shapes = infer(model, scopes)
        self._hints = Hints(model.graph)
        self._graph = model.graph
        self.names = {value.name for value in model.graph.input}
        self.names |= {tensor.name for tensor in model.graph.initializer}
        self.names |= {name for node in model.graph.node for name in node.output}

    def of(self, tensor: str, node: onnx.NodeProto) -> tuple[int, tuple[int | None, ...] | None]:
        """The element type and the shape of a tensor that a node writes.

        A tensor that says nothing has the type and shape of the first float that the node reads. An
        operator that reads it may tell more: a Conv its rank and channels, a Gather that it holds
        indices.
        """
        element = self._shapes.type(self._main, tensor)
        shape = self._shapes.shape(self._main, tensor)
        place = self.first_float(node)
        like = node.input[place] if place is not None else next(filter(None, node.input), None)
        if not element:
            element = TensorProto.FLOAT
            if place is not None:
                element = self._shapes.type(self._main, node.input[place])
            if any(
                tensor in user.input and list(user.input).index(tensor) == _PLACES.get(user.op_type)
                for user in self._graph.node
            ):
                element = TensorProto.INT64
        if shape is None and like is not None and self._hints.rank(tensor) is None:
            shape = self._shapes.shape(self._main, like)
        return element, shape

    def first_float(self, node: onnx.NodeProto) -> int | None:
        """The number of the first input of a node that is known to hold floats."""
        types = [self._shapes.type(self._main, name) if name else 0 for name in node.input]
        return next((place for place, each in enumerate(types) if each in _FLOATS), None)


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
