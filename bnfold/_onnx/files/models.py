"""Model files: reading them with clear errors, writing them whole or not at all.

External data stays external. The output's data file is a copy of the original's, in which the
tensors that changed are overwritten where they lie: every offset and length stays.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
)

from bnfold._errors import UsageError
from bnfold._onnx import tensors as tensors_module
from bnfold._onnx.files import lean as lean_module
from bnfold._onnx.files import stream
from bnfold._system import memory, paths

if TYPE_CHECKING:
    from bnfold._onnx.write.edits import Relocated
    from bnfold._onnx.write.rewriting import Rewritten

_INLINE_BYTES = 1024


def load(path: Path, *, lean: bool = False) -> ModelProto:
    """Read a model file, external data left where it is; with ``lean`` the data of its own large
    tensors too, as `lean` has it.

    Raises `UsageError`, with one line for people, when the file cannot be read, is not an ONNX
    model, holds no operators, or refers to external data that is not there.
    """
    data = paths.read(path, lean_module.read if lean else None)
    if not data:
        raise UsageError(f"{path} is empty")
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        if memory.ran_out(error):
            raise MemoryError from error
        raise UsageError(f"{path} is not an ONNX model, or is cut off: {_line(error)}") from error
    if not model.HasField("graph"):
        raise UsageError(f"{path} is not an ONNX model: it holds no graph")
    if not model.graph.node:
        raise UsageError(f"{path} holds no operators: there is nothing to fold or to check")
    strange = next((name for name in _names(model) if not isinstance(name, str)), None)
    if strange is not None:
        raise UsageError(f"{path} is not a valid ONNX model: the name {strange!r} is not UTF-8")
    check_external(model, path.parent)
    return model


@contextmanager
def understood(model: ModelProto, path: Path | None) -> Iterator[None]:
    """While a model is planned and folded: errors name its file, and say so if it is not valid.

    What cannot be understood and is valid all the same is a defect and passes through as it is.
    """
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}" if path is not None else str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        broken = isinstance(error, UnicodeDecodeError)
        problem = "some text in it is not UTF-8" if broken else _invalid(model, path)
        if problem is None:
            raise
        name = path if path is not None else "the model"
        raise UsageError(f"{name} is not a valid ONNX model: {problem}") from error


def check_external(model: ModelProto, base_dir: Path | None) -> None:
    """Raise `UsageError` unless every external tensor's file is there and long enough."""
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, offset, length = tensors_module.external_location(tensor)
        if base_dir is None:
            raise UsageError(
                f"tensor {tensor.name!r} lies in external file {location!r}; "
                "pass base_dir, the folder of the model"
            )
        if location not in sizes:
            path = tensors_module.external_path(tensor.name, location, base_dir)
            try:
                sizes[location] = _regular_size(path)
            except OSError as error:
                raise UsageError(
                    f"external data of tensor {tensor.name!r}: {paths.unreadable(path, error)}"
                ) from error
        if offset + (_bytes(tensor) if length is None else length) > sizes[location]:
            raise UsageError(
                f"external data {base_dir / location} has {sizes[location]} bytes and ends before "
                f"tensor {tensor.name!r} does; is it cut off, or another model's?"
            )


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model stores, in graphs, bodies, functions and training information."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for info in model.training_info:
        yield from _graph_tensors(info.initialization)
        yield from _graph_tensors(info.algorithm)


def size(path: Path, model: ModelProto) -> int:
    """Bytes on disk of a model file with the external data files it refers to."""
    return path.stat().st_size + sum(
        (path.parent / name).stat().st_size for name in external_files(model)
    )


def refuse_own_data(path: Path, model: ModelProto, base_dir: Path | None) -> None:
    """Raise `UsageError` where a path to be written is a file that holds the model's weights."""
    for location in external_files(model):
        if base_dir is not None and paths.is_same(path, base_dir / location):
            raise UsageError(f"{path} holds the model's own weights; write to another file")


@contextmanager
def runnable(path: Path, locations: Collection[str]) -> Iterator[Path]:
    """A model file as onnxruntime can load it: the file itself, or a temporary look-alike.

    ``locations`` are its data files. Those that are symbolic links out of the model's folder, as
    hub caches make them, are refused by onnxruntime, and so is a path that is no valid Unicode.
    """
    folder = path.parent.resolve()
    inside = all((folder / name).resolve().is_relative_to(folder) for name in locations)
    if inside and _is_text(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="bnfold-") as scratch:
        twin = Path(scratch) / _free_name(locations)
        _link(path, twin)
        for name in locations:
            _link(folder / name, Path(scratch) / name)
        yield twin


