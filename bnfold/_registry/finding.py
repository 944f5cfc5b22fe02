"""Which models a user means: files, folders, patterns, and lists of them."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnfold._errors import UsageError
from bnfold._system import file_kinds, paths

SUFFIXES = (".onnx", ".pt2")
"""The models that a folder is searched for; a file of another name is one if it is given."""


@dataclass
class Found:
    """What was found: models, each with its place below the output folder, in order.

    Attributes:
        models: the place of each model by its path.
        troubles: what was wrong with a path that was given, by that path.
        passed_over: how many of what else there was.
    """

    models: dict[Path, Path] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)

    def add(self, model: Path, place: Path) -> None:
        """Add a model; one that is given twice counts once."""
        self.models.setdefault(model, place)


def find(given: Sequence[str | os.PathLike[str]], output: Path) -> Found:
    """The models of files, folders, patterns, and lists (``@list.txt``; ``@-`` for standard input).

    Models of a folder, and those that a pattern finds, mirror the tree below it; files mirror the
    tree below the folder that they have in common. Hidden files and folders, what is reached by a
    link to a folder, and the output folder itself are passed over. Raises `UsageError` for a list
    that cannot be read.
    """
    found = Found()
    files: list[Path] = []
    for name in _named(given):
        path = Path(os.path.abspath(name))
        if path.is_dir():
            _add_folder(found, name, path, output)
        elif os.path.lexists(path) or not glob.has_magic(name):
            files.append(path)
        else:
            _add_pattern(found, name, output)
    if files:
        common = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            found.add(file, file.relative_to(common))
    return found


def _named(given: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """What was given, with lists replaced by their lines. An empty line names nothing."""
    for each in given:
        name = os.fspath(each)
        if not name.startswith("@") or os.path.lexists(name):
            yield name
            continue
        source = name[1:]
        data = sys.stdin.buffer.read() if source == "-" else paths.read(Path(source))
        lines = os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).split("\n")
        yield from filter(None, (line.rstrip("\r") for line in lines))


def _add_folder(found: Found, name: str, folder: Path, output: Path) -> None:
    before = len(found.models)
    for file in _files(found, folder, output):
        if file.suffix.lower() in SUFFIXES:
            found.add(file, file.relative_to(folder))
        else:
            found.passed_over["other file"] += 1
    if len(found.models) == before and name not in found.troubles:
        kind = file_kinds.of_folder(folder)
        why = kind if kind.what != "it is a folder" else "it holds no .onnx file and no .pt2 file"
        found.troubles[name] = f"cannot fold {name}: {why}"


def _files(found: Found, folder: Path, output: Path) -> Iterator[Path]:
    """Yield the files in a folder and below, in order."""

    def unread(error: OSError) -> None:
        found.troubles[str(error.filename)] = f"cannot read {error.filename}: {paths.why(error)}"

    ours = paths.identity(output)
    for place, folders, names in os.walk(folder, onerror=unread):
        inside = []
        for name in sorted(folders):
            path = Path(place) / name
            if path.is_symlink():
                found.passed_over["linked folder"] += 1
            elif name.startswith("."):
                found.passed_over["hidden folder"] += 1
            elif ours is None or paths.identity(path) != ours:
                inside.append(name)
        folders[:] = inside
        for name in sorted(names):
            if name.startswith("."):
                found.passed_over["hidden file"] += 1
            else:
                yield Path(place) / name


def _add_pattern(found: Found, pattern: str, output: Path) -> None:
    """Add what a pattern finds. One that ends in a suffix asks for files of that."""
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    base = Path(os.path.abspath(Path(*fixed)))
    asked = {*SUFFIXES, Path(pattern).suffix.lower()}
    matches = sorted(glob.glob(pattern, recursive=True))
    count = 0
    for match in matches:
        path = Path(os.path.abspath(match))
        if path.is_dir() or path.is_relative_to(output):
            continue
        if path.suffix.lower() in asked:
            found.add(path, path.relative_to(base))
            count += 1
        else:
            found.passed_over["other file"] += 1
    if not count:
        found.troubles[pattern] = f"cannot fold {pattern}: no model fits this pattern"


def refuse_same(given: Sequence[str | os.PathLike[str]], output: Path) -> None:
    """Raise `UsageError` where the output folder is a folder of models: they would be lost."""
    for each in given:
        folder = Path(each)
        if folder.is_dir() and output.is_dir() and paths.is_same(folder, output):
            raise UsageError(f"{output} is the folder of the models; give another --output-dir")
