"""Operators that are several in one, written as these, so that both files speak one language.

onnxruntime's FusedConv, FusedGemm, FusedMatMul and QuickGelu, its norms behind sums and products of
integers, and ONNX's Gelu and HardSwish, are what they stand for by definition (onnxruntime,
ContribOperators.md; ONNX Gelu-20, HardSwish-14).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold._onnx.read.scopes import bodies, label, opset_of, type_of
from bnfold._relation.side import attributes

TURNS = ("transA", "transB", "transBatchA", "transBatchB")
"""What a FusedMatMul says of the axes of its operands."""
_ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid")


class _Writer:
    """Writes the operators of one graph."""

    def __init__(
        self, graph: GraphProto, count: Iterator[int], opset: int, outer: Mapping[str, int]
    ) -> None:
        self.graph = graph
        self.opset = opset
        self._count = count
        self.nodes: list[NodeProto] = []
        self.kinds = {**outer, **{t.name: t.data_type for t in graph.initializer}}

    def constant(self, value: float | list[int], kind: int = TensorProto.FLOAT) -> str:
        """The name of a new constant."""
        name = f"\0{next(self._count)}"
        numbers = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
        self.graph.initializer.append(numpy_helper.from_array(numbers, name))
        return name

    def node(self, kind: str, inputs: list[str], like: NodeProto, **given: Any) -> str:
        """Add an operator; gives the name of what it puts out."""
        name = f"\0{next(self._count)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=label(like), **given))
        return name

    def finish(self, value: str, like: NodeProto) -> None:
        """Name the last value as the operator's output."""
        assert self.nodes[-1].output[0] == value
        self.nodes[-1].output[0] = like.output[0]


def lowered(first: ModelProto, second: ModelProto) -> list[ModelProto]:
    """Both models themselves, or copies in which no operator is several in one.

    What both have as often is left as it is where only one of them might have it in parts.
    """
    files = [_File(first, itertools.count()), _File(second, itertools.count())]
    files = [file.without(_RULES.keys() - set(_WHOLE)) for file in files]
    counts = [file.kinds() for file in files]
    kinds = {kind for kind in _WHOLE if counts[0][kind] != counts[1][kind]}
    return [file.without(kinds).model for file in files]


class _File(NamedTuple):
    """A model, the numbers of new names, and whether it is a copy."""

    model: ModelProto
    numbers: Iterator[int]
    is_copy: bool = False

    def kinds(self) -> Counter[str]:
        """How often it has operators of each type."""
        return Counter(map(type_of, _all_nodes(self.model.graph)))

    def without(self, kinds: Collection[str]) -> _File:
        """The file itself, or a copy without operators of some kinds.

        Calls of the model's own functions are none.
        """
        rules = set(kinds) - set(map(type_of, self.model.functions))
        if not rules or not self.kinds().keys() & rules:
            return self
        copy = self.model
        if not self.is_copy:
            copy = ModelProto()
            copy.CopyFrom(self.model)
        _lower(copy.graph, self.numbers, rules, opset_of(copy.opset_import), {})
        return _File(copy, self.numbers, True)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for _, body in bodies(node):
            yield from _all_nodes(body)


def _lower(
    graph: GraphProto,
    count: Iterator[int],
    kinds: Collection[str],
    opset: int,
    outer: Mapping[str, int],
) -> None:
    """Write the operators of a graph that are of some kinds as others.

    ``outer`` has the element types of the constants of the graphs around it.
    """
    writer = _Writer(graph, count, opset, outer)
    for node in graph.node:
        for _, body in bodies(node):
            _lower(body, count, kinds, opset, writer.kinds)
        rule = _RULES[type_of(node)] if type_of(node) in kinds else None
        mark = len(writer.nodes)
        if rule is None or not rule(writer, node):
            del writer.nodes[mark:]
            writer.nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in writer.nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _activated(writer: _Writer, node: NodeProto, value: str, given: dict[str, Any]) -> bool:
    """The activation of a fused operator."""
    kind = given.get("activation", b"").decode()
    numbers = [float(each) for each in given.get("activation_params", ())]
    if not kind:
        writer.finish(value, node)
        return True
    if kind not in _ACTIVATIONS:
        return False
    if kind == "LeakyRelu":
        value = writer.node(kind, [value], node, alpha=(numbers or [0.01])[0])
    elif kind == "Clip":
        if len(numbers) != 2:
            return False
        value = writer.node(kind, [value, *map(writer.constant, numbers)], node)
    elif kind == "HardSigmoid":
        if len(numbers) != 2:
            return False
        value = writer.node(kind, [value], node, alpha=numbers[0], beta=numbers[1])
    else:
        value = writer.node(kind, [value], node)
    writer.finish(value, node)
    return True


_OF_FUSION = ("activation", "activation_params")


def _fused_conv(writer: _Writer, node: NodeProto) -> bool:
    """FusedConv: ``activation(Conv(X, W, B) + Z)``."""
    given = attributes(node)
    own = {name: value for name, value in given.items() if name not in _OF_FUSION}
    value = writer.node("Conv", list(node.input[:3]), node, **own)
    if len(node.input) > 3 and node.input[3]:
        value = writer.node("Add", [value, node.input[3]], node)
    return _activated(writer, node, value, given)


