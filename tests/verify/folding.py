"""A hand-made fold of BatchNormalization into Conv, and the mistakes it is tested against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MISTAKES = ("epsilon dropped", "scale rolled", "bias unscaled", "one channel off")
_WEIGHT_POSITIONS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the main graph's initializers and outputs of Constant and ConstantOfShape nodes."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            values[node.output[0]] = numpy_helper.to_array(attributes["value"].t)
        elif node.op_type == "ConstantOfShape" and node.input[0] in values:
            fill = numpy_helper.to_array(attributes["value"].t)
            values[node.output[0]] = np.full(values[node.input[0]], fill[0], dtype=fill.dtype)
    return values


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the floating-point constants that an operator reads as a weight."""
    values = constants(model)
    names = {
        node.input[k]
        for node in model.graph.node
        for k in _WEIGHT_POSITIONS.get(node.op_type, ())
        if k < len(node.input)
    }
    return {n: values[n] for n in sorted(names & values.keys()) if values[n].dtype.kind == "f"}


def fold(source: Path, target: Path, mistake: str = "", every: bool = True) -> list[str]:
    """Fold each BatchNormalization that alone reads a Conv; return the names that took part.

    The new weights are computed in float64 and rounded once. A mistake is made in every fold, or
    only in the middle one.
    """
    model = onnx.load(source)
    graph, values = model.graph, constants(model)
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    pairs = [
        (makers[norm.input[0]], norm)
        for norm in graph.node
        if norm.op_type == "BatchNormalization"
        and readers[norm.input[0]] == 1
        and norm.input[0] in makers
        and makers[norm.input[0]].op_type == "Conv"
        and all(name in values for name in norm.input[1:])
    ]
    touched = []
    for number, (conv, norm) in enumerate(pairs):
        wrong = mistake if every or number == len(pairs) // 2 else ""
        touched += [*conv.input[1:], *norm.input[1:]]
        parts: list[Any] = [values[name].astype(np.float64) for name in norm.input[1:]]
        gamma, beta, mean, variance = parts
        epsilon = next(
            (a.f for a in norm.attribute if a.name == "epsilon"), float(np.float32(1e-5))
        )
        scale = gamma / np.sqrt(variance + (0.0 if wrong == "epsilon dropped" else epsilon))
        if wrong == "scale rolled":
            scale = np.roll(scale, 1)
        weight = values[conv.input[1]]
        bias = values[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else 0.0
        shift = (bias - mean) * (1.0 if wrong == "bias unscaled" else scale) + beta
        if wrong == "one channel off":
            scale = scale * (1 + 0.01 * (np.arange(scale.size) == scale.size // 2))
        new = weight.astype(np.float64) * scale.reshape([-1] + [1] * (weight.ndim - 1))
        names = [f"folded.{number}.weight", f"folded.{number}.bias"]
        graph.initializer.append(numpy_helper.from_array(new.astype(weight.dtype), names[0]))
        graph.initializer.append(numpy_helper.from_array(shift.astype(weight.dtype), names[1]))
        if model.ir_version < 4:
            for tensor in graph.initializer[-2:]:
                graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
        for index, name in enumerate(names, start=1):
            del conv.input[index:]
            conv.input.append(name)
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    onnx.save(model, target)
    return touched
