"""Operators on constants that are evaluated without ONNX's reference: that is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold._onnx.read.moved import moved

DATA = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
SQUARE = np.arange(27, dtype=np.int64).reshape(3, 3, 3)


def row(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def filled(value: Any) -> dict[str, Any]:
    return {"value": numpy_helper.from_array(value)}


LEAST = -(2**63) + 1
CASES: list[tuple[str, dict[str, Any], list[Any], int]] = [
    ("Transpose", {"perm": [2, 0, 1]}, [SQUARE], 17),
    ("Transpose", {}, [DATA], 17),
    ("Transpose", {}, [np.float32(3)], 17),
    ("Unsqueeze", {}, [DATA, row(0, 2)], 17),
    ("Unsqueeze", {}, [SQUARE, row(3)], 13),
    ("Unsqueeze", {"axes": [1, 3]}, [SQUARE], 11),
    ("Concat", {"axis": 1}, [SQUARE, SQUARE + 1], 17),
    ("Concat", {"axis": -1}, [DATA, DATA, DATA], 11),
    ("Concat", {"axis": 0}, [row(1), row(), row(2, 3)], 17),
    ("Reshape", {}, [DATA, row(4, -1)], 17),
    ("Reshape", {}, [np.zeros((0, 3), np.float32), row(3, -1)], 17),
    ("Reshape", {}, [row(7), np.zeros(0, np.int64)], 17),
    ("Slice", {}, [SQUARE, row(1), row(2)], 17),
    ("Slice", {}, [SQUARE, row(1), row(2**40), row(-1)], 17),
    ("Slice", {}, [SQUARE, row(-1, 2), row(LEAST, 0), row(0, 2), row(-1, -1)], 17),
    ("Slice", {}, [SQUARE, row(-2, -9), row(-1, 9), row(2, 0), row(1, 2)], 17),
    ("Slice", {}, [DATA, row(5), row(1), row(1)], 10),
    ("Slice", {}, [DATA, row(), row(), row()], 17),
    ("Cast", {"to": TensorProto.INT64}, [SQUARE], 17),
    ("ConstantOfShape", {}, [row(2, 3)], 17),
    ("ConstantOfShape", {}, [row()], 17),
    ("ConstantOfShape", filled(np.array([7], np.int64)), [row(4)], 17),
    ("ConstantOfShape", filled(np.array([2.5], np.float16)), [row(0, 2)], 17),
]
LEFT = [
    ("Unsqueeze", {}, [DATA, row(-1)], 17),
    ("Unsqueeze", {"axes": [3, 1]}, [DATA], 11),
    ("Concat", {"axis": 1}, [row(1), row(2)], 17),
    ("Concat", {"axis": 0}, [SQUARE, SQUARE.astype(np.int32)], 17),
    ("Reshape", {}, [DATA, row(0, -1)], 17),
    ("Reshape", {"shape": [4, 6]}, [DATA], 1),
    ("Slice", {"starts": [1], "ends": [2]}, [DATA], 9),
    ("Slice", {}, [SQUARE, row(1, 0), row(2, 2), row(0, -3)], 17),
    ("Slice", {}, [SQUARE, row(1), row(2), row()], 17),
    ("Cast", {"to": TensorProto.FLOAT16}, [DATA], 17),
    ("ConstantOfShape", filled(np.array([1, 2], np.int64)), [row(2)], 17),
    ("Add", {}, [DATA, DATA], 17),
]


def node_of(kind: str, given: dict[str, Any], inputs: list[Any]) -> Any:
    return helper.make_node(kind, [f"i{k}" for k in range(len(inputs))], ["y"], **given)


@pytest.mark.parametrize(("kind", "given", "inputs", "opset"), CASES)
def test_it_is_what_the_reference_makes(kind, given, inputs, opset):
    inputs = [np.asarray(each) for each in inputs]
    node = node_of(kind, given, inputs)
    feeds = dict(zip(node.input, inputs, strict=True))
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), None)
        for name, each in feeds.items()
    ]
    graph = helper.make_graph([node], "g", ports, [helper.make_empty_tensor_value_info("y")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (wanted,) = ReferenceEvaluator(made).run(None, feeds)
    found = moved(node, inputs, opset)
    assert found is not None
    wanted = np.asarray(wanted)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "given", "inputs", "opset"), LEFT)
def test_what_is_unusual_is_left_to_the_reference(kind, given, inputs, opset):
    inputs = [np.asarray(each) for each in inputs]
    assert moved(node_of(kind, given, inputs), inputs, opset) is None


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="reshape"):
        moved(node_of("Reshape", {}, [DATA, DATA]), [DATA, row(5, 5)], 17)


@pytest.mark.parametrize(
    ("start", "end"), [(1, 2**63 - 1), (1, 2**31 - 1), (-9, -9), (-4, LEAST), (-4, 2**63 - 1)]
)
def test_a_slice_of_which_engines_make_something_else_raises(start, end):
    """onnxruntime takes what is ahead; NumPy, and ONNX's reference with it, take nothing."""
    bounds = [row(start), row(end), row(0), row(-1)]
    with pytest.raises(ValueError, match="other elements"):
        moved(node_of("Slice", {}, [SQUARE, *bounds]), [SQUARE, *bounds], 17)
