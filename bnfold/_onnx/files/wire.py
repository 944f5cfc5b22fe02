"""The encoding of protocol buffers: the fields of a message and their tags.

A tag is a varint of field number and wire type. Behind it stands a varint, or 4 or 8 bytes, or a
length and as many bytes (Protocol Buffers documentation, "Encoding").
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5


class Unusual(Exception):
    """The bytes have a layout that is unusual for a model. They may still be valid."""


class Field(NamedTuple):
    """A field: its number, its wire type, and where its tag, its content and its end are."""

    number: int
    wire: int
    tag: int
    start: int
    end: int


def fields(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[Field]:
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


def number(data: mmap.mmap | bytes, start: int) -> tuple[int, int]:
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
