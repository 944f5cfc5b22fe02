"""A row of affine operators followed by definition, as ``y = S·x + T`` at the tensor's full rank.

Nothing here is shared with the code that folds but the reading of stored constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.quantized import Dequantized, dequantized
from bnfold._onnx.read.scopes import Scope, label, read_scopes
from bnfold._onnx.read.shapes import Shapes, infer

Double = NDArray[np.float64]
_EPSILON = float(np.float32(1e-5))
# What puts out as many axes as its first input has.
_SAME_RANK = (
    "Abs",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Dropout",
    "Elu",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LeakyRelu",
    "LpPool",
    "MaxPool",
    "Neg",
    "Pad",
    "PRelu",
    "Relu",
    "Resize",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
    "Upsample",
)
_BROADCAST = ("Add", "Div", "Mul", "Sub")
_PASSED = ("Add", "BatchNormalization", "Dropout", "Identity", "Mul", "Sub")


class Mismatch(Exception):
    """The folded graph is not of the form that a right fold gives."""


@dataclass
class Line:
    """``y = scale·x + shift`` at the tensor's rank; ``bulk`` bounds the terms summed into shift,
    ``steps`` counts the operators that were rounded on the way. Where ``unknown``, x is any number
    at all, whatever the rest says.
    """

    scale: Double
    shift: Double
    bulk: Double
    unknown: NDArray[np.bool_]
    steps: int = 0

    @classmethod
    def identity(cls, rank: int) -> Line:
        shape = (1,) * rank
        return cls(np.ones(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.bool_))

    def times(self, factor: Double) -> None:
        self.unknown = self.unknown & (factor != 0)
        self.scale = self.scale * factor
        self.shift = self.shift * factor
        self.bulk = self.bulk * np.abs(factor)

    def plus(self, term: Double) -> None:
        self.shift = self.shift + term
        self.bulk = self.bulk + np.abs(term)

    def then(self, other: Line) -> None:
        """Let another line act on what this one gives."""
        self.times(other.scale)
        self.plus(other.shift)
        self.unknown = self.unknown | other.unknown

    def without(self, where: NDArray[np.bool_]) -> None:
        """Take a part out of what is compared."""
        self.scale, self.shift, self.bulk = (
            np.where(where, 0.0, part) for part in (self.scale, self.shift, self.bulk)
        )
        self.unknown = self.unknown & ~where

    def copy(self) -> Line:
        return replace(self)


@dataclass(frozen=True)
class Side:
    """One model: its graphs by path and what is constant in it."""

    scopes: dict[str, Scope]
    constants: Constants
    shapes: Shapes

    @classmethod
    def of(cls, model: ModelProto, base_dir: Path | None) -> Side:
        scopes = read_scopes(model)
        shapes = infer(model, scopes)
        return cls({s.path: s for s in scopes}, Constants(base_dir, shapes), shapes)

    def fixed(self, scope: Scope, name: str) -> NDArray[Any] | None:
        """The numbers of a map. What a DequantizeLinear makes is the data that a map reads."""
        found = self.constants.find(scope, name) if name else None
        return found.load() if isinstance(found, Constant) else None

    def values(self, scope: Scope, name: str) -> NDArray[Any] | None:
        """The numbers of a map or a weight."""
        found = self.fixed(scope, name)
        if found is not None or not name:
            return found
        integers = self.integers(scope, name)
        return integers.weight.load() if integers is not None else None

    def integers(self, scope: Scope, name: str) -> Dequantized | None:
        """The weight that a DequantizeLinear makes of integers."""
        found = dequantized(self.constants, scope, name)
        return found if isinstance(found, Dequantized) else None

    def double(self, scope: Scope, node: NodeProto, position: int) -> Double | None:
        if position >= len(node.input):
            return None
        values = self.values(scope, node.input[position])
        return None if values is None else values.astype(np.float64)

    def rank(self, scope: Scope, name: str) -> int | None:
        """The rank of a tensor; where inference gave up, that of the operators which write it.

        A map broadcasts its constant with its data, and so has the larger rank of the two.
        """
        least = 0
        while True:
            shape = self.shapes.shape(scope, name)
            if shape is not None:
                return max(least, len(shape))
            position = scope.producers.get(name)
            node = scope.nodes[position] if position is not None else None
            if node is not None and node.op_type in ("Conv", "ConvTranspose"):
                weight = self.values(scope, node.input[1])
                return None if weight is None else max(least, weight.ndim)
            if node is not None and node.op_type in _BROADCAST:
                constants = [self.fixed(scope, operand) for operand in node.input]
                data = [n for n, c in zip(node.input, constants, strict=True) if c is None]
                if len(data) != 1:
                    return None
                least = max(least, *(c.ndim for c in constants if c is not None))
                name = data[0]
                continue
            if node is None or node.op_type not in _SAME_RANK:
                return None
            name = node.input[0]


def follow(side: Side, scope: Scope, node: NodeProto, line: Line) -> np.dtype[Any] | None:
    """Apply one operator to a line, by its definition; the dtype of its constant if it has one."""
    if node.op_type in ("Identity", "Dropout"):
        return None
    if node.op_type == "Neg":
        line.times(np.asarray(-1.0))
        return None
    if node.op_type == "BatchNormalization":
        return _follow_batch_norm(side, scope, node, line)
    if len(node.input) != 2:
        raise Mismatch(f"{label(node)} does not have two operands")
    first, second = (side.fixed(scope, name) for name in node.input)
    raw = first if first is not None else second
    if raw is None or (first is not None and second is not None):
        raise Mismatch(f"{label(node)} does not have one constant operand")
    constant = raw.astype(np.float64)
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    if axis is not None and scope.opset < 7:
        constant = constant.reshape(
            *constant.shape, *(1,) * (line.scale.ndim - axis - constant.ndim)
        )
    if constant.ndim > line.scale.ndim > 0:
        raise Mismatch(f"the constant of {label(node)} has more axes than its tensor")
    if node.op_type == "Mul":
        line.times(constant)
    elif node.op_type == "Div" and second is not None:
        line.times(1.0 / constant)
    elif node.op_type == "Add":
        line.plus(constant)
    elif node.op_type == "Sub":
        if first is not None:
            line.times(np.asarray(-1.0))
            line.plus(constant)
        else:
            line.plus(-constant)
    else:
        raise Mismatch(f"{label(node)} ({node.op_type}) is not affine")
    return raw.dtype


def _follow_batch_norm(
    side: Side, scope: Scope, node: NodeProto, line: Line
) -> np.dtype[Any] | None:
    """``(x − mean) / √(var + ε) · scale + bias`` with vectors along axis 1."""
    vectors = [side.double(scope, node, k) for k in range(1, 5)]
    rank = line.scale.ndim
    epsilon = next((float(a.f) for a in node.attribute if a.name == "epsilon"), _EPSILON)
    if rank < 2 or any(v is None for v in vectors):
        raise Mismatch(f"{label(node)} is not a BatchNormalization with constant parameters")
    gamma, beta, mean, variance = (
        v.reshape((1, -1, *(1,) * (rank - 2))) for v in vectors if v is not None
    )
    stored = side.values(scope, node.input[1])
    line.plus(-mean)
    line.times(1.0 / np.sqrt(variance + epsilon))
    line.times(gamma)
    line.plus(beta)
    return None if stored is None else stored.dtype


def chain_between(side: Side, scope: Scope, source: str, output: str) -> list[NodeProto]:
    """The operators from one tensor to another, where each reads the one before."""
    nodes: list[NodeProto] = []
    name = output
    while name != source:
        position = scope.producers.get(name)
        if position is None or len(nodes) > len(scope.nodes):
            raise Mismatch(f"no chain of operators leads from {source} to {output}")
        node = scope.nodes[position]
        nodes.append(node)
        data = [n for n in node.input if n == source or side.fixed(scope, n) is None]
        if node.op_type not in _PASSED or not data:
            raise Mismatch(f"{label(node)} stands between {source} and {output}")
        name = data[0]
    return nodes[::-1]


def output_rank(side: Side, scope: Scope, node: NodeProto) -> int:
    if node.op_type == "Gemm":
        return 2
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = side.constants.find(scope, node.input[1])
        if isinstance(weight, Constant):
            return len(weight.shape)
    rank = side.rank(scope, node.output[0])
    if rank is None:
        rank = side.rank(scope, node.input[0])
    return 0 if rank is None else rank
