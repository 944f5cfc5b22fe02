"""Puts an input's preprocessing in front of a model, as operators.

`prepend` writes it down as it is defined: Cast, Transpose, Gather, Mul or Div, Sub, Div. That model
is what a folded one is compared with. `enter` writes the same function with fewer operators where
it can: the order of channels goes into weights (`permuting`), and a Transpose that the model begins
with becomes one with that of the layout, or both go. All else is for the planner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper

from bnfold._core.preprocessing import Pairs
from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.files.external import external_files, free_name, link
from bnfold._onnx.files.load import in_binary, load_model, understood
from bnfold._onnx.front.permuting import Moved, Stays, moved
from bnfold._onnx.front.ports import Port, changed, resolved
from bnfold._onnx.read.attributes import integers
from bnfold._onnx.read.scopes import (
    Names,
    Scope,
    bodies,
    copy_of,
    defined,
    read_scopes,
    type_of,
)
from bnfold._system import scratch
from bnfold._system.records import record

Array = NDArray[Any]
_WITH_INITIALIZERS = 4
"""The version of the IR from which on an initializer need not be an input."""


@record
class Entered:
    """What was done for one input, beside the operators of `prepend`.

    Attributes:
        port: the input.
        nodes: the names of the operators that were put in front of it.
        reordered: the operators whose weights have the order of channels in them, by label.
        weights: for each constant with other numbers its name and its values in `prepend`'s model.
        stays: why the order of channels is an operator; "" where it is none, or nobody asked.
        removed: how many operators of the model have gone.
    """

    port: Port
    nodes: tuple[str, ...] = ()
    reordered: Sequence[str] = ()
    weights: Mapping[str, tuple[str, Array]] = field(default_factory=dict)
    stays: str = ""
    removed: int = 0


def prepend(model: ModelProto, wanted: Mapping[str, Any]) -> None:
    """Put preprocessing in front of a model, in place, as it is defined.

    Raises `UsageError` where an input does not fit.
    """
    writer = _Writer(model, Names(model, read_scopes(model)))
    for port in resolved(model, wanted):
        writer.put(port, [port.name], port.own, port.indices, port.indices is not None)
    writer.finish()


def enter(model: ModelProto, wanted: Mapping[str, Any], base_dir: Path | None) -> list[Entered]:
    """Put preprocessing in front of a model, in place, with as few operators as it can.

    The result is the function that `prepend` gives. Raises `UsageError` where an input does not
    fit.
    """
    told, names = [], Names(model, read_scopes(model))
    for port in resolved(model, wanted):
        scope = read_scopes(model)[0]
        readers, layout = _behind_transposes(scope, port)
        done = Entered(port, removed=len(readers))
        read = [scope.nodes[position].output[0] for position in readers] or [port.name]
        gather = port.indices is not None
        if port.indices is not None:
            axis, rank = layout.index("c"), len(layout)
            found = moved(model, read, axis, rank, port.indices, base_dir, names)
            if isinstance(found, Moved):
                done.reordered, done.weights, gather = found.labels, found.weights, False
            else:
                assert isinstance(found, Stays)
                done.stays = found.why
        writer = _Writer(model, names)
        for position in reversed(readers):
            del model.graph.node[position]
        done.nodes = writer.put(port, read, layout, port.indices, gather, brief=True)
        done.weights = {**done.weights, **writer.entered}
        writer.finish()
        told.append(done)
    return told


def _behind_transposes(scope: Scope, port: Port) -> tuple[list[int], str]:
    """The Transposes that are all that reads an input, and the layout behind them.

    All have to turn it alike, and none may be an output of the model. Without a change of layout
    they stay as they are: then there is nothing to save.
    """
    plain: tuple[list[int], str] = ([], port.own)
    if not port.own or port.own == port.given or port.name in scope.captures:
        return plain
    readers = sorted(set(scope.readers.get(port.name, ())))
    nodes = [scope.nodes[position] for position in readers]
    if not nodes or any(type_of(node) != "Transpose" for node in nodes):
        return plain
    if any(node.output[0] in scope.outputs for node in nodes):
        return plain
    turns = {tuple(integers(node, "perm") or reversed(range(len(port.own)))) for node in nodes}
    if len(turns) > 1:
        return plain
    return readers, "".join(port.own[axis] for axis in turns.pop())


class _Writer:
    """Puts operators in front of all others of a model."""

    def __init__(self, model: ModelProto, names: Names) -> None:
        self._model = model
        self._names = names
        self.entered: dict[str, tuple[str, Array]] = {}
        self._stored: dict[str, Array] = {}
        self._first: list[NodeProto] = []

    def put(
        self,
        port: Port,
        readers: Sequence[str],
        layout: str,
        indices: tuple[int, ...] | None,
        gather: bool,
        brief: bool = False,
    ) -> tuple[str, ...]:
        """Write an input's preprocessing. What read one of ``readers`` reads what it makes.

        ``layout`` is that of these. With ``gather`` an operator brings channels in the network's
        order; otherwise they stay in the input's. Gives the names of the operators.
        """
        value, start = port.name, len(self._first)
        if port.given_kind != port.kind:
            value = self._node("Cast", [value], port, "type", to=port.kind)
        perm = port.perm(layout) if layout else None
        if perm is not None:
            value = self._node("Transpose", [value], port, "layout", perm=perm)
        axis = layout.index("c") if layout else 0
        if indices is not None and gather:
            order = self._names.fresh(f"{port.name}/channels/value")
            self._constant(np.array(indices, np.int64), order)
            value = self._node("Gather", [value, order], port, "channels", axis=axis)
        back = None if indices is None or gather else np.argsort(indices)
        rank = len(layout)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(port.kind))

        for kind, name, numbers in self._arithmetic(port, dtype, brief):
            shape = () if numbers.size == 1 else (-1, *(1,) * (rank - 1 - axis))
            if numbers.size > 1 and back is not None:
                numbers = numbers[back]
            stored = self._stored[name].reshape(shape)
            plain = self._names.fresh(f"{port.name}/{name}/value")
            made = plain
            if not np.array_equal(numbers, self._stored[name]):
                made = self._names.fresh(f"{port.name}/{name}/entered")
                self.entered[made] = plain, stored
            self._constant(numbers.astype(dtype).reshape(shape), made)
            value = self._node(kind, [value, made], port, name)
        reread(self._model.graph, dict.fromkeys(readers, value))
        notes = self._model.graph.value_info
        for number in reversed(range(len(notes))):
            if notes[number].name in readers:
                del notes[number]
        (own,) = (each for each in self._model.graph.input if each.name == port.name)
        changed(own, port)
        return tuple(node.name for node in self._first[start:] if node.name)

    def _arithmetic(
        self, port: Port, dtype: np.dtype[Any], brief: bool
    ) -> list[tuple[str, str, Array]]:
        """The operators of scale, mean and deviation, with their words and numbers.

        As defined these are ``(x·k − m) / s``, each number rounded to the type once. If ``brief``
        they are ``(x − m/k) / (s/k)`` of the rounded numbers: the shift comes first, alone.
        """
        wanted, numbers = port.wanted, dict[str, Array]()
        divisor = _divisor(wanted.scale)
        if wanted.scale != 1:
            numbers["scale"] = np.array([wanted.scale if divisor is None else divisor])
        if any(wanted.means):
            numbers["mean"] = np.asarray(wanted.means)
        if any(std != 1 for std in wanted.stds):
            numbers["std"] = np.asarray(wanted.stds)
        self._stored = {word: _stored(each, dtype, word) for word, each in numbers.items()}
        kinds = {"scale": "Mul" if divisor is None else "Div", "mean": "Sub", "std": "Div"}
        plain = [(kinds[word], word, self._stored[word]) for word in numbers]
        if not (brief and {"scale", "mean"} <= numbers.keys()):
            return plain
        held = {word: each.astype(np.float64) for word, each in self._stored.items()}
        scale = held["scale"] if divisor is None else 1.0 / held["scale"]
        rest = ("Div", "std", held["std"] / scale) if "std" in held else plain[0]
        short = [("Sub", "mean", held["mean"] / scale), rest]
        return short if all(_fits(each, dtype) for _, _, each in short) else plain

    def finish(self) -> None:
        """Put what was written ahead of all other operators."""
        graph = self._model.graph
        nodes = [*self._first, *(copy_of(node) for node in graph.node)]
        del graph.node[:]
        graph.node.extend(nodes)

    def _node(self, kind: str, inputs: list[str], port: Port, what: str, **given: Any) -> str:
        output = self._names.fresh(f"{port.name}/{what}")
        name = self._names.fresh(f"{port.name}/preprocessing/{what}")
        self._first.append(helper.make_node(kind, inputs, [output], name, **given))
        return output

    def _constant(self, values: Array, name: str) -> str:
        tensor = tensors.make(name, values)
        if self._model.ir_version >= _WITH_INITIALIZERS:
            self._model.graph.initializer.append(tensor)
        else:
            self._first.append(helper.make_node("Constant", [], [name], value=tensor))
        return name


def _stored(values: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Numbers in the network's type. Raises `UsageError` where that makes 0 or infinity of one."""
    if not _fits(values, dtype):
        raise UsageError(f"{name}: a number does not fit into {dtype.name}, which the network has")
    return values.astype(dtype)


