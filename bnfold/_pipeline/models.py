"""Folds a model file and judges the result, as the command does, but prints nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bnfold._core.preprocessing import Preprocessing
from bnfold._errors import UsageError
from bnfold._judge.settings import DEFAULT, Settings
from bnfold._onnx.files.external import (
    external_files,
    refuse_data,
    refuse_own_data,
    runnable,
    size_on_disk,
)
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import PendingFile, pending_file
from bnfold._onnx.files.text_forms import written_as
from bnfold._onnx.fold import FoldedWeights, PlannedModel, prepare
from bnfold._onnx.front.prepending import behind, prepend, twin_of
from bnfold._onnx.read.frozen import as_if_frozen, freeze, listed
from bnfold._pipeline.any_kind import needs_pytorch
from bnfold._pipeline.equalizing import equalized
from bnfold._pipeline.outcome import Outcome, Progress, RunStatus, Verdict
from bnfold._pipeline.preprocessed import in_front
from bnfold._pipeline.simplifying import simplified, simplifier
from bnfold._system import paths, time_limit

if TYPE_CHECKING:
    from onnx import ModelProto

    from bnfold._core.result import Plan
    from bnfold._judge.verdict import EndToEnd
    from bnfold._onnx.write.applied import Applied
    from bnfold._relation.proof import Proof
    from bnfold._run.bounds import Bounds
    from bnfold._run.input_sets import InputSet


class Observer(Protocol):
    """Who looks at a model while it is folded. Each method is called once, or not at all."""

    def planned(self, planned: PlannedModel) -> None:
        """The model is planned, and not changed yet."""

    def written(self, path: Path) -> None:
        """The folded model is in a file that is going to be moved or removed."""


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
        rewritten = planned.apply()
        told = front.told(model, planned.plan)
    over_itself = output is not None and paths.is_same(output, path)
    if over_itself and not changed and not equalize and not simplify:
        verdict = Verdict("unchanged")
        size = size_before
        return Outcome(path, planned.plan, verdict, size, size, None, hanging=stuck)
    with pending_file(
        model,
        rewritten,
        base_dir=path.parent,
        destination=output,
        source=None if changed else original,
        original=path,
    ) as draft:
        plan, applied = planned.plan, rewritten.applied
        del model, planned, rewritten  # they hold all new weights
        if observer is not None:
            observer.written(draft.path)
        if weights is not None:
            trial = _FoldedFile(
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


@dataclass(frozen=True)
class _FoldedFile:
    """A folded file that is not in place yet, and all that is needed to judge it.

    ``started`` is the model from which the fold started, if that is not the original. ``owed`` is
    preprocessing that the folded file does no longer.
    """

    original: Path
    data: frozenset[str]
    draft: PendingFile
    weights: FoldedWeights
    inputs: list[InputSet] | None
    settings: Settings
    progress: Progress
    started: Path | None = None
    owed: Mapping[str, Preprocessing] = field(default_factory=dict)

    def judge(self, applied: Sequence[Applied]) -> Verdict:
        """The verdict: a proof and certificates from the files on disk, then a run of both.

        What is proved is not probed on numbers besides.
        """
        from bnfold._judge import by_proof
        from bnfold._judge.activations import Activations
        from bnfold._judge.end_to_end import compare
        from bnfold._judge.other_pairings import drawing_alike
        from bnfold._judge.power import RestingFold
        from bnfold._proof.certificate import certify
        from bnfold._run.bounds import Bounds
        from bnfold._run.draws import FixedDraws, ways_to_draw
        from bnfold._run.hoist import hoist
        from bnfold._run.perturbable import find_weights, plantable_weights
        from bnfold._run.session import hush
        from bnfold._run.source import Parsed, Source

        hush()
        with (
            runnable(self.original, self.data) as original,
            runnable(self.draft.path, self.draft.data) as folded,
        ):
            bounds = Bounds.beginning(
                self.settings.threads, self.settings.seconds, self.settings.libraries
            )
            before = load_model(self.original, lean=True, follow_links=True)
            after = load_model(self.draft.path, lean=True, follow_links=True)
            edits = (freeze,) if self.settings.frozen and listed(before) else ()
            for edit in edits:
                edit(before)
            self.progress("proving")
            proof = self._proof(before, after, bounds)
            self.progress("certifying every fold")
            start, path = before, original
            if self.started is not None:
                path = self.started
                start = load_model(path, lean=True, follow_links=True)
            numbers = Activations(path, self.inputs, self.settings, bounds).numbers
            certificates = certify(
                start,
                after,
                applied,
                path.parent if self.started is not None else self.original.parent,
                self.draft.path.parent,
                None if by_proof.is_proved(proof) else numbers,
                bounds,
            )
            resting = [
                RestingFold(certificate.into, certificate.layers)
                for certificate in certificates
                if certificate.unchecked is not None
            ]
            values: Mapping[str, Any] = self.weights.values
            touched: Collection[str] = self.weights.touched
            hoisted = False
            if not values:  # the planner knows no weights of bodies, and all may be there
                hoisted = hoist(before)
                found = find_weights(before, self.original.parent)
                values, touched = found.values, plantable_weights(before, found)
            ways = ways_to_draw(before, after, self.settings.seed)
            left = Source(original, parsed=Parsed(before), hoisted=hoisted)
            owed = (partial(prepend, wanted=self.owed),) if self.owed else ()
            right = Source(folded, parsed=Parsed(after))
            del before, after

            def judged(draws: FixedDraws | None) -> EndToEnd:
                alike = (FixedDraws(draws.seed), draws) if draws is not None else ()
                return compare(
                    replace(left, edits=(*edits, *alike[:1])),
                    replace(right, edits=(*owed, *alike[1:])),
                    parameters=values,
                    touched=touched,
                    inputs=self.inputs,
                    settings=self.settings,
                    bounds=bounds,
                    certified=all(certificate.holds for certificate in certificates),
                    resting=resting,
                    progress=self.progress,
                    notes=[draws.told()] if draws else (),
                    proof=proof,
                )

            end_to_end, _ = drawing_alike(judged, ways)
        wrong = any(certificate.fails for certificate in certificates)
        status: RunStatus = "fail" if wrong else end_to_end.status
        return Verdict(status, certificates, end_to_end)

    def _proof(self, before: ModelProto, after: ModelProto, bounds: Bounds) -> Proof | None:
        """What the weights of both files prove, if a proof is asked for."""
        from bnfold._judge import by_proof

        size = size_on_disk(self.original, before) + size_on_disk(self.draft.path, after)
        if self.owed:
            after = load_model(self.draft.path, lean=True, follow_links=True)
            prepend(after, wanted=self.owed)
        sides = (before, self.original.parent), (after, self.draft.path.parent)
        return by_proof.proof_of(*sides, size, self.settings, bounds)
