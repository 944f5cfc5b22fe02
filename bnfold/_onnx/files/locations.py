"""Where external data may lie: beside the model, and nowhere else.

A model file says where its weights are. A file from a stranger may name any place, or come in an
archive with a link to one. Whoever folds it would write what lies there into the output, for others
to read. onnx.load refuses every link; here links are followed as model hubs make them:

- the location is a relative path without ``..``;
- behind all links there is a regular file, in the model's own folder or in the folder of the file
  that the model's own links lead to;
- that file has one name only: a hard link would hide where it belongs.

The last two may be waived by the user (``follow_links``). A device or a pipe is never read.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.tensors import all_tensors
from bnfold._system import paths, scratch


def check_external(
    model: ModelProto,
    base_dir: Path | None,
    path: Path | None = None,
    *,
    follow_links: bool = False,
    missing: bool = False,
) -> None:
    """Raise `UsageError` unless every external tensor's file may be read and is long enough.

    ``base_dir`` is the folder that locations are relative to, and ``path`` the model's file. With
    ``missing`` a file need not be there: a plan may not need it.
    """
    sizes: dict[str, int] = {}
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, offset, length = tensors.external_location(tensor)
        if base_dir is None:
            raise UsageError(
                f"tensor {tensor.name!r} lies in external file {location!r}; "
                "pass base_dir, the folder of the model"
            )
        if missing and not tensors.external_path(tensor.name, location, base_dir).exists():
            continue
        if location not in sizes:
            sizes[location] = _size(tensor.name, location, base_dir, path, follow_links)
        if offset + (tensors.stored_bytes(tensor) if length is None else length) > sizes[location]:
            raise UsageError(
                f"external data {base_dir / location} has {sizes[location]} bytes and ends before "
                f"tensor {tensor.name!r} does; is it cut off, or another model's?"
            )


def _size(name: str, location: str, base_dir: Path, path: Path | None, follow_links: bool) -> int:
    """The bytes of a data file that may be read. Raises `UsageError` for another one."""
    file = tensors.external_path(name, location, base_dir)
    what = f"external data of tensor {name!r}"
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{what}: {file} is not a regular file")
        if not follow_links:
            _refuse_links(what, file, status, base_dir, path)
    except OSError as error:
        raise UsageError(f"{what}: {paths.unreadable(file, error)}") from error
    return status.st_size


def _refuse_links(
    what: str, file: Path, status: os.stat_result, base_dir: Path, path: Path | None
) -> None:
    """Raise `UsageError` for a file that links bring in from elsewhere."""
    advice = "give --follow-links (in Python, follow_links=True) if that is meant"
    homes = {base_dir.resolve()} | ({path.resolve().parent} if path is not None else set())
    real = file.resolve()
    if not any(real.is_relative_to(home) for home in homes):
        raise UsageError(f"{what}: {file} is a link to {real}, out of the model's folder; {advice}")
    if status.st_nlink > 1 and status.st_nlink - _own_links(status, homes) > 1:
        raise UsageError(
            f"{what}: {file} has {status.st_nlink} names (hard links), so it may belong elsewhere; "
            f"{advice}"
        )


def _own_links(status: os.stat_result, homes: set[Path]) -> int:
    """How many names of a file are in temporary folders of runs of bnfold."""
    return sum(
        1 for other in _scratch_files(homes) if (other.st_dev, other.st_ino) == _identity(status)
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _scratch_files(homes: set[Path]) -> Iterator[os.stat_result]:
    places = {*homes, Path(tempfile.gettempdir())}
    for folder in (found for place in places for found in place.glob(f"{scratch.PREFIX}*")):
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    yield (Path(place) / name).lstat()
                except OSError:  # Another run has just removed it.
                    continue
