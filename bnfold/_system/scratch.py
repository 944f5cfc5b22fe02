"""Temporary folders beside what is being written: made, marked as in use, and removed.

A file is written there first, since only within one file system can it be renamed to its place.
Whoever is killed leaves such a folder behind. The next run that writes there removes it. A folder
in use is locked, so it is never taken for one that was left.

Such a folder may as well be a stranger's: it came in an archive, or another user made it. So
nothing that lies in it says what else to remove. Only what a process reports itself does.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
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
_FOLDER, _DATA, _MODEL, _END = b"f", b"d", b"m", b"\0"
_reports: list[int] = []


@contextmanager
def beside(parent: Path | None) -> Iterator[Path]:
    """A new folder in a folder, or in the system's for None, that is gone afterwards.

    Raises `OSError` where none can be made.
    """
    home = parent or Path(tempfile.gettempdir())
    _clean(home)
    folder = home / f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
    _report(_FOLDER, folder)  # Before it is made: whoever is ended in between leaves nothing.
    lock = None
    try:
        folder.mkdir(0o700)
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


def tell(report: int) -> None:
    """Write to a file from now on what `clear` has to remove if this process is killed."""
    _reports.append(report)


def is_watched() -> bool:
    """Whether another process waits for this one, and tells how it ended."""
    return bool(_reports)


def may_map(path: Path) -> bool:
    """Whether a file may be mapped: whoever looks at one that got shorter meanwhile is ended.

    It may where another process waits for this one. And where it is this process's alone: it lies
    in a folder of `beside`, under that one name.
    """
    own = f"{PREFIX}{os.getpid()}-"
    lies_here = any(folder.name.startswith(own) for folder in path.absolute().parents)
    return is_watched() or (lies_here and path.lstat().st_nlink == 1)


def placing(model: Path, data: Sequence[Path]) -> None:
    """Report that data files are about to be put in place, ahead of the model that reads them.

    That lies at ``model``, in a folder of `beside`, until it is in place, too.
    """
    for path in data:
        _report(_DATA, path)
    _report(_MODEL, model)


def _report(kind: bytes, path: Path) -> None:
    for report in _reports:
        os.write(report, kind + os.fsencode(path.absolute()) + _END)


def clear(report: bytes) -> None:
    """Remove what a process that was killed had reported, and had no time to remove.

    Data files stay if their model is in place. Entries of other kinds are somebody else's.
    """
    folders, data = list[Path](), list[Path]()
    for entry in filter(None, report.split(_END)):
        kind, path = entry[:1], Path(os.fsdecode(entry[1:]))
        if kind == _DATA:
            data.append(path)
        elif kind == _FOLDER:
            folders.append(path)
        elif kind == _MODEL:
            for each in data if path.exists() else ():
                with suppress(OSError):
                    each.unlink()
            data.clear()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _clean(parent: Path) -> None:
    """Remove the folders that runs of this user left in a folder: those whose lock nobody holds."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. Raises `OSError` if it is in use, or has no lock (yet)."""
    if _is_stillborn(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _is_stillborn(folder: Path) -> bool:
    """Whether whoever made a folder was killed before it was locked: it holds nothing yet."""
    process = re.fullmatch(rf"{re.escape(PREFIX)}([0-9]{{1,9}})-[0-9a-f]{{16}}", folder.name)
    if process is None or set(os.listdir(folder)) - {f"{_LOCK}ing"}:
        return False
    try:
        os.kill(int(process[1]), 0)
        told = Path(f"/proc/{process[1]}/stat").read_bytes()
    except ProcessLookupError:
        return True
    except OSError:  # Somebody else's, or a system that does not tell.
        return False
    return told.rpartition(b")")[2].split()[:1] == [b"Z"]  # It has ended, and nobody has asked.
