"""The index of a registry: a page for people and JSON for programs, whole or not at all."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bnfold
from bnfold._core.result import counted
from bnfold._registry.report import Report
from bnfold._report.escapes import visible
from bnfold._report.text import json_text
from bnfold._system import paths

PAGE, DATA = "index.html", "index.json"
SCHEMA = "bnfold.index/1"
_COLUMNS = (
    ("model", "text"),
    ("status", "text"),
    ("verdict", "text"),
    ("operators", "number"),
    ("after", "number"),
    ("folds", "number"),
    ("kept", "number"),
    ("distance", "number"),
    ("MB", "number"),
    ("seconds", "number"),
    ("report", "text"),
)
_GOOD = ("pass", "unchanged", "skipped")


def document(
    folder: Path, reports: Sequence[Report], passed_over: Mapping[str, int], complete: bool
) -> dict[str, Any]:
    """The index as plain data; its schema is schemas/index-1.json. Paths are below the folder."""
    return {
        "schema": SCHEMA,
        "bnfold": bnfold.__version__,
        "complete": complete,
        "counts": counts(reports),
        "passed_over": dict(passed_over),
        "models": [_entry(folder, report) for report in reports],
    }


def counts(reports: Sequence[Report]) -> dict[str, int]:
    """How many models have each verdict, and how many without one have each status."""
    return dict(sorted(Counter(report.verdict or report.status for report in reports).items()))


def _entry(folder: Path, report: Report) -> dict[str, Any]:
    operators = report.operators or (None, None)
    sizes = report.bytes or (None, None)
    return {
        "name": report.name,
        "model": report.model,
        "status": report.status,
        "verdict": report.verdict,
        "code": report.code,
        "message": report.message,
        "operators": {"before": operators[0], "after": operators[1]},
        "bytes": {"before": sizes[0], "after": sizes[1]},
        "folds": report.folds,
        "kept": report.kept,
        "distance": report.distance,
        "seconds": report.seconds,
        "output": _below(folder, report.output),
        "report": _below(folder, report.report),
        "page": _below(folder, report.page),
    }


def _below(folder: Path, path: str | None) -> str | None:
    """A path relative to the folder of the index, with slashes."""
    return None if path is None else Path(os.path.relpath(path, folder)).as_posix()


def write(
    folder: Path, reports: Sequence[Report], passed_over: Mapping[str, int], complete: bool
) -> Path:
    """Write both files, each by renaming. Gives the path of the page."""
    data = document(folder, reports, passed_over, complete)
    paths.write_text(folder / DATA, json_text(data))
    paths.write_text(folder / PAGE, page(data))
    return folder / PAGE


def page(data: Mapping[str, Any]) -> str:
    """The page: one file that asks nobody for anything. Names in it may be a stranger's.

    What is not as it should be comes first.
    """
    template = (resources.files("bnfold") / "_registry" / "index.html").read_text(encoding="utf-8")
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>'
        for name, kind in _COLUMNS
    )
    models = sorted(data["models"], key=lambda model: model["verdict"] in _GOOD)
    rows = "\n".join(_row(model) for model in models)
    told = ", ".join(f"{count} {name}" for name, count in data["counts"].items())
    left_out = told_over(data["passed_over"])
    state = "" if data["complete"] else "The run is not over. "
    filled = {
        "counts": f"{state}{counted(len(data['models']), 'model')}: {told}",
        "left": f"Passed over: {left_out}" if left_out else "",
        "version": f"bnfold {data['bnfold']}",
    }
    for name, text in filled.items():
        template = template.replace(f"<!--{name}-->", _escaped(text))
    return template.replace("<!--heads-->", heads).replace("<!--rows-->", rows)


def told_over(passed_over: Mapping[str, int]) -> str:
    """What was passed over, in words."""
    return ", ".join(counted(count, name) for name, count in passed_over.items())


def _row(model: Mapping[str, Any]) -> str:
    operators, sizes = model["operators"], model["bytes"]
    good = model["verdict"] in _GOOD
    mark = "good" if good else "open" if model["verdict"] == "inconclusive" else "bad"
    name = _escaped(model["name"])
    said = f'<div class="why">{_escaped(model["message"])}</div>' if model["message"] else ""
    output, report, drawn = model["output"], model["report"], model["page"]
    links = [_link(path, text) for path, text in ((drawn, "page"), (report, "JSON")) if path]
    cells = (
        f"<td>{_link(output, name) if output else name}{said}</td>",
        f"<td>{_escaped(model['status'])}</td>",
        f'<td class="{mark}">{_escaped(model["verdict"] or "–")}</td>',
        _number(operators["before"]),
        _number(operators["after"]),
        _number(model["folds"]),
        _number(model["kept"]),
        _number(model["distance"], ".3g"),
        _number(sizes["after"] / 1e6 if sizes["after"] is not None else None, ".3g"),
        _number(model["seconds"], ".2f"),
        f"<td>{' '.join(links)}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>"


def _number(value: float | None, form: str = "") -> str:
    if value is None:
        return '<td class="number" data-value="">–</td>'
    return f'<td class="number" data-value="{value!r}">{value:{form}}</td>'


def _link(path: str, text: str) -> str:
    """A link to a file below the page; a path cannot become a scheme, for it begins with a dot."""
    return f'<a href="./{quote(os.fsencode(path))}">{text}</a>'


def _escaped(text: str) -> str:
    return html.escape(visible(text).encode("utf-8", "replace").decode("utf-8"), quote=True)
