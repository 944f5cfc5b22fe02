"""Findings as CI servers show them: JUnit XML, GitHub's annotations and its step summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from bnfold._core.result import Plan
from bnfold._errors import UsageError
from bnfold._report import escapes
from bnfold._report.findings import Finding
from bnfold._system import paths

_LEVELS = {"fail": "error", "inconclusive": "warning"}
"""GitHub's word for each status that it shows."""

_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file of the step summary."""


def junit(model: str, findings: Sequence[Finding], seconds: float) -> str:
    """One test suite of JUnit XML, in ASCII.

    A finding that failed is a failure. One that could not be judged is a skipped test.
    """
    count = {
        status: sum(f.status == status for f in findings) for status in ("fail", "inconclusive")
    }
    suite = ElementTree.Element(
        "testsuite",
        name=escapes.xml(f"bnfold {model}"),
        tests=str(len(findings)),
        failures=str(count["fail"]),
        errors="0",
        skipped=str(count["inconclusive"]),
        time=f"{seconds:.3f}",
    )
    for finding in findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"bnfold.{finding.group}",
            name=escapes.xml(finding.name),
            time="0",
        )
        message = escapes.xml(finding.message)
        if finding.status == "fail":
            failure = ElementTree.SubElement(case, "failure", type=finding.group, message=message)
            failure.text = message
        elif finding.status == "inconclusive":
            ElementTree.SubElement(case, "skipped", type=finding.group, message=message)
        elif message:
            ElementTree.SubElement(case, "system-out").text = message
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    written: bytes = ElementTree.tostring(suites, encoding="us-ascii", xml_declaration=True)
    return written.decode("ascii")


def workflow_commands(model: str, findings: Iterable[Finding]) -> Iterator[str]:
    """GitHub's annotations: an error for a failure, a warning for what could not be judged.

    Source: GitHub Actions, workflow commands.
    """
    for finding in findings:
        level = _LEVELS.get(finding.status)
        if level is not None:
            title = escapes.command_property(f"bnfold: {finding.name}")
            message = escapes.command_message(finding.message or finding.status)
            yield f"::{level} file={escapes.command_property(model)},title={title}::{message}"


def summarize_step(model: str, status: str, plan: Plan | None, findings: Sequence[Finding]) -> None:
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
    """Yield the lines of the table for GitHub's step summary."""
    yield f"### bnfold: {escapes.cell(model)}: {status}"
    if plan is not None:
        changed = [op for op in sorted({*plan.before, *plan.after}) if _count(plan, op)]
        if changed:
            yield from ("", "| operator | before | after |", "|---|---:|---:|")
            for op in changed:
                yield f"| {escapes.cell(op)} | {plan.before.get(op, 0)} | {plan.after.get(op, 0)} |"
        if plan.kept:
            yield from ("", "| kept | reason | |", "|---|---|---|")
            for kept in plan.kept:
                yield f"| {escapes.cell(kept.node)} | {kept.code} | {escapes.cell(kept.message)} |"
    if findings:
        yield from ("", "| check | result | |", "|---|---|---|")
        for finding in findings:
            name, message = escapes.cell(finding.name), escapes.cell(finding.message)
            yield f"| {name} | {finding.status} | {message} |"


def _count(plan: Plan, op: str) -> bool:
    return plan.before.get(op, 0) != plan.after.get(op, 0)
