"""What became of one model: plain data that can be pickled, and the file that holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bnfold._errors import UsageError
from bnfold._report.text import json_text
from bnfold._system import paths

SCHEMA = "bnfold.run/1"
ENDING, PAGE_ENDING = ".report.json", ".report.html"
"""What the names of a report and a page have behind that of the model, in an output folder."""
Status = Literal[
    "done", "error", "not written", "crashed", "killed", "out of memory", "timeout", "interrupted"
]
"""How the work on a model ended; only what is done has a verdict."""
Verdict = Literal["pass", "fail", "inconclusive", "unchanged", "skipped"]
_LARGEST = 1 << 63
_LARGEST_FILE = 1 << 28
"""Bytes of the largest file that is taken for a report. It may be a hole."""


@dataclass(frozen=True)
class Report:
    """What became of one model.

    Attributes:
        model: the path that was given.
        name: what the index calls it: the path below the output folder, or the path that was given.
        status: how the work ended. Whatever is not "done" has no verdict, and wrote no model.
        verdict: "pass", "fail" or "inconclusive", "unchanged" if nothing folds and "skipped" if
            nothing was to be verified; None where there is none.
        code: the exit code of the command for this model.
        message: what was wrong, in one line; "" where nothing was, or nothing is known.
        seconds: how long it took.
        output: the file that was written, or None.
        report: the file that holds all of this and everything known about the fold, or None.
        operators: how many there were before and after; None where that is not known.
        bytes: the size of model and data before and after; None where that is not known.
        folds: how many folds and merges there were.
        kept: how many maps stay.
        distance: the largest difference of an output, as a part of its tolerance; None where
            nothing was compared.
        resumed: an earlier run had done it, and nothing has changed.
        details: everything known about the fold, as --report has it, where no file holds it.
        page: the page that shows the fold, or None.
    """

    model: str
    name: str
    status: Status
    verdict: str | None = None
    code: int = 0
    message: str = ""
    seconds: float = 0.0
    output: str | None = None
    report: str | None = None
    operators: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    folds: int = 0
    kept: int = 0
    distance: float | None = None
    resumed: bool = False
    details: Mapping[str, Any] | None = None
    page: str | None = None

    def with_details(self, details: Mapping[str, Any]) -> Report:
        """The report with the numbers that ``details`` hold; they go into it if no file has them.

        ``details`` are a document of schemas/report-1.json.
        """
        operators = details["operators"]
        end_to_end = details["verification"]["end_to_end"] or {}
        ratios = [check.get("ratio") for check in end_to_end.get("checks", ())]
        known = [ratio for ratio in ratios if isinstance(ratio, int | float)]
        verdict = details["verification"]["status"]
        return replace(
            self,
            verdict=verdict,
            message=self.message or (_why(details) if verdict in ("fail", "inconclusive") else ""),
            output=details["output"],
            operators=(sum(operators["before"].values()), sum(operators["after"].values())),
            bytes=(details["bytes"]["before"], details["bytes"]["after"]),
            folds=len(details["folds"]),
            kept=len(details["kept"]),
            distance=max(known) if known else None,
            details=details if self.report is None else None,
        )


def _why(details: Mapping[str, Any]) -> str:
    """What a verdict that is no pass rests on: the first thing that does not hold."""
    verification = details["verification"]
    for certificate in verification["certificates"]:
        if not certificate["holds"] and (certificate["problem"] or not certificate["unchecked"]):
            return f"{certificate['into']}: {certificate['problem'] or 'its weights are off'}"
    end_to_end = verification["end_to_end"] or {}
    for check in end_to_end.get("checks", ()):
        if check["status"] == "fail":
            return f"{check['output']} differs on {check['inputs']} inputs"
    troubles = [*end_to_end.get("notes", ())]
    troubles += [each["note"] for each in end_to_end.get("providers", ()) if each["note"]]
    troubles += [each["note"] for each in end_to_end.get("checks", ()) if each["note"]]
    return str(troubles[0]) if troubles else ""


@dataclass(frozen=True)
class Identity:
    """What a result depends on.

    Attributes:
        input: the hash of the model and its external data; None where it could not be read.
        options: the options that say what is done, with the hashes of the files that they name.
        bounds: the options that bound time, memory and threads.
        versions: the versions of bnfold and of what it runs on.
    """

    input: str | None
    options: Mapping[str, str]
    bounds: Mapping[str, str]
    versions: Mapping[str, str]


def write(
    path: Path,
    report: Report,
    identity: Identity | None,
    written: str | None,
    details: Mapping[str, Any] | None,
) -> None:
    """Write a report's file, whole or not at all; its schema is schemas/run-1.json.

    ``written`` is the hash of the output. Raises `UsageError` where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.check_writable(path)  # A pipe would take it only once somebody reads.
    document = {
        "schema": SCHEMA,
        "model": report.model,
        "name": report.name,
        "status": report.status,
        "verdict": report.verdict,
        "code": report.code,
        "message": report.message,
        "seconds": report.seconds,
        "output": report.output,
        "written": written,
        "page": report.page,
        "input": identity.input if identity else None,
        "options": dict(identity.options) if identity else {},
        "bounds": dict(identity.bounds) if identity else {},
        "versions": dict(identity.versions) if identity else {},
        "report": details,
    }
    paths.write_text(path, json_text(document))


def read(path: Path) -> tuple[Report, Identity, str | None] | None:
    """The report of a file, what it depends on, and the hash of its output.

    None where there is no such file, or one that is not of this schema: it is written anew then.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return None
        document = json.loads(paths.read(path))
        if document["schema"] != SCHEMA:
            return None
        report = Report(
            str(document["model"]),
            str(document["name"]),
            document["status"],
            document["verdict"],
            int(document["code"]),
            str(document["message"]),
            float(document["seconds"]),
            document["output"],
            str(path),
            page=document["page"],
        )
        if document["report"] is not None:
            report = report.with_details(document["report"])
        identity = Identity(
            document["input"], document["options"], document["bounds"], document["versions"]
        )
        written = document["written"]
        sound = _is_sound(report) and _is_sound_identity(identity)
        return (report, identity, written) if sound and _is_text(written) else None
    except (UsageError, OSError, ArithmeticError, ValueError, KeyError, TypeError):
        return None
    except (AttributeError, IndexError, RecursionError):
        return None


def _is_sound(report: Report) -> bool:
    """Whether what a file says are values of a report: somebody else may have written it, and what
    stands in it goes into the index as it is.
    """
    sizes = (report.code, *(report.operators or ()), *(report.bytes or ()))
    numbers = (report.seconds, 0.0 if report.distance is None else report.distance)
    return (
        report.status in get_args(Status)
        and (report.verdict is None or report.verdict in get_args(Verdict))
        and all(map(_is_text, (report.output, report.page)))
        and all(type(size) is int and 0 <= size < _LARGEST for size in sizes)
        and all(type(each) in (int, float) and 0 <= each < math.inf for each in numbers)
    )


def _is_sound_identity(identity: Identity) -> bool:
    tables = (identity.options, identity.bounds, identity.versions)
    return _is_text(identity.input) and all(isinstance(table, dict) for table in tables)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)
