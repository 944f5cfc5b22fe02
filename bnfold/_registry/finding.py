"""Which models a user means: files, folders, patterns, and lists of them."""

from __future__ import annotations

import fnmatch
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
    passed_over: dict[Path, str] = {}
    for place, names in _folders(found, folder, paths.identity(output), passed_over):
        for name in names:
            if name.startswith("."):
                found.passed_over["hidden file"] += 1
            else:
                yield place / name
    found.passed_over.update(passed_over.values())


def models_below(folder: Path) -> list[Path]:
    """The models in a folder and below, in order; a folder of such a name is told to be none."""
    models = list[Path]()
    for place, names in _folders(Found(), folder, None, {}):
        named = (place / name for name in names if not name.startswith("."))
        models += [path for path in named if path.suffix.lower() in SUFFIXES]
        if place != folder and place.suffix.lower() in SUFFIXES:
            models.append(place)
    return sorted(models)


def _folders(
    found: Found, top: Path, ours: tuple[int, int] | None, passed_over: dict[Path, str]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, each with the names of its files, in order.

    ``ours`` is the output folder, which is left out. No link is followed, so this ends. However
    deep a tree is, it takes no deeper stack.
    """
    waiting = [top]
    while waiting:
        place = waiting.pop()
        inside, names = [], []
        try:
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = place / entry.name
                    if not os.path.isdir(path):
                        names.append(entry.name)
                    elif path.is_symlink():
                        passed_over[path] = "linked folder"
                    elif entry.name.startswith("."):
                        passed_over[path] = "hidden folder"
                    elif ours is None or paths.identity(path) != ours:
                        inside.append(path)
        except OSError as error:
            found.troubles[str(place)] = f"cannot read {place}: {paths.why(error)}"
        yield place, names
        waiting += reversed(inside)


def _add_pattern(found: Found, pattern: str, output: Path) -> None:
    """Add what a pattern finds. One that ends in a suffix asks for files of that."""
    parts = Path(pattern).parts
    first = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    base = Path(os.path.abspath(Path(*parts[:first])))
    asked = {*SUFFIXES, Path(pattern).suffix.lower()}
    passed_over: dict[Path, str] = {}
    count = 0
    for path in _matches(found, base, parts[first:], output, passed_over):
        if path.is_dir() or path.is_relative_to(output):
            continue
        if path.suffix.lower() in asked:
            found.add(path, path.relative_to(base))
            count += 1
        else:
            found.passed_over["other file"] += 1
    found.passed_over.update(passed_over.values())
    if not count:
        found.troubles[pattern] = f"cannot fold {pattern}: no model fits this pattern"


def _matches(
    found: Found, base: Path, parts: Sequence[str], output: Path, passed_over: dict[Path, str]
) -> list[Path]:
    """What fits a pattern below a folder, in order.

    As `glob.glob` finds it, but for links to folders: only a part without wildcards follows one. A
    folder that links to itself twice would have more paths than can ever be looked at.
    """
    ours = paths.identity(output)
    places = {base: None}
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        fitting = list[Path]()
        for place in filter(Path.is_dir, places):
            if part == "**":
                for folder, names in _folders(found, place, ours, passed_over):
                    visible = (name for name in names if not name.startswith("."))
                    fitting += [folder, *(folder / name for name in visible if is_last)]
            elif not glob.has_magic(part):
                fitting += [place / part] if os.path.lexists(place / part) else []
            else:
                for path in _named_like(place, part):
                    if is_last or not path.is_symlink():
                        fitting.append(path)
                    elif path.is_dir():
                        passed_over[path] = "linked folder"
        places = dict.fromkeys(fitting)
    return sorted(places)


def _named_like(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder and fits a part of a pattern; a wildcard fits no hidden name."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    fitting = fnmatch.filter(names, pattern)
    return [folder / n for n in fitting if pattern.startswith(".") or not n.startswith(".")]


def refuse_same(given: Sequence[str | os.PathLike[str]], output: Path) -> None:
    """Raise `UsageError` where the output folder is a folder of models: they would be lost."""
    for each in given:
        folder = Path(each)
        if folder.is_dir() and output.is_dir() and paths.is_same(folder, output):
            raise UsageError(f"{output} is the folder of the models; give another --output-dir")
