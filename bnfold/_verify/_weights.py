"""Finds the weights of a model from anywhere, whatever folded it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bnfold._onnx._constants import Constant, Constants, is_evaluated
from bnfold._onnx._scopes import Scope, read_scopes
from bnfold._onnx._shapes import Shapes, infer
from bnfold._verify._noise import Array

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
}
"""Operators with weights, and which of their inputs those are."""
_ELEMENTWISE = {"Add", "Div", "Mul", "PRelu", "Sub"}
_COUNTING = {"NonZero", "Shape", "Size"}


@dataclass(frozen=True)
class Weights:
    """Weights of a main graph by name, None for one that operators make of constants: what that is
    the engine says. ``layers`` are those of linear operators and norms.
    """

    values: Mapping[str, Array | None]
    layers: frozenset[str]


def find(model: onnx.ModelProto, folder: Path) -> Weights:
    """The weights of a model's main graph: the constant parameters of its linear operators and
    normalizations, and what is added to its data or multiplied with it.

    Numbers that are computed from shapes are no data: exporters keep shapes in float constants.
    What a caller may override is no weight. Raises `UsageError` where external data is missing.
    """
    scopes = read_scopes(model)
    (main,) = (scope for scope in scopes if not scope.path)
    constants = Constants(folder, _Inferred(model, scopes))
    fixed, counted = set(main.initializers), set[str]()
    known, made, optional = set(main.initializers), set[str](), set(main.protected)
    parameters, others = list[str](), list[str]()
    for node in model.graph.node:
        varying = [name for name in node.input if name and name not in fixed]
        outputs = [name for name in node.output if name]
        if not varying and not any(a.type in _GRAPHS for a in node.attribute):
            fixed.update(outputs)
            if not optional.isdisjoint(node.input):
                optional.update(outputs)
            elif node.op_type == "Constant":
                known.update(outputs)
            elif is_evaluated(node) and known.issuperset(filter(None, node.input)):
                known.add(node.output[0])
                made.add(node.output[0])
        elif node.op_type in _COUNTING or (varying and counted.issuperset(varying)):
            counted.update(outputs)
        elif node.domain not in ("", "ai.onnx"):
            continue
        elif node.op_type in _LINEAR:
            parameters += filter(fixed.__contains__, node.input[_LINEAR[node.op_type]])
        elif node.op_type in _ELEMENTWISE:
            others += filter(fixed.__contains__, node.input)
    values = dict[str, Array | None]()
    for name in dict.fromkeys([*parameters, *others]):
        if name in made:
            values[name] = None
        elif name not in optional:
            constant = constants.find(main, name)
            if isinstance(constant, Constant) and constant.is_float and not constant.protected:
                values[name] = constant.load()
    return Weights(values, frozenset(parameters) & values.keys())


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class _Inferred(Shapes):
    """Shapes that are inferred once they are asked for: few models need them."""

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
