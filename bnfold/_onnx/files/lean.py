"""Lean models: a model without its large weights, which stay in its file.

The raw data of a large tensor becomes external data, as ONNX defines it, in the model's own file
(ONNX, "External Data": location, offset and length). The values are mapped when they are asked for.
Otherwise they are never read.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.files.wire import (
    BYTES,
    VARINT,
    Bytes,
    Field,
    FileBytes,
    Unusual,
    fields,
    number,
    prefix,
)
from bnfold._onnx.tensors import OWN, Array, all_tensors, is_own
from bnfold._system import paths, scratch

LEAST_FILE = 1 << 22
"""Files from this size on, in bytes, are read without their large tensors."""

LARGEST = 2**31 - 1
"""The most bytes that a protobuf reader accepts."""

LEAST_TENSOR = 1 << 16
"""Data of tensors from this size on, in bytes, stay in the file."""

_BLOCK = 1 << 20
"""Bytes that are copied at once."""

_FEW = 64
"""Attributes and tensors of more fields are left as they are: each of their numbers is one."""

_WHOLE = frozenset(
    (
        TensorProto.BFLOAT16,
        TensorProto.BOOL,
        TensorProto.DOUBLE,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.INT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
        TensorProto.UINT8,
    )
)
"""Types whose numbers take whole bytes, each its own."""


def read_lean(path: Path) -> bytes | None:
    """The bytes of a model file without the data of large tensors.

    None for a file that is better read as a whole: a small one, or one with an unusual layout.
    Raises `OSError` if the file cannot be read.
    """
    if path.stat().st_size < LEAST_FILE:
        return None
    with path.open("rb") as file, ExitStack() as stack:
        data: Bytes = FileBytes(file)
        if scratch.may_map(path):
            data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            walk = _Walk(data, path.name, tensors.mark(file))
            return b"".join(_model(walk, 0, len(data)))
        except (IndexError, Unusual, UnicodeError):
            return None


class Place(NamedTuple):
    """Where the data of a tensor lie in a file: its name, and from where to where. ``head`` is what
    stands ahead of them in the tensor's message, ``mark`` the file's `tensors.mark`. Nothing, for a
    tensor that holds its own. Others take the place of those data if there is something to ``make``
    them.
    """

    name: str = ""
    start: int = 0
    end: int = 0
    head: bytes = b""
    mark: str = ""
    make: Callable[[], Array] | None = None

    @property
    def size(self) -> int:
        """The bytes that the message has more with its data."""
        return len(self.head) + self.end - self.start


def taken_apart(tensor: TensorProto, made: Sequence[Callable[[], Array]] = ()) -> Place:
    """Let a tensor of a lean model be what stands ahead of its data, and say where these lie.

    ``made`` are the functions that make what has changed (`tensors.MADE`). The old data never stand
    for it: ``IndexError`` without them.
    """
    if not is_own(tensor):
        return Place()
    location, start, length = tensors.external_location(tensor)
    mark, number = tensors.own_mark(tensor), tensors.made_by(tensor)
    assert length is not None
    _make_internal(tensor)
    head = prefix(TensorProto.RAW_DATA_FIELD_NUMBER, length)
    make = None if number is None else made[number]
    return Place(location, start, start + length, head, mark, make)


def parts(
    tensor: TensorProto, made: Sequence[Callable[[], Array]] = ()
) -> tuple[TensorProto, Place]:
    """What stands ahead of a tensor's data, as a tensor, and where these lie; see `taken_apart`."""
    if not is_own(tensor):
        return tensor, Place()
    told = TensorProto()
    told.CopyFrom(tensor)
    return told, taken_apart(told, made)


class Reader:
    """Reads data from the files of lean models, which lie in one folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Reader:
        """Open nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def blocks(self, place: Place) -> Iterator[bytes]:
        """Yield the data of a place. Raises `UsageError` where the file has changed meanwhile."""
        if not place.name:
            return
        assert self._folder is not None
        if place.name not in self._files:
            path = self._folder / place.name
            try:
                self._files[place.name] = path.open("rb")
            except OSError as error:
                raise paths.unreadable(path, error) from error
        file, left = self._files[place.name], place.end - place.start
        file.seek(place.start)
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise UsageError(f"{file.name} became shorter while it was read")
            left -= len(block)
            tensors.refuse_changed(file, place.mark, Path(file.name))
            yield block

    def copy(self, place: Place, target: IO[bytes]) -> None:
        """Write the data of a place, with what stands ahead of them."""
        target.write(place.head)
        if place.make is not None:
            values = tensors.stored(place.make()).reshape(-1).view(np.uint8)
            assert values.size == place.end - place.start
            target.write(values.data)
            return
        for block in self.blocks(place):
            target.write(block)


def make_whole(model: ModelProto, folder: Path | None) -> None:
    """Let every tensor of a lean model hold its own data, which lie in a file in the folder."""
    with Reader(folder) as reader:
        for tensor in filter(is_own, all_tensors(model)):
            tensor.raw_data = b"".join(reader.blocks(taken_apart(tensor)))


def refer(model: ModelProto, folder: Path | None) -> None:
    """Let tensors of a lean model's main graph be external data like any other, of its own file.

    All others hold their own data: runtimes read external data of main graphs alone.
    """
    for tensor in filter(is_own, model.graph.initializer):
        kept = [entry for entry in tensor.external_data if entry.key != OWN]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    make_whole(model, folder)


