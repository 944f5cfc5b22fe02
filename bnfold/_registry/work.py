"""The work on one model, inside of the process that is its own.

`bnfold.run` reaches it through `worker`, which starts that process and outlives it.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bnfold._errors import Unwritable, UsageError
from bnfold._registry import fingerprint
from bnfold._registry.finding import SUFFIXES
from bnfold._registry.fingerprint import Option
from bnfold._registry.index import DATA, PAGE
from bnfold._registry.places import is_inside
from bnfold._registry.report import ENDING, PAGE_ENDING, Identity, Report, Status, write
from bnfold._report.text import typed
from bnfold._system import paths, scratch, time_limit

Command = Callable[[list[str], list[str]], tuple[int, BaseException | None]]
"""The command: takes its arguments, and those that a user would type instead; prints errors, and
gives its exit code and what ended it.
"""
PAGES: Option = ("--pages", None)
"""The option that asks for a page of each model, which lies beside the report."""

_NOT_OF_PROGRAMS = frozenset(
    (
        *("--freeze-initializers", "--assume-equal-dims", "--follow-links"),
        *("--inputs", "--draw", "--dim", "--provider", "--power", "--rtol", "--atol", "--threads"),
        *("--ops-library", PAGES[0]),
    )
)
"""What a .pt2 file has no use for: how it is compared, and what is believed of it.

Whatever else it has no use for would change what is computed; there it is refused.
"""
_NOT_OF_ONNX = frozenset(("--trust",))


@dataclass(frozen=True)
class Request:
    """A model to fold: its path, its name in the index, and where to write, as absolute paths.

    ``resume``: give what an earlier run has found, if nothing has changed.
    """

    model: str
    name: str
    output: str | None
    report: str | None
    options: tuple[Option, ...]
    resume: bool

    def to_json(self) -> str:
        """The request on one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(line: bytes) -> Request:
        """The request of a line."""
        told = json.loads(line)
        options = tuple((name, value) for name, value in told.pop("options"))
        return Request(options=options, **told)


def applicable(path: Path, options: Sequence[Option]) -> tuple[Option, ...]:
    """The options that a model of this kind has a use for: a registry may hold both kinds."""
    if path.suffix == ".pt2":
        return tuple(option for option in options if option[0] not in _NOT_OF_PROGRAMS)
    return tuple(option for option in options if option[0] not in _NOT_OF_ONNX)


def work(request: Request, command: Command) -> Report:
    """Fold a model as the command does, or find that this is done; write the report."""
    begun = time.monotonic()
    model = Path(request.model)
    output = Path(request.output) if request.output else None
    report = Path(request.report) if request.report else None
    options = applicable(model, request.options)
    page = _page_of(report, output) if PAGES in options else None
    identity = fingerprint.identity_of(model, options)
    if request.resume and report is not None:
        known = fingerprint.finished(report, output, page, request.name, identity)
        if known is not None:
            return replace(known, model=request.model)
    if output is not None and report is not None and (why := _in_the_way(request, output, report)):
        told = Report(request.model, request.name, "error", code=2, message=why)
        spent = round(time.monotonic() - begun, 3)
        return _kept(replace(told, seconds=spent, report=request.report), identity, None)
    before = fingerprint.signatures(model)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    if report is not None:  # Else the model would be in place, and nobody would say so.
        report.parent.mkdir(parents=True, exist_ok=True)
        paths.check_writable(report)
    code, error, said, details = _run(model, output, page, options, command)
    # From here on until the report is in place nothing but SIGKILL ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fingerprint.signatures(model) != before:
        identity = replace(identity, input=None)
    told = Report(
        request.model,
        request.name,
        _status(code, error, details),
        code=code,
        message=said,
        seconds=round(time.monotonic() - begun, 3),
        report=request.report,
    )
    if details is not None:
        told = replace(told.with_details(details), page=str(page) if page is not None else None)
    return _kept(told, identity, details)


def _page_of(report: Path | None, output: Path | None) -> Path:
    """Where the page of a model goes. Raises `UsageError` where there is no place for it."""
    if report is None:
        raise UsageError("pages lie beside reports; give a report, too")
    place = Path(str(report).removesuffix(ENDING) + PAGE_ENDING)
    if output is not None and paths.is_same(place, output):
        raise UsageError(f"the page would overwrite {output}; give the report another name")
    return place


