"""The laws by which the proof lets relations pass, held to onnxruntime.

``f(s·x + t) = s'·f(x) + t'`` is computed on both sides. The laws share nothing with the folding.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import bnfold
from bnfold._onnx.read.scopes import type_of
from bnfold._relation.call import Call
from bnfold._relation.passing import LAWS, passed
from bnfold._relation.relations import Related
from bnfold._relation.side import Side

from ..graphs import NEWEST, model, op, positive, rand, reseed
from .pairs import run

ONE, ZERO = np.ones(()), np.zeros(())
C = (4, 1, 1)
X = (2, 4, 4, 4)  # A channel is as wide as an axis is long.


def uniform():
    return Related(np.asarray(1.7), np.asarray(0.6))


def scaled(*shape, sign=1.0):
    return Related(sign * positive(*shape).astype(np.float64), ZERO)


def moved(*shape):
    return Related(positive(*shape).astype(np.float64), rand(*shape).astype(np.float64))


def shifted(*shape):
    return Related(ONE, rand(*shape).astype(np.float64))


WINDOW = {"kernel_shape": [3, 3], "strides": [2, 1]}
PADDED = {**WINDOW, "pads": [1, 1, 1, 1]}
INT = np.int64
BY_C = moved(*C)
# An operator, its constants, the relation of its data, and whether it passes.
CASES = [
    ("Relu", {}, {}, scaled(*C), True),
    ("Relu", {}, {}, scaled(*C, sign=-1.0), False),
    ("Relu", {}, {}, moved(*C), False),
    ("LeakyRelu", {}, {}, scaled(*X[1:]), True),
    ("PRelu", {"slope": rand(*C)}, {}, scaled(*C), True),
    ("Abs", {}, {}, scaled(*C, sign=-1.0), True),
    ("Abs", {}, {}, shifted(*C), False),
    ("Tanh", {}, {}, Related(np.asarray(-1.0), ZERO), True),
    ("Tanh", {}, {}, scaled(*C), False),
    ("Erf", {}, {}, Related(np.float64([-1, 1, -1, 1]).reshape(C), ZERO), True),
    ("Sigmoid", {}, {}, scaled(*C), False),
    ("MaxPool", {}, PADDED, moved(*C), True),
    ("MaxPool", {}, PADDED, scaled(*C, sign=-1.0), False),
    ("MaxPool", {}, PADDED, moved(4), False),
    ("AveragePool", {}, {**PADDED, "count_include_pad": 1}, scaled(*C, sign=-1.0), True),
    ("AveragePool", {}, {**PADDED, "count_include_pad": 1}, moved(*C), False),
    ("AveragePool", {}, PADDED, moved(*C), True),
    ("AveragePool", {}, PADDED, moved(4, 1), False),
    ("AveragePool", {}, {**WINDOW, "ceil_mode": 1}, moved(*C), True),
    ("AveragePool", {}, {**PADDED, "ceil_mode": 1}, moved(*C), True),
    ("AveragePool", {}, {**WINDOW, "ceil_mode": 1, "count_include_pad": 1}, moved(*C), False),
    ("GlobalMaxPool", {}, {}, moved(*C), True),
    ("GlobalAveragePool", {}, {}, moved(*C), True),
    ("GlobalAveragePool", {}, {}, moved(4), False),
    ("ReduceMean", {"axes": INT([2, 3])}, {"keepdims": 0}, moved(*C), True),
    ("ReduceMean", {"axes": INT([1])}, {}, moved(*C), False),
    ("ReduceMean", {"axes": INT([1])}, {"keepdims": 0}, moved(4), True),
    ("ReduceSum", {"axes": INT([-1])}, {}, scaled(*C, sign=-1.0), True),
    ("ReduceSum", {"axes": INT([-1])}, {}, moved(*C), True),
    ("ReduceSum", {"axes": INT([0, -1])}, {"keepdims": 0}, moved(*C), True),
    ("ReduceSum", {"axes": INT([1])}, {}, moved(*C), False),
    ("ReduceSum", {}, {}, moved(*C), False),
    ("ReduceSum", {}, {}, uniform(), True),
    ("ReduceMax", {"axes": INT([2])}, {"keepdims": 0}, moved(*C), True),
    ("ReduceMax", {"axes": INT([2])}, {}, scaled(*C, sign=-1.0), False),
    ("ReduceMin", {"axes": INT([0])}, {}, moved(*C), True),
    ("ArgMax", {}, {"axis": 1}, Related(np.asarray(2.0), np.asarray(3.0)), True),
    ("ArgMax", {}, {"axis": 1}, moved(*C), False),
    ("ArgMax", {}, {"axis": 3}, moved(*C), True),
    ("Softmax", {}, {"axis": 1}, shifted(4, 1), True),
    ("Softmax", {}, {"axis": 1}, shifted(*C), False),
    ("InstanceNormalization", {"g": rand(4), "b": rand(4)}, {}, shifted(*C), True),
    ("InstanceNormalization", {"g": rand(4), "b": rand(4)}, {}, scaled(*C), False),
    ("Transpose", {}, {"perm": [0, 3, 1, 2]}, moved(*C), True),
    ("Flatten", {}, {"axis": 1}, moved(*C), True),
    ("Reshape", {"to": INT([2, 2, 2, 16])}, {}, moved(*C), True),
    ("Reshape", {"to": INT([2, 4, 16])}, {}, moved(*C), True),
    ("Reshape", {"to": INT([8, 4, 4])}, {}, moved(4), True),
    ("Reshape", {"to": INT([8, 16])}, {}, moved(*C), True),
    ("Reshape", {"to": INT([2, 4, 2, 8])}, {}, moved(4), True),
    ("Unsqueeze", {"axes": INT([1, 4])}, {}, moved(*C), True),
    ("Slice", {"s": INT([1]), "e": INT([3]), "a": INT([1])}, {}, moved(*C), True),
    ("Slice", {"s": INT([-1]), "e": INT([-9]), "a": INT([1]), "k": INT([-1])}, {}, BY_C, False),
    ("Slice", {"s": INT([0]), "e": INT([9]), "a": INT([1]), "k": INT([2])}, {}, BY_C, True),
    ("Gather", {"at": INT([3, 0, -2])}, {"axis": 1}, moved(*C), True),
    ("Gather", {"at": INT(2)}, {"axis": 1}, moved(*C), True),
    ("Gather", {"at": INT([[1, 0]])}, {"axis": 1}, moved(*C), False),
    ("Pad", {"p": INT([0, 0, 1, 1, 0, 0, 1, 1])}, {"mode": "reflect"}, moved(*C), True),
    ("Pad", {"p": INT([0, 1, 0, 0, 0, 0, 0, 0])}, {"mode": "edge"}, moved(*C), False),
    ("Pad", {"p": INT([0, 0, 1, 1, 0, 0, 1, 1])}, {}, scaled(*C), True),
    ("Pad", {"p": INT([0, 0, 1, 1, 0, 0, 1, 1])}, {}, moved(*C), False),
    ("Resize", {"s": np.float32([1, 1, 2, 2])}, {"mode": "linear"}, moved(*C), True),
    ("Resize", {"s": np.float32([1, 1, 2, 2])}, {"mode": "linear"}, moved(4), False),
    ("DepthToSpace", {}, {"blocksize": 2}, uniform(), True),
    ("DepthToSpace", {}, {"blocksize": 2}, moved(*C), False),
    ("Tile", {"n": INT([1, 2, 1, 1])}, {}, uniform(), True),
    ("Expand", {"n": INT([2, 4, 4, 4])}, {}, uniform(), True),
    ("Expand", {"n": INT([3, 1, 1, 4, 4])}, {}, moved(*C), True),
    ("Expand", {"n": INT([2, 4, 4, 4])}, {}, moved(2, 1, 1, 4), True),
]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{n}")
def test_a_relation_passes_where_its_law_says_so(number):
    kind, weights, given, related, passes = CASES[number]
    reseed(number)
    data = rand(*X)
    names = " ".join(["x", *weights])
    if kind == "Resize":
        names = "x _ s"
    made = model(op(kind, names, "y", **given), x=X, weights=weights, opset=min(NEWEST, 18))
    if kind == "ArgMax":
        made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    side = Side.of(made, None)
    node = made.graph.node[0]
    relations = [related, *[None] * (len(node.input) - 1)]
    numbers = (0.0,) if kind == "Pad" and "mode" not in given else ()
    found = passed(Call(side, side.scopes[0], node, relations, type_of(node), numbers, numbers))
    assert (found is not None) is passes
    if found is None:
        return
    (scale, shift), *_ = found
    (before,) = run(made, {"x": data})
    (behind,) = run(made, {"x": np.float32(related.scale * data + related.shift)})
    wanted = scale * before.astype(np.float64) + shift
    assert wanted.shape == behind.shape
    np.testing.assert_allclose(behind, wanted, rtol=2e-5, atol=2e-5)


def test_every_law_of_one_input_has_a_case():
    """The others are tried with whole models."""
    several = {"Clip", "Concat", "Div", "MatMul", "Max", "Min", "Mul", "Split", "ThresholdedRelu"}
    alike = {"ArgMin", "LogSoftmax", "Shape", "Sin", "Size", "SpaceToDepth", "Squeeze", "Upsample"}
    assert LAWS.keys() == {case[0] for case in CASES if case[0] != "Sigmoid"} | several | alike


_SHARED = {
    "bnfold._errors",
    "bnfold._onnx",
    "bnfold._onnx.read.constants",
    "bnfold._onnx.read.moved",  # what ends of a Slice engines read otherwise
    "bnfold._onnx.read.quantized",
    "bnfold._onnx.read.scopes",
    "bnfold._onnx.read.shapes",
    "bnfold._onnx.read.sizes",
    "bnfold._run.nodes",  # which operators draw random numbers
    "bnfold._system.records",  # a dataclass that is made in half the time
}

_OF_TORCH = {
    "bnfold._torch.read.constants",
    "bnfold._torch.read.export",
    "bnfold._torch.tensors",
}


def test_the_proof_shares_reading_with_the_folding_and_nothing_else():
    """No formula, no law, no planner: `tests/test_rooms.py` has the order of rooms besides."""
    for room, shared in (("_relation", _SHARED), ("_aten", _SHARED | _OF_TORCH)):
        for path in (Path(bnfold.__file__).parent / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bnfold"):
                    own = str(node.module).startswith(("bnfold._relation", f"bnfold.{room}"))
                    assert own or node.module in shared, (path.name, node.module)
