"""Judges whether two modules, or two programs, are the same function.

PyTorch runs both in float64 and in their own types. Two modules are exported too, and compared in
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._judge.bench import Terms
from bnfold._judge.conclusion import conclude
from bnfold._judge.end_to_end import common_stages, decided, end_to_end_result
from bnfold._judge.normal_form import (
    Folded,
    NormalForm,
    folded_module,
    folded_program,
    narrow_type,
    same_in_float64,
    unexplained,
)
from bnfold._judge.power import RestingFold
from bnfold._judge.settings import Settings
from bnfold._judge.torch_bench import RUNTIME, TorchBench
from bnfold._judge.verdict import (
    Cause,
    EndToEnd,
    Status,
    combined,
    labelled_in_float64,
    overall,
)
from bnfold._pipeline.exporting import NotExportable, compared_in_onnxruntime
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.flavours import FLAVOURS, Flavour
from bnfold._run.session import EngineError
from bnfold._run.torch_model import Call, TorchModel, one_thread
from bnfold._torch.module.fold import Example
from bnfold._torch.read.export import check

_SHOWING: tuple[Flavour, ...] = ("large",)
"""The inputs that are drawn beside the example where others are drawn for onnxruntime: they reach
bounds and channels that no others do.
"""
_FIXED = (
    "its code reads numbers out of tensors, or may read sizes that follow from such numbers, and a "
    "file would have those of the example for good"
)
_UNSHOWN = (Cause.EMPTY, Cause.HIDDEN_ERRORS)
_TwoVerdicts = tuple[EndToEnd, EndToEnd]
"""The verdict in float64, and the verdict on the models in their own types."""


def compare_modules(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> EndToEnd:
    """Judge two modules on example inputs.

    First both run in PyTorch in float64, where only the rounding of the folded weights differs.
    Then both are exported to ONNX with their BatchNorms, and compared in onnxruntime on drawn
    inputs. Planted errors may show there that do not show on the example. If a module cannot be
    exported without a change of what it computes, or does not run in float64, both run in PyTorch
    in their own types. Raises `UsageError` for a module in training mode, and for inputs that a
    module does not run on.
    """
    check(original)
    check(folded)
    call = Call(example)
    sets = call.sets(seed, _SHOWING)
    bench = TorchBench(original, folded, call, sets, double=True)
    exact = _judged(bench, seed)
    ran = bool(exact.checks) or exact.status == "fail"

    def by_pytorch_alone() -> _TwoVerdicts:
        """The verdicts in float64 and in the models' own types, on drawn inputs as well."""
        sets, first = call.sets(seed, FLAVOURS), exact
        if ran:
            first = _judged(TorchBench(original, folded, call, sets, double=True), seed)
        second = TorchBench(original, folded, call, sets, double=False)
        return first, _judged(second, seed)

    pair = None if ran else by_pytorch_alone()
    seen = exact if pair is None else _combined(pair)
    if not seen.checks and seen.status == "inconclusive":
        raise UsageError(seen.notes[-1] if seen.notes else "the module puts out no tensor")
    try:
        model = bench.original
        if not ran:
            model = TorchModel(original, call, double=False)
            model.run({})
        if model.reads_numbers():
            raise NotExportable(_FIXED)
        felt = [model.outputs[number] for number in model.reached(model.weights)]
        deployed = compared_in_onnxruntime(original, folded, example, seed, felt)
    except NotExportable as error:
        found = _with_weights(pair or by_pytorch_alone(), original, folded, example, seed)
        return _noted(found, f"not compared in onnxruntime: {error}")
    if narrow_type(original, folded) is None:
        status = _shown_elsewhere(seen).status
    else:  # what rounding hides here it hides in onnxruntime, too
        seen = _with_weights(pair or by_pytorch_alone(), original, folded, example, seed)
        status, deployed = seen.status, _shown_elsewhere(deployed)
    return replace(
        deployed,
        status=combined(status, [deployed.status]),
        checks=(*seen.checks, *deployed.checks),
        notes=(*seen.notes, *deployed.notes),
    )


def compare_programs(
    original: ExportedProgram,
    folded: ExportedProgram,
    seed: int,
    certified: bool = False,
    resting: Sequence[RestingFold] = (),
) -> EndToEnd:
    """Judge two programs by running them in PyTorch, in float64 and in their own types.

    They run on the example inputs of the original, and on drawn inputs of the same shapes. Without
    example inputs the verdict is "inconclusive". For ``certified`` and ``resting`` see
    `bnfold._judge.end_to_end.compare`.
    """
    if original.example_inputs is None:
        note = "the program carries no example inputs to run it on"
        return EndToEnd("inconclusive", (), (note,), seed, RUNTIME, "CPU")
    args, kwargs = original.example_inputs
    example = Example(tuple(args), kwargs)
    return compare_in_pytorch(original, folded, example, seed, certified, resting)


def compare_in_pytorch(
    original: Folded,
    folded: Folded,
    example: Example,
    seed: int,
    certified: bool = False,
    resting: Sequence[RestingFold] = (),
) -> EndToEnd:
    """Judge two models, each a module or a program, as `compare_programs` does.

    Raises:
        UsageError: a module is in training mode.
    """
    modules = _module(original), _module(folded)
    for model in (original, folded):
        if isinstance(model, nn.Module):
            check(model)
    call = Call(example)
    sets = call.sets(seed, FLAVOURS)
    exact, plain = (
        _judged(TorchBench(*modules, call, sets, double=double), seed, certified, resting)
        for double in (True, False)
    )
    found = _with_weights((exact, plain), original, folded, example, seed)
    if resting:  # their errors have to show in outputs, whatever weights say
        shown = _combined((exact, plain)).status
        return replace(found, status=combined(found.status, [shown]))
    return found