def serialize_whole(model: ModelProto, path: Path) -> bytes:
    """The bytes of a lean model, as it is now, with the weights from the file ``path``.

    Protocol buffers that follow each other merge (Protocol Buffers documentation, "Encoding", "Last
    One Wins"). So a tensor of the main graph may stand behind everything else, and its data go from
    the file straight into the result, through no message.
    Raises protobuf's error for a model that is too large even without those tensors.
    """
    if not any(map(is_own, all_tensors(model))):
        return bytes(model.SerializeToString())
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.graph.initializer[:]
    rest.graph.initializer.extend(t for t in model.graph.initializer if not is_own(t))
    make_whole(rest, path.parent)
    whole = [rest.SerializeToString()]
    with Reader(path.parent) as reader:
        for tensor in filter(is_own, model.graph.initializer):
            told, place = parts(tensor)
            held = told.SerializeToString()
            size = len(held) + place.size
            inner = prefix(GraphProto.INITIALIZER_FIELD_NUMBER, size)
            outer = prefix(ModelProto.GRAPH_FIELD_NUMBER, len(inner) + size)
            whole += (outer, inner, held, place.head, *reader.blocks(place))
    return b"".join(whole)


class _Walk(NamedTuple):
    """The bytes of a file, and its name, as external data refer to it; its `tensors.mark`."""

    data: Bytes
    location: str
    mark: str


_Walker: TypeAlias = Callable[[_Walk, int, int], list[bytes]]


def _rewritten(walk: _Walk, start: int, end: int, inner: Mapping[int, _Walker]) -> list[bytes]:
    """The parts of a message in which the large fields with numbers in ``inner`` are rewritten.

    All other fields stay as they are.
    """
    parts, kept = [], start
    for field in fields(walk.data, start, end):
        if (
            field.number in inner
            and field.wire == BYTES
            and field.end - field.start >= LEAST_TENSOR
        ):
            message = inner[field.number](walk, field.start, field.end)
            parts.append(walk.data[kept : field.tag])
            parts.append(prefix(field.number, sum(map(len, message))))
            parts += message
            kept = field.end
    parts.append(walk.data[kept:end])
    return parts


def _model(walk: _Walk, start: int, end: int) -> list[bytes]:
    return _rewritten(walk, start, end, {ModelProto.GRAPH_FIELD_NUMBER: _graph})


def _graph(walk: _Walk, start: int, end: int) -> list[bytes]:
    inner = {GraphProto.INITIALIZER_FIELD_NUMBER: _tensor, GraphProto.NODE_FIELD_NUMBER: _node}
    return _rewritten(walk, start, end, inner)


def _node(walk: _Walk, start: int, end: int) -> list[bytes]:
    return _rewritten(walk, start, end, {NodeProto.ATTRIBUTE_FIELD_NUMBER: _attribute})


def _attribute(walk: _Walk, start: int, end: int) -> list[bytes]:
    """An attribute that is said to be a tensor; of any other one nobody reads the tensor in it."""
    held = _few(walk, start, end)
    if held is None:
        return [walk.data[start:end]]
    types = [field for field in held if field.number == AttributeProto.TYPE_FIELD_NUMBER]
    told = [number(walk.data, field.start)[0] for field in types if field.wire == VARINT]
    if told != [AttributeProto.TENSOR]:
        return [walk.data[start:end]]
    if sum(field.number == AttributeProto.T_FIELD_NUMBER for field in held) > 1:
        raise Unusual  # They would be merged.
    return _rewritten(walk, start, end, {AttributeProto.T_FIELD_NUMBER: _tensor})


def _tensor(walk: _Walk, start: int, end: int) -> list[bytes]:
    """A tensor that refers to the place of its raw data instead of holding them."""
    held = _few(walk, start, end)
    if held is None:
        return [walk.data[start:end]]
    raw = [field for field in held if field.number == TensorProto.RAW_DATA_FIELD_NUMBER]
    types = [field for field in held if field.number == TensorProto.DATA_TYPE_FIELD_NUMBER]
    if not raw or len(types) != 1 or number(walk.data, types[0].start)[0] not in _WHOLE:
        return [walk.data[start:end]]
    outside = (TensorProto.EXTERNAL_DATA_FIELD_NUMBER, TensorProto.DATA_LOCATION_FIELD_NUMBER)
    if len(raw) > 1 or any(field.number in outside for field in held):
        raise Unusual
    (data,) = raw
    told = TensorProto(data_location=TensorProto.EXTERNAL)
    size = data.end - data.start
    place = {"location": walk.location, "offset": data.start, "length": size, OWN: walk.mark}
    for key, value in place.items():
        told.external_data.add(key=key, value=str(value))
    return [walk.data[start : data.tag], walk.data[data.end : end], told.SerializeToString()]


def _few(walk: _Walk, start: int, end: int) -> list[Field] | None:
    """The fields of a message; None if there are many.

    A tree ensemble has millions of numbers, and a vocabulary as many strings: they are looked at by
    the library alone, in time and memory of its own.
    """
    held = list(islice(fields(walk.data, start, end), _FEW + 1))
    return held if len(held) <= _FEW else None


def _make_internal(tensor: TensorProto) -> None:
    """Let a tensor hold its own data."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