def external_files(model: ModelProto) -> set[str]:
    """The external data files that a model refers to, relative to its folder."""
    return {
        tensors_module.external_location(tensor)[0]
        for tensor in tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL and not lean_module.is_own(tensor)
    }


@dataclass(frozen=True)
class PendingFile:
    """A model written beside its destination, with the data files it refers to.

    ``data`` names them all, ``written`` those that are not the original's own.
    """

    path: Path
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
            self._keep_mode(self.path)
            os.replace(self.path, self.destination)
        except BaseException as error:
            if self.path.exists():
                for target, backup in reversed(undo):
                    _restore(target, backup)
            if isinstance(error, OSError):
                raise paths.unwritable(self.destination, error) from error
            raise

    def _keep_mode(self, path: Path) -> None:
        """Give a file the permissions of the one that is about to be replaced."""
        if self.destination is not None and self.destination.exists():
            shutil.copymode(self.destination, path)


@contextmanager
def pending(
    model: ModelProto,
    rewritten: Rewritten,
    *,
    base_dir: Path | None,
    destination: Path | None,
    source: Path | None = None,
) -> Iterator[PendingFile]:
    """Write a model to a temporary folder beside its destination; gone afterwards unless committed.

    The model is taken apart in writing; pass a copy to keep it. ``rewritten`` tells what a fold did
    to the tensors. ``source`` is the original file if the model is unchanged: then its bytes are
    copied. Without a destination the folder is the system's. Raises `UsageError` where that cannot
    be written.
    """
    parent = destination.parent if destination is not None else None
    if destination is not None:
        paths.check_writable(destination)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=parent))
    except OSError as error:
        raise paths.unwritable(destination, error) from error
    try:
        path = folder / (
            destination.name if destination is not None else _free_name(external_files(model))
        )
        try:
            moved, written = _write_external(model, rewritten, base_dir, destination, folder)
            files = external_files(model)
            if source is not None and not moved:
                _copy(source, path)
            else:
                with path.open("wb") as file:
                    stream.write(model, file)
        except OSError as error:
            raise paths.unwritable(destination or path, error) from error
        bytes_written = sum((folder / name).stat().st_size for name in (path.name, *files))
        del model, rewritten  # which hold all new weights, while the draft is judged
        yield PendingFile(path, destination, frozenset(files), tuple(written), bytes_written)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_external(
    model: ModelProto,
    rewritten: Rewritten,
    base_dir: Path | None,
    destination: Path | None,
    folder: Path,
) -> tuple[bool, list[str]]:
    """Provide the draft's external data; whether locations changed, and the files written."""
    changed: dict[str, list[Relocated]] = {}
    for tensor, where in rewritten.relocated:
        changed.setdefault(where[0], []).append((tensor, where))
    unchanged: dict[str, list[TensorProto]] = {}
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            location = tensors_module.external_location(tensor)[0]
            unchanged.setdefault(location, []).append(tensor)
    moved = False
    written: list[str] = []
    originals = [base_dir / name for name in (*changed, *unchanged) if base_dir is not None]
    for location in sorted({*changed, *unchanged}):
        assert base_dir is not None
        lying = [*unchanged.get(location, []), *(tensor for tensor, _ in changed.get(location, []))]
        origin = tensors_module.external_path(lying[0].name, location, base_dir)
        stays = destination is None or paths.is_same(destination.parent, base_dir)
        if stays and location not in changed:
            _link(origin, folder / location)
            continue
        target = _free_location(location, destination, originals, written)
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        _copy(origin, folder / target)
        _patch(folder / target, target, changed.get(location, []))
        if target != location:
            moved = True
            for tensor in unchanged.get(location, []):
                _point_to(tensor, target)
        written.append(target)
    if written:
        _move_out(model, rewritten.created, folder / written[0], written[0])
    return moved, written


def _patch(path: Path, target: str, changed: list[Relocated]) -> None:
    """Overwrite changed tensors where they lie in the data file, and point to them again."""
    with path.open("r+b") as file:
        for tensor, (_, offset, _) in changed:
            data = tensor.raw_data
            file.seek(offset)
            file.write(data)
            _externalize(tensor, target, offset, len(data))


