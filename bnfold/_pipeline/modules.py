"""Judges whether two modules, or two programs, are the same function.

PyTorch runs both in float64 and in their own types. Two modules are exported too, and compared in
onnxruntime.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold._errors import UsageError
from bnfold._judge.bench import Terms
from bnfold._judge.conclusion import conclude
from bnfold._judge.difference import distance, magnitude
from bnfold._judge.end_to_end import common_stages, compare_files, decided, end_to_end_result
from bnfold._judge.normal_form import folded_module, folded_program, run_alike, state, unexplained
from bnfold._judge.power import RestingFold
from bnfold._judge.settings import Settings
from bnfold._judge.torch_bench import RUNTIME, TorchBench
from bnfold._judge.verdict import Cause, EndToEnd, OutputCheck, Status, combined, overall
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.drawing import USUAL
from bnfold._run.session import EngineError
from bnfold._run.torch_model import Call, TorchModel, one_thread
from bnfold._system import scratch
from bnfold._torch.module.fold import Example, copied
from bnfold._torch.read.export import check

_OPSET = 17
# How far an output may move when a model is folded in float64, relative to its largest value.
_EXACT = 1e-9
_TwoVerdicts = tuple[EndToEnd, EndToEnd]
"""The verdict in float64, and the verdict on the models in their own types."""
_Model = TypeVar("_Model", nn.Module, ExportedProgram)


def compare_modules(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> EndToEnd:
    """Judge two modules on example inputs.

    First both run in PyTorch in float64, where only the rounding of the folded weights differs.
    Then both are exported to ONNX with their BatchNorms, and compared in onnxruntime on drawn
    inputs. Planted errors may show there that do not show on the example. If a module cannot be
    exported, or does not run in float64, both run in PyTorch in their own types. Raises
    `UsageError` for a module in training mode, and for inputs that a module does not run on.
    """
    check(original)
    check(folded)
    call = Call(example)
    exact = _judged(TorchBench(original, folded, call, call.sets(seed), double=True), seed)
    ran = bool(exact.checks) or exact.status == "fail"

    def by_pytorch_alone() -> _TwoVerdicts:
        """The verdicts in float64 and in the models' own types, on drawn inputs as well."""
        sets, first = call.sets(seed, USUAL.flavours), exact
        if ran:
            first = _judged(TorchBench(original, folded, call, sets, double=True), seed)
        second = TorchBench(original, folded, call, sets, double=False)
        return first, _judged(second, seed)

    pair = None if ran else by_pytorch_alone()
    seen = exact if pair is None else _combined(pair)
    if not seen.checks and seen.status == "inconclusive":
        raise UsageError(seen.notes[-1])
    try:
        deployed = _in_onnxruntime(original, folded, example, seed)
    except _NotExportable as error:
        pair = pair or by_pytorch_alone()
        seen = _with_weights(pair, original, folded, example, folded_module)
        return _noted(seen, f"not compared in onnxruntime: {error}")
    status = combined(_shown_elsewhere(seen).status, [deployed.status])
    checks, notes = (*seen.checks, *deployed.checks), (*seen.notes, *deployed.notes)
    return replace(deployed, status=status, checks=checks, notes=notes)


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
    call = Call(Example(tuple(args), kwargs))
    sets, modules = call.sets(seed, USUAL.flavours), (original.module(), folded.module())
    exact, plain = (
        _judged(TorchBench(*modules, call, sets, double=double), seed, certified, resting)
        for double in (True, False)
    )
    if resting:  # their errors have to show in outputs
        return _combined((exact, plain))
    return _with_weights((exact, plain), original, folded, call.example, folded_program)


def _judged(
    bench: TorchBench, seed: int, certified: bool = False, resting: Sequence[RestingFold] = ()
) -> EndToEnd:
    """The verdict after the stages that all models have."""
    terms = Terms(Settings(seed), UNBOUNDED, lambda step: None)

    def judge() -> EndToEnd:
        _, found = common_stages(bench, terms, resting)
        status, notes = conclude(replace(found, certified=certified))
        checks = [_labelled(check, bench.double) for check in found.checks]
        result = end_to_end_result(bench, terms, status, checks, *notes)
        return replace(result, power=tuple(found.planted), provider="CPU")

    with one_thread():
        return replace(decided(bench, terms, judge), provider="CPU")


