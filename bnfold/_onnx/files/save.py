"""Writes model files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from onnx import ModelProto

from bnfold._errors import UsageError
from bnfold._onnx.files import lean, text_forms
from bnfold._onnx.files.external import (
    copy_content,
    external_files,
    free_name,
    superseded,
    write_external,
)
from bnfold._onnx.files.text_forms import written_as
from bnfold._onnx.files.wire import prefix
from bnfold._onnx.tensors import Array
from bnfold._system import memory, paths, scratch
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._onnx.write.applied import Rewritten


@record(frozen=True)
class PendingFile:
    """A model that is written to a temporary folder, not yet to its destination.

    ``path`` is in protobuf's binary form; ``finished`` is what goes to the destination: the same
    file, or the model as text. ``data`` names all its data files, and ``written`` has those that
    are not the original's own, each with the file that it was made of. ``original`` is the model
    file. ``size`` is the size of all files together, in bytes.
    """

    path: Path
    finished: Path
    destination: Path | None
    data: frozenset[str]
    written: Mapping[str, Path]
    original: Path | None
    size: int

    def commit(self) -> None:
        """Move the files to their destination by renaming.

        Data files go first, each to a name that no file has, and the model goes last. So whoever
        dies in between leaves the old model with the old data. Data files that only a model read
        which was replaced are removed in the end. Another run may have taken a name meanwhile: its
        file stays, and `UsageError` is raised.
        """
        if self.destination is None:
            raise ValueError("a draft without a destination cannot be committed")
        folder, parent = self.path.parent, self.destination.parent
        placed = [parent / location for location in self.written]
        kept = [*placed, *(parent / name for name in self.data)]
        over_itself = self.original is not None and paths.is_same(self.destination, self.original)
        old = [] if over_itself else superseded(self.destination, self.written.values(), kept)
        new = paths.identity(self.finished)
        ours = {
            target: paths.identity(folder / location)
            for location, target in zip(self.written, placed, strict=True)
        }
        try:
            scratch.placing(self.finished, placed)
            for (location, origin), target in zip(self.written.items(), placed, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                paths.set_mode(folder / location, self.destination, origin)
                paths.put_where_none_is(folder / location, target)
            paths.set_mode(self.finished, self.destination, self.original)
            os.replace(self.finished, self.destination)
        except BaseException as error:
            unread = [path for path, made in ours.items() if paths.identity(path) == made]
            self._remove(old if paths.identity(self.destination) == new else unread)
            if isinstance(error, OSError):
                raise paths.unwritable(self.destination, error) from error
            raise
        self._remove(old)

    @staticmethod
    def _remove(data: Sequence[Path]) -> None:
        """Remove data files that the model in place does not need."""
        for path in data:
            with suppress(OSError):
                path.unlink()


@contextmanager
def pending_file(
    model: ModelProto,
    rewritten: Rewritten,
    *,
    base_dir: Path | None,
    destination: Path | None,
    source: Path | None = None,
    original: Path | None = None,
) -> Iterator[PendingFile]:
    """Write a model to a temporary folder beside its destination.

    The folder is gone afterwards; `PendingFile.commit` moves the files to their destination before.
    Writing takes the model apart: pass a copy to keep it. ``rewritten`` tells what a fold did to
    the tensors. ``original`` is the model's file. ``source`` is that file in binary form, if the
    model is unchanged: then its bytes are copied. Without a destination the folder is the system's.
    Raises `UsageError` where that cannot be written, and for a name that `written_as` refuses.
    """
    parent = destination.parent if destination is not None else None
    form = None
    if destination is not None:
        form = written_as(destination)
        paths.check_writable(destination)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch.beside(parent))
        except OSError as error:
            raise paths.unwritable(destination, error) from error
        path = folder / free_name(external_files(model))
        try:
            moved, written = write_external(model, rewritten, base_dir, destination, folder)
            files = external_files(model)
            # Libraries would take a model in binary form for a text if its name were one's.
            path = folder / (
                destination.name if destination is not None and form is None else free_name(files)
            )
            if source is not None and not moved:
                copy_content(source, path)
            else:
                with path.open("wb") as file:
                    _write_model(model, file, base_dir, rewritten.made)
            del model, rewritten  # which hold all new weights, while the draft is judged
            finished = path
            if form is not None and destination is not None:
                finished = folder / free_name({path.name, *files})
                text_forms.write(form, path, finished, destination)
            size = sum((folder / name).stat().st_size for name in (finished.name, *files))
        except OSError as error:
            raise paths.unwritable(destination or path, error) from error
        yield PendingFile(path, finished, destination, frozenset(files), written, original, size)


def _write_model(
    model: ModelProto, file: IO[bytes], base_dir: Path | None, made: Sequence[Callable[[], Array]]
) -> None:
    """Write a model tensor by tensor: a second copy of its weights is never held.

    ``SerializeToString`` would build the whole file in memory, twice. The fields of a message may
    come in any order (Protocol Buffers encoding, "Field order"). So the weights of the main graph
    follow all else, and each is serialized by itself; those of a lean model go from its file, which
    lies in ``base_dir``, straight into the new one. Those that ``made`` makes are made one by one,
    of tensors as they are now. The model's graph is empty afterwards.
    Raises `UsageError` above 2 GiB, which no protobuf reader accepts, and ``MemoryError``.
    """
    parts = [lean.parts(tensor, made) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    lean.make_whole(model, base_dir)
    try:
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        rest = model.SerializeToString()
        number = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
        item = type(model.graph).DESCRIPTOR.fields_by_name["initializer"].number
        sizes = [tensor.ByteSize() + place.size for tensor, place in parts]
    except Exception as error:  # protobuf's error for a message too large differs by backend.
        memory.claim(lean.LARGEST)  # It is the same where memory has run out.
        raise _too_large() from error
    total = len(graph) + sum(len(prefix(item, size)) + size for size in sizes)
    if len(rest) + total > lean.LARGEST:
        raise _too_large()
    file.write(rest)
    file.write(prefix(number, total))
    file.write(graph)
    with lean.Reader(base_dir) as reader:
        for (tensor, place), size in zip(parts, sizes, strict=True):
            file.write(prefix(item, size))
            memory.claim(2 * tensor.ByteSize())
            file.write(tensor.SerializeToString())
            reader.copy(place, file)


def _too_large() -> UsageError:
    return UsageError(
        "the folded model is larger than the 2 GiB that one protobuf file can hold; "
        "store the original with external data first"
    )