def _move_out(model: ModelProto, created: set[str], path: Path, location: str) -> None:
    """Append new tensors of some size to a data file: external weights stay external."""
    with path.open("r+b") as file:
        for tensor in tensors(model):
            if tensor.name in created and len(tensor.raw_data) >= _INLINE_BYTES:
                end = file.seek(0, os.SEEK_END)
                offset = -(-end // 64) * 64
                file.seek(offset)
                data = tensor.raw_data
                file.write(data)
                _externalize(tensor, location, offset, len(data))


def _externalize(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _point_to(tensor: TensorProto, location: str) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location


def _free_location(
    location: str, destination: Path | None, originals: list[Path], taken: list[str]
) -> str:
    """Where the output's copy of a data file may go without touching anybody else's file.

    The original's own location where the output goes to another folder, else a name made of the
    output's; never a file that is there already, unless it is read by no model but the output
    that is about to be replaced. ``originals`` are the data files of the model being folded.
    """
    if destination is None:
        return location
    number = f".{len(taken)}" if taken else ""
    stem = f"{destination.name}{number}.data"
    candidates = [location, stem, *(f"{stem}.{k}" for k in range(1, 1000))]
    for candidate in candidates:
        target = destination.parent / candidate
        if candidate in taken or candidate == destination.name:
            continue
        if not os.path.lexists(target):
            return candidate
        read_now = any(paths.is_same(target, original) for original in originals)
        if not read_now and _owns(destination, candidate):
            return candidate
    raise UsageError(f"cannot find a free name for the external data of {destination}")


def _owns(path: Path, location: str) -> bool:
    """Whether an existing model file, and no other beside it, refers to an external location."""
    if location not in _locations(path):
        return False
    others = (other for other in path.parent.glob("*.onnx") if not paths.is_same(other, path))
    return not any(location in _locations(other) for other in others)


def _locations(path: Path) -> set[str]:
    """External locations that an existing model file refers to; none if it cannot be read."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # Whatever lies there is about to be replaced and owns no data file.
        return set()
    return external_files(model)


def _free_name(locations: Collection[str]) -> str:
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


def _link(origin: Path, path: Path) -> None:
    """Let a file be found at another path: by a hard link, or a copy where that cannot be.

    onnxruntime refuses symbolic links that lead out of the model's folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin.resolve(), path)
    except FileExistsError:
        raise
    except OSError:
        _copy(origin, path)


def _copy(origin: Path, path: Path) -> None:
    """Copy a file's content; `UsageError` where the origin is to blame for a failure."""
    try:
        origin.open("rb").close()
    except OSError as error:
        raise paths.unreadable(origin, error) from error
    shutil.copyfile(origin, path)


def _restore(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    elif backup.exists():
        os.replace(backup, target)


def _regular_size(path: Path) -> int:
    """The size of a file that is no folder."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return status.st_size


def _bytes(tensor: TensorProto) -> int:
    """How many bytes a tensor's values take at least; 0 for a type that is not known."""
    try:
        size = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        return 0
    if tensor.data_type == TensorProto.STRING:
        return 0
    count = int(math.prod(tensor.dims))
    return count // 4 if size == 1 else count * size


def _invalid(model: ModelProto, path: Path | None) -> str | None:
    """What ONNX's checker has to say against a model; None if it finds nothing, or cannot look."""
    external = path is None and bool(external_files(model))
    try:
        if not external:
            onnx.checker.check_model(model if path is None else path, full_check=True)
    except Exception as error:  # Checker and shape inference share no class of errors.
        return _line(error)
    return None


def _names(model: ModelProto) -> list[str | bytes]:
    """Every name in a model's graphs. Protobuf gives bytes for one that is not UTF-8."""
    names: list[str | bytes] = []
    _add_graph_names(model.graph, names)
    for function in model.functions:
        names += (function.name, function.domain, *function.input, *function.output)
        _add_node_names(function.node, names)
    return names


def _add_graph_names(graph: GraphProto, names: list[str | bytes]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        names += [value.name for value in values]
    _add_node_names(graph.node, names)


def _add_node_names(nodes: Iterable[NodeProto], names: list[str | bytes]) -> None:
    for node in nodes:
        names += (node.name, node.op_type, node.domain)
        names += node.input
        names += node.output
        for attribute in node.attribute:
            names.append(attribute.name)
            if attribute.HasField("g"):
                _add_graph_names(attribute.g, names)
            for graph in attribute.graphs:
                _add_graph_names(graph, names)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
            elif attribute.type == AttributeProto.GRAPH:
                yield from _graph_tensors(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _graph_tensors(graph)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
