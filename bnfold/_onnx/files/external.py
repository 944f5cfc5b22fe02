"""External data: the tensors in other files, and the data files of a folded model.

External data stays external. The data file of the output is a copy of the original's, in which the
tensors that changed are overwritten where they lie: every offset and length stays. Where another
tensor has some of the same bytes, as tools write weights that are equal, they go to the end.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.files.lean import LARGEST, read_lean
from bnfold._onnx.tensors import Array
from bnfold._system import paths, scratch

if TYPE_CHECKING:
    from bnfold._onnx.write.applied import Rewritten
    from bnfold._onnx.write.constants import Relocated

_MODELS = frozenset((".onnx", ".pb", ".onnxtxt", ".textproto", ".json", ".txt", ""))
"""The suffixes under which models lie."""
_INLINE_BYTES = 1024
"""New tensors from this size on go to a data file, where the model has one."""


def external_files(model: ModelProto) -> set[str]:
    """The external data files that a model refers to, relative to its folder."""
    return {
        tensors.external_location(tensor)[0]
        for tensor in tensors.all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL and not tensors.is_own(tensor)
    }


def _refuse_changed(marks: Mapping[str, str], base_dir: Path) -> None:
    """Raise `UsageError` if a data file is not what it was when it got its mark."""
    for location, known in marks.items():
        path = base_dir / location
        try:
            with path.open("rb") as file:
                tensors.refuse_changed(file, known, path)
        except OSError as error:
            raise paths.unreadable(path, error) from error


@contextmanager
def unchanged(path: Path, locations: Iterable[str]) -> Iterator[None]:
    """Raise `UsageError` at the end if a model's file, or one of its data files, is no longer what
    it was at the beginning: what was found out meanwhile would be of two models.
    """
    marks = dict[str, str]()
    for name in (path.name, *locations):
        with suppress(OSError), (path.parent / name).open("rb") as file:
            marks[name] = tensors.mark(file)
    yield
    _refuse_changed(marks, path.parent)


def size_on_disk(path: Path, model: ModelProto) -> int:
    """Bytes on disk of a model file and the external data files to which it refers."""
    return path.stat().st_size + sum(
        (path.parent / name).stat().st_size for name in external_files(model)
    )


def refuse_own_data(path: Path, model: ModelProto, base_dir: Path | None) -> None:
    """Raise `UsageError` if the path to be written is a file with the model's own weights."""
    refuse_data(path, external_files(model), base_dir)


def refuse_data(path: Path, locations: Iterable[str], base_dir: Path | None) -> None:
    """Raise `UsageError` if the path to be written is one of a model's data files."""
    for location in locations:
        if base_dir is not None and paths.is_same(path, base_dir / location):
            raise UsageError(f"{path} holds the model's own weights; write to another file")


@contextmanager
def runnable(path: Path, locations: Collection[str]) -> Iterator[Path]:
    """A model file as onnxruntime can load it: the file itself, or a temporary look-alike.

    ``locations`` are its data files. onnxruntime refuses data files that are symbolic links out of
    the model's folder; hub caches make such links. It also refuses a path that is not valid
    Unicode. And it maps data files. Where none may be mapped (`scratch.may_map`) it gets copies,
    which nobody else writes to. Raises `UsageError` where there is no room for these, or where a
    file changes meanwhile.
    """
    folder = path.parent.resolve()
    inside = all(_is_inside(folder / name, folder) for name in locations)
    mappable = all(scratch.may_map((folder / name).resolve()) for name in locations)
    if inside and mappable and _is_text(path):
        yield path
        return
    with scratch.beside(None) as temporary:
        twin = temporary / free_name(locations)
        (link if mappable else _copy_for_reading)(path, twin)
        for name in locations:
            (link if mappable else _copy_for_reading)(folder / name, temporary / name)
        yield twin


def _copy_for_reading(origin: Path, path: Path) -> None:
    """Make a copy that no other process knows; see `runnable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with origin.open("rb") as file:
            known = tensors.mark(file)
        copy_content(origin, path)
        with origin.open("rb") as file:
            tensors.refuse_changed(file, known, origin)
    except OSError as error:
        raise UsageError(
            f"{origin} cannot be copied to {path.parent}: {error.strerror}; set TMPDIR to a folder "
            "with more room, or give the file to the command, which needs no copy"
        ) from error


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder or below, behind all links."""
    return path.resolve().is_relative_to(folder.resolve())