def _labelled(check: OutputCheck, double: bool) -> OutputCheck:
    """The same check; if it was made in float64, its cause says so."""
    if not double or check.cause is not None:
        return check
    return replace(check, cause=Cause.IN_FLOAT64)


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
    """The verdict if all errors that are hidden in outputs here have been noticed elsewhere."""
    if result.status == "fail":
        return result
    checks = [
        replace(check, status="pass") if check.cause is Cause.HIDDEN_ERRORS else check
        for check in result.checks
    ]
    return replace(result, status=overall(checks))


def _with_weights(
    pair: _TwoVerdicts,
    original: _Model,
    folded: _Model,
    example: Example,
    fold: Callable[[_Model, Example], _Model],
) -> EndToEnd:
    """One verdict from the outputs of two models and, for types of few digits, from their weights.

    Weights are compared in bfloat16 always, and in float16 where errors do not show in outputs.
    Both models are folded in float64 first. Where that is not possible, the outputs decide alone.
    Where it changes the outputs of the original, it is wrong itself, and the verdict is at best
    "inconclusive".
    """
    seen = _combined(pair)
    blind = any(check.cause is Cause.HIDDEN_ERRORS for check in seen.checks)
    kinds = {t.dtype for model in (original, folded) for t in state(model).values()}
    dtype = torch.bfloat16 if torch.bfloat16 in kinds else torch.float16
    if dtype not in kinds or (dtype == torch.float16 and not blind):
        return seen
    args, kwargs = Call(example).filled({}, double=True)
    wide = replace(example, args=args, kwargs=kwargs)
    try:
        with one_thread():
            right, made = fold(original, wide), fold(folded, wide)
            feeds = Call(wide).feeds()
            first, second = (
                TorchModel(_module(m), Call(wide), double=True).run(feeds)
                for m in (original, right)
            )
            rows = zip(first, second, strict=True)
            same = all(distance(a, b) <= _EXACT * magnitude(a) for a, b in rows)
            alike = run_alike(right, made, wide)
    except (UsageError, EngineError) as error:
        return _noted(seen, f"weights were not compared: {error}")
    if not same:
        why = "weights were not compared: folding in float64 changes the outputs"
        return replace(_noted(seen, why), status=combined(seen.status, ["inconclusive"]))
    problem = unexplained(right, made, dtype)
    if problem is None:
        why = "weights were not compared: the two do not have the same ones once folded"
        return _noted(seen, why)
    if problem:
        worst: Status = "fail" if dtype == torch.bfloat16 else "inconclusive"
        return replace(_noted(seen, problem), status=combined(seen.status, [worst]))
    if not alike:
        why = "weights say nothing: the two do not run the same operators once folded"
        return _noted(seen, why)
    exact, plain = pair
    return _combined((_shown_elsewhere(exact), _shown_elsewhere(plain)))


def _noted(result: EndToEnd, note: str) -> EndToEnd:
    return replace(result, notes=(*result.notes, note))


def _module(model: nn.Module | ExportedProgram) -> nn.Module:
    return model.module() if isinstance(model, ExportedProgram) else model


class _NotExportable(Exception):
    """The exporter has no ONNX operator for a part of the module."""


def _in_onnxruntime(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> EndToEnd:
    """The verdict on both modules as exported. Raises `_NotExportable` where one cannot be."""
    if any(each.dtype == torch.bfloat16 for each in (*original.parameters(), *original.buffers())):
        raise _NotExportable("onnxruntime does not run bfloat16")
    if any(each.dtype == torch.float64 for each in (*original.parameters(), *original.buffers())):
        raise _NotExportable("ONNX has a norm's ε in float32, which a float64 module has not")
    try:
        outputs = len(TorchModel(original, Call(example), double=False).run({}))
    except EngineError as error:
        raise _NotExportable(str(error)) from error
    with scratch.beside(None) as temporary:
        paths = [temporary / name for name in ("original.onnx", "folded.onnx")]
        for module, path in zip((original, folded), paths, strict=True):
            _export(copied(module), example, path, outputs)
        return compare_files(paths[0], paths[1], None, Settings(seed))


def _export(module: nn.Module, example: Example, path: Path, outputs: int) -> None:
    """Export a module with all its BatchNorms. The exporter needs no further package."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example.args,
                str(path),
                kwargs=dict(example.kwargs) or None,
                input_names=[f"input_{i}" for i in range(_tensors_of(example))],
                output_names=[f"output_{i}" for i in range(outputs)],
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as error:  # The exporter may raise anything.
        line = next((text for text in str(error).splitlines() if text.strip()), "")
        raise _NotExportable(line) from error


def _tensors_of(example: Example) -> int:
    leaves = pytree.tree_leaves((example.args, dict(example.kwargs)))
    return sum(isinstance(leaf, Tensor) for leaf in leaves)
