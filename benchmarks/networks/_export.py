"""Networks in ONNX, with every BatchNorm and every constant that they have."""

from __future__ import annotations

import tempfile
import warnings

import onnx
import torch
from torch import Tensor, nn

OPSET = 17


def exported(module: nn.Module, inputs: Tensor) -> onnx.ModelProto:
    """The module in ONNX, with every BatchNorm that it has."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder, warnings.catch_warnings():
        path = f"{folder}/model.onnx"
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (inputs,),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=OPSET,
        )
        return onnx.load(path)
