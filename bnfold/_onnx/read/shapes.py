"""The shapes of a model's tensors, inferred without its weights.

ONNX's own shape inference runs on a copy that has every node and input but no large tensor.
Declared shapes of intermediate tensors are left out of the copy: only shapes that follow from
inputs, parameters and operators are believed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import field

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
)

from bnfold._core.broadcast import Shape
from bnfold._core.index_maps import Size
from bnfold._onnx.read.hints import declare, known_shapes
from bnfold._onnx.read.inference import run
from bnfold._onnx.read.scopes import Scope, bodies, opset_of, type_of
from bnfold._onnx.read.sizes import Numbers, computed
from bnfold._onnx.read.stand_ins import stand_in
from bnfold._onnx.read.types import derive
from bnfold._system.records import record

_SMALL = 1024
_FIRST_WITH_SYMBOLS = 11
_CLASSICAL = "ai.onnx.ml"
_INFERRED = ("", "ai.onnx", _CLASSICAL, "ai.onnx.preview.training")
_ROWS: dict[int, int] = {
    AttributeProto.FLOATS: TensorProto.FLOAT,
    AttributeProto.INTS: TensorProto.INT64,
    AttributeProto.STRINGS: TensorProto.STRING,
}
_HEAVY = (AttributeProto.TENSOR, AttributeProto.GRAPH, AttributeProto.GRAPHS)
Tensor = TypeProto.Tensor


@record
class Shapes:
    """Element types and shapes by graph path and tensor name; a size is None where not known.

    ``empty`` has the axes of size 0 of tensors that operators make; in a shape such a size is None,
    for exporters write 0 where they do not know one. ``declared_empty``: an input of the model says
    0, so that what is made of it may be empty. ``symbols`` has a word for each unknown size.
    Equal words are equal sizes. ``numbers`` has the integers that the main graph computes from
    sizes alone, where all of them are known.
    """

    types: dict[tuple[str, str], int] = field(default_factory=dict)
    shapes: dict[tuple[str, str], Shape] = field(default_factory=dict)
    empty: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    symbols: dict[tuple[str, str], tuple[Size, ...]] = field(default_factory=dict)
    numbers: dict[tuple[str, str], Numbers] = field(default_factory=dict)
    declared_empty: bool = False

    def shape(self, scope: Scope, name: str) -> Shape | None:
        """The shape of a name as seen from a graph, or None where its rank is not known."""
        owner = scope.owner(name)
        return self.shapes.get((owner.path, name)) if owner else None

    def is_empty(self, scope: Scope, name: str, axis: int) -> bool:
        """Whether a name has an axis that is known to have the size 0."""
        return axis in self._empty_axes(scope, name)

    def may_be_empty(self, scope: Scope, name: str) -> bool:
        """Whether there is a sign that a tensor has no numbers; a size that is open is none."""
        return self.declared_empty or bool(self._empty_axes(scope, name))

    def _empty_axes(self, scope: Scope, name: str) -> tuple[int, ...]:
        owner = scope.owner(name)
        return self.empty.get((owner.path, name), ()) if owner else ()

    def sizes(self, scope: Scope, name: str) -> tuple[Size, ...] | None:
        """The sizes of a name's axes, with words for those that are not known."""
        owner = scope.owner(name)
        return self.symbols.get((owner.path, name)) if owner else None

    def add(self, scope: Scope, name: str, like: str) -> None:
        """Add a tensor to a graph, with the type and shape of another one."""
        shape, symbols = self.shape(scope, like), self.sizes(scope, like)
        self.types[scope.path, name] = self.type(scope, like)
        if shape is not None:
            self.shapes[scope.path, name] = shape
        if symbols is not None:
            self.symbols[scope.path, name] = symbols

    def type(self, scope: Scope, name: str) -> int:
        """The element type of a name as seen from a graph, 0 where not known."""
        owner = scope.owner(name)
        if owner is None:
            return 0
        key = owner.path, name
        if key not in self.types:
            derive(owner, name, self.types)
        return self.types[key]


