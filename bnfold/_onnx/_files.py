"""Model files: reading them with clear errors, writing them whole or not at all.

External data stays external. The output's data file is a copy of the original's, in which the
tensors that changed are overwritten where they lie: every offset and length stays.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold._errors import UsageError
from bnfold._onnx import _stream, _tensors
from bnfold._onnx._edit import Relocated
from bnfold._onnx._rewrite import Rewritten

_INLINE_BYTES = 1024


def load(path: Path) -> ModelProto:
    """Read a model file, external data left where it is.

    Raises `UsageError`, with one line for people, when the file cannot be read, is not an ONNX
    model, holds no operators, or refers to external data that is not there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(_unreadable(path, error)) from error
    if not data:
        raise UsageError(f"{path} is empty")
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise UsageError(f"{path} is not an ONNX model, or is cut off: {_line(error)}") from error
    if not model.HasField("graph"):
        raise UsageError(f"{path} is not an ONNX model: it holds no graph")
    if not model.graph.node:
        raise UsageError(f"{path} holds no operators: there is nothing to fold or to check")
    check_external(model, path.parent)
    return model


def check_external(model: ModelProto, base_dir: Path | None) -> None:
    """Raise `UsageError` unless every external tensor's file is there and long enough."""
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, offset, length = _tensors.external_location(tensor)
        if base_dir is None:
            raise UsageError(
                f"tensor {tensor.name!r} lies in external file {location!r}; "
                "pass base_dir, the folder of the model"
            )
        if location not in sizes:
            path = _tensors.external_path(location, base_dir)
            try:
                sizes[location] = path.stat().st_size
            except OSError as error:
                raise UsageError(
                    f"external data of tensor {tensor.name!r}: {_unreadable(path, error)}"
                ) from error
        if offset + (length or 0) > sizes[location]:
            raise UsageError(
                f"external data file {location!r} has {sizes[location]} bytes and ends before "
                f"tensor {tensor.name!r} does"
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
        (path.parent / name).stat().st_size for name in _external_files(model)
    )


def _external_files(model: ModelProto) -> set[str]:
    return {
        _tensors.external_location(tensor)[0]
        for tensor in tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
    }


@dataclass(frozen=True)
class Draft:
    """A model written beside its destination, with the data files it refers to."""

    path: Path
    destination: Path | None
    written: tuple[str, ...]
    size: int

    def commit(self) -> None:
        """Move the files to their destination by renaming, data before model."""
        if self.destination is None:
            raise ValueError("a draft without a destination cannot be committed")
        try:
            for location in self.written:
                target = self.destination.parent / location
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path.parent / location, target)
            os.replace(self.path, self.destination)
        except OSError as error:
            raise UsageError(_unwritable(self.destination, error)) from error


@contextmanager
def draft(
    model: ModelProto,
    rewritten: Rewritten,
    *,
    base_dir: Path | None,
    destination: Path | None,
    source: Path | None = None,
) -> Iterator[Draft]:
    """Write a model to a temporary folder beside its destination; gone afterwards unless committed.

    The model is taken apart in writing; pass a copy to keep it.

    ``rewritten`` tells what a fold did to the tensors. ``source`` is the original file if the
    model is unchanged: then its bytes are copied. Without a destination the folder is
    the system's. Raises `UsageError` where that cannot be written.
    """
    parent = destination.parent if destination is not None else None
    if parent is not None and not parent.is_dir():
        raise UsageError(f"cannot write {destination}: there is no folder {parent}")
    if destination is not None and destination.is_dir():
        raise UsageError(f"cannot write {destination}: it is a folder")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=parent))
    except OSError as error:
        raise UsageError(_unwritable(destination, error)) from error
    try:
        path = folder / (destination.name if destination is not None else "model.onnx")
        try:
            moved, written = _write_external(model, rewritten, base_dir, destination, folder)
            files = _external_files(model)
            if source is not None and not moved:
                shutil.copyfile(source, path)
            else:
                with path.open("wb") as file:
                    _stream.write(model, file)
        except OSError as error:
            raise UsageError(_unwritable(destination or path, error)) from error
        bytes_written = sum((folder / name).stat().st_size for name in (path.name, *files))
        yield Draft(path, destination, tuple(written), bytes_written)
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
            location = _tensors.external_location(tensor)[0]
            unchanged.setdefault(location, []).append(tensor)
    moved = False
    written: list[str] = []
    for location in sorted({*changed, *unchanged}):
        assert base_dir is not None
        origin = _tensors.external_path(location, base_dir)
        stays = destination is None or _same_file(destination.parent, base_dir)
        if stays and location not in changed:
            _link(origin, folder / location)
            continue
        target = _free_location(location, destination, base_dir, len(written))
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, folder / target)
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


def _free_location(location: str, destination: Path | None, base_dir: Path, number: int) -> str:
    """Where the output's copy of a data file may go without touching anybody else's file.

    The original's own location where the output goes to another folder, else a name made of the
    output's; never a file that is there already, unless the output about to be replaced owns it.
    """
    if destination is None:
        return location
    stem = f"{destination.name}.data" if number == 0 else f"{destination.name}.{number}.data"
    candidates = [location, stem, *(f"{stem}.{k}" for k in range(1, 1000))]
    owned = _locations(destination) if destination.exists() else set()
    for candidate in candidates:
        target = destination.parent / candidate
        foreign = target.exists() and candidate not in owned
        original = (base_dir / candidate).exists() and _same_file(target, base_dir / candidate)
        if not foreign and not original:
            return candidate
    raise UsageError(f"cannot find a free name for the external data of {destination}")


def _locations(path: Path) -> set[str]:
    """External locations that an existing model file refers to; none if it cannot be read."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # Whatever lies there is about to be replaced and owns no data file.
        return set()
    return _external_files(model)


def _same_file(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _link(origin: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(origin.resolve(), path)


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


def _unreadable(path: Path, error: OSError) -> str:
    return f"cannot read {path}: {_why(error)}"


def _unwritable(path: Path | None, error: OSError) -> str:
    return f"cannot write {path or 'a temporary file'}: {_why(error)}"


def _why(error: OSError) -> str:
    reasons = {
        errno.ENOENT: "there is no such file",
        errno.EISDIR: "it is a folder",
        errno.EACCES: "permission denied",
        errno.ENOSPC: "no space left on the device",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))
