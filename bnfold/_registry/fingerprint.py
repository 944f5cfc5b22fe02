"""What a result depends on, as hashes, and whether an earlier run has done the work already."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

import bnfold
from bnfold._errors import UsageError
from bnfold._registry.places import LARGEST
from bnfold._registry.report import Identity, Report, read
from bnfold._system import paths

BOUNDS = ("--memory", "--timeout", "--threads")
"""Options that a verdict does not depend on, unless it is that time or memory was not enough."""
_LIMITS = ("--memory", "--timeout")
_FILES = ("--inputs", "--ops-library")
_CHUNK = 1 << 20
_HOLE = 1 << 26
"""Bytes of a hole that is skipped."""

Option = tuple[str, str | None]
"""An option of the command, and its value; None for a flag."""


def identity_of(path: Path, options: Sequence[Option]) -> Identity:
    """What the result for a model depends on."""
    said: dict[str, str] = {}
    for name, value in sorted(options, key=lambda option: (option[0], option[1] or "")):
        text = value or ""
        if name in _FILES:
            text = f"{text} {_of_any(Path(text))}"
        said[name] = f"{said[name]} {text}" if name in said else text
    programs = ("torch",) if path.suffix == ".pt2" else ("onnx", "onnxruntime")
    return Identity(
        of_model(path),
        {name: value for name, value in said.items() if name not in BOUNDS},
        {name: value for name, value in said.items() if name in BOUNDS},
        {"bnfold": bnfold.__version__, **{name: _version(name) for name in (*programs, "numpy")}},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def of_model(path: Path) -> str | None:
    """The hash of a model file and its external data; None where the file cannot be read or is
    larger than a model can be.

    A data file that is not there, and one that no model may name, counts as such: once it is there
    the hash is another one.
    """
    try:
        if path.suffix != ".pt2" and path.stat().st_size > LARGEST:
            return None
        own = _of_file(path)
        if own is None:
            return None
        digest = hashlib.sha256(own.encode())
        for location in sorted(data_files(path)):
            held = _of_file(path.parent / location) if _is_below(location) else None
            digest.update(f"\0{location}\0{held}".encode(errors="surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def _is_below(location: str) -> bool:
    """Whether a location is one that a model may name: below its own folder."""
    path = PurePosixPath(location)
    return not path.is_absolute() and ".." not in path.parts


def data_files(path: str | os.PathLike[str]) -> set[str]:
    """The external data files that a model names, relative to its folder.

    None where it is no model of ONNX. They are what a file says: it may name any place.
    """
    path = Path(path)
    if path.suffix == ".pt2":
        return set()
    from onnx import ModelProto

    from bnfold._onnx.files import text_forms
    from bnfold._onnx.files.external import external_files
    from bnfold._onnx.files.load import in_parts

    try:
        data = paths.read(path, in_parts)
        return external_files(text_forms.parse(path, data) or ModelProto.FromString(data))
    except MemoryError:
        raise
    except Exception:  # What is wrong with it is told when it is folded.
        return set()


def refuse_weights(report: Path, *models: Path | None) -> None:
    """Raise `UsageError` where a report would take the place of a model's data.

    A file among them that is no model has none.
    """
    for model in filter(None, models):
        if report.is_file() and model.is_file():
            for location in data_files(model):
                if _is_below(location) and paths.is_same(report, model.parent / location):
                    raise UsageError(
                        f"{report} holds the weights of {model}; write to another file"
                    )


def _of_file(path: Path) -> str | None:
    """The hash of a regular file; None where there is none. A pipe would never end.

    Large holes are skipped: a file of a few bytes on disk may be terabytes long.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            size, end = os.fstat(file.fileno()).st_size, 0
            for start, end in _filled(file):
                digest.update(b"" if start == 0 else f"\0{start}\0".encode())
                file.seek(start)
                left = end - start
                while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                    digest.update(chunk)
                    left -= len(chunk)
            digest.update(b"" if end == size else f"\0{size}".encode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return digest.hexdigest()


def _filled(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """The parts of a file between its large holes; the whole where no system tells of them."""
    status = os.fstat(file.fileno())
    held = getattr(status, "st_blocks", status.st_size) * 512
    if held + _HOLE > status.st_size or not hasattr(os, "SEEK_DATA"):
        yield 0, status.st_size
        return
    start = end = 0
    while end < status.st_size:
        try:
            behind = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:  # There is nothing behind.
            behind = status.st_size
        if behind - end > _HOLE:
            yield start, end
            start = behind
        end = behind
        if end < status.st_size:
            end = os.lseek(file.fileno(), end, os.SEEK_HOLE)
    if start < end:
        yield start, end


def _of_any(path: Path) -> str | None:
    """The hash of a file, or of the files in a folder and their names."""
    try:
        if not path.is_dir():
            return _of_file(path)
        held = [f"{file.name}\0{_of_file(file)}" for file in sorted(path.iterdir())]
    except OSError:
        return None
    return hashlib.sha256("\0".join(held).encode(errors="surrogateescape")).hexdigest()


def signatures(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when somebody writes a model or its data: file numbers, sizes and times."""
    return tuple(_signatures(path))


def _signatures(path: Path) -> Iterator[tuple[str, int, int, int]]:
    named = (path.parent / name for name in sorted(data_files(path)) if _is_below(name))
    for file in (path, *named):
        try:
            status = os.stat(file)
        except OSError:
            continue
        yield str(file), status.st_ino, status.st_size, status.st_mtime_ns


def finished(
    report: Path, output: Path | None, page: Path | None, name: str, identity: Identity
) -> Report | None:
    """What an earlier run has found, if it is done, nothing has changed, and what it wrote is
    there.

    Done is what has a verdict, and a file that cannot be used. What time or memory may have left
    open is done under the same bounds. What was killed, crashed, ran out of memory or time, or
    could not be written, is tried again. Where model and output lie
    does not count: a tree may be moved.
    """
    known = read(report)
    if known is None or identity.input is None:
        return None
    told, before, written = known
    if (before.input, before.options, before.versions) != (
        identity.input,
        identity.options,
        identity.versions,
    ):
        return None
    if told.status not in ("done", "error"):
        return None
    is_open = told.status == "error" or told.verdict == "inconclusive"
    if is_open and any(before.bounds.get(n) != identity.bounds.get(n) for n in _LIMITS):
        return None
    if told.output is not None:
        if output is None or written is None or of_model(output) != written:
            return None
        told = replace(told, output=str(output))
    elif told.verdict not in ("fail", None) and output is not None:
        return None
    if told.verdict is not None and (page is None) != (told.page is None):
        return None
    if told.page is not None and page is not None:
        if not page.exists():
            return None
        told = replace(told, page=str(page))
    return replace(told, name=name, resumed=True)