def _fused_gemm(writer: _Writer, node: NodeProto) -> bool:
    """FusedGemm: ``activation(Gemm(A, B, C))``."""
    given = attributes(node)
    known = ("alpha", "beta", "transA", "transB")
    if any(name.startswith("activation_") for name in given):
        return False
    value = writer.node(
        "Gemm", list(node.input), node, **{k: given[k] for k in known if k in given}
    )
    return _activated(writer, node, value, given)


def _fused_matmul(writer: _Writer, node: NodeProto) -> bool:
    """FusedMatMul: ``alpha · MatMul(A, B)``. Turned operands are left to the walk."""
    given = attributes(node)
    alpha = float(given.pop("alpha", 1.0))
    turned = {name: 1 for name in TURNS if given.get(name, 0)}
    if turned and alpha == 1.0:
        return False
    domain = "com.microsoft" if turned else ""
    kind = "FusedMatMul" if turned else "MatMul"
    value = writer.node(kind, list(node.input), node, domain=domain, **turned)
    value = writer.node("Mul", [value, writer.constant(alpha)], node)
    writer.finish(value, node)
    return True


def _integer_product(writer: _Writer, node: NodeProto) -> bool:
    """MatMulIntegerToFloat: ``(A − a₀)·(B − b₀) · (a · b) + bias``, and the sum of integers exact.

    Its inputs are A, B, a, b, a₀, b₀ and the bias, of which the last three may be left out.
    """
    a, b, one, two, first, second, bias = (*node.input, *[""] * 7)[:7]
    if TensorProto.FLOAT not in (writer.kinds.get(one), writer.kinds.get(two)):
        return False
    return _scaled_product(writer, node, (a, b, first, second), (one, two), bias)


def _dynamic_product(writer: _Writer, node: NodeProto) -> bool:
    """DynamicQuantizeMatMul: the same of ``A`` in integers, as DynamicQuantizeLinear makes them.

    Its inputs are A, B, b, b₀ and the bias, of which the last two may be left out.
    """
    a, b, scale, zero, bias = (*node.input, *[""] * 5)[:5]
    count = len(writer.nodes)
    value = writer.node("DynamicQuantizeLinear", [a], node)
    others = [f"{value} {what}" for what in ("scale", "zero")]
    writer.nodes[count].output.extend(others)
    return _scaled_product(writer, node, (value, b, others[1], zero), (others[0], scale), bias)


def _scaled_product(
    writer: _Writer, node: NodeProto, read: Sequence[str], scales: Sequence[str], bias: str
) -> bool:
    product = list(read) if read[3] else list(read[:3]) if read[2] else list(read[:2])
    value = writer.node("MatMulInteger", product, node)
    value = writer.node("Cast", [value], node, to=TensorProto.FLOAT)
    scale = writer.node("Mul", list(scales), node)
    value = writer.node("Mul", [value, scale], node)
    if bias:
        value = writer.node("Add", [value, bias], node)
    writer.finish(value, node)
    return True


def _quick_gelu(writer: _Writer, node: NodeProto) -> bool:
    """QuickGelu: ``x · sigmoid(alpha·x)``."""
    alpha = float(attributes(node).get("alpha", 1.702))
    value = node.input[0]
    if alpha != 1.0:
        value = writer.node("Mul", [value, writer.constant(alpha)], node)
    value = writer.node("Sigmoid", [value], node)
    writer.finish(writer.node("Mul", [node.input[0], value], node), node)
    return True


def _gelu(writer: _Writer, node: NodeProto) -> bool:
    """Gelu: ``0.5 · x · (1 + erf(x / √2))``."""
    if attributes(node).get("approximate", b"none") != b"none" or len(node.input) > 1:
        return False
    data = node.input[0]
    value = writer.node("Div", [data, writer.constant(float(np.sqrt(2.0)))], node)
    value = writer.node("Add", [writer.node("Erf", [value], node), writer.constant(1.0)], node)
    value = writer.node(
        "Mul", [writer.node("Mul", [data, value], node), writer.constant(0.5)], node
    )
    writer.finish(value, node)
    return True


def _fast_gelu(writer: _Writer, node: NodeProto) -> bool:
    """FastGelu: ``0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`` of ``A + B``."""
    data = node.input[0]
    if len(node.input) > 1 and node.input[1]:
        data = writer.node("Add", list(node.input[:2]), node)
    cube = writer.node("Pow", [data, writer.constant(3.0)], node)
    cube = writer.node("Mul", [cube, writer.constant(0.044715)], node)
    value = writer.node("Add", [data, cube], node)
    value = writer.node("Mul", [value, writer.constant(float(np.sqrt(2.0 / np.pi)))], node)
    value = writer.node("Add", [writer.node("Tanh", [value], node), writer.constant(1.0)], node)
    value = writer.node(
        "Mul", [writer.node("Mul", [data, value], node), writer.constant(0.5)], node
    )
    writer.finish(value, node)
    return True


