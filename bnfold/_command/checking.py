"""``--check``: what is left to fold in each of some models, and in those that folders hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._command import terminal
from bnfold._command.terminal import FAILED, PASSED, code_of, in_one_line
from bnfold._errors import UsageError
from bnfold._system import file_kinds, time_limit

if TYPE_CHECKING:
    from bnfold._judge.settings import Settings

_SUFFIXES = (".onnx", ".pt2")


def check_each(
    given: Sequence[Path],
    form: str,
    verbose: bool,
    settings: Settings,
    depthwise: bool = False,
    quiet: bool = False,
) -> int:
    """Print what is left to fold in each model, and return the worst exit code.

    A model that cannot be read is told on standard error, and the others are looked at.

    Raises:
        UsageError: there is one path, and it cannot be read; or the form takes no several models.
    """
    several = len(given) > 1 or given[0].is_dir()
    codes = []
    for path, model in _models(given):
        if several and form in ("json", "junit"):
            raise UsageError(f"--output-format {form} takes one model at a time")
        try:
            if model is None:
                raise UsageError(_without_models(path))
            if several:
                time_limit.at(str(model))
            codes.append(_check(model, form, verbose, several, settings, depthwise, quiet))
        except Exception as error:
            if len(given) == 1 and (model is None or not several):
                raise
            if "BNFOLD_TRACEBACK" in os.environ and not isinstance(error, UsageError):
                raise
            codes.append(code_of(error))
            _complain(model or path, error, form)
    if several and form == "text" and not (quiet and max(codes) == PASSED):
        terminal.show([_summary(codes)])
    return max(codes)


def _models(given: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield the models to look at, each with the path that was given; None for an empty folder."""
    for path in given:
        if not path.is_dir():
            yield path, path
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        for file in found:
            yield path, file
        if not found:
            yield path, None


def _without_models(folder: Path) -> str:
    kind = file_kinds.of_folder(folder)
    why = kind if kind.what != "it is a folder" else "it holds no .onnx file and no .pt2 file"
    return f"cannot check {folder}: {why}"


def _check(
    model: Path,
    form: str,
    verbose: bool,
    several: bool,
    settings: Settings,
    depthwise: bool,
    quiet: bool,
) -> int:
    """Print what is left to fold in a model, and return the exit code."""
    from bnfold._judge.settings import Settings
    from bnfold._pipeline.models import fold_file
    from bnfold._report.findings import of_check
    from bnfold._report.lines import Line
    from bnfold._report.text import json_text, left_to_fold, outcome_document

    begun = time.monotonic()
    with terminal.Progress() as progress:
        if model.suffix == ".pt2":
            settings = Settings(trust=settings.trust)
        outcome = fold_file(
            model,
            None,
            verify=False,
            inputs=None,
            progress=progress,
            settings=settings,
            depthwise=depthwise,
        )
    left = bool(outcome.plan.folds)
    if form == "text":
        header = [Line(f"{model}:", "head")] if several else []
        if left or not quiet:
            terminal.show([*header, *left_to_fold(outcome, verbose)])
    elif form == "json":
        terminal.show_whole(json_text(outcome_document(outcome), ascii_only=True))
    else:
        status = "something is left to fold" if left else "nothing to fold"
        findings, seconds = list(of_check(outcome)), time.monotonic() - begun
        terminal.show_findings(form, str(model), status, outcome.plan, findings, seconds)
    return FAILED if left else PASSED


def _complain(model: Path, error: Exception, form: str) -> None:
    """Say what is wrong with one of several models."""
    from bnfold._report.findings import Finding

    line = in_one_line(error)
    if str(model) not in line:
        line = f"{model}: {line}"
    terminal.complain(f"error: {line}")
    if form == "github":
        unread = Finding("foldable", "the model", "fail", line)
        terminal.show_findings(form, str(model), "cannot be read", None, [unread], 0.0)


def _summary(codes: Sequence[int]) -> str:
    """How many models were looked at, and how many of them are not as they should be."""
    counts = [f"checked {len(codes)} model{'' if len(codes) == 1 else 's'}"]
    if left := codes.count(FAILED):
        counts.append(f"{left} with something left to fold")
    if unread := len(codes) - left - codes.count(PASSED):
        counts.append(f"{unread} that could not be read")
    return ", ".join(counts)