def infer(
    model: ModelProto,
    scopes: Iterable[Scope],
    equal_dims: bool = False,
    believe_bodies: bool = True,
) -> Shapes:
    """The shapes of a model. If ONNX's inference gives up, fewer are known; nothing is raised.

    With ``equal_dims`` sizes of the model's inputs that have one name (``dim_param``) are equal, as
    ONNX says. Without it every size has a symbol of its own: runtimes do not check that, and some
    exporters write one word for all sizes that they do not know.

    Without ``believe_bodies`` the shapes that inputs of bodies are declared to have count for
    nothing: no runtime checks them.
    """
    known = Shapes(declared_empty=_declares_empty(model.graph))
    skeleton = ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    # Below opset 11 a part that a Slice takes keeps the symbol of the whole.
    opset = opset_of(model.opset_import)
    symbols = itertools.count() if opset >= _FIRST_WITH_SYMBOLS else None
    own = frozenset(map(type_of, model.functions))
    _copy_graph(model.graph, skeleton.graph, symbols, own)
    for function in model.functions:
        _copy_function(function, skeleton.functions.add(), own)
    # From IR version 4 on, an initializer that is also an input is only a default value.
    given = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    stored = [tensor for tensor in skeleton.graph.initializer if tensor.name not in given]
    if len(stored) < len(skeleton.graph.initializer):  # Inference takes it for what it is.
        del skeleton.graph.initializer[:]
        skeleton.graph.initializer.extend(stored)
    if equal_dims and symbols is not None:
        _name_sizes(model.graph, skeleton.graph)
    if not believe_bodies:
        _doubt_bodies(skeleton.graph)
    stand_in(skeleton.graph, opset, {(f.domain, f.name) for f in model.functions})
    inferred = run(skeleton)
    while declare(inferred, skeleton.graph, given):
        inferred = run(skeleton)
    if not model.training_info:  # which may bind what is stored to something else
        made = {name for node in model.graph.node for name in node.output[:]}
        numbers = computed(inferred.graph, known_shapes(inferred.graph), given)
        known.numbers = {
            ("", n): one for n, one in numbers.items() if n in made and one.fits_any_type
        }
    graphs = {id(scope.graph): scope for scope in scopes}
    _collect(model.graph, inferred.graph, graphs, known)
    return known


def _declares_empty(graph: GraphProto) -> bool:
    return any(
        dim.HasField("dim_value") and dim.dim_value == 0
        for value in graph.input
        if value.type.WhichOneof("value") == "tensor_type"
        for dim in value.type.tensor_type.shape.dim
    )


def _name_sizes(source: GraphProto, target: GraphProto) -> None:
    """Give the unknown sizes of a copy's inputs one symbol for each name that they have."""
    for value, twin in zip(source.input, target.input, strict=True):
        dims = value.type.tensor_type.shape.dim, twin.type.tensor_type.shape.dim
        for named, dim in zip(*dims, strict=True):
            if named.dim_param:
                dim.dim_param = f"named {named.dim_param}"


def _doubt_bodies(graph: GraphProto) -> None:
    """Take from a copy what the inputs of bodies are declared to be but for their types."""
    for node in graph.node:
        for _, body in bodies(node):
            _doubt_bodies(body)
            for value in body.input:
                if value.type.WhichOneof("value") == "tensor_type":
                    value.type.tensor_type.ClearField("shape")


def _copy_graph(
    source: GraphProto, target: GraphProto, symbols: Iterator[int] | None, own: Collection[str]
) -> None:
    """Copy a graph. Each unknown size of its inputs gets a symbol of its own. ``own`` are the types
    of calls of the model's functions.
    """
    target.name = source.name or "graph"
    target.input.extend(source.input)
    for value in target.input:
        if value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value <= 0:
                    dim.Clear()
                    if symbols is not None:
                        dim.dim_param = f"size {next(symbols)}"
    for value in source.output:
        stripped = target.output.add()
        stripped.CopyFrom(value)
        if stripped.type.WhichOneof("value") == "tensor_type":
            stripped.type.tensor_type.ClearField("shape")
    for tensor in source.initializer:
        _copy_tensor(tensor, target.initializer.add())
    for sparse in source.sparse_initializer:  # Inference gives it a type that no operator reads.
        target.initializer.add(
            name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims
        )
    for node in source.node:
        _copy_node(node, target.node.add(), symbols, own)


def _copy_function(source: FunctionProto, target: FunctionProto, own: Collection[str]) -> None:
    """Copy a local function, without its large constants and what its tensors are said to be.

    The sizes of its bodies have no symbols: one symbol would be the same size in each of its calls.
    """
    target.name, target.domain, target.overload = source.name, source.domain, source.overload
    for part in ("input", "output", "attribute", "attribute_proto", "opset_import"):
        getattr(target, part).extend(getattr(source, part))
    for node in source.node:
        _copy_node(node, target.node.add(), None, own)


