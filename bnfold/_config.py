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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnfold import _paths
from bnfold._errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = "pyproject.toml"


def defaults(start: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """The defaults that hold in a folder, by the name of the parameter.

    ``known`` has the kind of each option that may be set, by its key: "flag", "number", "text",
    "list", "table" or "path". The first folder from ``start`` upwards with a pyproject.toml that
    has the table counts.

    Raises:
        UsageError: a file cannot be read, or a key is unknown or has no value of its kind.
    """
    for folder in (start, *start.parents):
        path = folder / _FILE
        if path.is_file() and (table := _table(path)) is not None:
            return {
                key.replace("-", "_"): _value(path, key, value, known)
                for key, value in table.items()
            }
    return {}


def _table(path: Path) -> Mapping[str, Any] | None:
    try:
        document = tomllib.loads(_paths.read(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("bnfold") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.bnfold has to be a table: [tool.bnfold]")
    return table


def _value(path: Path, key: str, value: Any, known: Mapping[str, str]) -> Any:
    """A value as the option takes it."""
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"{path}: [tool.bnfold] has no key {key!r}; {hint}")
    kind = known[key]
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "flag": isinstance(value, bool),
        "number": number,
        "text": isinstance(value, str),
        "list": isinstance(value, str) or words,
        "table": isinstance(value, dict) and all(map(_is_sizes, value.values())),
        "path": isinstance(value, str),
    }
    if not fits[kind]:
        told = {"list": "a list of words", "table": "a table of sizes", "flag": "true or false"}
        raise UsageError(f"{path}: {key} in [tool.bnfold] has to be {told.get(kind, f'a {kind}')}")
    if kind == "path":
        return str(path.parent / value)
    if kind == "table":
        return [
            (name, tuple(sizes if isinstance(sizes, list) else [sizes]))
            for name, sizes in value.items()
        ]
    return value


def _is_sizes(value: Any) -> bool:
    sizes = value if isinstance(value, list) else [value]
    return all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
