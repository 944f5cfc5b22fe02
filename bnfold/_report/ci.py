"""Findings as CI servers show them: JUnit XML, GitHub's annotations and its step summary."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bnfold._errors import UsageError
from bnfold._report import escapes
from bnfold._report.findings import Finding
from bnfold._system import paths

_LEVELS = {"fail": "error", "inconclusive": "warning"}
"""GitHub's word for each status that it shows."""

_TITLES = {"fail": "verification failed", "inconclusive": "could not be judged"}
"""What an annotation is called that stands for several findings."""
MOST = 10
"""How many annotations of a step GitHub shows."""
_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file of the step summary."""


@dataclass(frozen=True)
class Suite:
    """What was found about one model, and the seconds that it took."""

    model: str
    findings: Sequence[Finding]
    seconds: float


def junit(suites: Sequence[Suite]) -> str:
    """JUnit XML, in ASCII, with a test suite for each model.

    A finding that failed is a failure. One that could not be judged is a skipped test.
    """
    root = ElementTree.Element("testsuites")
    for suite in suites:
        root.append(_suite(suite))
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return re.sub(escapes.COMMANDS, "&#35;#", written.decode("ascii"))


def _suite(found: Suite) -> ElementTree.Element:
    count = {
        status: sum(f.status == status for f in found.findings)
        for status in ("fail", "inconclusive")
    }
    suite = ElementTree.Element(
        "testsuite",
        name=escapes.xml(f"bnfold {found.model}"),
        tests=str(len(found.findings)),
        failures=str(count["fail"]),
        errors="0",
        skipped=str(count["inconclusive"]),
        time=f"{found.seconds:.3f}",
    )
    for finding in found.findings:
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
    return suite


def annotation(model: str, status: str, findings: Sequence[Finding]) -> str:
    """GitHub's annotation for a model: an error for a failure, a warning for what could not be
    judged; "" if there is neither. It tells the worst of them, and how many more there are.

    Source: GitHub Actions, workflow commands.
    """
    shown = [finding for finding in findings if finding.status in _LEVELS]
    if not shown:
        return ""
    # Where two models begin to differ says most.
    shown.sort(key=lambda f: (f.status != "fail", f.name != "first difference"))
    worst = shown[0]
    told = worst.message or worst.status
    if len(shown) > 1:
        told = f"{worst.name}: {told}; and {len(shown) - 1} more, in the summary of the step"
    title = worst.name if len(shown) == 1 else _TITLES.get(status, status)
    return _command(worst.status, model, title, told)


def at_most(commands: Sequence[str]) -> list[str]:
    """As many of the annotations of several models as GitHub shows, the last of them for the rest.

    Source: GitHub shows ten annotations of a level for a step.
    """
    if len(commands) <= MOST:
        return list(commands)
    more = f"{len(commands) - MOST + 1} more models are told in the summary of the step"
    return [*commands[: MOST - 1], _command("fail", "", "more models", more)]


def _command(status: str, model: str, title: str, message: str) -> str:
    file = f"file={escapes.command_property(model)}," if model else ""
    title = escapes.command_property(f"bnfold: {title}")
    return f"::{_LEVELS[status]} {file}title={title}::{escapes.command_message(message)}"


def is_summarized() -> bool:
    """Whether GitHub asks for a summary of the step."""
    return bool(os.environ.get(_SUMMARY))


def summarize_step(lines: Sequence[str]) -> None:
    """Append lines of Markdown to the summary of the step, where GitHub asks for one.

    Raises `UsageError` where the file that it names cannot be written.
    """
    target = os.environ.get(_SUMMARY)
    if not target:
        return
    try:
        with Path(target).open("a", encoding="utf-8", errors="replace") as file:
            file.write("\n".join(lines) + "\n\n")
    except OSError as error:
        raise UsageError(f"cannot write the summary to {target}: {paths.why(error)}") from error
