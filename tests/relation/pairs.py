"""Pairs of models for the proof: a model, its folded form, and changes of stored numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold import Proof

from ..graphs import model, op

Array = Any


def proof(one: ModelProto, other: ModelProto) -> Proof:
    return bnfold.prove(one, other)


def changed(made: ModelProto, name: str, change: Callable[[Array], Array]) -> ModelProto:
    """A model with another weight."""
    copied = copy.deepcopy(made)
    (tensor,) = (t for t in copied.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copied


def run(made: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def apart(one: ModelProto, other: ModelProto, feeds: dict[str, Array]) -> float:
    """How far the outputs of two models are apart, relative to their size."""
    far = 0.0
    for a, b in zip(run(one, feeds), run(other, feeds), strict=True):
        if a.dtype.kind == "f" and a.size:
            a, b = a.astype(np.float64), b.astype(np.float64)
            far = max(far, float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), 1.0))
        elif a.size and not np.array_equal(a, b):
            far = max(far, 1.0)
    return far


def differ(one, other, feeds):
    for a, b in zip(run(one, feeds), run(other, feeds), strict=True):
        if a.shape != b.shape or a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return True
        elif not np.allclose(a, b, rtol=1e-4, atol=1e-4):
            return True
    return False


def floats(*values):
    return np.float32(values)


def ints(*values):
    return np.int64(values)


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def with_constant(*constants):
    """A model with each constant as a second output, of no declared shape."""
    for each in constants:
        made = model(op("Relu", "x", "y"), x=(2,))
        made.graph.initializer.append(numpy_helper.from_array(each, "k"))
        kind = helper.np_dtype_to_tensor_dtype(each.dtype)
        made.graph.output.append(helper.make_tensor_value_info("k", kind, None))
        yield made
