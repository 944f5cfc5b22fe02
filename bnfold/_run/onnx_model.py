"""The original, loaded once, with weights that a run may move.

A stored weight becomes the default of an input. Since IR version 4 a caller may override it (ONNX
IR specification, "Graph inputs and initializers"). The weight of a Constant becomes an initializer
first, which means the same. A weight that operators make of constants is computed once, by the
engine itself, and given to every run.

So one session gives both the right outputs and their rounding, and bnfold computes neither.

A session holds what it loads in its own memory, besides the bytes that it is given. So the large
weights of a lean model (`files/lean`) are not among these bytes: they are inputs without a default.
Their bytes go from the file into arrays, and every run gets these arrays. A run that gets other
numbers for such a weight needs no array of it, and none is kept meanwhile.

Layers may share a weight through Identity nodes. It is in memory once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper

from bnfold._onnx.files.lean import Reader, serialize_whole, taken_apart
from bnfold._onnx.read.scopes import label
from bnfold._onnx.tensors import external_location, is_own, let_go
from bnfold._run.bounds import Bounds
from bnfold._run.input_sets import Port
from bnfold._run.nodes import Flow, reads, subgraphs
from bnfold._run.noise import Array, can_move
from bnfold._run.perturbable_model import Layer
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source

if TYPE_CHECKING:
    from bnfold._run.reference import Reference

    Engine: TypeAlias = type[OnnxRuntime] | type[Reference]

_OVERRIDABLE = 4
"""The first IR version in which initializers are defaults that may be overridden."""


class OnnxModel:
    """An ONNX model whose weights may be moved; see `PerturbableModel`.

    Attributes:
        weights: the weights that can be moved, by name, with the model's own numbers.
        graph: the graph, without the nodes that made those weights.
        inputs: the inputs of the model itself.
        outputs: its outputs.
    """

    def __init__(
        self,
        source: Source,
        model: onnx.ModelProto,
        weights: Mapping[str, Array | None],
        engine: Engine,
        bounds: Bounds,
    ) -> None:
        """Load a model. ``model`` is the structure of ``source``; it is changed.

        A weight can be moved if three things hold: the main graph stores it or computes it from
        constants, it is no output, and `Noise` can move it. ``weights`` must give the numbers of
        every stored weight.

        Raises:
            EngineError: it does not load.
            Exhausted: time is up, or memory has run out.
        """
        self._source = source
        self._engine = engine
        self._bounds = bounds
        kept = {value.name for value in model.graph.output}
        wanted = {
            name: array
            for name, array in weights.items()
            if name not in kept and (array is None or can_move(array))
        }
        changed = source.hoisted
        if not wanted.keys() <= {tensor.name for tensor in model.graph.initializer}:
            changed = True
            _store(model.graph, wanted)
        stored = {tensor.name for tensor in model.graph.initializer}
        self.weights: dict[str, Array] = {
            name: array for name, array in wanted.items() if name in stored and array is not None
        }
        self._added = _overridable(model, self.weights)
        made = wanted.keys() - stored
        large = {each.name for each in _large(model.graph, self.weights, engine)}
        self._like = _copies(model.graph, made, large)
        self._given = self._computed(model, made - self._like.keys())
        self.weights |= self._given
        self._like = {name: one for name, one in self._like.items() if one in self.weights}
        self.weights |= {name: self.weights[one] for name, one in self._like.items()}
        self._apart = _large(model.graph, self.weights, engine)
        _take_out(model.graph, self._apart)
        self._read: dict[str, Array] = {}
        changed = changed or bool(self._apart)
        if fed := {name: self.weights[name] for name in (*self._given, *self._like)}:
            _feed(model.graph, fed)
        if changed:
            model.MergeFrom(self._added)
        self._model = model if changed else None
        self.graph = model.graph
        zeros = {name for name, array in self.weights.items() if not array.any()}
        let_go(self.weights.values())
        self._flow = Flow(model.graph, zeros)
        outputs = [value.name for value in model.graph.output]
        self._alive = self._flow.leading(outputs)
        self._session: OnnxRuntime | Reference | None = None
        own, given = self._loaded().inputs, {*fed, *(each.name for each in self._apart)}
        self.inputs: tuple[Port, ...] = tuple(p for p in own if p.name not in given)
        self.outputs = self._loaded().outputs

    def release(self) -> None:
        """Give the session's memory back; it is loaded again when it is needed."""
        self._session = None
        self.set_aside()

    def set_aside(self) -> None:
        """See `PerturbableModel.set_aside`."""
        self._read = {}
        let_go(self.weights.values())

    def run(
        self, feeds: Mapping[str, Array], moved: Mapping[str, Array] | None = None
    ) -> list[Any]:
        """The outputs in graph order. ``moved`` holds other numbers for some weights.

        Raises:
            EngineError: the model does not run on these inputs.
            Exhausted: time is up, or memory has run out.
        """
        session, moved = self._loaded(), moved or {}
        own = self.weights.keys() - moved.keys()
        self._read = self._numbers({self._like.get(name, name) for name in own})
        given = {**self._given, **self._read}
        given |= {name: given[one] for name, one in self._like.items() if name in own}
        return session.run({**given, **moved, **feeds})

    def layers(self, touched: Collection[str]) -> list[Layer]:
        """See `PerturbableModel.layers`.

        A node with bodies, or a call of a local function, may hold several operators. It counts as
        one layer for each weight of two axes that it reads. Dead operators are left out.
        """
        left = {name for name in touched if name in self.weights} or set(self.weights)
        found = []
        for node, names, outputs in self._flow.rows:
            if self._alive.isdisjoint(outputs):
                continue
            taken = [name for name in names if name in left]
            if taken:
                nonzero = [name for name in taken if self.weights[name].any()] or taken
                ranks = {name: self.weights[name].ndim for name in nonzero}
                chosen = [max(nonzero, key=lambda name: ranks[name])]
                if node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
                    chosen = [n for n in dict.fromkeys(nonzero) if ranks[n] > 1] or chosen
                for weight in chosen:
                    axis = _channel_axis(node, weight, self.weights[weight].shape)
                    found.append(Layer(label(node), weight, axis))
                    left.discard(weight)
        return found

    def reached(self, weights: Collection[str]) -> set[int]:
        """The numbers of the outputs that depend on any of some weights."""
        changed = self._flow.reached(weights)
        outputs = self.graph.output
        return {number for number, value in enumerate(outputs) if value.name in changed}

    def dead(self, touched: Collection[str]) -> list[str]:
        """The labels of the operators that read any of some weights and that no output feels.

        What they put out is multiplied by zero, or nobody reads it.
        """
        wanted = set(touched) or self.weights.keys()
        return [
            label(node)
            for node, names, outputs in self._flow.rows
            if self._alive.isdisjoint(outputs) and not wanted.isdisjoint(names)
        ]

    def felt(self, touched: Collection[str]) -> set[str]:
        """The values that depend on any of some weights, other than by a product with zero."""
        return self._flow.reached(touched)

    def _loaded(self) -> OnnxRuntime | Reference:
        if self._session is None:
            if self._model is None:
                content = self._source.content(self._added)
            else:
                content = self._serialized(self._model)
            self._session = self._engine(content, self._source.folder, bounds=self._bounds)
        return self._session

    def _numbers(self, names: Collection[str]) -> dict[str, Array]:
        """The arrays of some weights that were taken out; they are read where they are not yet."""
        with Reader(self._source.path.parent) as reader:
            return {
                each.name: self._read[each.name]
                if each.name in self._read
                else _numbers(each, reader)
                for each in self._apart
                if each.name in names
            }

    def _serialized(self, model: onnx.ModelProto) -> bytes:
        """The bytes of a model, as a session loads them."""
        try:
            return serialize_whole(model, self._source.path)
        except MemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"it cannot be written with weights that can be moved: {error}"
            ) from error

    def _computed(self, model: onnx.ModelProto, names: Collection[str]) -> dict[str, Array]:
        """The weights that nodes make of constants, computed by the engine, by name.

        A weight is left out if one of its nodes reads more than constants. The model computes it.
        """
        graph = model.graph
        stored = {tensor.name for tensor in graph.initializer}
        stored |= {tensor.values.name for tensor in graph.sparse_initializer}
        fixed, nodes = set(stored), []
        for node in graph.node:
            if fixed.issuperset(filter(None, reads(node))):
                fixed.update(filter(None, node.output))
                nodes.append(node)
        wanted = sorted(fixed.intersection(names))
        if not wanted:
            return {}
        part = onnx.ModelProto(ir_version=max(model.ir_version, _OVERRIDABLE))
        part.opset_import.extend(model.opset_import)
        part.functions.extend(model.functions)
        needed, kept = set(wanted), []
        for node in reversed(nodes):
            if not needed.isdisjoint(node.output):
                needed.update(reads(node))
                kept.append(node)
        part.graph.name = "weights"
        part.graph.node.extend(kept[::-1])
        part.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
        part.graph.sparse_initializer.extend(
            t for t in graph.sparse_initializer if t.values.name in needed
        )
        for number, name in enumerate(wanted):  # an Identity makes a sparse constant an array
            part.graph.node.add(op_type="Identity", input=[name], output=[f"{number}/weight"])
            part.graph.output.add(name=f"{number}/weight")
        engine = self._engine(self._serialized(part), self._source.folder, bounds=self._bounds)
        found = zip(wanted, map(np.asarray, engine.run({})), strict=True)
        return {name: array for name, array in found if can_move(array)}


