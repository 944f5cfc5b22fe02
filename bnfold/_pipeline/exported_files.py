"""Judges whether an ONNX file is what a module or a program of PyTorch computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._judge.bench import Terms
from bnfold._judge.conclusion import conclude
from bnfold._judge.end_to_end import common_stages, decided, end_to_end_result
from bnfold._judge.file_bench import FileBench
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd, labelled_in_float64
from bnfold._onnx.files.external import external_files, runnable
from bnfold._onnx.files.load import in_binary, load_model
from bnfold._run.bounds import Bounds
from bnfold._run.drawing import USUAL
from bnfold._run.flavours import FLAVOURS
from bnfold._run.session import EngineError
from bnfold._run.source import Source
from bnfold._run.torch_model import Call, TorchModel, one_thread
from bnfold._torch.module.fold import Example
from bnfold._torch.read.export import check

_HIDDEN = (
    "the two do not hold the same weights, and in a type of so few digits rounding may hide that "
    "one is wrong: compare them before they are narrowed, in float32"
)


def compare_with_file(
    original: nn.Module | ExportedProgram, file: Path, example: Example, settings: Settings
) -> EndToEnd:
    """Judge whether a file computes what a module does, on example inputs and on drawn ones.

    Both run in their own types: PyTorch runs the module, onnxruntime the file. Where that leaves
    the verdict open, both run in float64 too. There they are first taken to hold the very same
    weights, which shows far smaller errors, and then compared as usual.

    Raises:
        UsageError: the module is in training mode, or does not run on the example; or the file
            cannot be read, or takes other sizes than the example has.
    """
    if isinstance(original, nn.Module):
        check(original)
    module = original if isinstance(original, nn.Module) else original.module()
    call = Call(_in_order(module, example))
    try:
        TorchModel(module, call, double=False).run({})
    except EngineError as error:
        raise UsageError(str(error)) from error
    flavours = FLAVOURS if settings.wanted == USUAL else settings.wanted.flavours
    sets = call.sets(settings.seed, flavours)
    bounds = Bounds.beginning(settings.threads, settings.seconds, settings.libraries)
    with in_binary(file) as binary:
        data = external_files(load_model(binary, lean=True))
        with runnable(binary, data) as ready, one_thread():

            def judged(double: bool, still: bool) -> EndToEnd:
                bench = FileBench(module, Source(ready), call, sets, bounds, double=double)
                return _judged(bench, Terms(settings, bounds, _silent, still=still))

            narrow = FileBench(module, Source(ready), call, sets, bounds, double=False).width
            return _decided_by(judged, narrow < np.dtype(np.float32).itemsize)


def _decided_by(judged: Callable[[bool, bool], EndToEnd], narrow: bool) -> EndToEnd:
    """The verdict of the models in their own types, or of float64 where those leave it open.

    They leave it open in a ``narrow`` type, whose rounding hides wrong weights. Where both ran in
    their own types and agreed, a difference in float64 is no proof: it may be one of the
    evaluator's.
    """
    plain = judged(False, False)
    if plain.status == "fail" or any(check.contested for check in plain.checks):
        return plain
    if plain.status == "pass" and not narrow:
        return plain
    for still in (True, False):
        found = judged(True, still)
        passes = found.status == "pass" and (still or not narrow)
        if passes or (found.status == "fail" and not still and not plain.checks):
            return replace(
                found,
                checks=(*map(labelled_in_float64, found.checks), *plain.checks),
                notes=(*plain.notes, *found.notes),
            )
    if plain.status == "inconclusive":
        return plain
    return replace(plain, status="inconclusive", notes=(*plain.notes, _HIDDEN))


def _judged(bench: FileBench, terms: Terms) -> EndToEnd:
    """The verdict after the stages that all models have."""

    def judge() -> EndToEnd:
        _, found = common_stages(bench, terms)
        status, notes = conclude(replace(found, every_layer=terms.settings.power))
        result = end_to_end_result(bench, terms, status, found.checks, *notes)
        return replace(result, power=tuple(found.planted))

    return decided(bench, terms, judge)


def _in_order(module: nn.Module, example: Example) -> Example:
    """The example with its keywords in the order of the signature, as exporters have it."""
    known = list(inspect.signature(module.forward).parameters)
    names = sorted(example.kwargs, key=lambda n: known.index(n) if n in known else len(known))
    return replace(example, kwargs={name: example.kwargs[name] for name in names})


def _silent(step: str) -> None:
    pass
