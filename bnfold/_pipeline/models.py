"""Folds a model file and judges the result, as the command does, but prints nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bnfold._errors import UsageError
from bnfold._judge.settings import DEFAULT, Settings
from bnfold._onnx.files.external import (
    external_files,
    refuse_data,
    refuse_own_data,
    size_on_disk,
)
from bnfold._onnx.files.load import load_model, understood, why_invalid
from bnfold._onnx.files.save import pending_file
from bnfold._onnx.files.text_forms import written_as
from bnfold._onnx.fold import PlannedModel, prepare
from bnfold._onnx.front.prepending import behind, twin_of
from bnfold._onnx.read.frozen import as_if_frozen, freeze, listed
from bnfold._pipeline.any_kind import needs_pytorch
from bnfold._pipeline.equalizing import equalized
from bnfold._pipeline.folded_file import FoldedFile
from bnfold._pipeline.outcome import Outcome, Progress, Verdict
from bnfold._pipeline.preprocessed import in_front
from bnfold._pipeline.simplifying import simplified, simplifier
from bnfold._system import paths, time_limit

if TYPE_CHECKING:
    from onnx import ModelProto

    from bnfold._core.result import Plan
    from bnfold._run.input_sets import InputSet


class Observer(Protocol):
    """Who looks at a model while it is folded. Each method is called once, or not at all."""

    def planned(self, planned: PlannedModel) -> None:
        """The model is planned, and not changed yet."""

    def written(self, path: Path) -> None:
        """The folded model is in a file that is going to be moved or removed."""

    def finished(self, folded: Path, final: Path) -> None:
        """Another step has made a second such file of the folded model: it simplified it, or made
        ranges alike.
        """


def fold_file(
    path: Path,
    output: Path | None,
    *,
    verify: bool,
    inputs: list[InputSet] | None,
    progress: Progress,
    settings: Settings = DEFAULT,
    report: Path | None = None,
    depthwise: bool = False,
    equalize: bool = False,
    exposing: bool = False,
    simplify: bool = False,
    tidying: bool = False,
    observer: Observer | None = None,
) -> Outcome:
    """Fold a file, judge the result, and put it in place unless the verdict is "fail".

    Without an ``output`` only a temporary file is written, for the judge. A model is not written
    over itself if nothing folds and nothing is frozen. ``report`` is a file that the caller is
    going to write. With ``depthwise`` norms that stay are written as other operators. With
    ``simplify`` another tool simplifies the result, see `_pipeline/simplifying`; with ``equalize``
    the ranges of channels are made alike, see `_pipeline/equalizing`. Inputs get the preprocessing
    of the settings; with ``exposing`` their normalization is taken out. With ``tidying`` operators
    that do nothing go first. ``observer`` looks at a model of ONNX while it is folded. Raises
    `UsageError` for a file that cannot be read or written, and where there is nothing to simplify
    with; then no file is left behind.
    """
    progress("reading")
    if simplify:
        simplifier()
    if output is not None:
        paths.check_writable(output)
    if path.suffix == ".pt2":
        if output is not None and output.suffix != ".pt2":
            raise UsageError(
                f"cannot write {output}: {path} is a program of PyTorch, and its folded form is "
                "one, too; name it .pt2"
            )
        usable = Settings(
            settings.seed,
            trust=settings.trust,
            seconds=settings.seconds,
            spread=settings.spread,
        )
        if inputs is not None or settings != usable:
            raise UsageError(
                "of the options of the verification only --seed and --timeout are for a .pt2 file: "
                "it brings its example inputs, and PyTorch runs it"
            )
        return _run_program(path, output, verify, settings, progress, depthwise)
    if output is not None:
        written_as(output)
    with ExitStack() as stack:
        wanted = settings.preprocessing if verify else ()
        original = stack.enter_context(behind(path, wanted, settings.follow_links))
        return _fold_model(
            path,
            original,
            output,
            report,
            verify,
            inputs,
            settings,
            progress,
            depthwise,
            equalize,
            exposing,
            simplify,
            tidying,
            stack,
            observer,
        )


def _fold_model(
    path: Path,
    original: Path,
    output: Path | None,
    report: Path | None,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
    depthwise: bool,
    equalize: bool,
    exposing: bool,
    simplify: bool,
    tidying: bool,
    files: ExitStack,
    observer: Observer | None,
) -> Outcome:
    """Fold a model; see `fold_file`.

    ``original`` is its file in binary form, behind its preprocessing. Temporary files last as long
    as the stack of ``files``.
    """
    plain = not (settings.preprocessing or exposing or tidying)
    model = load_model(path, lean=plain, follow_links=settings.follow_links)
    names = listed(model)
    frozen = len(names) if settings.frozen else 0
    if frozen:
        freeze(model)
    for target in filter(None, (output, report)):
        refuse_own_data(target, model, path.parent)
    size_before = size_on_disk(path, model)
    data_before = frozenset(external_files(model))
    front = in_front(model, settings.preprocessing, exposing, path.parent, path, tidying)
    if verify and (inputs is not None or settings.wanted != DEFAULT.wanted):
        from bnfold._run.drawing import refuse_inapplicable

        refuse_inapplicable(model, inputs, settings.wanted)
    with understood(model, path):
        planned = prepare(model, path.parent, settings.equal_dims, depthwise)
        changed = bool(planned.plan.folds) or frozen > 0 or front.changed
        weights = front.original(planned.weights()) if verify and changed else None
        stuck = 0 if frozen or not names else _hanging(model, planned.plan, path.parent, settings)
        started = None
        if weights is not None and front.rewritten:
            started = files.enter_context(twin_of(model, path.parent))
        progress("folding")
        if observer is not None:
            observer.planned(planned)
        rewritten = planned.apply(later=True)
        plan, told = planned.applied_to(model), front.told(model, planned.plan)
    over_itself = output is not None and paths.is_same(output, path)
    if over_itself and not changed and not equalize and not simplify:
        verdict = Verdict("unchanged")
        size = size_before
        return Outcome(path, plan, verdict, size, size, None, hanging=stuck)
    with pending_file(
        model,
        rewritten,
        base_dir=path.parent,
        destination=output,
        source=None if changed else original,
        original=path,
    ) as draft:
        applied = rewritten.applied
        del model, planned, rewritten  # they hold all new weights
        if observer is not None:
            observer.written(draft.path)
        if weights is not None:
            trial = FoldedFile(
                original,
                data_before,
                draft,
                weights,
                inputs,
                settings,
                progress,
                started,
                front.owed,
            )
            verdict = trial.judge(applied)
            _refuse_invalid(verdict, path, settings.follow_links)
        else:
            verdict = Verdict("skipped" if changed else "unchanged")
        written = output if verdict.status != "fail" else None
        with ExitStack() as stack:
            final, equalization, simplification = draft, None, None
            unprepared = replace(settings, preprocessing=())  # both files have it
            if simplify and verdict.status != "fail":
                final, simplification = stack.enter_context(
                    simplified(draft, path, verify, inputs, unprepared, progress)
                )
            if equalize and verdict.status != "fail":
                final, equalization = stack.enter_context(
                    equalized(final, path, verify, inputs, unprepared, progress)
                )
            if observer is not None and final is not draft:
                observer.finished(draft.path, final.path)
            extras = [done for done in (simplification, equalization) if done is not None]
            if over_itself and not changed and not any(done.applied for done in extras):
                written = None
            if written is not None:
                if report is not None:
                    refuse_data(report, final.data, written.parent)
                time_limit.lift()
                final.commit()
            size, data = final.size, final.data
    left = data_before - data if over_itself and written is not None else frozenset()
    left_behind = tuple(path.parent / name for name in sorted(left))
    return Outcome(
        path,
        plan,
        verdict,
        size_before,
        size,
        written,
        left_behind,
        frozen,
        stuck,
        equalization,
        told,
        simplification,
        front.tidied,
    )


def _refuse_invalid(verdict: Verdict, path: Path, follow_links: bool) -> None:
    """Raise `UsageError` where a fold is called wrong, nothing ran, and the model is not valid.

    No fold of such a model is right or wrong: nobody knows what it computes.
    """
    ran = verdict.end_to_end is not None and verdict.end_to_end.checks
    if verdict.status == "fail" and not ran:
        problem = why_invalid(load_model(path, lean=True, follow_links=follow_links), path)
        if problem is not None:
            raise UsageError(f"{path} is not a valid ONNX model: {problem}")


def _hanging(model: ModelProto, plan: Plan, folder: Path, settings: Settings) -> int:
    """How many maps fold where no initializer can be overridden, and stay where some can."""
    if all(kept.code != "overridable-weight" for kept in plan.kept):
        return 0
    with as_if_frozen(model):
        frozen = prepare(model, folder, settings.equal_dims).plan
    before, after = (sum(kept.kind == "map" for kept in each.kept) for each in (plan, frozen))
    return max(before - after, 0)


def _run_program(
    path: Path,
    output: Path | None,
    verify: bool,
    settings: Settings,
    progress: Progress,
    depthwise: bool,
) -> Outcome:
    """Fold a .pt2 file of torch.export. Raises `UsageError` without PyTorch."""
    with needs_pytorch():
        from bnfold._pipeline.programs import fold_program_file
    return fold_program_file(
        path,
        output,
        verify=verify,
        seed=settings.seed,
        trust=settings.trust,
        progress=progress,
        depthwise=depthwise,
    )