def _judged(
    bench: TorchBench,
    seed: int,
    certified: bool = False,
    resting: Sequence[RestingFold] = (),
    still: bool = False,
) -> EndToEnd:
    """The verdict after the stages that all models have; for ``still`` see `Terms`."""
    terms = Terms(Settings(seed), UNBOUNDED, lambda step: None, still=still)

    def judge() -> EndToEnd:
        _, found = common_stages(bench, terms, resting)
        status, notes = conclude(replace(found, certified=certified))
        checks = found.checks
        if bench.double:
            checks = [labelled_in_float64(check) for check in checks]
        result = end_to_end_result(bench, terms, status, checks, *notes)
        return replace(result, power=tuple(found.planted), provider="CPU")

    with one_thread():
        return replace(decided(bench, terms, judge), provider="CPU")


def _combined(pair: _TwoVerdicts) -> EndToEnd:
    """One verdict from the verdict in float64 and the one on the models in their own types.

    float64 shows the most, so its verdict counts; the other one can only make it worse. If the
    models do not run in float64, the other verdict counts.
    """
    exact, plain = pair
    if not exact.checks and exact.status != "fail":
        return replace(plain, notes=(*exact.notes, *plain.notes))
    if plain.status == "fail" or any(check.contested for check in plain.checks):
        worst = combined(exact.status, [plain.status])
        notes = tuple(dict.fromkeys((*exact.notes, *plain.notes)))
        return replace(exact, status=worst, checks=(*exact.checks, *plain.checks), notes=notes)
    return replace(exact, checks=(*exact.checks, *plain.checks))


def _shown_elsewhere(result: EndToEnd) -> EndToEnd:
    """The verdict if what outputs hide here, or do not show for being empty, shows elsewhere."""
    if result.status == "fail":
        return result
    checks = [
        replace(check, status="pass") if check.cause in _UNSHOWN else check
        for check in result.checks
    ]
    return replace(result, status=overall(checks))


def _with_weights(
    pair: _TwoVerdicts, original: Folded, folded: Folded, example: Example, seed: int
) -> EndToEnd:
    """One verdict from the outputs of two models and, for types of few digits, from their weights.

    In float16 and bfloat16 the rounding of right weights hides wrong ones. So outputs prove
    something only where both hold the very same weights, which shows far smaller errors. Else
    weights are compared after both models have been folded in float64. Where that is not possible,
    or changes the outputs of the original, the verdict is at best "inconclusive".
    """
    seen, dtype = _combined(pair), narrow_type(original, folded)
    if dtype is None or seen.status == "fail":
        return seen
    exact, plain = pair
    call = Call(example)
    bench = TorchBench(
        _module(original), _module(folded), call, call.sets(seed, FLAVOURS), double=True
    )
    lifted = _combined((_shown_elsewhere(exact), _shown_elsewhere(plain)))
    if _judged(bench, seed, still=True).status == "pass":
        return lifted

    def unproved(why: str) -> EndToEnd:
        return replace(_noted(seen, why), status=combined(seen.status, ["inconclusive"]))

    args, kwargs = call.filled({}, double=True)
    wide = replace(example, args=args, kwargs=kwargs)
    same, problem = False, None
    forms: list[NormalForm] = []
    try:
        with one_thread():
            feeds = Call(wide).feeds()
            wanted = TorchModel(_module(original), Call(wide), double=True).run(feeds)
            for right, made in _folded_in_float64(original, folded, example, wide):
                found = TorchModel(_module(right), Call(wide), double=True).run(feeds)
                same = all(map(same_in_float64, wanted, found))
                forms = [NormalForm.of(model, wide) for model in (right, made)]
                problem = unexplained(forms[0], forms[1], dtype)
                if same and problem is not None:
                    break
    except (UsageError, EngineError) as error:
        return unproved(f"weights were not compared: {error}")
    if not same:
        return unproved("weights were not compared: folding in float64 changes the outputs")
    if problem is None:
        return unproved("weights were not compared: the two do not have the same ones once folded")
    if problem:
        worst: Status = "fail" if dtype == torch.bfloat16 else "inconclusive"
        return replace(_noted(seen, problem), status=combined(seen.status, [worst]))
    if forms[0].operators != forms[1].operators:
        return unproved("weights say nothing: the two do not run the same operators once folded")
    return lifted


def _folded_in_float64(
    original: Folded, folded: Folded, example: Example, wide: Example
) -> Iterator[tuple[Folded, Folded]]:
    """Two models in float64, folded; first as modules, if they are such and run so. ``wide`` is the
    widened example.

    A program folds more: its own code may widen weights, or scale what a layer makes. Raises
    `UsageError` where one cannot be exported or folded.
    """
    if isinstance(original, nn.Module) and isinstance(folded, nn.Module):
        with suppress(UsageError):
            yield folded_module(original, wide), folded_module(folded, wide)
    yield folded_program(original, example, wide), folded_program(folded, example, wide)


def _noted(result: EndToEnd, note: str) -> EndToEnd:
    return replace(result, notes=(*result.notes, note))


def _module(model: nn.Module | ExportedProgram) -> nn.Module:
    return model.module() if isinstance(model, ExportedProgram) else model
