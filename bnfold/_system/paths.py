"""Paths that a user gives: checks them early, and writes files by renaming."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from bnfold._errors import Unwritable, UsageError
from bnfold._system import scratch

_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EACCES: "permission denied",
    errno.ENOSPC: "no space left on the device",
}


def why(error: OSError) -> str:
    """What went wrong, in a few words."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def unreadable(path: Path, error: OSError) -> UsageError:
    """The error for a file that cannot be read."""
    return UsageError(f"cannot read {path}: {why(error)}")


def unwritable(path: Path | None, error: OSError) -> Unwritable:
    """The error for a file that cannot be written; without a path, a temporary one."""
    return Unwritable(f"cannot write {path or 'a temporary file'}: {why(error)}")


def read(path: Path, reader: Callable[[Path], bytes | None] | None = None) -> bytes:
    """The content of a regular file; a ``reader`` may give other content in its place.

    A pipe or a device is refused: a model is read more than once, and a device may never end.
    Raises `UsageError` where the file cannot be read.
    """
    if str(path) == "-":
        raise UsageError("cannot read -: bnfold reads files, not standard input; give a file name")
    try:
        refuse_special(path)
        content = reader(path) if reader is not None else None
        return path.read_bytes() if content is None else content
    except OSError as error:
        raise unreadable(path, error) from error


def refuse_special(path: Path) -> None:
    """Raise `UsageError` for a pipe or a device, ``OSError`` for a file that is not there."""
    if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"cannot read {path}: it is not a regular file")


def check_writable(path: Path, *, device: bool = False) -> None:
    """Raise `Unwritable` if a file cannot be put at a path by renaming.

    A device is refused, because the renamed file would replace it. With ``device`` it is allowed:
    the caller writes to it directly.
    """
    try:
        if path.is_dir():
            raise Unwritable(f"cannot write {path}: it is a folder")
        if is_device(path):
            if device:
                return
            raise Unwritable(f"cannot write {path}: it is not a regular file")
        if not path.parent.is_dir():
            there = os.path.lexists(path.parent)
            folder = path.parent
            problem = f"{folder} is not a folder" if there else f"there is no folder {folder}"
            raise Unwritable(f"cannot write {path}: {problem}")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise Unwritable(f"cannot write {path}: the folder {path.parent} is not writable")
    except OSError as error:
        raise unwritable(path, error) from error


def is_device(path: Path) -> bool:
    """Whether a path exists and is no folder and no regular file, or lies in /dev."""
    if not path.exists():
        return False
    mode = path.stat().st_mode
    special = not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return special or path.parent.resolve() == Path("/dev")


def is_same(first: Path, second: Path) -> bool:
    """Whether two paths lead to the same file, also through links."""
    try:
        return first.samefile(second)
    except OSError:
        return first.resolve() == second.resolve()


def refuse_same(report: Path, *others: Path | None) -> None:
    """Raise `UsageError` where a report would take the place of another file of its run."""
    for other in filter(None, others):
        if is_same(report, other):
            raise UsageError(f"the report would overwrite {other}; give it another name")


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file apart, also under another name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def set_mode(path: Path, destination: Path | None, original: Path | None) -> None:
    """Give a file the permissions of the one that it is about to replace, but no wider ones.

    Nobody may read it who could not read the file that it was made of. Who may read the original
    may read and write the new file, as far as its own mode allows.
    """
    if destination is not None and destination.exists():
        shutil.copymode(destination, path)
    if original is None:
        return
    readable = original.stat().st_mode & 0o444
    path.chmod(stat.S_IMODE(path.stat().st_mode) & (readable | readable >> 1 | readable >> 2))


def put_where_none_is(source: Path, target: Path) -> None:
    """Move a file to a name that no file has. Raises `FileExistsError` if one has it by now.

    A hard link is made only where nothing is. A file system without them is asked before.
    """
    taken = FileExistsError(
        errno.EEXIST, f"{target} has appeared meanwhile; run it again", str(target)
    )
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise taken from error
    except OSError as error:
        if os.path.lexists(target):
            raise taken from error
        os.rename(source, target)
        return
    source.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file by renaming, so that nobody reads half of it. A device is written directly."""
    try:
        if is_device(path):
            path.write_text(text, encoding="utf-8")
            return
        with scratch.beside(path.parent) as folder:
            draft = folder / "draft"
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
    except OSError as error:
        raise unwritable(path, error) from error
