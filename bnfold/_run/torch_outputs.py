"""The tensors and numbers that a module puts out, in order, each with a name.

A name says where in the result its tensor stands: ``output 1`` in a tuple, ``logits`` in a
dictionary, dataclass or named tuple, ``aux.logits`` or ``output 1.logits`` further down. Classes
that torch.export does not know, such as a dataclass that nobody has registered, are looked into as
well.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold._errors import UsageError

Leaf: TypeAlias = Tensor | int | float | complex
_Path: TypeAlias = tuple[str | int, ...]
"""What leads to a part of a result: a position is an int, a name or a key is a string."""
_POSITION = re.compile(r"output \d+(\[\d+\])*")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}")
_TOLD_OTHERWISE = (str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, type(None))
"""What is no number, and what no caller computes with."""


def named_leaves(result: Any) -> list[tuple[str, Leaf]]:
    """Each tensor and number of a result with its name; no two have the same name.

    Raises `UsageError` for an object that may hold tensors nobody can see, and for a dictionary
    with keys that nothing tells apart.
    """
    found = list(_leaves(result, ()))
    counts = Counter(_name(path) for path, _ in found)
    names = [name if counts[name := _name(path)] == 1 else f"output {path}" for path, _ in found]
    return [(name, leaf) for name, (_, leaf) in zip(names, found, strict=True)]


def is_positional(name: str) -> bool:
    """Whether a name says the position alone, without the name of any part."""
    return _POSITION.fullmatch(name) is not None


def _leaves(value: Any, path: _Path) -> Iterator[tuple[_Path, Leaf]]:
    if isinstance(value, Tensor | bool | int | float | complex):
        yield path, value
    elif isinstance(value, np.ndarray | np.generic):
        yield path, torch.from_numpy(np.array(value))
    elif not isinstance(value, _TOLD_OTHERWISE):
        for key, part in _parts(value):
            yield from _leaves(part, (*path, key))


def _parts(value: Any) -> list[tuple[str | int, Any]]:
    """The parts of a container, each with its key. Raises `UsageError` for what is none."""
    if isinstance(value, Mapping):
        return list(zip(_keys(value), value.values(), strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    parts = pytree.tree_flatten(value)[0]
    if len(parts) == 1 and parts[0] is value:
        kind = type(value).__name__
        raise UsageError(
            f"it puts out a {kind}, and what is in that is not known: give back a tensor, a "
            "tuple, a dictionary or a dataclass, or register the class with "
            "torch.utils._pytree.register_pytree_node"
        )
    return list(enumerate(parts))


def _keys(value: Mapping[Any, Any]) -> list[str]:
    """The keys of a dictionary as text, no two alike. Raises `UsageError` where there is none."""
    for text in (str, repr):
        keys = [_written(key, text) for key in value]
        if len(set(keys)) == len(keys):
            return keys
    raise UsageError(f"it puts out a dictionary with several keys that are written {keys[0]}")


def _written(key: object, text: Callable[[object], str]) -> str:
    """A key as text: 1 and "1" are two keys, and so two texts.

    Raises `UsageError` for one that is written with its address. Another run may make another key
    there, or have the same one elsewhere.
    """
    if isinstance(key, str):
        plain = str.__str__(key)  # An enumeration of texts is equal to them.
        return plain if text is str else repr(plain)
    try:
        found = text(key)
    except Exception as error:  # Whatever a class of the user's does.
        raise UsageError(f"a key of a dictionary that it puts out has no text: {error}") from error
    if _ADDRESS.search(found):
        raise UsageError(
            f"it puts out a dictionary with the key {found}, which says nothing but where it is in "
            "memory: give back one with names for keys"
        )
    return f"[{found}]"


def _name(path: _Path) -> str:
    """A path as a user would write it behind the result.

    A key that reads like a position is in quotes.
    """
    first, rest = (path[0], path[1:]) if path else (0, ())
    begin = f"output {first}" if isinstance(first, int) else first
    if isinstance(first, str) and first.startswith("output "):
        begin = repr(first)
    return begin + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in rest)
