"""Prints what came out of a run, in the form that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._command import terminal
from bnfold._report import text
from bnfold._report.findings import Finding, of_fold, of_verify

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome


def tell_fold(
    outcome: Outcome,
    form: str,
    seconds: float,
    verbose: bool,
    power: bool,
    quiet: bool,
    words: Sequence[str],
) -> None:
    """Print the outcome of a fold. ``words`` are those of the command line."""
    status = outcome.verdict.status
    if form == "text":
        terminal.show(text.outcome_lines(outcome, verbose, power, quiet, words))
        return
    if form == "json":
        document = text.outcome_document(outcome)
        terminal.show_whole(text.json_text(document, ascii_only=True))
        return
    from bnfold._report import ci, markdown  # few runs need them, and these need XML

    if form == "markdown":
        ports = markdown.ports_of(outcome.model)
        show_lines(list(markdown.of_outcome(outcome, status, ports)))
    else:
        findings = list(of_fold(outcome))
        if form == "github":
            ports = markdown.ports_of(outcome.model) if ci.is_summarized() else None
            lines = [*markdown.of_outcome(outcome, status, ports), *markdown.of_kept(outcome.plan)]
            ci.summarize_step([*lines, *markdown.of_findings(findings)])
        tell_findings(form, str(outcome.model), status, findings, seconds)


def tell_comparison(
    original: Path,
    folded: Path,
    result: EndToEnd,
    form: str,
    seconds: float,
    verbose: bool,
    power: bool,
    quiet: bool,
) -> None:
    """Print the comparison of two models."""
    if form == "text":
        terminal.show(text.comparison_lines(result, verbose, power, quiet))
        return
    if form == "json":
        document = text.comparison_document(str(original), str(folded), result)
        terminal.show_whole(text.json_text(document, ascii_only=True))
        return
    from bnfold._report import ci, markdown  # few runs need them, and these need XML

    if form == "markdown":
        ports = markdown.ports_of(original)
        show_lines(list(markdown.of_comparison(str(original), str(folded), result, ports)))
    else:
        findings = list(of_verify(result))
        if form == "github":
            ports = markdown.ports_of(original) if ci.is_summarized() else None
            lines = markdown.of_comparison(str(original), str(folded), result, ports)
            ci.summarize_step([*lines, *markdown.of_findings(findings)])
        tell_findings(form, str(folded), result.status, findings, seconds)


def tell_findings(
    form: str, model: str, status: str, findings: Sequence[Finding], seconds: float
) -> None:
    """Print findings for a CI server: a suite of JUnit, or one annotation of GitHub's if any."""
    from bnfold._report import ci

    if form == "junit":
        terminal.show_whole(ci.junit([ci.Suite(model, findings, seconds)]))
    else:
        show_lines(list(filter(None, [ci.annotation(model, status, findings)])))


def show_lines(lines: Sequence[str]) -> None:
    """Print lines made for programs."""
    if lines:
        terminal.show_whole("\n".join(lines))
