"""Count the affine operators of an ONNX graph, by nothing but the graph.

Nothing here is bnfold's. An affine operator is a BatchNormalization with fixed statistics, or a
Mul, Add, Sub, Div or Neg of one tensor that an input can change and one constant (Neg: none) that
is finite, varies in value along at most one axis, and does not make the tensor larger. A constant
is an initializer, a Constant, or what operators compute of nothing but constants. The bodies of If,
Loop and Scan count too, and calls of local functions as if they were written out.

Two kinds are counted by themselves as well, in what every tool leaves alike: biases, and the three
in a GELU that is whole, see `is_bias` and `is_whole_gelu`.
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
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        for value in graph.output:  # Whoever runs the graph reads it.
            self.readers.setdefault(value.name, []).append(NodeProto())
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

    def writer(self, name: str) -> NodeProto | None:
        """The node that makes a tensor, whatever hands it on."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type == "Identity":
            maker = self.makers.get(maker.input[0])
        return maker

    def is_number(self, name: str, number: float) -> bool:
        """Whether a tensor is one number, up to how converters round it."""
        value = self.value(name) if self.is_constant(name) else None
        return value is not None and value.size == 1 and bool(np.isclose(value, number, 1e-3).all())

    def halves(self, node: NodeProto, name: str) -> bool:
        """Whether a node is a Mul of a tensor by ½."""
        others = [other for other in node.input if other != name]
        return node.op_type == "Mul" and len(others) == 1 and self.is_number(others[0], 0.5)

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
    """Whether an affine operator is an Add right behind a MatMul by a constant.

    The MatMul may be a dynamically quantized one: its integers, a Cast, and a Mul by the scales.
    """
    if node.op_type != "Add":
        return False
    data = next((name for name in node.input if not scope.is_constant(name)), "")
    maker = scope.writer(data)
    if maker is not None and maker.op_type == "Mul":
        casts = [scope.writer(name) for name in maker.input]
        data = next((c.input[0] for c in casts if c is not None and c.op_type == "Cast"), "")
        maker = scope.writer(data)
        return maker is not None and maker.op_type == "MatMulInteger"
    return maker is not None and maker.op_type == "MatMul" and scope.is_constant(maker.input[1])


def is_whole_gelu(node: NodeProto, scope: Scope) -> bool:
    """Whether a GELU starts at a node, written as onnxruntime looks for it.

    ``x/2·(1 + erf(x/√2))``: a Div by √2, the Erf, an Add of 1, a Mul by x, and a Mul by ½ of x or
    of the product (then no Mul makes x). Nothing else reads a tensor in between. Where an affine
    operator is merged with one of these, none is whole.
    """
    if node.op_type != "Div" or not scope.is_number(node.input[1], np.sqrt(2)):
        return False
    place, others = node, [""]
    for op_type in ("Erf", "Add", "Mul"):
        following = scope.readers.get(place.output[0], [])
        if [reader.op_type for reader in following] != [op_type]:
            return False
        others = [name for name in following[0].input if name != place.output[0]]
        place = following[0]
        if op_type == "Add" and not (others and scope.is_number(others[0], 1.0)):
            return False
    root = scope.makers.get(node.input[0])
    if others == [node.input[0]] and not (root is not None and root.op_type == "Mul"):
        last = scope.readers.get(place.output[0], [])
        return len(last) == 1 and scope.halves(last[0], place.output[0])
    half = scope.makers.get(others[0]) if others else None
    alone = half is not None and len(scope.readers[others[0]]) == 1
    return alone and half is not None and scope.halves(half, node.input[0])


def affine_inside(node: NodeProto) -> int:
    """How many affine operators a fused operator does the work of.

    A Gelu divides by √2, adds 1 and halves; a LayerNormalization adds ε and applies γ and β; a
    DynamicQuantizeMatMul multiplies a scale and adds a bias if it has one.
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
    if name == "DynamicQuantizeMatMul":
        return 1 + (len(node.input) > 4 and bool(node.input[4]))
    return {"Gelu": 3, "BiasGelu": 4, "FastGelu": 4}.get(name, 0)


def is_biased(node: NodeProto) -> bool:
    """Whether a fused operator has a bias inside that `affine_inside` counts."""
    place = {"BiasGelu": 1, "DynamicQuantizeMatMul": 4, "SkipLayerNormalization": 4}
    at = place.get(node.op_type) if node.domain == "com.microsoft" else None
    return at is not None and len(node.input) > at and bool(node.input[at])


@dataclass(frozen=True)
class Count:
    """Affine operators by type, all operators by domain and type, the affine operators that those
    of each type do the work of, how many of the affine ones are biases of a MatMul, how many biases
    are inside others, and how many GELUs are written out and whole.
    """

    affine: Counter[str]
    operators: Counter[str]
    inside: Counter[str]
    biases: int
    biases_inside: int
    gelus: int

    @property
    def total(self) -> int:
        """How many affine operators there are."""
        return self.affine.total()

    @property
    def fused_gelus(self) -> int:
        """How many GELUs are one operator."""
        return sum(self.operators[f"com.microsoft.{name}"] for name in ("BiasGelu", "Gelu"))


def count(model: ModelProto) -> Count:
    """Count a model's operators."""
    affine: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    biases = biases_inside = gelus = 0
    for node, scope in nodes(inferred(model)):
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        operators[name] += 1
        inside[name] += affine_inside(node)
        biases_inside += is_biased(node)
        gelus += is_whole_gelu(node, scope)
        if is_affine(node, scope):
            affine[node.op_type] += 1
            biases += is_bias(node, scope)
    return Count(affine, operators, +inside, biases, biases_inside, gelus)
