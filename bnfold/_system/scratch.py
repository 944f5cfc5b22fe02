"""Temporary folders beside what is being written: made, marked as in use, and removed.

A file is written there first, since only within one file system can it be renamed to its place.
Whoever is killed leaves such a folder behind, and perhaps new data files without a model. The next
run that writes there removes them. A folder in use is locked, so it is never taken for one that was
left.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".bnfold-"
_LOCK = ".lock"
_JOURNAL = ".placing"
_pipes: list[int] = []


@contextmanager
def beside(parent: Path | None) -> Iterator[Path]:
    """A new folder in a folder, or in the system's for None, that is gone afterwards.

    Raises `OSError` where none can be made.
    """
    _clean(parent or Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    for pipe in _pipes:
        os.write(pipe, os.fsencode(folder.absolute()) + b"\0")
    lock = None
    try:
        lock = _locked(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder, where the system can; it has its lock's name only once it is locked."""
    if fcntl is None:
        return None
    lock = os.open(folder / f"{_LOCK}ing", os.O_CREAT | os.O_RDWR, 0o600)
    with suppress(OSError):  # A file system without locks: nobody else cleans this folder then.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(folder / f"{_LOCK}ing", folder / _LOCK)
    return lock


def tell(pipe: int) -> None:
    """Write the names of new folders to a pipe: who reads it removes them if this process dies."""
    _pipes.append(pipe)


def announce(folder: Path, model: Path, data: Sequence[Path]) -> None:
    """Note which data files are about to be put in place, ahead of the model that reads them.

    The model's file lies in the folder until it is in place, too.
    """
    if data:
        names = [os.fsencode(path.absolute()).hex() for path in data]
        told = {"model": os.fsencode(model.name).hex(), "data": names}
        (folder / _JOURNAL).write_text(json.dumps(told), encoding="ascii")


def settle(folder: Path) -> None:
    """Note that the model is in place, or that its data files are gone again."""
    (folder / _JOURNAL).unlink(missing_ok=True)


def _clean(parent: Path) -> None:
    """Remove what runs that were killed left in a folder: those whose lock nobody holds."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        clear(folder)


def clear(folder: Path) -> None:
    """Remove a folder whose process is gone, and data files that it put in place for nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. Raises `OSError` if it is in use, or has no lock (yet)."""
    with (folder / _LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = folder / _JOURNAL
        if journal.exists():
            told = json.loads(journal.read_text(encoding="ascii"))
            if (folder / _path(told["model"])).exists():  # else the model is in place
                for path in map(_path, told["data"]):
                    if path.is_relative_to(folder.parent.absolute()):
                        path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _path(name: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(name)))