def _fits(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether no number becomes 0 or infinite in a type."""
    with np.errstate(over="ignore", under="ignore"):
        made = values.astype(dtype).astype(np.float64)
    return bool(np.all((made == 0) == (values == 0)) and np.all(np.isfinite(made)))


def _divisor(scale: float) -> float | None:
    """A whole number to divide by, where it is the same and exact: 255 for 1/255."""
    number = round(1 / scale) if abs(scale) < 1 and np.isfinite(1 / scale) else 0
    return float(number) if number and 1 / number == scale else None


def reread(graph: GraphProto, instead: Mapping[str, str]) -> None:
    """Let every operator of a graph and of its bodies read other tensors, and notes be on these.

    A body may have a tensor of its own under such a name, which is another one: that stays.
    """
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name in instead:
                node.input[number] = instead[name]
        for _, body in bodies(node):
            own = defined(body)
            outer = {old: new for old, new in instead.items() if old not in own}
            for value in body.output:
                value.name = outer.get(value.name, value.name)
            reread(body, outer)
    for note in graph.quantization_annotation:
        note.tensor_name = instead.get(note.tensor_name, note.tensor_name)


@contextmanager
def behind(path: Path, wanted: Pairs, follow_links: bool) -> Iterator[Path]:
    """The file of a model in binary form, with preprocessing in front of it as it is defined.

    Without any it is the file itself. Raises `UsageError` as `load_model` and `prepend` do.
    """
    if not wanted:
        with in_binary(path, follow_links) as binary:
            yield binary
        return
    model = load_model(path, follow_links=follow_links)
    with understood(model, path):
        prepend(model, dict(wanted))
    with twin_of(model, path.parent) as twin:
        del model
        yield twin


@contextmanager
def twin_of(model: ModelProto, folder: Path) -> Iterator[Path]:
    """A temporary file of a model, with its external data, from a folder, beside it."""
    locations = external_files(model)
    with scratch.beside(None) as temporary:
        twin = temporary / free_name(locations)
        twin.write_bytes(model.SerializeToString())
        for name in locations:
            link(folder / name, temporary / name)
        yield twin