def _copy_node(
    source: NodeProto, target: NodeProto, symbols: Iterator[int] | None, own: Collection[str]
) -> None:
    """Copy a node; of large tensors among its attributes only type and shape.

    An attribute that the call of a function sets stays as it is.

    Long rows of numbers are left out where inference does not read them: of operators that it does
    not know, but for calls of the model's ``own`` functions, and of a tree ensemble, whose output
    has as many columns as it has targets or class labels (ONNX TreeEnsembleRegressor,
    TreeEnsembleClassifier). Of a Constant it reads how many they are.
    """
    long = [each for each in source.attribute if _count(each) > _SMALL]
    if not long and all(attribute.type not in _HEAVY for attribute in source.attribute):
        target.CopyFrom(source)
        return
    target.op_type, target.domain, target.name = source.op_type, source.domain, source.name
    target.input.extend(source.input)
    target.output.extend(source.output)
    kind = type_of(source)
    trees = kind.startswith(f"{_CLASSICAL}::TreeEnsemble")
    unknown = source.domain not in _INFERRED and kind not in own
    for attribute in source.attribute:
        if _count(attribute) > _SMALL:
            if unknown or (trees and not attribute.name.startswith("classlabels")):
                continue
            if kind == "Constant" and attribute.type in _ROWS:
                copy = target.attribute.add(name="value", type=AttributeProto.TENSOR)
                copy.t.data_type = _ROWS[attribute.type]
                copy.t.dims.append(_count(attribute))
                continue
        copy = target.attribute.add()
        if attribute.ref_attr_name:
            copy.CopyFrom(attribute)
        elif attribute.type == AttributeProto.TENSOR:
            copy.name, copy.type = attribute.name, attribute.type
            _copy_tensor(attribute.t, copy.t)
        elif attribute.type == AttributeProto.GRAPH:
            copy.name, copy.type = attribute.name, attribute.type
            _copy_graph(attribute.g, copy.g, symbols, own)
        else:
            copy.CopyFrom(attribute)


def _count(attribute: AttributeProto) -> int:
    """How many numbers or strings an attribute lists."""
    return len(attribute.floats) or len(attribute.ints) or len(attribute.strings)


def _copy_tensor(source: TensorProto, target: TensorProto) -> None:
    """Copy a tensor. A large or external one keeps only its name, type and shape."""
    external = source.data_location == TensorProto.EXTERNAL
    if external or math.prod(source.dims) > _SMALL:
        target.name, target.data_type = source.name, source.data_type
        target.dims.extend(source.dims)
    else:
        target.CopyFrom(source)


def _collect(
    original: GraphProto, inferred: GraphProto, graphs: dict[int, Scope], known: Shapes
) -> None:
    """Note the inferred shapes; the original and the inferred graph are walked side by side."""
    scope = graphs.get(id(original))
    path = scope.path if scope is not None else None
    if path is not None:
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            _note(value, path, known)
        for tensor in inferred.initializer:
            key, sizes = (path, tensor.name), tuple(tensor.dims[:])
            known.types[key], known.shapes[key] = tensor.data_type, sizes
            known.symbols[key] = sizes
    for node, twin in zip(original.node, inferred.node, strict=True):
        if not node.attribute:
            continue
        for (_, body), (_, body_twin) in zip(bodies(node), bodies(twin), strict=False):
            _collect(body, body_twin, graphs, known)


def _note(value: ValueInfoProto, path: str, known: Shapes) -> None:
    if value.type.WhichOneof("value") != "tensor_type":
        return
    key, tensor = (path, value.name), value.type.tensor_type
    if tensor.elem_type:  # Where inference does not know it, operators may tell it.
        known.types[key] = tensor.elem_type
    if tensor.HasField("shape"):
        dims = tensor.shape.dim[:]
        sizes = [dim.dim_value for dim in dims]
        if min(sizes, default=1) > 0:
            whole = tuple(sizes)
            known.shapes[key], known.symbols[key] = whole, whole
            return
        known.shapes[key] = tuple(size if size > 0 else None for size in sizes)
        if not all(sizes):  # A size that is not said reads as 0, too.
            told = enumerate(dims)
            none = tuple(k for k, dim in told if dim.HasField("dim_value") and not dim.dim_value)
            if none:  # What is declared has no such size here, so that it follows from operators.
                known.empty[key] = none
        known.symbols[key] = tuple(
            size if size > 0 else dim.dim_param or None
            for size, dim in zip(sizes, dims, strict=True)
        )