def _bias_gelu(writer: _Writer, node: NodeProto) -> bool:
    """BiasGelu: ``Gelu(A + B)``."""
    if len(node.input) != 2:
        return False
    value = writer.node("Add", list(node.input), node)
    return _gelu(writer, NodeProto(name=label(node), input=[value], output=node.output))


def _layer_norm(writer: _Writer, node: NodeProto) -> bool:
    """LayerNormalization over the last axis: ``(x − mean) / √(mean of squares + ε) · γ + β``."""
    given = attributes(node)
    if given.get("axis", -1) != -1 or any(node.output[1:]) or len(node.input) < 2:
        return False
    data, gamma, beta = (*node.input, "")[:3]
    centred = writer.node("Sub", [data, _mean(writer, node, data)], node)
    epsilon = float(given.get("epsilon", 1e-5))
    return _normalized(writer, node, centred, (gamma, beta), epsilon)


def _rms_norm(writer: _Writer, node: NodeProto) -> bool:
    """SimplifiedLayerNormalization over the last axis: ``x / √(mean of squares + ε) · γ``."""
    given = attributes(node)
    if given.get("axis", -1) != -1 or any(node.output[1:]) or len(node.input) != 2:
        return False
    epsilon = float(given.get("epsilon", 1e-5))
    return _normalized(writer, node, node.input[0], (node.input[1], ""), epsilon)


def _skip_norm(writer: _Writer, node: NodeProto) -> bool:
    """SkipLayerNormalization: LayerNormalization of ``input + skip + bias``; it may put that out.

    Its inputs are input, skip, γ, β and the bias, of which the last two may be left out.
    """
    data, skip, gamma, beta, bias = (*node.input, *[""] * 5)[:5]
    if any(node.output[1:3]) or gamma not in writer.kinds:
        return False
    value = writer.node("Add", [data, skip], node)
    if bias:
        value = writer.node("Add", [value, bias], node)
    if node.output[3:] and node.output[3]:
        writer.nodes[-1].output[0] = value = node.output[3]
    norm = NodeProto(op_type="LayerNormalization", name=label(node), input=[value, gamma, beta])
    norm.output.append(node.output[0])
    epsilon = float(attributes(node).get("epsilon", 1e-12))
    norm.attribute.append(helper.make_attribute("epsilon", epsilon))
    if writer.opset < 17:
        return _layer_norm(writer, norm)
    writer.nodes.append(norm)
    return True


def _normalized(
    writer: _Writer, node: NodeProto, data: str, weights: Sequence[str], epsilon: float
) -> bool:
    """``data / √(mean of squares + ε) · γ + β`` over the last axis."""
    kind = writer.kinds.get(weights[0])
    if kind is None or not _holds(kind, epsilon):
        return False
    spread = _mean(writer, node, writer.node("Mul", [data] * 2, node))
    total = writer.node("Add", [spread, writer.constant(epsilon, kind)], node)
    root = writer.node("Sqrt", [total], node)
    value = writer.node("Mul", [writer.node("Div", [data, root], node), weights[0]], node)
    if weights[1]:
        value = writer.node("Add", [value, weights[1]], node)
    writer.finish(value, node)
    return True


def _holds(kind: int, number: float) -> bool:
    """Whether a type holds a number nearly: the norm itself adds ε in float32 at least."""
    held = float(np.asarray(number).astype(helper.tensor_dtype_to_np_dtype(kind)))
    return abs(held - number) <= number / 64


def _mean(writer: _Writer, node: NodeProto, data: str) -> str:
    """A ReduceMean over the last axis."""
    if writer.opset < 18:
        return writer.node("ReduceMean", [data], node, axes=[-1])
    return writer.node("ReduceMean", [data, writer.constant([-1], TensorProto.INT64)], node)


def _hard_swish(writer: _Writer, node: NodeProto) -> bool:
    """HardSwish: ``x · HardSigmoid(x)`` with α = 1/6 and β = 1/2."""
    value = writer.node("HardSigmoid", [node.input[0]], node, alpha=1.0 / 6.0, beta=0.5)
    writer.finish(writer.node("Mul", [node.input[0], value], node), node)
    return True


_RULES: dict[str, Callable[[_Writer, NodeProto], bool]] = {
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "com.microsoft::BiasGelu": _bias_gelu,
    "com.microsoft::DynamicQuantizeMatMul": _dynamic_product,
    "com.microsoft::FastGelu": _fast_gelu,
    "com.microsoft::FusedConv": _fused_conv,
    "com.microsoft::FusedGemm": _fused_gemm,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "com.microsoft::Gelu": _gelu,
    "com.microsoft::MatMulIntegerToFloat": _integer_product,
    "com.microsoft::QuickGelu": _quick_gelu,
    "com.microsoft::SkipLayerNormalization": _skip_norm,
}
"""By the type of the operator; each rule says whether it could."""
_WHOLE = ("LayerNormalization",)
"""Operators for which the walk has a form of their own."""
