"""Reads ``[tool.bnfold]`` of the nearest pyproject.toml: defaults for options of the command.

::

    [tool.bnfold]
    draw = ["signed", "structured"]
    dim = { batch = [1, 4] }
    provider = ["cpu", "cuda"]
    timeout = 600

Each key is an option's name without its dashes; what the command line says goes first. Paths are
relative to the file.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold._errors import UsageError
from bnfold._system import paths

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = "pyproject.toml"


@dataclass(frozen=True)
class Project:
    """The table of a project: the file that it stands in, and values by key."""

    path: Path
    values: Mapping[str, Any]

    def trouble(self, key: str, what: object) -> UsageError:
        """The error for a value that an option does not take."""
        return UsageError(f"{self.path}: {key} in [tool.bnfold]: {what}")


def project(known: Mapping[str, str]) -> Project | None:
    """The table that holds in the current folder, None where there is none.

    ``known`` has the kind of each option that may be set, by its key. The first folder from the
    current one upwards with a pyproject.toml that has the table counts.

    Raises:
        UsageError: a file cannot be read, or a key is unknown or has no value of its kind.
    """
    try:
        start = Path.cwd()
    except FileNotFoundError:  # Somebody has removed it; a model may still be given in full.
        return None
    for folder in (start, *start.parents):
        path = folder / _FILE
        if _is_file(path) and (table := _table(path)) is not None:
            values = {key: _value(path, key, value, known) for key, value in table.items()}
            return Project(path, values)
    return None


def _is_file(path: Path) -> bool:
    """Whether there is such a file. A folder that may be entered but not searched has none."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def _table(path: Path) -> Mapping[str, Any] | None:
    try:
        document = tomllib.loads(paths.read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # An integer of 5,000 digits has its own.
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("bnfold") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.bnfold has to be a table: [tool.bnfold]")
    return table


@dataclass(frozen=True)
class _Kind:
    """What an option takes: how to say it, whether a value of TOML is that, and what it becomes."""

    told: str
    fits: Callable[[Any], bool]
    made: Callable[[Path, Any], Any] = lambda _, value: value


def _is(value: Any, *kinds: type) -> bool:
    """Whether a value is of some kinds; true and false are no numbers."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _all(values: Any, *kinds: type) -> bool:
    """Whether a value, or all in a list that is not empty, are of some kinds."""
    listed: Collection[Any] = values if isinstance(values, list) else [values]
    return bool(listed) and all(_is(value, *kinds) for value in listed)


_KINDS = {
    "flag": _Kind("true or false", lambda value: _is(value, bool)),
    "integer": _Kind("a whole number", lambda value: _is(value, int)),
    "number": _Kind("a number", lambda value: _is(value, int, float)),
    "text": _Kind("a text", lambda value: _is(value, str)),
    "words": _Kind("a text or a list of them", lambda value: _all(value, str)),
    "sizes": _Kind(
        "a table of sizes, such as { batch = [1, 4] }",
        lambda value: isinstance(value, dict) and all(_all(v, int) for v in value.values()),
        lambda _, value: [
            (name, tuple(sizes if isinstance(sizes, list) else [sizes]))
            for name, sizes in value.items()
        ],
    ),
    "path": _Kind(
        "a path", lambda value: _is(value, str), lambda file, value: str(file.parent / value)
    ),
}


def _value(path: Path, key: str, value: Any, known: Mapping[str, str]) -> Any:
    """A value as the option takes it."""
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"{path}: [tool.bnfold] has no key {key!r}; {hint}")
    kind = _KINDS[known[key]]
    if not kind.fits(value):
        raise UsageError(f"{path}: {key} in [tool.bnfold] has to be {kind.told}")
    return kind.made(path, value)
