"""The encoding of protocol buffers: the fields of a message and their tags.

A tag is a varint of field number and wire type. Behind it stands a varint, or 4 or 8 bytes, or a
length and as many bytes (Protocol Buffers documentation, "Encoding").
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeAlias, overload

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
_AHEAD = 1 << 12
"""Bytes that are read at once where one is asked for."""


class Unusual(Exception):
    """The bytes have a layout that is unusual for a model. They may still be valid."""


class FileBytes:
    """The bytes of a file, as of a mapped one, but read. A mapped file that gets shorter ends the
    process that looks at it; here that is ``IndexError``, or `Unusual` within a range of bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._start, self._block = 0, b""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        """A byte, from a block that is read ahead, or a range of bytes."""
        if isinstance(at, slice):
            start, stop, _ = at.indices(self._size)
            self._file.seek(start)
            data = self._file.read(max(stop - start, 0))
            if len(data) < stop - start:
                raise Unusual
            return data
        if not self._start <= at < self._start + len(self._block):
            self._file.seek(at)
            self._start, self._block = at, self._file.read(_AHEAD)
        return self._block[at - self._start]


Bytes: TypeAlias = mmap.mmap | bytes | FileBytes


class Field(NamedTuple):
    """A field: its number, its wire type, and where its tag, its content and its end are."""

    number: int
    wire: int
    tag: int
    start: int
    end: int


def fields(data: Bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in a range of bytes.

    Raises `Unusual` for groups, for a message that is cut off and for zeros. Raises ``IndexError``
    if the data are cut off.
    """
    while start < end:
        tag = start
        key, start = number(data, start)
        wire = key & 7
        if wire == VARINT:
            _, stop = number(data, start)
        elif wire == BYTES:
            size, start = number(data, start)
            stop = start + size
        elif wire in (_FIXED32, _FIXED64):
            stop = start + (4 if wire == _FIXED32 else 8)
        else:
            raise Unusual
        if stop > end or key < 8:  # No field has the number 0: a hole in a file would have many.
            raise Unusual
        yield Field(key >> 3, wire, tag, start, stop)
        start = stop


def number(data: Bytes, start: int) -> tuple[int, int]:
    """The varint at ``start``, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
        if shift > 63:
            raise Unusual


def prefix(field: int, size: int) -> bytes:
    """The encoded tag and length of a field of ``size`` bytes."""
    return _varint(field << 3 | BYTES) + _varint(size)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
