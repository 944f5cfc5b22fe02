"""Compares two modules in onnxruntime: both are exported to ONNX with their BatchNorms."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold._errors import first_line
from bnfold._judge.settings import Settings
from bnfold._judge.two_files import compare_files
from bnfold._judge.verdict import EndToEnd
from bnfold._run.nodes import reached
from bnfold._run.torch_model import Call
from bnfold._run.torch_outputs import is_positional, named_leaves
from bnfold._system import scratch
from bnfold._torch.module.copying import copied
from bnfold._torch.module.fold import Example

_OPSET = 17


class NotExportable(Exception):
    """A module cannot be exported to ONNX, or onnxruntime does not run what comes out."""


def compared_in_onnxruntime(
    original: nn.Module, folded: nn.Module, example: Example, seed: int, felt: Collection[str] = ()
) -> EndToEnd:
    """The verdict on both modules as exported. Raises `NotExportable` where there is none.

    ``felt`` are the outputs of the original that depend on weights. Where they depend on none in
    its file, the exporter has lost something.
    """
    if any(each.dtype == torch.bfloat16 for each in (*original.parameters(), *original.buffers())):
        raise NotExportable("onnxruntime does not run bfloat16")
    if any(each.dtype == torch.float64 for each in (*original.parameters(), *original.buffers())):
        raise NotExportable("ONNX has a norm's ε in float32, which a float64 module has not")
    with scratch.beside(None) as temporary:
        paths = [temporary / name for name in ("original.onnx", "folded.onnx")]
        outputs: Sequence[str] = ()
        for module, path in zip((original, folded), paths, strict=True):
            outputs = _export(copied(module), example, path, outputs)
            if module is original:
                _require_weights(path, outputs, felt)
        settings = Settings(seed, prove=False)  # Exports compute weights, each in its own way.
        result = compare_files(paths[0], paths[1], None, settings)
    if not result.checks and result.status == "inconclusive":
        raise NotExportable(result.notes[-1])
    return result


def _export(
    module: nn.Module, example: Example, path: Path, outputs: Sequence[str]
) -> Sequence[str]:
    """Export a module with all its BatchNorms. The exporter needs no further package.

    Gives the names of its outputs. They stand in the file in the order of ``outputs``, if these are
    the same names.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), _without_log():
            warnings.simplefilter("ignore")
            args, kwargs = Call(example).filled({}, double=False)
            result = copied(module)(*args, **kwargs)
            names = [name for name, leaf in named_leaves(result) if isinstance(leaf, Tensor)]
            if set(names) == set(outputs):
                names = list(outputs)
            if not all(map(is_positional, names)) or len(names) < len(named_leaves(result)):
                module = _Tensors(module, names)
            torch.onnx.export(
                module,
                example.args,
                str(path),
                kwargs=dict(example.kwargs) or None,
                input_names=[f"input_{i}" for i in range(_tensors_of(example))],
                output_names=[f"output_{i}" for i in range(len(names))],
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as error:  # The exporter may raise anything, and so may the module.
        raise NotExportable(first_line(error)) from error
    return names


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep PyTorch from printing the graph of an export that fails; it knows no other way.

    A release that has not this function prints what it prints.
    """
    log = getattr(torch._C, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _require_weights(path: Path, outputs: Sequence[str], felt: Collection[str]) -> None:
    """Raise `NotExportable` where an output that is ``felt`` depends on no weight in a file, and
    where the file has other outputs than the module.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if len(graph.output) != len(outputs):
        raise NotExportable(
            f"a file of it would have {len(graph.output)} outputs, and it has {len(outputs)}"
        )
    found = reached(graph, [tensor.name for tensor in graph.initializer])
    for name, value in zip(outputs, graph.output, strict=True):
        if name in felt and value.name not in found:
            raise NotExportable(f"a file of it would compute {name} without its weights")


class _Tensors(nn.Module):
    """A module that puts out some tensors of another one's result, in a tuple."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module

        @functools.wraps(module.forward)
        def forward(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            found = dict(named_leaves(module(*args, **kwargs)))
            return tuple(found[name] for name in names)

        self.forward = forward
        self.training = module.training


def _tensors_of(example: Example) -> int:
    leaves = pytree.tree_leaves((example.args, dict(example.kwargs)))
    return sum(isinstance(leaf, Tensor) for leaf in leaves)
