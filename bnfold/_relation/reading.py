"""Affine operators, and those that hand on what they read, by their definitions in ONNX.

BatchNormalization: ``(x − mean) / √(var + ε) · scale + B`` along axis 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.expressions import Double, Expression, along
from bnfold._relation.side import Side, Weight, attributes
from bnfold._system.records import record

_EPSILON = float(np.float32(1e-5))
_BINARY = ("Add", "Div", "Mul", "Sub")
_PASSING = ("Identity",)
_OF_ONE = ("Concat", "Max", "Mean", "Min", "Sum")
_MOVING = ("Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Unsqueeze")


@record(frozen=True, eq=False)
class Step:
    """``scale·x + shift``, with what a tool that computes the two in floats may be off."""

    scale: Double | None
    shift: Double | None
    error: float
    unit: float

    def of(self, data: Expression) -> Expression:
        """What it makes of an expression."""
        if self.scale is not None:
            data = data.scaled(self.scale, self.error, self.unit)
        return data if self.shift is None else data.shifted(self.shift, self.error, self.unit)


def passes(side: Side, scope: Scope, node: NodeProto) -> bool:
    """Whether the first output of a node is its first input."""
    kind, given = type_of(node), attributes(node)
    if kind in _PASSING or (kind in _OF_ONE and len(node.input) == 1):
        return True
    if kind == "Dropout":
        used = [name for name in node.output[1:] if name]
        if scope.opset < 7:
            return not used and bool(given.get("is_test", 0))
        if len(node.input) < 3 or not node.input[2]:
            return not used
        training = side.constant(scope, node.input[2])
        return not used and training is not None and not training.load().any()
    if kind == "Cast":
        before, after = (side.shapes.type(scope, n) for n in (node.input[0], node.output[0]))
        return before != 0 and before == after
    if kind == "Transpose":
        rank = side.rank(scope, node.input[0])
        return list(given.get("perm", ())) == list(range(rank or 0)) and rank is not None
    if kind in _MOVING:
        sizes = [side.shapes.sizes(scope, name) for name in (node.input[0], node.output[0])]
        return sizes[0] is not None and sizes[0] == sizes[1] and None not in sizes[0]
    return False


def affine(side: Side, scope: Scope, node: NodeProto) -> tuple[str, list[Step]] | None:
    """The data and the steps of an affine operator, or None.

    None also for infinite numbers and what is not a number: no relation is made of these.
    """
    found = _affine(side, scope, node)
    numbers = [each for step in found[1] for each in (step.scale, step.shift)] if found else []
    return found if all(each is None or np.isfinite(each).all() for each in numbers) else None


def _affine(side: Side, scope: Scope, node: NodeProto) -> tuple[str, list[Step]] | None:
    kind = type_of(node)
    if kind == "BatchNormalization":
        return _batch_norm(side, scope, node)
    if kind == "Neg" and side.is_float(scope, node.input[0]):
        return node.input[0], [Step(np.asarray(-1.0), None, 0.0, 0.0)]
    if kind not in _BINARY or len(node.input) != 2 or scope.opset < 7:
        return None
    stored = [side.floats(scope, name) for name in node.input[:]]
    places = [k for k in (0, 1) if stored[k] is not None]
    if len(places) != 1:
        return None
    left = places[0] == 0
    weight, data = stored[places[0]], node.input[1 - places[0]]
    if weight is None or not data or not side.is_fitting(scope, data, weight.shape):
        return None
    values, slip = weight.double(), weight.unit / 2
    if kind == "Add":
        return data, [Step(None, values, slip, weight.unit)]
    if kind == "Sub":
        turned = [Step(np.asarray(-1.0), None, 0.0, 0.0)] if left else []
        return data, [*turned, Step(None, values if left else -values, slip, weight.unit)]
    if kind == "Mul":
        return data, [Step(values, None, slip, weight.unit)]
    if left or not np.all(values):
        return None
    return data, [Step(1.0 / values, None, 2 * slip, weight.unit)]


def _vectors(side: Side, scope: Scope, names: Any) -> list[Weight] | None:
    found = [side.floats(scope, name) for name in names]
    known = [one for one in found if one is not None and len(one.shape) == 1]
    return known if len(known) == len(found) else None


def _batch_norm(side: Side, scope: Scope, node: NodeProto) -> tuple[str, list[Step]] | None:
    given = attributes(node)
    used = [name for name in node.output[1:] if name]
    found = _vectors(side, scope, node.input[1:5])
    rank = side.rank(scope, node.input[0])
    if found is None or len(found) < 4 or used or given.get("training_mode", 0):
        return None
    if not given.get("spatial", 1):
        return None
    if rank is None or (rank < 2 and any(each.shape != (1,) for each in found)):
        return None
    channels = side.shapes.shape(scope, node.input[0]) or (None,) * 2
    sizes = {each.shape[0] for each in found} | set(channels[1:2]) - {None}
    if len(sizes) > 1:
        return None
    if scope.opset < 7 and not given.get("is_test", 0):
        return None
    gamma, beta, mean, variance = (along(each.double(), 1, rank) for each in found)
    spread = variance + float(given.get("epsilon", _EPSILON))
    if not np.all(spread > 0):
        return None
    unit = max(each.unit for each in found)
    # √ halves the error of its sum; it, the quotient and the product with a weight are rounded.
    scale = Step(gamma / np.sqrt(spread), None, 4 * unit / 2, unit)
    first, last = Step(None, -mean, unit / 2, unit), Step(None, beta, unit / 2, unit)
    return node.input[0], [first, scale, last]
