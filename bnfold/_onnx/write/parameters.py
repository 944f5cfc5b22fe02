"""Writes new numbers into operators that stay: weights, biases, bounds and values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from bnfold._core.laws import Edit
from bnfold._core.parameters import Site
from bnfold._core.stored import Parameter
from bnfold._core.view import Absorber, Crossing
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.write.edits import Editor
from bnfold._plan.planner import Sides

Array = NDArray[Any]


def write_parameters(
    editor: Editor,
    graph: Graph,
    position: int,
    site: Site,
    sides: Sides,
    lent: Sequence[Constant] = (),
) -> None:
    """Give the absorber at a position its new weight and bias, rounded once. What it is given ahead
    goes into the bias by its old weight, so that `scales.write` follows when every bias is written.

    Its bias may be one of the constants that are ``lent``: an Add's constant then keeps its name,
    and is stored once for all.
    """
    scope, node = graph.scope, graph.scope.nodes[position]
    bias = site.new_bias(sides.behind, sides.ahead)
    old_weight, old_bias = _constant(site.weight_value), _constant(site.bias_value)
    weight_name = old_weight.name if old_weight else node.input[site.weight]
    make = partial(_new_weight, site, sides)
    if site.rescales(sides.behind, sides.ahead) and not (
        old_weight is not None and editor.constants.put_later(scope, old_weight, site.dtype, make)
    ):
        editor.store(scope, node, site.weight, old_weight, make(), f"{weight_name}_folded")
    if bias is not None and site.bias is not None:
        if site.bias_factor != 1.0:
            _reset(node, "beta")
        stem = weight_name.removesuffix(".weight")
        wanted = f"{stem}.bias" if stem != weight_name else f"{weight_name}_bias"
        if old_bias is not None:
            wanted = f"{old_bias.name}_folded"
        known = next((one.name for one in lent if _holds(one, bias)), None)
        if known is not None:
            editor.connect(scope, position, site.bias, known)
        else:
            editor.store(scope, node, site.bias, old_bias, bias, wanted)


def _new_weight(site: Site, sides: Sides) -> Array:
    weight = site.new_weight(sides.behind, sides.ahead)
    assert weight is not None
    return weight


def write_numbers(editor: Editor, graph: Graph, index: int, edit: Edit) -> None:
    """Write the numbers of an operator that a map was carried across: a Clip's bounds, say.

    Each goes to where the operator keeps it: to an input, an attribute or a list in one. One that
    becomes another loses what it had but its name, its data and its outputs, unless its form keeps
    all; its data may change places.
    """
    scope = graph.scope
    node = scope.nodes[graph.positions[index]]
    role = graph.view.nodes[index].role
    holder = role.activation if isinstance(role, Absorber) else role
    assert isinstance(holder, Crossing)
    numbers = holder.numbers
    if edit.form is not None:
        numbers, node.op_type = edit.form.numbers, edit.form.op
    if edit.form is not None and not edit.form.keeps:
        editor.keep_inputs(scope, node, len(holder.data))
        if edit.form.order:
            node.input[:] = [node.input[n] for n in edit.form.order]
        del node.attribute[:]
    for name, value in edit.values.items():
        place = numbers.get(name, name)
        if isinstance(place, str):
            attribute = next((a for a in node.attribute if a.name == place), None)
            if attribute is None:
                attribute = node.attribute.add(name=place, type=AttributeProto.FLOAT)
            attribute.f = float(value)
            continue
        if isinstance(place, tuple):
            listed = next(a for a in node.attribute if a.name == place[0])
            listed.floats[place[1]] = float(value)
            continue
        held = graph.context.constant(node, place)
        dtype = held.dtype if held is not None else np.dtype(np.float32)
        shape = held.shape if held is not None else ()
        values = np.broadcast_to(value, np.broadcast_shapes(shape, np.shape(value))).astype(dtype)
        stem = held.name if held is not None else node.name or node.op_type.lower()
        editor.store(scope, node, place, held, values, f"{stem}_folded")


def _holds(constant: Constant, values: Array) -> bool:
    """Whether a constant that no caller may set is just these values."""
    if constant.protected is not None or constant.shape != values.shape:
        return False
    return constant.dtype == values.dtype and bool((constant.load() == values).all())


def _constant(value: Parameter | None) -> Constant | None:
    return value if isinstance(value, Constant) else None


def _reset(node: NodeProto, attribute: str) -> None:
    """Drop an attribute, so that its default holds again."""
    for number, candidate in enumerate(node.attribute):
        if candidate.name == attribute:
            del node.attribute[number]
            return
