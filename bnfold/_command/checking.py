"""``--check``: what is left to fold in each of some models, and in those that folders hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._command import targets, terminal
from bnfold._command.terminal import FAILED, PASSED, code_of, in_one_line
from bnfold._errors import UsageError
from bnfold._registry.finding import models_below
from bnfold._report.escapes import cell
from bnfold._system import file_kinds, paths, time_limit
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._judge.settings import Settings
    from bnfold._pipeline.outcome import Outcome
    from bnfold._report.findings import Finding


@record(frozen=True)
class _Checked:
    """What came out of one model: its outcome, or why it could not be read."""

    model: Path
    code: int
    seconds: float
    outcome: Outcome | None = None
    error: str = ""


def check_each(
    given: Sequence[Path],
    form: str,
    verbose: bool,
    settings: Settings,
    depthwise: bool = False,
    quiet: bool = False,
    report: Path | None = None,
    repeated: Sequence[str] = (),
) -> int:
    """Print what is left to fold in each model, and return the worst exit code.

    A model that cannot be read is told on standard error, and the others are looked at. ``report``
    is a file that gets what is known of all of them, as JSON. ``repeated`` are options that
    folding a model needs as well.

    Raises:
        UsageError: there is one path, and it cannot be read; or the report cannot be written.
    """
    several = len(given) > 1 or given[0].is_dir()
    if report is not None:
        # Ahead of all: it is written whatever comes of a model.
        models = (model for _, model in _models(given)) if report.is_file() else ()
        targets.check_report(report, *models)
    checked = []
    for path, model in _models(given):
        begun = time.monotonic()
        try:
            if model is None:
                raise UsageError(_without_models(path))
            if several:
                time_limit.at(str(model))
            outcome = _check(model, settings, depthwise)
            code = FAILED if outcome.plan.folds else PASSED
            one = _Checked(model, code, time.monotonic() - begun, outcome)
        except Exception as error:
            if len(given) == 1 and (model is None or not several):
                raise
            if "BNFOLD_TRACEBACK" in os.environ and not isinstance(error, UsageError):
                raise
            line = in_one_line(error)
            line = line if str(model or path) in line else f"{model or path}: {line}"
            terminal.complain(f"error: {line}")
            spent = time.monotonic() - begun
            one = _Checked(model or path, code_of(error), spent, error=line)
        checked.append(one)
        _tell(one, form, verbose, quiet, several, repeated)
    _tell_all(checked, form, several, report)
    codes = [one.code for one in checked]
    if several and form == "text" and not (quiet and max(codes) == PASSED):
        terminal.show([_summary(codes)])
    return max(codes)


def _models(given: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield the models to look at, each with the path that was given; None for an empty folder."""
    for path in given:
        if not path.is_dir():
            yield path, path
            continue
        found = sorted(models_below(path))
        for file in found:
            yield path, file
        if not found:
            yield path, None


def _without_models(folder: Path) -> str:
    kind = file_kinds.of_folder(folder)
    why = kind if kind.what != "it is a folder" else "it holds no .onnx file and no .pt2 file"
    return f"cannot check {folder}: {why}"


def _check(model: Path, settings: Settings, depthwise: bool) -> Outcome:
    """What is left to fold in a model. Nothing is written."""
    from bnfold._judge.settings import Settings
    from bnfold._pipeline.models import fold_file

    with terminal.Progress() as progress:
        if model.suffix == ".pt2":
            settings = Settings(trust=settings.trust)
        return fold_file(
            model,
            None,
            verify=False,
            inputs=None,
            progress=progress,
            settings=settings,
            depthwise=depthwise,
        )


def _tell(
    one: _Checked,
    form: str,
    verbose: bool,
    quiet: bool,
    several: bool,
    repeated: Sequence[str],
) -> None:
    """Say what is left to fold in a model, in forms that need no other model for that."""
    from bnfold._command.telling import show_lines
    from bnfold._report import ci, markdown
    from bnfold._report.lines import Line
    from bnfold._report.text import left_to_fold

    outcome = one.outcome
    if form == "text" and outcome is not None and not (quiet and one.code == PASSED):
        header = [Line(f"{one.model}:", "head")] if several else []
        terminal.show([*header, *left_to_fold(outcome, verbose, repeated)])
    if form == "markdown" or (form == "github" and ci.is_summarized()):
        lines = [f"### bnfold: {cell(str(one.model))}: cannot be read", "", cell(one.error)]
        if outcome is not None:
            status = "something is left to fold" if outcome.plan.folds else "nothing to fold"
            ports = markdown.ports_of(one.model)
            lines = list(markdown.of_outcome(outcome, status, ports, verified=False))
        if form == "markdown":
            show_lines(lines)
            terminal.show([""] * several)
        else:
            if outcome is not None:
                lines += [*markdown.of_kept(outcome.plan), *markdown.of_findings(_findings(one))]
            ci.summarize_step(lines)


def _tell_all(checked: Sequence[_Checked], form: str, several: bool, report: Path | None) -> None:
    """Say what is left to fold in all models, in forms that hold them together, and write it."""
    from bnfold._command.telling import show_lines
    from bnfold._report import ci
    from bnfold._report.text import check_document, json_text, outcome_document

    if form == "json" or report is not None:
        (first, *_) = checked
        if several or first.outcome is None:
            document = check_document([(one.model, one.outcome, one.error) for one in checked])
        else:
            document = outcome_document(first.outcome)
        if form == "json":
            terminal.show_whole(json_text(document, ascii_only=True))
        if report is not None:
            paths.write_text(report, json_text(document))
    if form == "junit":
        suites = [ci.Suite(str(one.model), _findings(one), one.seconds) for one in checked]
        terminal.show_whole(ci.junit(suites))
    elif form == "github":
        made = [ci.annotation(str(one.model), "", _findings(one, True)) for one in checked]
        show_lines(ci.at_most([command for command in made if command]))


def _findings(one: _Checked, brief: bool = False) -> list[Finding]:
    """What was found about a model: one finding for each fold, or if ``brief`` one for all."""
    from bnfold._report.findings import Finding, of_check, of_left

    if one.outcome is None:
        return [Finding("foldable", "the model", "fail", one.error)]
    return list(of_left(one.outcome) if brief else of_check(one.outcome))


def _summary(codes: Sequence[int]) -> str:
    """How many models were looked at, and how many of them are not as they should be."""
    counts = [f"checked {len(codes)} model{'' if len(codes) == 1 else 's'}"]
    if left := codes.count(FAILED):
        counts.append(f"{left} with something left to fold")
    if unread := len(codes) - left - codes.count(PASSED):
        counts.append(f"{unread} that could not be read")
    return ", ".join(counts)
