"""Findings as GitHub's workflow commands, which become annotations, and as a step summary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bnfold._core.result import Plan
from bnfold._errors import UsageError
from bnfold._report.findings import Finding
from bnfold._system import paths

_LEVELS = {"fail": "error", "inconclusive": "warning"}
_SUMMARY = "GITHUB_STEP_SUMMARY"
_MEANING = re.compile(r"[\\`*_\[\]<>&|~$]")


def commands(model: str, findings: Iterable[Finding]) -> Iterator[str]:
    """An error for what failed, a warning for what could not be judged.

    Source: GitHub Actions, workflow commands; in a message ``%`` and line ends are escaped, in a
    property ``:`` and ``,`` too.
    """
    for finding in findings:
        level = _LEVELS.get(finding.status)
        if level is not None:
            title = _property(f"bnfold: {finding.name}")
            message = _data(finding.message or finding.status)
            yield f"::{level} file={_property(model)},title={title}::{message}"


def summarize(model: str, status: str, plan: Plan | None, findings: Sequence[Finding]) -> None:
    """Append a table to the summary of the step, where GitHub asks for one.

    Raises `UsageError` where the file that it names cannot be written.
    """
    target = os.environ.get(_SUMMARY)
    if not target:
        return
    try:
        with Path(target).open("a", encoding="utf-8", errors="replace") as file:
            file.write("\n".join(_markdown(model, status, plan, findings)) + "\n\n")
    except OSError as error:
        raise UsageError(f"cannot write the summary to {target}: {paths.why(error)}") from error


def _markdown(
    model: str, status: str, plan: Plan | None, findings: Sequence[Finding]
) -> Iterator[str]:
    yield f"### bnfold: {_cell(model)}: {status}"
    if plan is not None:
        changed = [op for op in sorted({*plan.before, *plan.after}) if _count(plan, op)]
        if changed:
            yield from ("", "| operator | before | after |", "|---|---:|---:|")
            for op in changed:
                yield f"| {_cell(op)} | {plan.before.get(op, 0)} | {plan.after.get(op, 0)} |"
        if plan.kept:
            yield from ("", "| kept | reason | |", "|---|---|---|")
            for kept in plan.kept:
                yield f"| {_cell(kept.node)} | {kept.code} | {_cell(kept.message)} |"
    if findings:
        yield from ("", "| check | result | |", "|---|---|---|")
        for finding in findings:
            yield f"| {_cell(finding.name)} | {finding.status} | {_cell(finding.message)} |"


def _count(plan: Plan, op: str) -> bool:
    return plan.before.get(op, 0) != plan.after.get(op, 0)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text that stays within a cell of a Markdown table, and means what it says.

    Source: GitHub Flavored Markdown, backslash escapes; ``$`` begins a formula on GitHub.
    """
    return " ".join(_MEANING.sub(r"\\\g<0>", text).split())
