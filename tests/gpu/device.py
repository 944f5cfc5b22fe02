"""The provider that the tests of this folder run on, and the models."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from bnfold._run.providers import PROVIDERS

from .. import zoo
from ..scripts import load

NAME = os.environ.get("BNFOLD_GPU", "cuda")
PROVIDER = PROVIDERS[NAME]


@cache
def missing() -> str:
    """Why nothing can run on the GPU, "" if it can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import torch  # noqa: F401  # Its wheels bring CUDA's libraries.

        onnxruntime.preload_dlls()
    if not PROVIDER.is_there:
        return f"this onnxruntime has no {PROVIDER.full_name}"
    digits = str(zoo.path("digits"))
    try:
        session = onnxruntime.InferenceSession(digits, providers=[PROVIDER.full_name])
    except Exception as error:  # Whatever a driver or a library that is not there raises.
        return f"{PROVIDER.full_name} does not start: {error}"
    active = session.get_providers()[0]
    return "" if active == PROVIDER.full_name else f"{PROVIDER.full_name} is not active"


def card() -> str:
    """The name of the card."""
    with contextlib.suppress(ImportError, RuntimeError, AssertionError):
        import torch

        return str(torch.cuda.get_device_name())
    return NAME


def _file(name: str) -> ModelProto:
    return onnx.load(zoo.path(name))


def networks() -> ModuleType:
    """The networks of the benchmarks, which need PyTorch and the folder."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    load("benchmarks", "catalogue")
    pytest.importorskip("networks.branches", reason="there is no benchmarks/networks")
    return importlib.import_module("networks")


def _network(name: str) -> ModelProto:
    made: ModelProto = networks().exported(*networks().make(name))
    return made


def _mobileone() -> ModelProto:
    import torch

    module = networks().branches.mobileone_s0().eval()
    made: ModelProto = networks().exported(module, torch.randn(1, 3, 64, 64))
    return made


def _resnet50() -> ModelProto:
    script = load("benchmarks", "resnet50")
    made: ModelProto = script.build()
    return made


def _narrow(kind: int) -> ModelProto:
    """The digits model in another floating-point type, its input and output included."""
    made = _file("digits")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    stored = [a.t for n in made.graph.node for a in n.attribute if a.HasField("t")]
    for tensor in (*made.graph.initializer, *stored):
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.helper.make_tensor(
                tensor.name, kind, values.shape, values.tobytes(), raw=True
            ))  # fmt: skip
    return made


def _quantized() -> ModelProto:
    """The digits model with weights and activations in int8, as onnxruntime quantizes it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left = [rng.random((8, 1, 8, 8), np.float32) * 16 for _ in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            name = onnx.load(zoo.path("digits")).graph.input[0].name
            return {name: self.left.pop()} if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(str(zoo.path("digits")), str(target), Reader(), QuantFormat.QDQ)
        return onnx.load(target)


MODELS: Mapping[str, Callable[[], ModelProto]] = {
    "digits": lambda: _file("digits"),
    "PP-OCRv5 det": lambda: _file("det"),
    "PP-OCRv5 rec": lambda: _file("rec"),
    "ResNet-50": _resnet50,
    "MobileOne": _mobileone,
    "MobileNetV2": lambda: _network("mobilenet-v2"),
    "float16": lambda: _narrow(TensorProto.FLOAT16),
    "bfloat16": lambda: _narrow(TensorProto.BFLOAT16),
    "quantized": _quantized,
}
