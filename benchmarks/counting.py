"""Count the affine operators of an ONNX graph, by nothing but the graph.

Nothing here is bnfold's. An affine operator is a BatchNormalization with fixed statistics, or a
Mul, Add, Sub, Div or Neg of one tensor that an input can change and one constant (Neg: none) that
is finite, varies in value along at most one axis, and does not make the tensor larger. A constant
is an initializer, a Constant, or what operators compute of nothing but constants. The bodies of If,
Loop and Scan count too, and calls of local functions as if they were written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
)
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
Shape = tuple[int | None, ...]
ARITHMETIC = ("Mul", "Add", "Sub", "Div")
LARGEST = 1 << 26
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass
class Scope:
    """A graph inside others: its constants, and the types of its tensors as far as inferred."""

    graph: GraphProto
    opsets: Mapping[str, int]
    outer: Scope | None = None
    stored: dict[str, TensorProto] = field(default_factory=dict)
    made: dict[str, NodeProto] = field(default_factory=dict)
    varying: set[str] = field(default_factory=set)
    types: dict[str, onnx.TypeProto.Tensor] = field(default_factory=dict)
    makers: dict[str, NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.varying = {value.name for value in graph.input} - self.stored.keys()
        for value in [*graph.input, *graph.value_info, *graph.output]:
            self.types[value.name] = value.type.tensor_type
        for node in graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            if self._is_fixed(node):
                self.made.update(dict.fromkeys(filter(None, node.output), node))
            else:
                self.varying.update(node.output)

    def _is_fixed(self, node: NodeProto) -> bool:
        if node.op_type == "Constant":
            return True
        bodies = any(a.HasField("g") or a.graphs for a in node.attribute)
        named = [name for name in node.input if name]
        return bool(named) and not bodies and all(self.is_constant(name) for name in named)

    def is_constant(self, name: str) -> bool:
        """Whether no input of the model can change a tensor."""
        if name in self.stored or name in self.made:
            return True
        return name not in self.varying and self.outer is not None and self.outer.is_constant(name)

    def type(self, name: str) -> onnx.TypeProto.Tensor | None:
        """What is known about a tensor."""
        if name in self.types:
            return self.types[name]
        return self.outer.type(name) if self.outer is not None else None

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor, None for what is not known of it."""
        known = self.type(name)
        if known is None or not known.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in known.shape.dim)

    def value(self, name: str) -> Array | None:
        """The value of a constant, None where that cannot be computed or is very large."""
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        if name not in self.made:
            return self.outer.value(name) if self.outer is not None else None
        node = self.made[name]
        feeds: dict[str, Array] = {}
        for operand in filter(None, node.input):
            value = self.value(operand)
            if value is None or value.size > LARGEST:
                return None
            feeds[operand] = value
        if node.op_type == "ConstantOfShape" and np.prod(feeds[node.input[0]]) > LARGEST:
            return None
        return self._computed(node, feeds, name)

    def _computed(self, node: NodeProto, feeds: Mapping[str, Array], name: str) -> Array | None:
        inputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in feeds]
        output = helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
        graph = helper.make_graph([node], "constant", inputs, [output])
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        model = helper.make_model(graph, opset_imports=opsets)
        try:
            (value,) = ReferenceEvaluator(model).run(None, dict(feeds))
        except Exception:  # an operator that the reference does not have
            return None
        return np.asarray(value)


def inferred(model: ModelProto) -> ModelProto:
    """A model with its functions written out and its shapes, as far as onnx infers them."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # whatever a model that another tool wrote does to it
        return model


def nodes(model: ModelProto) -> Iterator[tuple[NodeProto, Scope]]:
    """All nodes that run at every call or in a body, with the graphs they are in."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    yield from _nodes(Scope(model.graph, opsets))


def _nodes(scope: Scope) -> Iterator[tuple[NodeProto, Scope]]:
    for node in scope.graph.node:
        if any(name in scope.made for name in node.output):
            continue
        yield node, scope
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _nodes(Scope(body, scope.opsets, scope))


def is_affine(node: NodeProto, scope: Scope) -> bool:
    """Whether a node is an affine operator."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "BatchNormalization":
        trains = any(a.name == "training_mode" and a.i for a in node.attribute)
        return not trains and all(scope.is_constant(name) for name in node.input[1:5])
    if node.op_type == "Neg":
        known = scope.type(node.input[0])
        return known is None or not known.elem_type or known.elem_type in FLOATS
    if node.op_type not in ARITHMETIC or len(node.input) != 2:
        return False
    first, second = (scope.is_constant(name) for name in node.input)
    if first == second or (first and node.op_type == "Div"):
        return False
    data, constant = node.input[first], node.input[not first]
    value = scope.value(constant)
    if value is None:
        return False
    return _is_per_channel(value, scope.shape(data)) and not (
        node.op_type == "Div" and bool((value == 0).any())
    )


def _is_per_channel(value: Array, shape: Shape | None) -> bool:
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        return False
    if not value.size or not bool(np.isfinite(value.astype(np.float64)).all()):
        return False
    if shape is not None and _enlarges(value.shape, shape):
        return False
    varying = [axis for axis in range(value.ndim) if bool((value != value.take([0], axis)).any())]
    return len(varying) <= 1


def _enlarges(constant: tuple[int, ...], shape: Shape) -> bool:
    if len(constant) > len(shape):
        return True
    aligned = shape[len(shape) - len(constant) :]
    return any(size > 1 and other == 1 for size, other in zip(constant, aligned, strict=True))


def is_bias(node: NodeProto, scope: Scope) -> bool:
    """Whether an affine operator is an Add right behind a MatMul by a constant."""
    if node.op_type != "Add":
        return False
    makers = scope.makers
    maker = next((makers.get(name) for name in node.input if not scope.is_constant(name)), None)
    while maker is not None and maker.op_type == "Identity":
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "MatMul" and scope.is_constant(maker.input[1])


def affine_inside(node: NodeProto) -> int:
    """How many affine operators a fused operator does the work of.

    A Gelu divides by √2, adds 1 and halves; a LayerNormalization adds ε and applies γ and β.
    """
    name = node.op_type
    if name == "LayerNormalization":
        return 3
    if node.domain != "com.microsoft":
        return 0
    if name in ("QuickGelu", "FusedMatMul"):
        return int(any(a.name == "alpha" and a.f != 1.0 for a in node.attribute))
    if name == "SkipLayerNormalization":
        return 3 + (len(node.input) > 4 and bool(node.input[4]))
    return {"Gelu": 3, "BiasGelu": 4, "FastGelu": 4}.get(name, 0)


@dataclass(frozen=True)
class Count:
    """Affine operators by type, all operators by domain and type, the affine operators that those
    of each type do the work of, and how many of the affine ones are biases of a MatMul.
    """

    affine: Counter[str]
    operators: Counter[str]
    inside: Counter[str]
    biases: int

    @property
    def total(self) -> int:
        """How many affine operators there are."""
        return self.affine.total()


def count(model: ModelProto) -> Count:
    """Count a model's operators."""
    affine: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    biases = 0
    for node, scope in nodes(inferred(model)):
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        operators[name] += 1
        inside[name] += affine_inside(node)
        if is_affine(node, scope):
            affine[node.op_type] += 1
            biases += is_bias(node, scope)
    return Count(affine, operators, +inside, biases)
