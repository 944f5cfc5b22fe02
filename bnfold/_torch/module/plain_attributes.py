"""What modules hold beside parameters, buffers and submodules: plain attributes.

Nothing of PyTorch looks after them. A tensor among them may have the memory of a parameter, and a
module's own loading may set them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold._torch.module.parameters import computing_hooks, stored
from bnfold._torch.read.export import OF_PYTORCH

RECIPE = "_bnfold"
"""Where a folded module keeps how it was folded; see `recipe`."""
_NUMBERS_AND_TEXTS = (bool, int, float, complex, str, bytes)
_SINGLE = (*_NUMBERS_AND_TEXTS, type(None), Tensor, np.ndarray, type, ModuleType)
"""What holds nothing else that can be looked at."""


@dataclass(frozen=True)
class Aliases:
    """What plain attributes have of a module's parameters and buffers.

    ``names`` are those whose memory they have, too. Who holds the very parameter is not meant: what
    changes there changes for all, also in a copy. ``any`` counts those, too.
    """

    names: frozenset[str]
    any: bool


def aliases(module: nn.Module) -> Aliases:
    """What plain attributes have of a module's parameters and buffers."""
    named, values = stored(module), [each for _, each in _values(module)]
    own = {id(tensor) for tensor in named.values()}
    names = _sharing(named, [each for each in values if id(each) not in own])
    return Aliases(names, bool(names or _sharing(named, values)))


def snapshot(module: nn.Module) -> Mapping[str, object]:
    """The values of all plain attributes, by what leads to them; see `changed`."""
    return {name: _copied(value) for name, value in _values(module)}


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """The first plain attribute that is another one in the second snapshot; None if none is."""
    missing = object()
    for name in dict.fromkeys((*before, *after)):
        if not _same(before.get(name, missing), after.get(name, missing)):
            return name
    return None


def _sharing(named: Mapping[str, Tensor], values: Sequence[object]) -> frozenset[str]:
    """The names of the tensors that lie in the memory of some value."""
    held = [span for value in values if (span := _span(value)) is not None]
    if not held:
        return frozenset()
    return frozenset(
        name
        for name, tensor in named.items()
        if (own := _span(tensor)) is not None
        and any(own[0] < end and start < own[1] for start, end in held)
    )


def _span(value: object) -> tuple[int, int] | None:
    """Where the memory of a tensor or array begins and ends; None if there is none.

    Of a tensor it is all of its storage; an array may begin ahead of a tensor that was made of it.
    """
    if isinstance(value, np.ndarray):
        start = int(value.__array_interface__["data"][0])
        steps = [(n - 1) * step for n, step in zip(value.shape, value.strides, strict=True)]
        ends = [sum(min(0, step) for step in steps), sum(max(0, step) for step in steps)]
        return (start + ends[0], start + ends[1] + value.itemsize) if value.size else None
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return None
    try:
        storage = value.untyped_storage()
        start = storage.data_ptr()
    except RuntimeError:  # a tensor that is made of others
        return None
    return (start, start + storage.nbytes()) if start else None


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The values in the plain attributes of a module and its submodules, also within containers,
    objects and what functions were made with, by what leads to them.
    """
    parts = dict(module.named_modules())
    seen = {id(part) for part in parts.values()}
    waiting = deque(
        (f"{path}.{name}" if path else name, value)
        for path, part in parts.items()
        for others in [OF_PYTORCH | _not_the_users(part)]
        for name, value in part.__dict__.items()
        if name not in others
    )
    while waiting:
        name, value = waiting.popleft()
        inner = _inner(value)
        if inner is None:
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += [(f"{name}{key}", each) for key, each in inner]


def _not_the_users(part: nn.Module) -> set[str]:
    """The attributes that PyTorch itself makes of a module's parameters: the list of them in its
    recurrent modules, and the weights that old-style norm hooks compute. And bnfold's own.
    """
    flat = {"_flat_weights"} if isinstance(part, nn.RNNBase) else set()
    return {RECIPE} | flat | {hook.name for hook in computing_hooks(part)}


def _inner(value: object) -> list[tuple[str, object]] | None:
    """What a container or an object holds; None for what holds nothing that can be looked at."""
    if isinstance(value, _SINGLE):
        return None
    if isinstance(value, dict):
        return [(f"[{key!r}]", each) for key, each in value.items()]
    if isinstance(value, list | tuple | deque):
        return [(f"[{index}]", each) for index, each in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [(f"[{each!r}]", each) for each in value]
    found = [*getattr(value, "__dict__", {}).items()]
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        own = f"_{kind.__name__.lstrip('_')}__"  # What Python puts before private names.
        names = [
            name if name.endswith("__") else re.sub("^__", own, name)
            for name in ([slots] if isinstance(slots, str) else slots)
        ]
        found += [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    found += [(name, getattr(value, name)) for name in _held_by_code(value)]
    return [(f".{name}", each) for name, each in found if each is not value] or None


def _held_by_code(value: object) -> tuple[str, ...]:
    """Where a callable that is a plain attribute holds what it was made with."""
    if isinstance(value, FunctionType):
        return "__closure__", "__defaults__", "__kwdefaults__"
    if isinstance(value, MethodType):
        return ("__self__",)
    if isinstance(value, CellType):
        return ("cell_contents",) if hasattr(value, "cell_contents") else ()
    return ("func", "args", "keywords") if isinstance(value, partial) else ()


def _copied(value: object) -> object:
    """A value that stays as it is, whatever becomes of a tensor or array."""
    if isinstance(value, np.ndarray):
        return value.copy()
    has_elements = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    return value.detach().clone() if has_elements else value  # type: ignore[attr-defined]


def _same(one: object, other: object) -> bool:
    """Whether two values are equal, where they are plain ones; or one object."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _NUMBERS_AND_TEXTS):
        return bool(one == other or (one != one and other != other))
    if isinstance(one, Tensor | np.ndarray):
        first: Any = one
        second: Any = other
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return bool(((first == second) | ((first != first) & (second != second))).all())
    return False