def _copies(
    graph: onnx.GraphProto, names: Collection[str], large: Collection[str]
) -> dict[str, str]:
    """The names that Identity nodes make of another weight, each with that one's name.

    That is the stored weight at the beginning of the Identity nodes if it is one of the ``large``
    ones, which are read from the file. Otherwise it is the first of the names that begin there.
    """
    roots, found, first = dict[str, str](), dict[str, str](), dict[str, str]()
    for node in graph.node:
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    for name in sorted(names):
        root = roots.get(name, name)
        one = root if root in large else first.setdefault(root, name)
        if one != name:
            found[name] = one
    return found


def _channel_axis(node: onnx.NodeProto, weight: str, shape: tuple[int, ...]) -> int:
    """The axis of a weight that counts the output channels; the longest axis if that is unknown.

    It is axis 0 for the weight of a Conv.
    """
    given = {attribute.name: attribute.i for attribute in node.attribute}
    known = {
        "Conv": 0,
        "FusedConv": 0,
        "FusedGemm": 0 if given.get("transB") else 1,
        "NhwcConv": 0,
        "NhwcFusedConv": 0,
        "ConvTranspose": 1,
        "Gemm": 0 if given.get("transB") else 1,
        "MatMul": len(shape) - 1,
    }
    if len(shape) > 1 and node.op_type in known and list(node.input).index(weight) == 1:
        return known[node.op_type]
    return int(np.argmax(shape)) if shape else 0


