"""How far sums of many numbers may be off in float32, whatever the order of their terms.

A sum of n terms is off by up to ``(n − 1)·u·Σ|x|``, u half a unit in the last place of 1 (Higham,
*Accuracy and Stability of Numerical Algorithms*, section 4.2). A few thousand terms are off by far
less; a mean of a hundred thousand, where a shift has come ahead of it, may be off by much more than
its weights may. So each such operator of a model in float64 is moved by its bound, once up and once
down, and how far outputs move is what the sums explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from bnfold._judge.difference import gaps, mismatch
from bnfold._onnx.read.scopes import opset_of
from bnfold._run.nodes import OWN
from bnfold._run.noise import Array
from bnfold._run.source import Source

HALF_UNIT = 2.0**-24
"""Half a unit in the last place of 1 in float32."""
LONG = 4096
"""So many terms make a product or a convolution a long sum. Shorter ones are off by little."""
_FIRST_WITH_NUMPY_RULES = 7
_OVER_AXES = ("GlobalAveragePool", "ReduceMean", "ReduceSum")


def movements(source: Source, run: Callable[[Source], Sequence[Any]]) -> Sequence[Array]:
    """How far each output of a model moves with its sums; empty where that is not known.

    ``run`` gives the outputs in float64, or none.
    """
    still, *moved = (
        run(
            source
            if not way
            else replace(source, edits=(*source.edits, partial(move_sums, direction=way)))
        )
        for way in (0, 1, -1)
    )
    pairs = [list(zip(still, each, strict=True)) for each in moved if len(each) == len(still)]
    if len(pairs) < len(moved) or any(mismatch(*pair) for each in pairs for pair in each):
        return ()
    return [np.maximum(gaps(*up), gaps(*down)) for up, down in zip(*pairs, strict=True)]


def move_sums(model: onnx.ModelProto, direction: float) -> None:
    """Let each long sum of the main graph be off by its bound, up for 1 and down for −1.

    The bound of a sum is the operator itself on absolute values, times ``(n − 1)·u``. Models of
    opset 1 to 6 stay as they are.
    """
    if opset_of(model.opset_import) < _FIRST_WITH_NUMPY_RULES:
        return
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found: list[NodeProto] = []
    for number, node in enumerate(model.graph.node):
        terms = _terms(node, shapes)
        if terms is None:
            found.append(node)
            continue
        found += _moved(node, terms, f"sum {number}/", direction * HALF_UNIT)
    copies = [helper.make_node("Identity", [], []) for _ in found]
    for copy, node in zip(copies, found, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _terms(node: NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """How many terms an operator adds up, 0 if its data's sizes say it; None for no long sum."""
    if node.domain not in OWN:
        return None
    if node.op_type in _OVER_AXES:
        return 0
    shape = shapes.get(node.input[1]) if len(node.input) > 1 else None
    if not shape or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    terms = math.prod(shape[1:]) if node.op_type == "Conv" else shape[-1 if turned else 0]
    if node.op_type == "MatMul":
        terms = shape[-2:][0]
    return terms if terms >= LONG else None


def _moved(node: NodeProto, terms: int, prefix: str, part: float) -> Iterator[NodeProto]:
    """An operator whose output is moved by ``part`` of the sum of the absolute values of its terms,
    times their number.
    """

    def name(what: str) -> str:
        return f"{prefix}{what}"

    floats = 1 if node.op_type in _OVER_AXES else len(node.input)
    exact, bound = NodeProto(), NodeProto()
    exact.CopyFrom(node)
    bound.CopyFrom(node)
    exact.output[0], bound.output[0] = name("exact"), name("sizes")
    yield exact
    for at in range(floats):
        bound.input[at] = name(f"size {at}")
        yield helper.make_node("Abs", [node.input[at]], [bound.input[at]])
    yield bound
    yield helper.make_node("Abs", [name("sizes")], [name("bound")])
    if terms:
        count = helper.make_tensor("", TensorProto.FLOAT, (), [float(terms)])
        yield helper.make_node("Constant", [], [name("terms")], value=count)
    else:
        for what, source in (("all", node.input[0]), ("left", name("exact"))):
            yield helper.make_node("Size", [source], [name(f"{what} n")])
            yield helper.make_node("Cast", [name(f"{what} n")], [name(what)], to=TensorProto.FLOAT)
        yield helper.make_node("Div", [name("all"), name("left")], [name("terms")])
    unit = helper.make_tensor("", TensorProto.FLOAT, (), [part])
    yield helper.make_node("Constant", [], [name("unit")], value=unit)
    yield helper.make_node("Mul", [name("terms"), name("unit")], [name("part")])
    yield helper.make_node("Mul", [name("bound"), name("part")], [name("off")])
    yield helper.make_node("Add", [name("exact"), name("off")], [node.output[0]])
