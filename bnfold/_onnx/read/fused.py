"""Operators that a model writes as several nodes, and that runtimes fuse into one again.

A GELU has five to eight nodes, a LayerNormalization up to nine, a dynamically quantized product
six. Some of these nodes are affine. onnxruntime and other runtimes recognize the whole pattern. If
a fold removed one affine node, the pattern would be broken, and the other nodes would run one by
one: more operators than before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from bnfold._core.reasons import Reason
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.rounded import scale_product
from bnfold._onnx.read.scopes import label, type_of

_CLOSE = 1e-3
_NAMES = {"MatMulInteger": "a dynamically quantized product", "Sqrt": "a normalization"}


def fused(context: Context) -> dict[int, Reason]:
    """The reasons why affine nodes that are parts of such operators stay, by position."""
    found: dict[int, Reason] = {}
    finders = {
        "Erf": _Gelu.by_erf,
        "MatMulInteger": _dynamic_product,
        "Tanh": _Gelu.by_tanh,
        "Sqrt": _normalization,
    }
    for position, node in enumerate(context.scope.nodes):
        finder = finders.get(type_of(node))
        if finder is None:
            continue
        name = _NAMES.get(node.op_type, "a GELU")
        for part in finder(_Around(context), position):
            where = label(context.scope.nodes[part])
            message = f"{where} is part of {name} that runtimes run as one operator"
            found.setdefault(part, Reason("fused-operator", where, message))
    return found


class _Around:
    """The neighbours of nodes: writers of their inputs, readers of their outputs."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.nodes = context.scope.nodes

    def writer(self, name: str, *ops: str) -> int | None:
        """The position of a tensor's writer if it has one of these types; else None."""
        position = self.context.scope.producers.get(name)
        if position is None or type_of(self.nodes[position]) not in ops:
            return None
        return position

    def readers(self, position: int, *ops: str) -> list[int]:
        """The positions of the nodes of these types that read a node's main output."""
        readers = self.context.scope.readers.get(self.nodes[position].output[0], ())
        return [p for p in dict.fromkeys(readers) if type_of(self.nodes[p]) in ops]

    def number(self, node: NodeProto, value: float) -> str | None:
        """The input of a node whose other input is a constant close to ``value``; else None."""
        for own, other in ((0, 1), (1, 0)):
            if len(node.input) == 2 and self._is(node.input[own], value):
                return str(node.input[other])
        return None

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is constant."""
        return isinstance(self.context.constants.find(self.context.scope, name), Constant)

    def _is(self, name: str, value: float) -> bool:
        found = self.context.constants.find(self.context.scope, name)
        if not isinstance(found, Constant) or math.prod(found.shape) != 1 or not found.is_float:
            return False
        number = float(np.asarray(found.load(), np.float64).reshape(-1)[0])
        return abs(number - value) <= _CLOSE * abs(value)


class _Gelu:
    """``x/2·(1 + erf(x/√2))``, or by ``tanh(√(2/π)·(x + 0.044715·x³))`` (Hendrycks & Gimpel 2016),
    its factors in any order.
    """

    @staticmethod
    def by_erf(around: _Around, position: int) -> Iterator[int]:
        inner = around.writer(around.nodes[position].input[0], "Div", "Mul")
        if inner is None:
            return
        value = math.sqrt(2) if around.nodes[inner].op_type == "Div" else math.sqrt(0.5)
        if around.number(around.nodes[inner], value) is not None:
            parts = list(_Gelu._outer(around, position))
            yield from [inner, *parts] if parts else []

    @staticmethod
    def by_tanh(around: _Around, position: int) -> Iterator[int]:
        inner = around.writer(around.nodes[position].input[0], "Mul")
        cube = None if inner is None else around.number(around.nodes[inner], math.sqrt(2 / math.pi))
        total = None if cube is None else around.writer(cube, "Add")
        if inner is None or total is None:
            return
        terms = [around.writer(name, "Mul") for name in around.nodes[total].input]
        small = [
            term
            for term in terms
            if term is not None and around.number(around.nodes[term], 0.044715) is not None
        ]
        parts = list(_Gelu._outer(around, position))
        yield from [inner, *small, *parts] if parts else []

    @staticmethod
    def _outer(around: _Around, position: int) -> Iterator[int]:
        """The Add of 1 behind the function, and the Mul by ½ ahead of or behind the gate."""
        ones = [
            p
            for p in around.readers(position, "Add")
            if around.number(around.nodes[p], 1.0) is not None
        ]
        for one in ones:
            halves = list(_Gelu._halves(around, one, 2))
            if halves:
                yield from (one, *halves)

    @staticmethod
    def _halves(around: _Around, position: int, steps: int) -> Iterator[int]:
        for product in around.readers(position, "Mul"):
            if around.number(around.nodes[product], 0.5) is not None:
                yield product
            for name in around.nodes[product].input:
                half = around.writer(name, "Mul")
                if half is not None and around.number(around.nodes[half], 0.5) is not None:
                    yield half
            if steps > 1:
                yield from _Gelu._halves(around, product, steps - 1)


def _normalization(around: _Around, position: int) -> Iterator[int]:
    """γ and β behind ``(x − mean) / √(variance + ε)``, or ``x / √(mean of squares + ε)``, along the
    last axis, and the Add of ε.
    """
    nodes = around.nodes
    epsilon = around.writer(nodes[position].input[0], "Add")
    if epsilon is None:
        return
    means = [around.writer(name, "ReduceMean") for name in nodes[epsilon].input]
    if not any(mean is not None and _is_last(around.context, nodes[mean]) for mean in means):
        return
    yield epsilon
    for quotient in around.readers(position, "Div"):
        for gamma in around.readers(quotient, "Mul"):
            if any(around.is_constant(name) for name in nodes[gamma].input):
                yield gamma
                for beta in around.readers(gamma, "Add"):
                    if any(around.is_constant(name) for name in nodes[beta].input):
                        yield beta


def _dynamic_product(around: _Around, position: int) -> Iterator[int]:
    """The Mul of the two scales of ``Cast(MatMulInteger)·(x·s)``. Runtimes run all of it, with the
    rounding of x ahead and an Add behind, as one operator (onnxruntime: DynamicQuantizeMatMul).
    """
    for cast in around.readers(position, "Cast"):
        for product in around.readers(cast, "Mul"):
            found = scale_product(around.context, around.nodes[product])
            if found is not None:
                yield found.position


def _is_last(context: Context, node: NodeProto) -> bool:
    """Whether a reduction is along the last axis alone."""
    axes = attributes.integers(node, "axes")
    if axes is None:
        found = context.constant(node, 1)
        axes = [int(a) for a in found.load().reshape(-1)] if isinstance(found, Constant) else []
    shape = context.shape(node.input[0])
    return axes == [-1] or (shape is not None and axes == [len(shape) - 1])
