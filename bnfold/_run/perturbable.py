"""Finds the weights of an ONNX model, whichever tool has made it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.evaluation import is_evaluated
from bnfold._onnx.read.quantized import MADE_BYTES
from bnfold._onnx.read.scopes import DEQUANTIZERS, QUANTIZERS, Scope, read_scopes, type_of
from bnfold._onnx.read.shapes import Shapes, infer
from bnfold._onnx.tensors import mapped
from bnfold._run.nodes import reached, subgraphs
from bnfold._run.noise import Array
from bnfold._run.operands import COUNTING, RELAYING, Operand, Operands

_OF_INTEGERS = (*DEQUANTIZERS, *QUANTIZERS)
"""Operators that make weights of stored integers, and these of floats."""
_FEW = 1 << 10
FEW_DIGITS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class PerturbableWeights:
    """The weights of a main graph.

    Attributes:
        values: the weights by name; None for a weight that operators make of constants. The engine
            computes it.
        layers: the names of the weights of linear operators and norms.
    """

    values: Mapping[str, Array | None]
    layers: frozenset[str]


def find_weights(
    model: onnx.ModelProto, folder: Path, as_stored: bool = False
) -> PerturbableWeights:
    """The weights of a model's main graph.

    These are the constant parameters of its linear operators and normalizations, and the constants
    that are added to its data or multiplied with it. Operators in bodies and local functions count
    if the main graph holds the constant. With ``as_stored`` a weight that a Cast widens is the one
    of few digits that is stored: whoever stores another one there rounds it to those.

    A constant is no weight if a caller may override it, or if it only meets numbers computed from
    shapes: exporters keep shapes in float constants. Raises `UsageError` where external data is
    missing.
    """
    scopes = read_scopes(model)
    (main,) = (scope for scope in scopes if not scope.path)
    constants = Constants(folder, _Inferred(model, scopes))
    fixed, counted = set(main.initializers), set[str]()
    known, made, optional = set(main.initializers), set[str](), set(main.protected)
    operands, read = Operands(model.functions), list[Operand]()
    stored = dict[str, str]()
    small = _integers(model) * np.dtype(np.float32).itemsize <= MADE_BYTES
    for node in model.graph.node:
        varying = [name for name in node.input if name and name not in fixed]
        outputs = [name for name in node.output if name]
        has_bodies = any(True for _ in subgraphs(node))
        if not varying and not has_bodies:
            fixed.update(outputs)
            if as_stored and type_of(node) in RELAYING and node.input[0]:
                stored[node.output[0]] = stored.get(node.input[0], node.input[0])
            if not optional.isdisjoint(node.input):
                optional.update(outputs)
            elif node.op_type == "Constant":
                known.update(outputs)
            elif known.issuperset(filter(None, node.input)) and (
                is_evaluated(node) or (type_of(node) in _OF_INTEGERS and small)
            ):
                known.add(node.output[0])
                made.add(node.output[0])
        elif type_of(node) in COUNTING or (
            varying and not has_bodies and counted.issuperset(varying)
        ):
            counted.update(outputs)
        else:
            read += (operand for operand in operands.of(node) if operand.name in fixed)
    values = dict[str, Array | None]()
    read.sort(key=lambda operand: not operand.of_layer)
    narrow = {t.name for t in model.graph.initializer if t.data_type in FEW_DIGITS}
    named = {name: each for name, each in stored.items() if each in narrow - optional}
    read = [operand._replace(name=named.get(operand.name, operand.name)) for operand in read]
    for name in dict.fromkeys(operand.name for operand in read):
        if name in made:
            values[name] = None
        elif name not in optional:
            constant = constants.find(main, name)
            if isinstance(constant, Constant) and constant.is_float and not constant.protected:
                values[name] = constants.mapped(constant)
    return PerturbableWeights(values, frozenset(o.name for o in read if o.of_layer) & values.keys())


def stores_anew(model: onnx.ModelProto, other: onnx.ModelProto, folders: Sequence[Path]) -> bool:
    """Whether another model stores a tensor of few digits that the first one does not, which widens
    some.

    Raises `UsageError` where external data is missing.
    """
    if not any(node.op_type == "Cast" for node in model.graph.node):
        return False
    known, new = (
        [(each, folder) for each in one.graph.initializer if each.data_type in FEW_DIGITS]
        for one, folder in zip((model, other), folders, strict=True)
    )
    for tensor, folder in new:
        alike = [each for each in known if _told(each[0]) == _told(tensor)]
        alike.sort(key=lambda each: each[0].name != tensor.name)
        bits = mapped(tensor, folder).view(np.int16)
        if not any(_same(bits, mapped(*each).view(np.int16)) for each in alike):
            return True
    return False


def _told(tensor: onnx.TensorProto) -> tuple[object, ...]:
    return tensor.data_type, *tensor.dims


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape are equal; most that are not differ at once."""
    few = one.reshape(-1)[:_FEW], other.reshape(-1)[:_FEW]
    return np.array_equal(*few) and np.array_equal(one, other)


def plantable_weights(model: onnx.ModelProto, weights: PerturbableWeights) -> Collection[str]:
    """The names of the weights to plant errors in.

    These are the weights of layers if they reach every output that any weight reaches. Else they
    are all weights.
    """
    outputs = {value.name for value in model.graph.output}
    left = outputs & reached(model.graph, weights.values.keys())
    return weights.layers if left <= reached(model.graph, weights.layers) else weights.values.keys()


def _integers(model: onnx.ModelProto) -> int:
    """How many numbers all integers of the main graph hold that a DequantizeLinear may read."""
    read = {node.input[0] for node in model.graph.node if type_of(node) in _OF_INTEGERS}
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.name in read)


class _Inferred(Shapes):
    """Shapes that are inferred only when somebody asks for one: few models need them."""

    def __init__(self, model: onnx.ModelProto, scopes: list[Scope]) -> None:
        super().__init__()
        self._model, self._scopes = model, scopes
        self._found: Shapes | None = None

    def shape(self, scope: Scope, name: str) -> tuple[int | None, ...] | None:
        return self._known().shape(scope, name)

    def type(self, scope: Scope, name: str) -> int:
        return self._known().type(scope, name)

    def _known(self) -> Shapes:
        if self._found is None:
            self._found = infer(self._model, self._scopes)
        return self._found
