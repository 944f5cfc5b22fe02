"""Where a run writes, and in what form it prints; checked before anything is done."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold._command.options import PATH
from bnfold._errors import UsageError
from bnfold._system import paths

forming = click.option(
    "--output-format",
    "form",
    type=click.Choice(["text", "json", "markdown", "github", "junit"]),
    default="text",
    show_default=True,
    help="What to print: text; json for programs; markdown for pull requests; github or junit for "
    "CI servers. github also adds to the summary of the step.",
)
"""Gives a command the option that says in what form it prints."""

reporting = click.option(
    "--report",
    type=PATH,
    metavar="FILE.json",
    help="Write everything known about this run as JSON.",
)
"""Gives a command the option that writes a report."""


def check_output(output: Path | None, in_place: bool, model: Path) -> None:
    """Raise `UsageError` where a model would be written to two places, or over itself unasked."""
    if in_place and output is not None:
        raise UsageError("give either -o or --in-place, not both")
    if output is not None and paths.is_same(output, model):
        raise UsageError(f"{output} is the input itself; say --in-place to write over it")


def refuse_stream(option: str, path: Path | None) -> None:
    """Raise `UsageError` where a path stands for standard output: files are put in place whole."""
    if path is not None and str(path) == "-":
        raise UsageError(f"{option} -: bnfold writes files, not standard output; give a file name")


def check_report(report: Path | None, *others: Path | None) -> None:
    """Raise `UsageError` where a report cannot be written, or would overwrite another file."""
    if report is None:
        return
    refuse_stream("--report", report)
    paths.refuse_same(report, *others)
    paths.check_writable(report, device=True)
    if report.is_file():
        from bnfold._registry.fingerprint import refuse_weights  # It takes a while to import.

        refuse_weights(report, *others)