def _in_the_way(request: Request, output: Path, report: Path) -> str:
    """Why the data of a model may not lie beside its output; "" if they may.

    They keep the names that the model gives them. A report, the index or another model that is put
    there later would replace them, behind the verdict. `places.clashes` sees most of that before,
    in the bytes of models; here a model is parsed, however it is written.
    """
    is_one_of_many = str(report) == f"{output}{ENDING}"
    depth = len(PurePosixPath(request.name).parts)
    top = output.parents[depth - 1] if is_one_of_many and depth <= len(output.parents) else None
    index = {str(top / name).casefold() for name in (PAGE, DATA)} if top else set()
    for location in sorted(fingerprint.data_files(Path(request.model))):
        place = os.path.normpath(output.parent / location)
        told = place.casefold()
        taken = told == str(report).casefold() or told in index
        of_the_run = told.endswith((ENDING, PAGE_ENDING, *SUFFIXES))
        if taken or (is_one_of_many and of_the_run):
            return f"its data {location} would lie where a file of the run does; rename them"
        if top is not None and not is_inside(os.path.dirname(place), top):
            return f"its data {location} would be written outside of {top}"
    return ""


def _run(
    model: Path,
    output: Path | None,
    page: Path | None,
    options: Sequence[Option],
    command: Command,
) -> tuple[int, BaseException | None, str, dict[str, Any] | None]:
    """The exit code of the command, what ended it, what it complained of, and its report."""
    arguments = [part for each in options if each != PAGES for part in each if part is not None]
    words = [typed(model), *arguments]
    kept = sys.stderr
    with scratch.beside(None) as folder:
        draft = folder / "report.json"
        arguments += ["--no-config", "--color", "never", "--report", str(draft)]
        if output is not None:
            arguments += ["-o", str(output)]
            words += ["-o", typed(output)]
        if page is not None:
            arguments += ["--html", str(page)]
            words += ["--html", typed(page)]
        sys.stderr = said = io.StringIO()
        try:
            code, error = command([*arguments, "--", str(model)], words)
        finally:
            sys.stderr = kept
        details = json.loads(draft.read_bytes()) if draft.exists() else None
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error: ")]
    complaint = (errors or lines or [""])[-1][len("error: ") * bool(errors) :]
    return code, error, complaint, details


def _status(
    code: int, error: BaseException | None, details: dict[str, Any] | None = None
) -> Status:
    """How a command ended that ended of its own will."""
    from bnfold._system import memory  # imported late: NumPy comes along

    if details is not None:
        return "done"
    if code > 128:
        return "interrupted"
    if isinstance(error, time_limit.TimeUp):
        return "timeout"
    if isinstance(error, (Unwritable, OSError)):
        return "not written"
    is_usage = isinstance(error, UsageError)
    return "out of memory" if error and not is_usage and memory.ran_out(error) else "error"


def _kept(told: Report, identity: Identity, details: dict[str, Any] | None) -> Report:
    """Write the report's file, if there is to be one; an interrupted run has none."""
    if told.report is None or told.status == "interrupted":
        return told
    written = fingerprint.of_model(Path(told.output)) if told.output else None
    write(Path(told.report), told, identity, written, details)
    return told


def ended(request: Request, status: Status, code: int, why: str, seconds: float) -> Report:
    """The report on a model whose process was ended; its file is written, too.

    What stands in the file then is tried again by a run that resumes.
    """
    told = Report(
        request.model,
        request.name,
        status,
        code=code,
        message=why,
        seconds=round(seconds, 3),
        report=request.report,
    )
    if told.report is not None and status != "interrupted":
        write(Path(told.report), told, None, None, None)
    return told


def failed(request: Request, error: Exception) -> Report:
    """The report on a model for which not even a report could be written."""
    status = _status(2, error)
    if status == "out of memory":
        return Report(request.model, request.name, status, code=3, message="out of memory")
    if isinstance(error, OSError):
        place = error.filename or request.report or request.output or request.model
        why = f"cannot write {place}: {paths.why(error)}"
    else:
        why = str(error) or type(error).__name__
    return Report(request.model, request.name, status, code=2, message=why)
