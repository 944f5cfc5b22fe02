"""The sizes that operators put out, as the proof knows them without shape inference.

Every size that a rule tells is held to what onnxruntime puts out, for sizes of inputs that the
model does not say; a rule that tells too few fails as well.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto

from bnfold._relation import extents
from bnfold._relation.integers import Integers
from bnfold._relation.side import Side
from bnfold._relation.sizes import Sizes

from ..graphs import model, op, rand
from .pairs import run

INT = np.int64
X = (2, 6, 5, 6)  # A channel is as wide as an axis is long.
W, TURNED = rand(4, 3, 3, 2), rand(6, 4, 3, 2)
GATES = {"w": rand(1, 20, 6), "r": rand(1, 20, 5)}
BOTH = {"w": rand(2, 20, 6), "r": rand(2, 20, 5)}
# An operator, what it reads beside x, its attributes, x, and how many sizes are told at least.
CASES = [
    ("Relu", {}, {}, X, 4),
    ("Softmax", {}, {"axis": 1}, X, 4),
    ("LayerNormalization", {"g": rand(6)}, {"axis": -1}, X, 4),
    ("PRelu", {"a": rand(6, 1, 1)}, {}, X, 4),
    ("Cast", {}, {"to": TensorProto.FLOAT}, X, 4),
    ("Add", {"k": rand(6, 1, 1)}, {}, X, 4),
    ("Add", {"k": rand(3, 1, 1, 1, 1)}, {}, X, 5),
    ("Mul", {"k": rand(7, 2, 1, 5, 1)}, {}, X, 5),
    ("Max", {"k": rand(1), "j": rand(6, 1)}, {}, (2, 1, 5), 3),
    ("Sum", {"k": rand(7, 2, 1), "j": rand(1, 1)}, {}, (2, 5), 3),
    ("Expand", {"to": INT([3, 2, 6, 1, 6])}, {}, X, 4),
    ("Reshape", {"to": INT([0, -1, 3])}, {}, X, 2),
    ("Reshape", {"to": INT([6, 0, 10])}, {}, X, 3),
    ("Flatten", {}, {"axis": 2}, X, 0),
    ("Squeeze", {"a": INT([1, -1])}, {}, (2, 1, 5, 1), 2),
    ("Unsqueeze", {"a": INT([-1, 1])}, {}, X, 6),
    ("Conv", {"w": W}, {"group": 2, "pads": [1, 0, 2, 1]}, X, 4),
    ("Conv", {"w": W}, {"group": 2, "strides": [2, 1], "dilations": [2, 2]}, X, 3),
    ("Conv", {"w": W}, {"group": 2, "auto_pad": "SAME_UPPER"}, X, 2),
    ("Conv", {"w": W}, {"group": 2, "auto_pad": "VALID"}, X, 2),
    ("MaxPool", {}, {"kernel_shape": [3, 2], "strides": [2, 1]}, X, 2),
    ("GlobalAveragePool", {}, {}, X, 4),
    ("MatMul", {"k": rand(6, 3)}, {}, X, 4),
    ("MatMul", {"k": rand(7, 1, 6, 6, 3)}, {}, X, 5),
    ("MatMul", {"k": rand(6)}, {}, X, 0),
    ("Gemm", {"k": rand(2, 3)}, {"transA": 1}, (2, 5), 2),
    ("Gemm", {"k": rand(3, 5)}, {"transB": 1}, (2, 5), 2),
    ("Transpose", {}, {"perm": [2, 0, 3, 1]}, X, 4),
    ("Transpose", {}, {}, X, 4),
    ("ReduceMean", {"a": INT([-1, 1])}, {}, X, 4),
    ("ReduceMean", {"a": INT([-1, 1])}, {"keepdims": 0}, X, 2),
    ("ReduceMax", {}, {}, X, 0),
    ("Concat", {"k": rand(2, 3, 5, 6)}, {"axis": 1}, X, 4),
    ("Concat", {"k": rand(2, 6, 5, 3)}, {"axis": -1}, X, 4),
    ("Gather", {"k": INT([[0, 1, 1]])}, {"axis": 1}, X, 5),
    ("Gather", {"k": INT(1)}, {"axis": -2}, X, 3),
    ("Slice", {"s": INT([1]), "e": INT([9]), "a": INT([1])}, {}, X, 3),
    ("Pad", {"p": INT([0, 1, -1, 0, 2, 0, 0, 3])}, {}, X, 4),
    ("Pad", {"p": INT([1, 2, 3, 4]), "v": np.float32(0), "a": INT([1, 0])}, {}, (2, 5), 0),
    ("Pad", {"p": INT([1, 2]), "v": np.float32(0), "a": INT([1])}, {}, X, 0),
    ("Split", {"k": INT([1, 2, 3])}, {"axis": 1}, X, 4),
    ("Split", {}, {"axis": 1, "num_outputs": 2}, (2, 7), 2),
    ("LSTM", GATES, {"hidden_size": 5}, (3, 2, 6), 4),
    ("LSTM", BOTH, {"hidden_size": 5, "direction": "bidirectional"}, (3, 2, 6), 4),
]


def meant(size, shape):
    """The number that an amount stands for where x has a shape."""
    if isinstance(size, int):
        return size
    return sum(
        factor * math.prod(shape[name[-1]] for name in product) for product, factor in size.terms
    )


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{n}")
def test_every_size_that_is_told_is_that_of_the_runtime(number):
    kind, weights, given, shape, least = CASES[number]
    outputs = "y z v" if "num_outputs" not in given and kind == "Split" else "y"
    outputs = "y z" if "num_outputs" in given else outputs
    node = op(kind, " ".join(["x", *weights]), outputs, **given)
    dims = shape if kind == "Split" else (None,) * len(shape)
    made = model(node, x={"x": dims}, weights=weights, y=outputs, opset=18)
    side = Side.of(made, None)
    for name in outputs.split():
        side.shapes.symbols.pop(("", name), None)
        side.shapes.shapes.pop(("", name), None)
    held = Integers(side, Sizes())
    held.note(side.scopes[0], "x", 0)
    extents.note(held, side.scopes[0], node)
    data = rand(*shape)
    for name, found in zip(outputs.split(), run(made, {"x": data}), strict=True):
        told = held.outlines.get(("", name))
        assert told is not None or not least
        if told is not None:
            assert len(told) == found.ndim
            known = [size is not None for size in told]
            assert sum(known) >= least
            for size, real in zip(told, found.shape, strict=True):
                assert size is None or meant(size, shape) == real