def _overridable(model: onnx.ModelProto, stored: Collection[str]) -> onnx.ModelProto:
    """A model to be merged into another: it makes initializers the defaults of inputs."""
    added = onnx.ModelProto()
    if not stored:
        return added
    if 0 < model.ir_version < _OVERRIDABLE:
        added.ir_version = _OVERRIDABLE
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name in stored and tensor.name not in listed:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            added.graph.input.append(value)
    return added


def _large(
    graph: onnx.GraphProto, weights: Collection[str], engine: Engine
) -> Sequence[onnx.TensorProto]:
    """The tensors of the weights whose data are still in the model's file, if a session takes them.

    Raises `EngineError` where the file holds more or less of one than its shape says.
    """
    if engine is not OnnxRuntime:
        return []
    found = [each for each in graph.initializer if is_own(each) and each.name in weights]
    for each in found:
        width = helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        if external_location(each)[2] != math.prod(each.dims) * width:
            raise EngineError(f"the data of {each.name} are not of its shape")
    return found


def _take_out(graph: onnx.GraphProto, tensors: Sequence[onnx.TensorProto]) -> None:
    names = {each.name for each in tensors}
    _keep(graph.initializer, [each for each in graph.initializer if each.name not in names])


def _numbers(tensor: onnx.TensorProto, reader: Reader) -> Array:
    """What the file holds of a tensor that was taken out, in memory: there each number lies where
    a CPU wants it.
    """
    told = onnx.TensorProto()
    told.CopyFrom(tensor)
    place = taken_apart(told)
    made = np.empty(tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    data, at = made.reshape(-1).view(np.uint8), 0
    for block in reader.blocks(place):
        data[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    return made


def _store(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Turn Constant nodes that hold some of the named values into initializers."""
    kept = []
    for node in graph.node:
        held = node.attribute[0] if len(node.attribute) == 1 else None
        is_own = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        if held is not None and is_own and held.name == "value" and node.output[0] in names:
            graph.initializer.add().CopyFrom(held.t)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    _keep(graph.node, kept)


def _feed(graph: onnx.GraphProto, weights: Mapping[str, Array]) -> None:
    """Make some values of a graph its inputs.

    The nodes that made them are removed, with all that only these nodes read.
    """
    for name, array in weights.items():
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(helper.make_tensor_value_info(name, element, array.shape))
    _keep(graph.value_info, [value for value in graph.value_info if value.name not in weights])
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output) or weights.keys() >= {o for o in node.output if o}:
            continue
        for index, name in enumerate(node.output):
            if name in weights:
                node.output[index] = f"{name}/unfed"
        needed.update(name for name in reads(node) if name not in weights)
        kept.append(node)
    _keep(graph.node, kept[::-1])


def _keep(field: Any, items: list[Any]) -> None:
    if len(items) < len(field):
        del field[:]
        field.extend(items)
