"""Writes model files, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from onnx import ModelProto

from bnfold._errors import UsageError
from bnfold._onnx.files import text_forms
from bnfold._onnx.files.external import (
    copy_content,
    external_files,
    free_name,
    write_external,
)
from bnfold._onnx.files.text_forms import written_as
from bnfold._onnx.files.wire import prefix
from bnfold._system import memory, paths

if TYPE_CHECKING:
    from bnfold._onnx.write.applied import Rewritten

_LARGEST = 2**31 - 1
"""The most bytes that a protobuf reader accepts."""


@dataclass(frozen=True)
class PendingFile:
    """A model that is written to a temporary folder, not yet to its destination.

    ``path`` is in protobuf's binary form; ``finished`` is what goes to the destination: the same
    file, or the model as text. ``data`` names all its data files, ``written`` those that are not
    the original's own. ``size`` is the size of all files together, in bytes.
    """

    path: Path
    finished: Path
    destination: Path | None
    data: frozenset[str]
    written: tuple[str, ...]
    size: int

    def commit(self) -> None:
        """Move the files to their destination by renaming, data before model, all or none."""
        if self.destination is None:
            raise ValueError("a draft without a destination cannot be committed")
        folder, parent = self.path.parent, self.destination.parent
        undo: list[tuple[Path, Path | None]] = []
        try:
            for number, location in enumerate(self.written):
                target, old = parent / location, folder / f".old-{number}"
                target.parent.mkdir(parents=True, exist_ok=True)
                undo.append((target, old if target.exists() else None))
                if target.exists():
                    os.replace(target, old)
                self._keep_mode(folder / location)
                os.replace(folder / location, target)
            self._keep_mode(self.finished)
            os.replace(self.finished, self.destination)
        except BaseException as error:
            if self.finished.exists():
                for target, backup in reversed(undo):
                    _restore(target, backup)
            if isinstance(error, OSError):
                raise paths.unwritable(self.destination, error) from error
            raise

    def _keep_mode(self, path: Path) -> None:
        """Give a file the permissions of the file that it is about to replace."""
        if self.destination is not None and self.destination.exists():
            shutil.copymode(self.destination, path)


@contextmanager
def pending_file(
    model: ModelProto,
    rewritten: Rewritten,
    *,
    base_dir: Path | None,
    destination: Path | None,
    source: Path | None = None,
) -> Iterator[PendingFile]:
    """Write a model to a temporary folder beside its destination.

    The folder is gone afterwards; `PendingFile.commit` moves the files to their destination before.
    Writing takes the model apart: pass a copy to keep it. ``rewritten`` tells what a fold did to
    the tensors. ``source`` is the original file, in binary form, if the model is unchanged: then
    its bytes are copied. Without a destination the folder is the system's. Raises `UsageError`
    where that cannot be written, and for a name that `written_as` refuses.
    """
    parent = destination.parent if destination is not None else None
    form = None
    if destination is not None:
        form = written_as(destination)
        paths.check_writable(destination)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=parent))
    except OSError as error:
        raise paths.unwritable(destination, error) from error
    try:
        path = folder / (
            destination.name if destination is not None else free_name(external_files(model))
        )
        try:
            moved, written = write_external(model, rewritten, base_dir, destination, folder)
            files = external_files(model)
            if source is not None and not moved:
                copy_content(source, path)
            else:
                with path.open("wb") as file:
                    _write_model(model, file)
            del model, rewritten  # which hold all new weights, while the draft is judged
            finished = path
            if form is not None and destination is not None:
                finished = folder / free_name({path.name, *files})
                text_forms.write(form, path, finished, destination)
            size = sum((folder / name).stat().st_size for name in (finished.name, *files))
        except OSError as error:
            raise paths.unwritable(destination or path, error) from error
        yield PendingFile(path, finished, destination, frozenset(files), tuple(written), size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_model(model: ModelProto, file: IO[bytes]) -> None:
    """Write a model tensor by tensor: a second copy of its weights is never held.

    ``SerializeToString`` would build the whole file in memory, twice. The fields of a message may
    come in any order (Protocol Buffers encoding, "Field order"). So the weights of the main graph
    follow all else, and each is serialized by itself. The model's graph is empty afterwards.
    Raises `UsageError` above 2 GiB, which no protobuf reader accepts, and ``MemoryError``.
    """
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    try:
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        rest = model.SerializeToString()
        number = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
        item = type(model.graph).DESCRIPTOR.fields_by_name["initializer"].number
        sizes = [tensor.ByteSize() for tensor in weights]
    except Exception as error:  # protobuf's error for a message too large differs by backend.
        memory.claim(_LARGEST)  # It is the same where memory has run out.
        raise _too_large() from error
    total = len(graph) + sum(len(prefix(item, size)) + size for size in sizes)
    if len(rest) + total > _LARGEST:
        raise _too_large()
    file.write(rest)
    file.write(prefix(number, total))
    file.write(graph)
    for tensor, size in zip(weights, sizes, strict=True):
        file.write(prefix(item, size))
        memory.claim(2 * size)
        file.write(tensor.SerializeToString())


def _too_large() -> UsageError:
    return UsageError(
        "the folded model is larger than the 2 GiB that one protobuf file can hold; "
        "store the original with external data first"
    )


def _restore(target: Path, backup: Path | None) -> None:
    """Put a file back that was moved away; if there was none, remove the new one."""
    if backup is None:
        target.unlink(missing_ok=True)
    elif backup.exists():
        os.replace(backup, target)
