"""Judges whether an ONNX file is what a module or a program of PyTorch computes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._judge.bench import Terms
from bnfold._judge.conclusion import conclude
from bnfold._judge.end_to_end import common_stages, decided, end_to_end_result
from bnfold._judge.file_bench import FileBench
from bnfold._judge.file_weights import take_weights, wrong_weight
from bnfold._judge.normal_form import (
    Folded,
    folded_program,
    narrow_type,
    same_in_float64,
    state,
)
from bnfold._judge.settings import Settings
from bnfold._judge.torch_bench import RUNTIME
from bnfold._judge.verdict import EndToEnd, labelled_in_float64
from bnfold._onnx.files.external import external_files, runnable, unchanged
from bnfold._onnx.files.load import in_binary, load_model
from bnfold._run.bounds import Bounds
from bnfold._run.drawing import USUAL
from bnfold._run.flavours import FLAVOURS
from bnfold._run.input_sets import InputSet
from bnfold._run.session import EngineError
from bnfold._run.source import Source
from bnfold._run.torch_model import Call, TorchModel, one_thread
from bnfold._torch.module.fold import Example
from bnfold._torch.read.export import check

_HIDDEN = (
    "in a type of so few digits rounding may hide that a weight is wrong: compare the two before "
    "they are narrowed, in float32"
)
_NOT_COMPARED = "weights were not compared: "


def compare_with_file(
    original: nn.Module | ExportedProgram, file: Path, example: Example, settings: Settings
) -> EndToEnd:
    """Judge whether a file computes what a module does, on example inputs and on drawn ones.

    Both run in their own types: PyTorch runs the module, onnxruntime the file. Where that leaves
    the verdict open, both run in float64 too. There they are first taken to hold the very same
    weights, which shows far smaller errors, and then compared as usual; in types of few digits
    weights are compared.

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
    with in_binary(file, settings.follow_links) as binary:
        data = external_files(load_model(binary, lean=True, follow_links=settings.follow_links))
        with unchanged(binary, data), runnable(binary, data) as ready, one_thread():
            both = _Both(
                original, module, Source(ready), call, sets, Terms(settings, bounds, _silent)
            )
            return _decided(both)


@dataclass(frozen=True)
class _Both:
    """A model and a file, ready to be compared. ``module`` is the model, or that of the program."""

    model: Folded
    module: nn.Module
    file: Source
    call: Call
    sets: Sequence[InputSet]
    terms: Terms

    def judged(self, double: bool = False, still: bool = False) -> EndToEnd:
        """The verdict in float64 or in their own types; for ``still`` see `Terms`."""
        return self._verdict(self.module, double, still)

    def wrong_weight(self) -> str:
        """See `file_weights.wrong_weight`. Raises `UsageError` where weights cannot be compared."""
        wide = self._wide()
        program = folded_program(self.model, self.call.example, wide)
        given = (each for each in state(self.model).values() if each.is_floating_point())
        return wrong_weight(program, self.file, wide, given)

    def with_the_weights_of_the_file(self, dtype: torch.dtype) -> EndToEnd:
        """The verdict by weights, see `file_weights`. Its notes say why it is inconclusive."""
        wide = self._wide()
        try:
            program = folded_program(self.model, self.call.example, wide)
            first = TorchModel(self.module, self.call, double=True).run({})
            second = TorchModel(program.module(), self.call, double=True).run({})
            if not all(map(same_in_float64, first, second)):
                return self._open("folding in float64 changes the outputs")
            take_weights(program, self.file, wide, dtype)
        except (UsageError, EngineError) as error:
            return self._open(str(error))
        return self._verdict(program.module(), double=True, still=True)

    def _wide(self) -> Example:
        args, kwargs = self.call.filled({}, double=True)
        return replace(self.call.example, args=args, kwargs=kwargs)

    def _verdict(self, module: nn.Module, double: bool, still: bool) -> EndToEnd:
        terms = replace(self.terms, still=still)
        bench = FileBench(module, self.file, self.call, self.sets, terms.bounds, double=double)

        def judge() -> EndToEnd:
            _, found = common_stages(bench, terms)
            status, notes = conclude(replace(found, every_layer=terms.settings.power))
            result = end_to_end_result(bench, terms, status, found.checks, *notes)
            return replace(result, power=tuple(found.planted))

        return decided(bench, terms, judge)

    def _open(self, why: str) -> EndToEnd:
        note = _NOT_COMPARED + why
        return EndToEnd("inconclusive", (), (note,), self.terms.settings.seed, RUNTIME, "CPU")


def _decided(both: _Both) -> EndToEnd:
    """The verdict of the models in their own types, or of float64 where those leave it open.

    They leave it open in types of few digits, whose rounding hides wrong weights. There the two
    have to hold the very same weights, or the same but for roundings. In others, too, a weight may
    be wrong in a channel that hardly counts: weights refute what outputs do not. Where both ran in
    their own types and agreed, a difference in float64 is no proof: it may be one of the
    evaluator's.
    """
    plain, narrow = both.judged(), narrow_type(both.model)
    if plain.status == "fail" or any(check.contested for check in plain.checks):
        return plain
    if narrow is None and plain.checks:
        try:
            wrong = both.wrong_weight()
        except UsageError as error:
            plain = replace(plain, notes=(*plain.notes, f"{_NOT_COMPARED}{error}"))
        else:
            if wrong:
                return replace(plain, status="fail", notes=(*plain.notes, wrong))
    if plain.status == "pass" and narrow is None:
        return plain

    def with_plain(found: EndToEnd) -> EndToEnd:
        checks = (*map(labelled_in_float64, found.checks), *plain.checks)
        return replace(found, checks=checks, notes=(*plain.notes, *found.notes))

    same = both.judged(double=True, still=True)
    if same.status == "pass":
        return with_plain(same)
    usual = both.judged(double=True)
    if usual.status == "fail" and not plain.checks:
        return with_plain(usual)
    if usual.status == "pass" and narrow is None:
        return with_plain(usual)
    by_weights = both.with_the_weights_of_the_file(narrow or torch.float32)
    if by_weights.status == "pass":
        return with_plain(by_weights)
    hidden = [] if narrow is None else [_HIDDEN, *by_weights.notes]
    return replace(plain, status="inconclusive", notes=(*plain.notes, *hidden))


def _in_order(module: nn.Module, example: Example) -> Example:
    """The example with its keywords in the order of the signature, as exporters have it."""
    known = list(inspect.signature(module.forward).parameters)
    names = sorted(example.kwargs, key=lambda n: known.index(n) if n in known else len(known))
    return replace(example, kwargs={name: example.kwargs[name] for name in names})


def _silent(step: str) -> None:
    pass
