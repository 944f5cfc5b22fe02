"""Judges whether an ONNX file is what a module or a program of PyTorch computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from bnfold._aten.proof import prove_with_file
from bnfold._errors import UsageError
from bnfold._judge import by_proof
from bnfold._judge.bench import Terms
from bnfold._judge.conclusion import conclude
from bnfold._judge.end_to_end import common_stages, decided, end_to_end_result
from bnfold._judge.file_bench import FileBench
from bnfold._judge.file_weights import take_weights, wrong_weight
from bnfold._judge.normal_form import (
    FEW,
    Folded,
    folded_program,
    narrow_type,
    same_in_float64,
    state,
)
from bnfold._judge.settings import Settings
from bnfold._judge.torch_bench import RUNTIME
from bnfold._judge.verdict import EndToEnd, labelled_in_float64
from bnfold._onnx.files.external import external_files, runnable, size_on_disk, unchanged
from bnfold._onnx.files.load import in_binary, load_model
from bnfold._onnx.tensors import all_tensors
from bnfold._pipeline.proved_in_pytorch import program_to_prove
from bnfold._relation.proof import Proof
from bnfold._run.bounds import Bounds
from bnfold._run.drawing import USUAL
from bnfold._run.flavours import FLAVOURS
from bnfold._run.input_sets import InputSet
from bnfold._run.nodes import own_inputs
from bnfold._run.perturbable import FEW_DIGITS
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
    the verdict open, the two are proved, and both run in float64 too. There they are first taken to
    hold the very same weights, which shows far smaller errors, and then compared as usual; in types
    of few digits weights are compared.

    Raises:
        UsageError: the module is in training mode, or does not run on the example; or the file
            cannot be read, or takes other sizes than the example has.
    """
    if isinstance(original, nn.Module):
        check(original)
    module = original if isinstance(original, nn.Module) else original.module()
    flavours = FLAVOURS if settings.wanted == USUAL else settings.wanted.flavours
    bounds = Bounds.beginning(settings.threads, settings.seconds, settings.libraries)
    with in_binary(file, settings.follow_links) as binary:
        model = load_model(binary, lean=True, follow_links=settings.follow_links)
        call = Call(_in_order(module, example, [each.name for each in own_inputs(model.graph)]))
        try:
            TorchModel(module, call, double=False).run({})
        except EngineError as error:
            raise UsageError(str(error)) from error
        sets = call.sets(settings.seed, flavours)
        data = external_files(model)
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

    @cached_property
    def proof(self) -> Proof:
        """What the weights prove. In types of few digits nothing is laid to their rounding."""
        links, given = self.terms.settings.follow_links, self.call.example.kwargs
        if isinstance(self.model, ExportedProgram) and len(given) > 1:
            _, own = self.model.example_inputs or ((), {})
            if list(own) != list(given):
                return Proof("not proved", "", "the program has its inputs in another order")
        try:
            program = program_to_prove(self.model, self.call.example)
            model = load_model(self.file.path, lean=True, follow_links=links)
        except UsageError as error:
            return Proof("not proved", "", str(error))
        size = size_on_disk(self.file.path, model)
        exact = narrow_type(self.model) is not None
        exact = exact or any(each.data_type in FEW_DIGITS for each in all_tensors(model))

        def prove(watch: Callable[[], None]) -> Proof:
            return prove_with_file(program, model, self.file.folder, True, watch, exact)

        return by_proof.within(prove, 2 * size, self.terms.bounds, {"file": model})

    @property
    def is_proved(self) -> bool:
        """Whether the weights prove that both are the same function."""
        return by_proof.is_proved(self.proof)

    def judged(self, double: bool = False, still: bool = False) -> EndToEnd:
        """The verdict in float64 or in their own types; for ``still`` see `Terms`."""
        return self._verdict(self.module, double, still)

    def wrong_weight(self) -> str:
        """See `file_weights.wrong_weight`. Raises `UsageError` where weights cannot be compared."""
        wide = self._wide()
        program = folded_program(self.model, self.call.example, wide)
        held = state(self.model)
        given = (each for each in held.values() if each.is_floating_point())
        narrow = [name for name, each in held.items() if each.dtype in FEW]
        return wrong_weight(program, self.file, wide, given, narrow)

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
            found = replace(found, every_layer=terms.settings.power)
            status, notes = conclude(found)
            if not double and status == "inconclusive":
                checks = by_proof.judged(found.checks, self.proof)
                found = replace(found, checks=checks, proved=self.is_proved)
                status, notes = conclude(found)
            result = end_to_end_result(bench, terms, status, found.checks, *notes)
            return replace(result, power=tuple(found.planted))

        result = decided(bench, terms, judge)
        if not double and (result.status == "inconclusive" or "proof" in vars(self)):
            return by_proof.settled(result, self.proof, terms.settings)
        return result

    def _open(self, why: str) -> EndToEnd:
        note = _NOT_COMPARED + why
        return EndToEnd("inconclusive", (), (note,), self.terms.settings.seed, RUNTIME, "CPU")


def _decided(both: _Both) -> EndToEnd:
    """The verdict of the models in their own types, or of float64 where those leave it open.

    They leave it open in types of few digits, whose rounding hides wrong weights. There the two
    have to hold the very same weights, or the same but for roundings. In others, too, a weight may
    be wrong in a channel that hardly counts: weights refute what outputs do not, unless the proof
    knows better. Where both ran in their own types and agreed, a difference in float64 is no proof:
    it may be one of the evaluator's.
    """
    plain, narrow = both.judged(), narrow_type(both.model)
    if plain.status == "fail" or any(check.contested for check in plain.checks):
        return plain
    if plain.checks:
        try:
            wrong = both.wrong_weight()
        except UsageError as error:
            notes = () if narrow is not None else (f"{_NOT_COMPARED}{error}",)
            plain = replace(plain, notes=(*plain.notes, *notes))
        else:
            if wrong and not both.is_proved:
                return replace(plain, status="fail", notes=(*plain.notes, wrong))
    if plain.status == "pass" and narrow is None:
        return plain

    def with_plain(found: EndToEnd) -> EndToEnd:
        checks = (*map(labelled_in_float64, found.checks), *plain.checks)
        notes = dict.fromkeys((*plain.notes, *found.notes))
        return replace(found, checks=checks, notes=tuple(notes))

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
    if plain.status == "pass" and both.is_proved:
        return replace(plain, proof=both.proof)
    hidden = [] if narrow is None else [_HIDDEN, *by_weights.notes]
    return replace(plain, status="inconclusive", notes=(*plain.notes, *hidden))


def _in_order(module: nn.Module, example: Example, inputs: Sequence[str]) -> Example:
    """The example with its keywords in the order in which a file has its inputs.

    That is the order of the inputs of these names, if all have one: some exporters keep the order
    of the call. Else it is that of the signature.
    """
    known = list(inspect.signature(module.forward).parameters)
    if all(name in inputs for name in example.kwargs):
        known = list(inputs)
    names = sorted(example.kwargs, key=lambda n: known.index(n) if n in known else len(known))
    return replace(example, kwargs={name: example.kwargs[name] for name in names})


def _silent(step: str) -> None:
    pass
