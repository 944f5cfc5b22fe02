"""The tensors and numbers that a module puts out, in order, each with a name.

A name says where in the result its tensor stands: ``output 1`` in a tuple, ``logits`` in a
dictionary, dataclass or named tuple, ``aux.logits`` further down. Classes that torch.export does
not know, such as a dataclass that nobody has registered, are looked into as well.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold._errors import UsageError

Leaf: TypeAlias = Tensor | int | float | complex
_Path: TypeAlias = tuple[str | int, ...]
_TOLD_OTHERWISE = (str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, type(None))
"""What is no number, and what no caller computes with."""


def named_leaves(result: Any) -> list[tuple[str, Leaf]]:
    """Each tensor and number of a result with its name; no two have the same name.

    Raises `UsageError` for an object that may hold tensors nobody can see.
    """
    found = list(_leaves(result, ()))
    names = [_name(path) for path, _ in found]
    if names and max(Counter(names).values()) > 1:
        names = [f"output {number}" for number in range(len(found))]
    return [(name, leaf) for name, (_, leaf) in zip(names, found, strict=True)]


def is_positional(name: str) -> bool:
    """Whether a name says the position alone."""
    return name.startswith("output ")


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
        return [(str(key), part) for key, part in value.items()]
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


def _name(path: _Path) -> str:
    """A path as a user would write it behind the result."""
    first, rest = (path[0], path[1:]) if path else (0, ())
    begin = f"output {first}" if isinstance(first, int) else first
    return begin + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in rest)