def write_external(
    model: ModelProto,
    rewritten: Rewritten,
    base_dir: Path | None,
    destination: Path | None,
    folder: Path,
) -> tuple[bool, dict[str, Path]]:
    """Make the data files of a folded model in ``folder``.

    Gives whether a tensor now lies at another location, and the files that were written, each with
    the file that it is a copy of. A file in which nothing changed is linked, not written, where the
    output stays in its folder, unless it is itself a link to another place: the output would only
    be readable where such links are followed.
    """
    changed: dict[str, list[Relocated]] = {}
    for tensor, where in rewritten.relocated:
        changed.setdefault(where[0], []).append((tensor, where))
    unchanged: dict[str, list[TensorProto]] = {}
    for tensor in tensors.all_tensors(model):
        stays = tensors.made_by(tensor) is None and not tensors.is_own(tensor)
        if tensor.data_location == TensorProto.EXTERNAL and stays:
            location = tensors.external_location(tensor)[0]
            unchanged.setdefault(location, []).append(tensor)
    moved = False
    written: dict[str, Path] = {}
    for location in sorted({*changed, *unchanged}):
        assert base_dir is not None
        lying = [*unchanged.get(location, []), *(tensor for tensor, _ in changed.get(location, []))]
        origin = tensors.external_path(lying[0].name, location, base_dir)
        stays = destination is None or paths.is_same(destination.parent, base_dir)
        if stays and location not in changed and _is_inside(origin, base_dir):
            link(origin, folder / location)
            continue
        target = _free_location(location, destination, written)
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        copy_content(origin, folder / target)
        pair = changed.get(location, []), unchanged.get(location, [])
        _patch(folder / target, target, *pair, rewritten.made)
        if target != location:
            moved = True
            for tensor in unchanged.get(location, []):
                _point_to(tensor, target)
        written[target] = origin
    if base_dir is not None:  # Numbers of a file that was replaced meanwhile are another model's.
        _refuse_changed(rewritten.marks, base_dir)
    if written:
        first = next(iter(written))
        _move_out(model, rewritten.created, folder / first, first)
    return moved, written


def _patch(
    path: Path,
    target: str,
    changed: list[Relocated],
    unchanged: list[TensorProto],
    made: Sequence[Callable[[], Array]],
) -> None:
    """Overwrite changed tensors where they lie in the data file, and point to them again.

    A tensor that lies on bytes of another one, changed or not, goes to the end of the file. Numbers
    that are not made yet are ``made`` one tensor after the other.
    """
    places = [(offset, offset + tensors.stored_bytes(tensor)) for tensor, (_, offset, _) in changed]
    for tensor in unchanged:
        _, offset, length = tensors.external_location(tensor)
        places.append(
            (offset, offset + (tensors.stored_bytes(tensor) if length is None else length))
        )
    shared = _overlapping(places)
    with path.open("r+b") as file:
        for at, (tensor, (_, offset, _)) in enumerate(changed):
            number = tensors.made_by(tensor)
            if number is None:
                data = memoryview(tensor.raw_data)
            else:
                data = tensors.stored(made[number]()).reshape(-1).view(np.uint8).data
            if at in shared:
                offset = _end(file)
            file.seek(offset)
            file.write(data)
            _externalize(tensor, target, offset, data.nbytes)


def _overlapping(places: Sequence[tuple[int, int]]) -> set[int]:
    """Which places, from a byte to another one, have a byte in common with any other of them."""
    found, reached = set[int](), 0
    order = sorted(
        (at for at, (start, end) in enumerate(places) if end > start), key=places.__getitem__
    )
    for number, at in enumerate(order):
        start, end = places[at]
        behind = places[order[number + 1]][0] if number + 1 < len(order) else end
        if start < reached or behind < end:
            found.add(at)
        reached = max(reached, end)
    return found


def _append(file: BinaryIO, tensor: TensorProto, location: str) -> None:
    """Write the data of a tensor to the end of a data file, and let it refer to them there."""
    offset = _end(file)
    file.seek(offset)
    data = tensor.raw_data
    file.write(data)
    _externalize(tensor, location, offset, len(data))


