"""Where the folds of many models go: which of them would take each other's place."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from bnfold._registry import index
from bnfold._registry.finding import SUFFIXES
from bnfold._registry.report import PAGE_ENDING
from bnfold._system import paths, scratch

_LOCATION = re.compile(rb"\n\x08location\x12(?:([\x01-\x7f])|([\x80-\xff])([\x01-\x1f]))")
"""How a model in binary form begins to say where external data lie; the name follows.

ONNX, StringStringEntryProto: the key is field 1, the value field 2. The size of the name has seven
bits in each byte, the lowest first.
"""
_LONGEST = 1 << 13
"""More bytes than a match has, with the name that follows it."""
_PART = 1 << 20

LARGEST = 2**31 - 1
"""No model in binary form has more bytes (Protocol Buffers). A file that has is not searched."""


@dataclass(frozen=True)
class Item:
    """A model, its name in the index, and the files that are made of it."""

    model: str
    name: str
    output: str
    report: str

    @property
    def made(self) -> tuple[str, str, str]:
        """All files that may be made of it, but for external data."""
        return self.output, self.report, f"{self.output}{PAGE_ENDING}"


def clashes(items: Sequence[Item], output: Path) -> dict[str, str]:
    """Why a model cannot be written, by its path: its files would take another file's place."""
    same = _one_name if _ignores_case(output) else str
    owners = {same(str(output / name)): ["the index"] for name in (index.PAGE, index.DATA)}
    for item in items:
        for path in item.made:
            owners.setdefault(same(path), []).append(item.model)
    models = {_real(item.model) for item in items}
    found: dict[str, str] = {}
    top = os.path.realpath(output)
    for item in items:
        made = item.made
        data = [str(Path(item.output).parent / name) for name in locations(item.model)]
        taken = [
            owner
            for path in (*made, *map(os.path.normpath, data))
            for owner in owners.get(same(path), ())
            if owner != item.model
        ]
        folder = os.path.dirname(item.output)
        if not is_inside(folder, top):
            found[item.model] = (
                f"{folder} leads out of {output}, by a link; nothing is written there"
            )
        for owner in taken:
            found[item.model] = f"{item.model} and {owner} would be written to one file"
            if owner != "the index":
                found[owner] = f"{owner} and {item.model} would be written to one file"
        for path in made:
            if _real(path) in models:
                found[item.model] = f"{path} is a model itself; give another output folder"
    return found


def groups(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Each model by itself, and those together whose data files would lie at one path.

    They are in the order in which they were found: who comes first gets the name.
    """
    members: dict[int, list[int]] = {number: [number] for number in range(len(items))}
    leader = list(members)
    claimed: dict[str, int] = {}
    for number, item in enumerate(items):
        for location in locations(item.model):
            path = _one_name(os.path.normpath(Path(item.output).parent / location))
            first = leader[claimed.setdefault(path, number)]
            if first == leader[number]:
                continue
            moved = members.pop(leader[number])
            members[first] += moved
            for each in moved:
                leader[each] = first
    return [tuple(items[number] for number in sorted(group)) for group in members.values()]


def locations(model: str) -> set[str]:
    """The names of data files that stand in a model's bytes.

    The file is not parsed: it may be a stranger's, and large. A name too many does no harm. Where
    one is missed, two models may find the same free name; the later one is refused then, see
    `bnfold._onnx.files.save`. Nothing is read where no other file lies beside the model.
    """
    path = Path(model)
    if path.suffix == ".pt2" or not _holds_more(path.parent):
        return set()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            return set()
        with path.open("rb") as file:
            return {
                _name(data, match)
                for data in _overlapping(file)
                for match in _LOCATION.finditer(data)
            }
    except OSError:
        return set()


def _overlapping(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file in parts. Each begins with so much of the one before that no name that is
    cut there is missed. A file that is mapped would end the process if it got shorter.
    """
    kept = b""
    while block := file.read(_PART):
        data = kept + block
        yield data
        kept = data[-_LONGEST:]


def _name(data: bytes, match: re.Match[bytes]) -> str:
    short, low, high = match.groups()
    size = short[0] if short else (low[0] & 0x7F) | high[0] << 7
    return os.fsdecode(data[match.end() : match.end() + size].replace(b"\0", b""))


@cache
def _holds_more(folder: Path) -> bool:
    """Whether a folder holds anything that is no model: perhaps the data of one."""
    try:
        with os.scandir(folder) as entries:
            return any(Path(entry.name).suffix.lower() not in SUFFIXES for entry in entries)
    except OSError:
        return False


def is_inside(folder: str | os.PathLike[str], top: str | os.PathLike[str]) -> bool:
    """Whether a folder is another one or lies below it, once all links are followed."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(top))


def _real(path: str) -> str:
    """A path without links to folders: what a file put in place there would replace."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _one_name(path: str) -> str:
    """What names have in common that a file system takes for one which ignores case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _ignores_case(folder: Path) -> bool:
    """Whether the file system takes names for one that differ by case. Asks by a try."""
    try:
        with scratch.beside(folder) as made:
            return made.with_name(made.name.upper()).exists()
    except OSError as error:
        raise paths.unwritable(folder, error) from error
