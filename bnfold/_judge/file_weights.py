"""Gives a model in float64 the weights of a file.

In a type of few digits the rounding of right weights hides wrong ones in outputs. Two questions
take its place. Are the weights of the file those of the model, but for roundings? And does the
model, with the file's weights, compute what the file does? Both are folded in float64 first, so
that an exporter may have folded norms or not. A weight of the file is looked for by its numbers: if
another one is taken for it, the second question tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._judge.float64_model import widened_proto
from bnfold._judge.normal_form import NormalForm, unexplained_tensor
from bnfold._onnx import tensors
from bnfold._onnx.fold import prepare
from bnfold._run.source import Source
from bnfold._torch.module.fold import Example


def take_weights(
    program: ExportedProgram, file: Source, example: Example, dtype: torch.dtype
) -> None:
    """Give a program that is in float64 and folded the weights of a file, in place.

    ``example`` is widened, and ``dtype`` the type whose roundings set weights apart.

    Raises:
        UsageError: the file does not hold a weight of the program, or cannot be folded.
    """
    held = list(_constants(file))
    found = dict[str, Tensor]()
    for name, wanted in NormalForm.of(program, example).weights.items():
        fitting = [each for one in held for each in _as_shaped(one, wanted)]
        fitting.sort(key=lambda each: float((each - wanted).abs().max()) if each.numel() else 0.0)
        right = [each for each in fitting if not unexplained_tensor(wanted, each, dtype)]
        if not right:
            raise UsageError(f"the file holds no weight that is {name} but for roundings")
        found[name] = right[0]
    with torch.no_grad():
        for store in (program.state_dict, program.constants):
            for name in found.keys() & store.keys():
                store[name].copy_(found[name])


def _constants(file: Source) -> Iterator[Tensor]:
    """The float constants of the main graph of a file, which is folded in float64."""
    model = widened_proto(file)
    prepare(model, file.folder).apply()
    stored = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored.append(node.attribute[0].t)
    for tensor in stored:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            yield torch.from_numpy(np.array(tensors.read(tensor, file.folder)))


def _as_shaped(held: Tensor, wanted: Tensor) -> Sequence[Tensor]:
    """A constant in the shape of a weight: as it is, turned, or without axes of one."""
    if held.numel() != wanted.numel():
        return []
    if _long(held.shape) == _long(wanted.shape):
        square = held.dim() == 2 and wanted.shape == held.shape == held.T.shape
        return [held.reshape(wanted.shape), *([held.T] if square else [])]
    if held.dim() == 2 and held.T.shape == wanted.shape:
        return [held.T]
    return []


def _long(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
