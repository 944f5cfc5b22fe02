"""Operators that are several in one, written as these, so that both files speak one language.

onnxruntime's FusedConv, FusedGemm, FusedMatMul and QuickGelu, and ONNX's Gelu and HardSwish, are
what they stand for by definition (onnxruntime, ContribOperators.md; ONNX Gelu-20, HardSwish-14).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold._onnx.read.scopes import bodies, label, opset_of, type_of
from bnfold._relation.side import attributes

_ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid")


class _Writer:
    """Writes the operators of one graph."""

    def __init__(self, graph: GraphProto, count: Iterator[int], opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self._count = count
        self.nodes: list[NodeProto] = []

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
    counts = [Counter(map(type_of, _all_nodes(model.graph))) for model in (first, second)]
    kinds = {kind for kind in _RULES if kind not in _WHOLE or counts[0][kind] != counts[1][kind]}
    return [
        _lowered(model, kinds) if kinds & held.keys() else model
        for model, held in zip((first, second), counts, strict=True)
    ]


def _lowered(model: ModelProto, kinds: Collection[str]) -> ModelProto:
    """A copy without operators of some kinds; calls of the model's own functions are none."""
    copy = ModelProto()
    copy.CopyFrom(model)
    rules = set(kinds) - set(map(type_of, model.functions))
    opset = opset_of(model.opset_import)
    _lower(copy.graph, itertools.count(), rules, opset)
    return copy


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for _, body in bodies(node):
            yield from _all_nodes(body)


def _lower(graph: GraphProto, count: Iterator[int], kinds: Collection[str], opset: int) -> None:
    """Write the operators of a graph that are of some kinds as others."""
    writer = _Writer(graph, count, opset)
    for node in graph.node:
        for _, body in bodies(node):
            _lower(body, count, kinds, opset)
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
    """FusedMatMul: ``alpha · MatMul(A, B)``. Turned operands are left as they are."""
    given = attributes(node)
    if any(given.get(name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB")):
        return False
    value = writer.node("MatMul", list(node.input), node)
    value = writer.node("Mul", [value, writer.constant(given.get("alpha", 1.0))], node)
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


def _bias_gelu(writer: _Writer, node: NodeProto) -> bool:
    """BiasGelu: ``Gelu(A + B)``."""
    if len(node.input) != 2:
        return False
    value = writer.node("Add", list(node.input), node)
    return _gelu(writer, NodeProto(name=label(node), input=[value], output=node.output))


def _layer_norm(writer: _Writer, node: NodeProto) -> bool:
    """LayerNormalization over the last axis: ``(x − mean) / √(mean of squares + ε) · γ + β``."""
    given = attributes(node)
    kinds = {t.name: t.data_type for t in writer.graph.initializer}
    kind = kinds.get(node.input[1]) if len(node.input) > 1 else None
    if given.get("axis", -1) != -1 or kind is None or any(node.output[1:]):
        return False
    if not _holds(kind, float(given.get("epsilon", 1e-5))):
        return False
    centred = writer.node("Sub", [node.input[0], _mean(writer, node, node.input[0])], node)
    spread = _mean(writer, node, writer.node("Mul", [centred] * 2, node))
    epsilon = writer.constant(float(given.get("epsilon", 1e-5)), kind)
    root = writer.node("Sqrt", [writer.node("Add", [spread, epsilon], node)], node)
    value = writer.node("Mul", [writer.node("Div", [centred, root], node), node.input[1]], node)
    if len(node.input) > 2 and node.input[2]:
        value = writer.node("Add", [value, node.input[2]], node)
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
    "com.microsoft::BiasGelu": _bias_gelu,
    "com.microsoft::FusedConv": _fused_conv,
    "com.microsoft::FusedGemm": _fused_gemm,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "com.microsoft::Gelu": _gelu,
    "com.microsoft::QuickGelu": _quick_gelu,
}
"""By the type of the operator; each rule says whether it could."""
_WHOLE = ("LayerNormalization",)
"""Operators for which the walk has a form of their own."""
