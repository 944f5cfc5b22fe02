"""Which tensors operators read as weights, also in bodies and local functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import onnx

from bnfold._onnx.read.scopes import type_of
from bnfold._run.nodes import own_names, subgraphs

_LINEAR = {
    "Conv": slice(1, 3),
    "ConvTranspose": slice(1, 3),
    "DeformConv": slice(1, 4),
    "Einsum": slice(None),
    "Gemm": slice(3),
    "MatMul": slice(2),
    "GRU": slice(1, 4),
    "LSTM": slice(1, 4),
    "RNN": slice(1, 4),
    "BatchNormalization": slice(1, 5),
    "InstanceNormalization": slice(1, 3),
    "LayerNormalization": slice(1, 3),
    "GroupNormalization": slice(1, 3),
    "RMSNormalization": slice(1, 2),
    "SimplifiedLayerNormalization": slice(1, 2),
    "com.microsoft::DynamicQuantizeMatMul": slice(2, 5),
    "com.microsoft::EmbedLayerNormalization": slice(5, 7),
    "com.microsoft::FusedConv": slice(1, 3),
    "com.microsoft::FusedGemm": slice(3),
    "com.microsoft::FusedMatMul": slice(2),
    "com.microsoft::MatMulIntegerToFloat": slice(2, 7),
    "com.microsoft::NhwcConv": slice(1, 3),
    "com.microsoft::NhwcFusedConv": slice(1, 3),
    "com.microsoft::QGemm": slice(4, 5),
    "com.microsoft::SkipLayerNormalization": slice(2, 5),
    "com.microsoft::SkipSimplifiedLayerNormalization": slice(2, 4),
    "com.microsoft::TransposeMatMul": slice(2),
}
"""Operators with weights, by `type_of`, and the numbers of the inputs that are weights."""
_ELEMENTWISE = {"Add", "Div", "Mul", "PRelu", "Sub"}
COUNTING = {"NonZero", "Shape", "Size"}
"""Operators that put out sizes and positions. These are no data."""
RELAYING = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that put out the numbers of their first input."""


class Operand(NamedTuple):
    """A tensor that is read as weights: by a linear operator or a norm, or elementwise."""

    name: str
    of_layer: bool


class Operands:
    """What the nodes of a model read as weights."""

    def __init__(self, functions: Iterable[onnx.FunctionProto]) -> None:
        """Take the model's local functions."""
        self._functions = {(f.domain, f.name, f.overload): f for f in functions}
        self._within = dict[tuple[str, str, str], list[Operand]]()

    def of(self, node: onnx.NodeProto) -> list[Operand]:
        """The tensors that a node reads as weights, if they are constant, by their outer names."""
        called = (node.domain, node.op_type, node.overload)
        if called in self._functions:
            given = dict(zip(self._functions[called].input, node.input, strict=False))
            return [
                Operand(given[name], of_layer)
                for name, of_layer in self._of_function(called)
                if given.get(name)
            ]
        if (kind := type_of(node)) in _LINEAR:
            return [Operand(name, True) for name in node.input[_LINEAR[kind]] if name]
        if node.domain not in ("", "ai.onnx"):
            return []
        if node.op_type in _ELEMENTWISE:
            return [Operand(name, False) for name in node.input if name]
        return [operand for graph in subgraphs(node) for operand in self._of_body(graph)]

    def within(self, nodes: Sequence[onnx.NodeProto]) -> list[Operand]:
        """The tensors that some nodes read as weights, if they are constant.

        They may read them through operators that change no number. Numbers that only sizes are
        computed from are left out.
        """
        sources, made, counted = dict[str, str](), set[str](), set[str]()
        found = []
        for node in nodes:
            varying = made.intersection(node.input)
            counts = type_of(node) in COUNTING or bool(varying and counted >= varying)
            if counts:
                counted.update(node.output)
            if node.op_type != "Constant":
                made.update(node.output)
            if node.op_type in RELAYING and node.domain in ("", "ai.onnx") and node.input:
                sources[node.output[0]] = sources.get(node.input[0], node.input[0])
            found += [
                Operand(sources.get(name, name), of_layer)
                for name, of_layer in self.of(node)
                if of_layer or not counts
            ]
        return found

    def _of_function(self, called: tuple[str, str, str]) -> list[Operand]:
        if called not in self._within:
            self._within[called] = []  # a function may not call itself
            self._within[called] = self.within(self._functions[called].node)
        return self._within[called]

    def _of_body(self, graph: onnx.GraphProto) -> Iterator[Operand]:
        own = own_names(graph)
        return (operand for operand in self.within(graph.node) if operand.name not in own)
