"""``bnfold.run``: the unit of work on a registry, for any engine that runs Python functions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold._errors import UsageError
from bnfold._registry import worker
from bnfold._registry.fingerprint import Option, refuse_weights
from bnfold._registry.report import Report
from bnfold._registry.work import Request
from bnfold._system import paths

_REPEATED = ("ops_library",)
"""Options that are given once for each value; others take several with commas between them."""
_PATHS = ("inputs", "ops_library")
_OWN = frozenset(
    (
        *("output", "report", "in_place", "check", "output_format", "verbose", "quiet", "color"),
        *("no_config", "help", "output_dir", "jobs", "resume", "html"),
    )
)
"""Options of the command that `run` has no use for, or has itself."""


def run(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    report: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Report:
    """Fold one model file in a process of its own, and say what became of it.

    It does what ``bnfold PATH -o OUTPUT`` does, and writes the same bytes; without ``output``
    nothing is written. Whatever happens to that process (a library that crashes, memory that runs
    out, a kill) is a status of the `Report`, not the end of the caller. The process is forked from
    one that has imported everything, which is kept for the next call.

    ``options`` are those of ``bnfold fold``, with underscores: ``memory="4GB"``, ``timeout=600``,
    ``draw=["signed"]``, ``dim={"batch": [1, 4]}``, ``no_verify=True``. A .pt2 file is given those
    that it has a use for. No pyproject.toml is read.

    ``report`` is a file that gets the report and everything known about the fold, as JSON
    (schemas/run-1.json); with ``pages=True`` a page lies beside it, as --html writes it. With
    ``resume`` a model is skipped that such a file says is done, if the model, its external data,
    the options, the versions of bnfold and what it runs on, and the output are what they were.

    The `Report` is plain data: it can be pickled. Raises `UsageError` for an option that is none.
    """
    return ask(path, output, report, None, as_options(options), resume)


def ask(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    report: str | os.PathLike[str] | None,
    name: str | None,
    options: Sequence[Option],
    resume: bool,
) -> Report:
    """Ask a process that is idle, and wait for its answer. An interrupt ends its work."""
    for each in (path, output, report):
        if each is not None and "\0" in os.fspath(each):
            raise UsageError(f"{os.fspath(each)!r}: no file's name has a NUL")
    request = Request(
        os.path.abspath(path),
        name if name is not None else os.fspath(path),
        os.path.abspath(output) if output is not None else None,
        os.path.abspath(report) if report is not None else None,
        tuple(options),
        resume,
    )
    if request.output is not None and Path(request.output) == Path(request.model):
        raise UsageError(f"{request.output} is the input itself; bnfold.run writes another file")
    if request.report is not None:
        made = Path(request.output) if request.output is not None else None
        paths.refuse_same(Path(request.report), Path(request.model), made)
        refuse_weights(Path(request.report), Path(request.model))
    asked = worker.take()
    try:
        told = asked.ask(request)
    except BaseException:
        asked.close()
        raise
    worker.give_back(asked)
    return told


def as_options(given: Mapping[str, Any]) -> tuple[Option, ...]:
    """Options of Python as options of the command. Raises `UsageError` for one that is none."""
    return tuple(option for name, value in given.items() for option in _option(name, value))


def _option(name: str, value: Any) -> Iterator[Option]:
    if name in _OWN:
        raise UsageError(f"bnfold.run takes no option {name!r}")
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        yield flag, None
    elif value is None or value is False:
        return
    elif isinstance(value, Mapping):
        for key, sizes in value.items():
            yield flag, f"{key}={_joined(sizes)}"
    elif name in _REPEATED and not isinstance(value, str | os.PathLike):
        for each in value:
            yield flag, _text(name, each)
    else:
        yield flag, _text(name, value)


def _text(name: str, value: Any) -> str:
    return os.path.abspath(value) if name in _PATHS else _joined(value)


def _joined(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