def _end(file: BinaryIO) -> int:
    """Where data that follow a data file begin."""
    return -(-file.seek(0, os.SEEK_END) // 64) * 64


def _move_out(model: ModelProto, created: set[str], path: Path, location: str) -> None:
    """Append large new tensors to a data file: external weights stay external."""
    with path.open("r+b") as file:
        for tensor in tensors.all_tensors(model):
            if tensor.name in created and len(tensor.raw_data) >= _INLINE_BYTES:
                _append(file, tensor, location)


def _externalize(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor refer to its data in a data file."""
    for field in ("raw_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _point_to(tensor: TensorProto, location: str) -> None:
    """Let an external tensor refer to another data file, at the same place in it."""
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location


def _free_location(location: str, destination: Path | None, taken: Collection[str]) -> str:
    """Where the output's copy of a data file may go: to a name that no file has.

    If the output goes to another folder, this is the original's own location. Else it is a name
    made from the output's name. A file that is there is never chosen. A model that is replaced
    would read the new data until it is gone.
    """
    if destination is None:
        return location
    number = f".{len(taken)}" if taken else ""
    stem = f"{destination.name if _is_text(destination) else 'model.onnx'}{number}.data"
    for candidate in (location, stem, *(f"{stem}.{k}" for k in range(1, 1000))):
        free = candidate not in taken and candidate != destination.name
        if free and not os.path.lexists(destination.parent / candidate):
            return candidate
    raise UsageError(f"cannot find a free name for the external data of {destination}")


def superseded(destination: Path, origins: Collection[Path], kept: Collection[Path]) -> list[Path]:
    """The data files of the model at a destination that nobody needs, if that is replaced.

    Their names are those that `_free_location` gives: made from the model's own, or that of one of
    ``origins``, the files that the new data are copies of. What else the old model names is
    somebody's: it stays, and so do ``kept`` files and those that another model beside it reads.
    """
    if not destination.is_file():
        return []
    made = re.compile(rf"{re.escape(destination.name)}(\.\d+)?\.data(\.\d+)?")
    copied = {path.name for path in origins}
    named = _locations(destination)
    candidates = (name for name in named if name in copied or made.fullmatch(name))
    return [
        path
        for path in (destination.parent / name for name in candidates)
        if path.is_file()
        and not path.is_symlink()
        and not any(paths.is_same(path, other) for other in (*origins, *kept))
        and not _is_read_elsewhere(path, destination, named)
    ]


def _is_read_elsewhere(path: Path, model: Path, data: Collection[str]) -> bool:
    """Whether a file beside a model, which is another model, names a data file too.

    ``data`` are all data files of the model. No model is larger than protobuf can hold.
    """
    others = (other for other in path.parent.iterdir() if other.is_file())
    return any(
        path.name in _locations(other)
        for other in others
        if other.suffix in _MODELS
        and other.name not in data
        and other.stat().st_size <= LARGEST
        and not paths.is_same(other, model)
    )


def _locations(path: Path) -> set[str]:
    """The external locations that an existing file refers to; none if it cannot be read."""
    try:
        data = read_lean(path)
        if data is not None:
            return external_files(onnx.load_model_from_string(data))
        return external_files(onnx.load(path, load_external_data=False))
    except Exception:  # What cannot be read has no data file to lose.
        return set()


def free_name(locations: Collection[str]) -> str:
    """A file name for a model that none of its data files has."""
    name = "model.onnx"
    while name in locations:
        name = f"_{name}"
    return name


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def link(origin: Path, path: Path) -> None:
    """Let a file be found at another path too: by a hard link, or a copy where none can be made.

    onnxruntime refuses symbolic links that lead out of the model's folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin.resolve(), path)
    except FileExistsError:
        raise
    except OSError:
        copy_content(origin, path)


def copy_content(origin: Path, path: Path) -> None:
    """Copy the content of a file. Raises `UsageError` where the original cannot be read."""
    try:
        origin.open("rb").close()
    except OSError as error:
        raise paths.unreadable(origin, error) from error
    shutil.copyfile(origin, path)
