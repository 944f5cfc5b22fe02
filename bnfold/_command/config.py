"""Reads ``[tool.bnfold]`` of the nearest pyproject.toml: defaults for options of the command.

::

    [tool.bnfold]
    draw = ["signed", "structured"]
    dim = { batch = [1, 4] }
    provider = ["cpu", "cuda"]
    timeout = 600

Each key is an option's name without its dashes. The command line goes before the file. Paths are
relative to the file. The file may come with a stranger's model: what trusts whoever made it, or
loads code, is said on the command line alone.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bnfold._errors import UsageError
from bnfold._system import paths
from bnfold._system.records import record

_FILE = "pyproject.toml"
_OF_TRUST = ("trust", "follow-links", "ops-library")
"""Options that a file cannot give: it may come with the model."""


@record(frozen=True)
class Project:
    """The table of a project: the path of its file, and its values by key."""

    path: Path
    values: Mapping[str, Any]

    def trouble(self, key: str, what: object) -> UsageError:
        """The error for a value that an option does not take."""
        return UsageError(f"{self.path}: {key} in [tool.bnfold]: {what}")


def project(known: Mapping[str, str]) -> Project | None:
    """The table for the current folder, or None.

    It is in the first pyproject.toml with such a table, from the current folder upwards. ``known``
    gives the kind of each option that may be set, by its key.

    Raises:
        UsageError: a file cannot be read, or a key is unknown or has no value of its kind.
    """
    try:
        start = Path.cwd()
    except FileNotFoundError:  # The folder is gone; a model may still have an absolute path.
        return None
    for folder in (start, *start.parents):
        path = folder / _FILE
        if _is_file(path) and (table := _table(path)) is not None:
            values = {key: _value(path, key, value, known) for key, value in table.items()}
            return Project(path, values)
    return None


def _is_file(path: Path) -> bool:
    """Whether a file exists. It does not, if its folder must not be searched."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def _table(path: Path) -> Mapping[str, Any] | None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        document = tomllib.loads(paths.read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # An integer of 5,000 digits raises ValueError.
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("bnfold") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.bnfold has to be a table: [tool.bnfold]")
    return table


@record(frozen=True)
class _Kind:
    """A kind of option: its name, the check of a TOML value, and its conversion."""

    told: str
    fits: Callable[[Any], bool]
    made: Callable[[Path, Any], Any] = lambda _, value: value


def _is(value: Any, *kinds: type) -> bool:
    """Whether a value is of one of some types. True and false are no numbers."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _all(values: Any, *kinds: type) -> bool:
    """Whether a value, or each one in a list that is not empty, is of one of some types."""
    listed: Collection[Any] = values if isinstance(values, list) else [values]
    return bool(listed) and all(_is(value, *kinds) for value in listed)


def _worded(value: Any) -> list[str]:
    """The words of an option that is given by input: ``VALUE`` or ``INPUT=VALUE``, each a text."""

    def words(one: Any) -> str:
        return ",".join(map(str, one)) if isinstance(one, list) else str(one)

    if not isinstance(value, dict):
        return [words(value)]
    return [f"{name}={words(one)}" for name, one in value.items()]


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
    "by input": _Kind(
        "a number, a text, a list of numbers, or a table of such by input",
        lambda value: (
            all(
                _all(each, int, float, str)
                for each in (value.values() if isinstance(value, dict) else [value])
            )
            and value != {}
        ),
        lambda _, value: _worded(value),
    ),
    "path": _Kind(
        "a path", lambda value: _is(value, str), lambda file, value: str(file.parent / value)
    ),
}


def _value(path: Path, key: str, value: Any, known: Mapping[str, str]) -> Any:
    """A value of the table, converted for its option. Raises `UsageError` for a wrong kind."""
    if key in _OF_TRUST:
        raise UsageError(f"{path}: {key} cannot be set in [tool.bnfold]; give --{key} yourself")
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"{path}: [tool.bnfold] has no key {key!r}; {hint}")
    kind = _KINDS[known[key]]
    if not kind.fits(value):
        raise UsageError(f"{path}: {key} in [tool.bnfold] has to be {kind.told}")
    return kind.made(path, value)
