"""A model under check: its constants, its ranks, and its affine operators by their definition.

With the code that folds it shares the reading of stored constants, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.quantized import Dequantized, dequantized
from bnfold._onnx.read.scopes import Scope, label, read_scopes, type_of
from bnfold._onnx.read.shapes import Shapes, infer
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import Double, FullRankMap

_EPSILON = float(np.float32(1e-5))
# What puts out as many axes as its first input has.
_SAME_RANK = (
    "Abs",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "DequantizeLinear",
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
    "QuantizeLinear",
    "Relu",
    "Resize",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
    "Upsample",
)
_SCALER = "ai.onnx.ml::Scaler"
_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv")
_PRODUCTS = ("FusedMatMul", "MatMul", "TransposeMatMul")
_BROADCAST = ("Add", "Div", "Max", "Min", "Mul", "Sub")
_PASSED = ("Add", "BatchNormalization", "Conv", "Dropout", "Identity", "Mul", "Sub", _SCALER)


@dataclass(frozen=True)
class CheckedModel:
    """One of the two models, the original or the folded one.

    Attributes:
        scopes: its graphs, by path.
        constants: reads its constants.
        shapes: the shapes that inference has found.
    """

    scopes: dict[str, Scope]
    constants: Constants
    shapes: Shapes

    @classmethod
    def of(cls, model: ModelProto, base_dir: Path | None) -> CheckedModel:
        scopes = read_scopes(model)
        shapes = infer(model, scopes)
        return cls({s.path: s for s in scopes}, Constants(base_dir, shapes), shapes)

    def fixed(self, scope: Scope, name: str) -> NDArray[Any] | None:
        """The numbers of a constant, or None. The output of a DequantizeLinear is no constant."""
        found = self.constants.find(scope, name) if name else None
        return found.load() if isinstance(found, Constant) else None

    def values(self, scope: Scope, name: str) -> NDArray[Any] | None:
        """The numbers of a constant or of a dequantized weight, or None."""
        found = self.fixed(scope, name)
        if found is not None or not name:
            return found
        integers = self.integers(scope, name)
        return integers.weight.load() if integers is not None else None

    def is_weight(self, scope: Scope, name: str) -> bool:
        """Whether a tensor is a constant or a dequantized weight. None of its numbers is read."""
        fixed = isinstance(self.constants.find(scope, name), Constant)
        return fixed or self.integers(scope, name) is not None

    def integers(self, scope: Scope, name: str) -> Dequantized | None:
        """The weight that a DequantizeLinear makes of integers, or None."""
        found = dequantized(self.constants, scope, name)
        return found if isinstance(found, Dequantized) else None

    def double(self, scope: Scope, node: NodeProto, position: int) -> Double | None:
        """The numbers of an input of a node in float64, or None."""
        if position >= len(node.input):
            return None
        values = self.values(scope, node.input[position])
        return None if values is None else values.astype(np.float64)

    def is_no_cast(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node casts a tensor to the type that this has."""
        if node.op_type not in ("Cast", "CastLike") or node.domain not in ("", "ai.onnx"):
            return False
        read, written = (self.shapes.type(scope, n) for n in (node.input[0], node.output[0]))
        return read != 0 and read == written

    def may_drop(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node is a Dropout in training: below opset 7 unless ``is_test`` is set, from
        opset 12 unless ``training_mode`` is absent or a constant that is false.
        """
        if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx"):
            return False
        if scope.opset < 12:
            return scope.opset < 7 and not any(a.name == "is_test" and a.i for a in node.attribute)
        if len(node.input) < 3 or not node.input[2]:
            return False
        mode = self.constants.find(scope, node.input[2])
        fixed = isinstance(mode, Constant) and mode.protected is None
        return not fixed or bool(np.any(self.fixed(scope, node.input[2])))

    def rank(self, scope: Scope, name: str) -> int | None:
        """The rank of a tensor, or None.

        Where inference found no shape, the operator that writes the tensor tells its rank. A map
        broadcasts its constant with its data, and so has the larger rank of the two; so has a
        product of two that are no vectors.
        """
        least, multiplied = 0, False
        while True:
            shape = self.shapes.shape(scope, name)
            if shape is not None:
                return None if multiplied and len(shape) < 2 else max(least, len(shape))
            position = scope.producers.get(name)
            node = scope.nodes[position] if position is not None else None
            kind = _kind(scope, node) if node is not None else ""
            if kind == "QGemm":  # Inference does not know it; it puts out a matrix.
                return max(least, 2)
            if node is not None and kind == "Einsum":
                letters = _letters(node)
                return None if letters is None else max(least, letters)
            if node is not None and kind in _CONVOLUTIONS:
                weight = self.values(scope, node.input[1])
                kernel = self.shapes.shape(scope, node.input[1]) if weight is None else weight.shape
                return None if kernel is None else max(least, len(kernel))
            if node is not None and kind in (*_BROADCAST, *_PRODUCTS):
                product = kind in _PRODUCTS
                read = self.values if product else self.fixed
                constants = [read(scope, operand) for operand in node.input]
                data = [n for n, c in zip(node.input, constants, strict=True) if c is None]
                vectors = any(c.ndim < 2 for c in constants if c is not None)
                if len(data) != 1 or (product and vectors):
                    return None
                multiplied = multiplied or product
                least = max(least, *(c.ndim for c in constants if c is not None))
                name = data[0]
                continue
            if node is None or kind not in _SAME_RANK:
                return None
            name = node.input[0]


def _letters(node: NodeProto) -> int | None:
    """How many axes the equation of an Einsum says that it puts out; None where it does not."""
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    _, arrow, out = equation.replace(" ", "").partition("->")
    return len(out) if arrow and "." not in out else None


def _kind(scope: Scope, node: NodeProto) -> str:
    """The type of an operator, without a domain for onnxruntime's own; "" for a local function."""
    kind = type_of(node)
    return "" if kind in scope.functions else kind.removeprefix("com.microsoft::")


def follow(
    model: CheckedModel, scope: Scope, node: NodeProto, map_: FullRankMap
) -> np.dtype[Any] | None:
    """Apply one affine operator to a map, by the operator's definition.

    Returns the dtype of the operator's constant, or None if it has none. Raises `Mismatch` for an
    operator that is not affine.
    """
    kind = _kind(scope, node)
    if model.may_drop(scope, node):
        raise Mismatch(f"{label(node)} draws random numbers")
    if kind in ("Identity", "Dropout") or model.is_no_cast(scope, node):
        return None
    if kind == "Neg":
        map_.multiply(np.asarray(-1.0))
        return None
    if kind == "BatchNormalization":
        return _follow_batch_norm(model, scope, node, map_)
    if kind == "Conv":
        return _follow_depthwise(model, scope, node, map_)
    if kind == _SCALER:
        held = {a.name: np.asarray(a.floats, np.float64) for a in node.attribute}
        map_.add(-(held["offset"] if held["offset"].size > 1 else held["offset"].reshape(())))
        map_.multiply(held["scale"] if held["scale"].size > 1 else held["scale"].reshape(()))
        return np.dtype(np.float32)
    if len(node.input) != 2:
        raise Mismatch(f"{label(node)} does not have two operands")
    first, second = (model.fixed(scope, name) for name in node.input)
    raw = first if first is not None else second
    if raw is None or (first is not None and second is not None):
        raise Mismatch(f"{label(node)} does not have one constant operand")
    constant = raw.astype(np.float64)
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    if axis is not None and scope.opset < 7:
        rank = map_.scale.ndim
        axis += rank if axis < 0 else 0
        if axis < 0 or axis + constant.ndim > rank > 0:
            raise Mismatch(f"{label(node)} has no such axis")
        constant = constant.reshape(*constant.shape, *(1,) * (rank - axis - constant.ndim))
    if constant.ndim > map_.scale.ndim > 0:
        raise Mismatch(f"the constant of {label(node)} has more axes than its tensor")
    if kind == "Mul":
        map_.multiply(constant)
    elif kind == "Div" and second is not None:
        map_.multiply(1.0 / constant)
    elif kind == "Add":
        map_.add(constant)
    elif kind == "Sub":
        if first is not None:
            map_.multiply(np.asarray(-1.0))
            map_.add(constant)
        else:
            map_.add(-constant)
    else:
        raise Mismatch(f"{label(node)} ({node.op_type}) is not affine")
    return raw.dtype


def _follow_batch_norm(
    model: CheckedModel, scope: Scope, node: NodeProto, map_: FullRankMap
) -> np.dtype[Any] | None:
    """Apply ``(x − mean) / √(var + ε) · scale + bias``, with vectors along axis 1, to a map.

    A tensor of one axis is one channel.
    """
    given = [model.double(scope, node, k) for k in range(1, 5)]
    vectors = [vector for vector in given if vector is not None]
    rank = map_.scale.ndim
    epsilon = next((float(a.f) for a in node.attribute if a.name == "epsilon"), _EPSILON)
    least = 1 if all(vector.size == 1 for vector in vectors) else 2
    if rank < least or len(vectors) < len(given):
        raise Mismatch(f"{label(node)} is not a BatchNormalization with constant parameters")
    gamma, beta, mean, variance = (
        v.reshape((1, -1, *(1,) * (rank - 2)) if rank > 1 else (-1,)) for v in vectors
    )
    stored = model.values(scope, node.input[1])
    map_.add(-mean)
    map_.multiply(1.0 / np.sqrt(variance + epsilon))
    map_.multiply(gamma)
    map_.add(beta)
    return None if stored is None else stored.dtype


def _follow_depthwise(
    model: CheckedModel, scope: Scope, node: NodeProto, map_: FullRankMap
) -> np.dtype[Any] | None:
    """Apply a Conv that sees each number by itself: ``y[n, c, …] = W[c, 0, …]·x[n, c, …] + B[c]``.

    It does with a kernel of 1 along every axis, steps of 1, no padding, and a group for each
    channel that has one filter.
    """
    weight = model.fixed(scope, node.input[1])
    bias = model.double(scope, node, 2)
    given = {a.name: list(a.ints) for a in node.attribute}
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    pad = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    rank = map_.scale.ndim
    plain = (
        weight is not None
        and weight.ndim == rank > 2
        and weight.shape == (groups, *(1,) * (rank - 1))
        and set(given.get("strides", ())) <= {1}
        and not any(given.get("pads", ()))
        and pad in (b"NOTSET", b"VALID")
        and (bias is not None or len(node.input) < 3 or not node.input[2])
    )
    if not plain or weight is None:
        raise Mismatch(f"{label(node)} is no Conv that scales each channel by itself")
    map_.multiply(weight.astype(np.float64).reshape(1, groups, *(1,) * (rank - 2)))
    if bias is not None:
        map_.add(bias.reshape(1, groups, *(1,) * (rank - 2)))
    return weight.dtype


def chain_between(model: CheckedModel, scope: Scope, source: str, output: str) -> list[NodeProto]:
    """The operators from one tensor to another. Each reads the output of the one before.

    Raises:
        Mismatch: another operator stands between the two tensors, or no chain connects them.
    """
    nodes: list[NodeProto] = []
    name = output
    while name != source:
        position = scope.producers.get(name)
        if position is None or len(nodes) > len(scope.nodes):
            raise Mismatch(f"no chain of operators leads from {source} to {output}")
        node = scope.nodes[position]
        nodes.append(node)
        data = [n for n in node.input if n == source or model.fixed(scope, n) is None]
        passed = type_of(node) in _PASSED or model.is_no_cast(scope, node)
        if not passed or not data:
            raise Mismatch(f"{label(node)} stands between {source} and {output}")
        name = data[0]
    return nodes[::-1]


def output_rank(model: CheckedModel, scope: Scope, node: NodeProto) -> int:
    """The rank of the output of a linear operator or a norm; 0 where it is not known."""
    kind = _kind(scope, node)
    if kind in ("FusedGemm", "Gemm"):
        return 2
    if kind == "Einsum":
        return model.rank(scope, node.output[0]) or 0
    if kind in _CONVOLUTIONS:
        weight = model.constants.find(scope, node.input[1])
        if isinstance(weight, Constant):
            return len(weight.shape)
    rank = model.rank(scope, node.output[0])
    if rank is None:
        rank = model.rank(scope, node.input[0])
    return 0 if rank is None else rank
