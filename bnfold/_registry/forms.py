"""What became of many models, in the forms that CI servers and pull requests show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bnfold._core.result import counted
from bnfold._registry.report import Report
from bnfold._report import ci
from bnfold._report.escapes import cell
from bnfold._report.findings import Finding
from bnfold._report.text import size_in_words

_ROWS = 200
"""How many models a table of Markdown lists; those that did not pass come first."""
_ENDINGS: Mapping[int, tuple[Literal["pass", "fail", "inconclusive"], str]] = {
    0: ("pass", "folded"),
    1: ("fail", "verification failed"),
    2: ("fail", "could not be folded"),
}
"""What an exit code says of a model; any other one says that it could not be judged."""


def markdown(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield one table of all models; ``data`` is a document of schemas/index-1.json."""
    told = ", ".join(f"{count} {name}" for name, count in data["counts"].items())
    yield f"### bnfold: {counted(len(data['models']), 'model')}: {told}"
    yield from (
        "",
        "| model | verdict | operators | file size | folds | stay | |",
        "|---|---|---:|---:|---:|---:|---|",
    )
    models = sorted(data["models"], key=lambda model: model["code"] == 0)
    for model in models[:_ROWS]:
        sizes = {end: _size(number) for end, number in model["bytes"].items()}
        yield (
            f"| {cell(model['name'])} | {model['verdict'] or model['status']} "
            f"| {_change(model['operators'])} | {_change(sizes)} "
            f"| {model['folds']} | {model['kept']} | {cell(model['message'])} |"
        )
    if len(models) > _ROWS:
        yield f"| and {len(models) - _ROWS} more, which passed or are in index.json | | | | | | |"


def _size(number: int | None) -> str | None:
    return None if number is None else size_in_words(number)


def _change(ends: Mapping[str, object]) -> str:
    before, after = ends["before"], ends["after"]
    if before is None or after is None:
        return "–"
    return f"{before} → {after}" if before != after else f"{before}"


def junit(reports: Sequence[Report]) -> str:
    """JUnit XML: a test suite for each model, with one test."""
    return ci.junit(
        [ci.Suite(each.name, [_finding(each, "the model")], each.seconds) for each in reports]
    )


def annotated(reports: Sequence[Report]) -> list[str]:
    """GitHub's annotations: one for each model that did not pass, as many as GitHub shows."""
    found = [
        ci.annotation(_place(each.model), "", [_finding(each, _told(each.code)[1])])
        for each in reports
    ]
    return ci.at_most([command for command in found if command])


def _told(code: int) -> tuple[Literal["pass", "fail", "inconclusive"], str]:
    return _ENDINGS.get(code, ("inconclusive", "could not be judged"))


def _finding(report: Report, name: str) -> Finding:
    status, _ = _told(report.code)
    outcome = report.verdict or report.status
    said = f"{outcome}: {report.message}" if report.message else outcome
    return Finding("verification", name, status, said.removeprefix("error: "))


def _place(model: str) -> str:
    """Where a model lies, seen from the current folder if it is in there: as GitHub links it."""
    path = Path(os.path.abspath(model))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else model
