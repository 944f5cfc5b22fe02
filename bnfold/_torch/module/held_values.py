"""The values that plain attributes of a module lead to, without running code of theirs.

Containers, objects, classes and what functions were made with are looked into. What is computed
when it is asked for is not asked. What code in C keeps cannot be seen, and is told.
"""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import pathlib
import re
import sys
import types
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold._torch.module.parameters import computing_hooks
from bnfold._torch.read.export import OF_PYTORCH

RECIPE = "_bnfold"
"""Where a folded module keeps how it was folded; see `recipe`."""
BYTES = (bytearray, array.array, memoryview)
"""What holds bytes that may change."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, deque, set, frozenset)
_DESCRIPTORS = (property, staticmethod, classmethod, cached_property)
FIXED = (
    *(*_PLAIN, *_DESCRIPTORS, range, slice, type(...), re.Pattern, pathlib.PurePath, uuid.UUID),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(decimal.Decimal, fractions.Fraction, np.dtype, np.generic, np.ufunc),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator),
)
"""What stays as it is, and holds nothing else."""
_DICTIONARIES = (types.GetSetDescriptorType, types.MemberDescriptorType)
"""What Python itself puts into a class as ``__dict__``. Anything else is code of the class."""
_OTHERS = sys.stdlib_module_names | {"torch", "numpy"}
"""Packages whose classes keep nothing of a network."""
_POINTER = tuple.__itemsize__

Entries = tuple[Sequence[object], Sequence[object]]
"""The keys of a container, or its positions, and its values."""


def held_values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """All values in the plain attributes of a module and its submodules, by what leads to them."""
    waiting = list[tuple[str, object]]()
    for path, part in module.named_modules():
        dot = f"{path}." if path else ""
        waiting += [(dot + name, each) for name, each in _plain(part)]
        waiting.append((f"{dot}__class__", type(part)))
    return _followed(module, waiting)


def shared_values(
    module: nn.Module, read: Sequence[tuple[str, object]]
) -> Iterator[tuple[str, Any]]:
    """The same of what a module has in common with its copies: its classes, the functions in its
    attributes, and what its code has ``read`` by other names.
    """
    waiting = list(read)
    for path, part in module.named_modules():
        dot = f"{path}." if path else ""
        functions = [each for each in _plain(part) if isinstance(each[1], FunctionType)]
        waiting += [(dot + name, each) for name, each in functions]
        waiting.append((f"{dot}__class__", type(part)))
    return _followed(module, waiting)


def _plain(part: nn.Module) -> list[tuple[str, object]]:
    left = OF_PYTORCH | _not_the_users(part)
    return [(name, each) for name, each in _attributes(part) if name not in left]


def _followed(module: nn.Module, first: Sequence[tuple[str, object]]) -> Iterator[tuple[str, Any]]:
    """Some values, and all that they lead to but for the module's parts."""
    seen: dict[int, object] = {id(part): part for part in module.modules()}  # Ids stay theirs.
    waiting = deque(first)
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, (*FIXED, *BYTES, Tensor)):
            yield name, value
        elif id(value) not in seen:
            yield name, value
            seen[id(value)] = value
            waiting += [(f"{name}{key}", each) for key, each in _inner(value)]


def entries(value: object) -> Entries | None:
    """The keys and the values of a container; None for what is none."""
    if isinstance(value, dict):
        return list(dict.keys(value)), list(dict.values(value))
    for kind in _CONTAINERS:
        if isinstance(value, kind):
            own: Any = kind.__iter__  # Not that of a class of the user's.
            values = list(own(value))
            return range(len(values)), values
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return range(value.size), list(value.flat)
    return None


def is_flat(held: Entries) -> bool:
    """Whether all keys and values are plain. They are looked at together: there may be many."""
    keys, values = held
    return {*_PLAIN}.issuperset(map(type, values)) and (
        isinstance(keys, range) or {*_PLAIN}.issuperset(map(type, keys))
    )


def hides(value: object) -> bool:
    """Whether a value may hold what cannot be seen, or so much that it is not looked at.

    A class written in Python adds a pointer to its objects for each slot, for their dictionary and
    for weak references. One that adds more is written in C, and keeps something else there.
    """
    known = (*FIXED, *BYTES, type, FunctionType, MethodType, CellType, partial)
    if isinstance(value, known) or type(value) in (Tensor, nn.Parameter, np.ndarray):
        return False
    if isinstance(value, types.BuiltinFunctionType):
        return False
    for kind in type(value).__mro__[:-1]:
        if kind in (dict, OrderedDict, defaultdict, torch.Size, *_CONTAINERS):
            return False
        base, held = kind.__base__ or object, vars(kind)
        slots = list(held.values()) if "__slots__" in held else []
        named = sum(isinstance(each, types.MemberDescriptorType) for each in slots)
        named += ("__dict__" in held) + ("__weakref__" in held)
        own = held.get("__dict__")
        if (
            kind.__basicsize__ - base.__basicsize__ > _POINTER * named
            or kind.__itemsize__ != base.__itemsize__
            or not isinstance(own, (*_DICTIONARIES, type(None)))
        ):
            return True
    return False


def contents(cell: CellType) -> list[object]:
    """What a variable of an outer function stands for; nothing before it is set."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _not_the_users(part: nn.Module) -> set[str]:
    """The attributes that PyTorch itself makes of a module's parameters: the list of them in its
    recurrent modules, and the weights that old-style norm hooks compute. And bnfold's own.
    """
    flat = {"_flat_weights"} if isinstance(part, nn.RNNBase) else set()
    return {RECIPE} | flat | {hook.name for hook in computing_hooks(part)}


def _inner(value: object) -> list[tuple[str, object]]:
    """What a container, an object or a class holds, but for a container's plain values."""
    if isinstance(value, type):
        return _held_by_class(value)
    if isinstance(value, types.ModuleType):
        return []
    found = _held_by_code(value)
    if (held := entries(value)) is not None and not is_flat(held):
        keys, values = held
        found += [(_key(key, k), values[k]) for k, key in enumerate(keys)]
        if not isinstance(keys, range):
            found += [(f".keys[{k}]", each) for k, each in enumerate(keys)]
    found += [(f".{name}", each) for name, each in _attributes(value)]
    return [*found, (".__class__", type(value))] if is_users(type(value)) else found


def _key(key: object, number: int) -> str:
    """What leads to an entry. An object as a key would run its own code to be written."""
    return f"[{key!r}]" if type(key) in _PLAIN else f"[key {number}]"


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """The attributes that an object holds itself, in its dictionary and in slots."""
    for kind in type(value).__mro__:
        for name, slot in list(vars(kind).items()):
            if name == "__dict__" and isinstance(slot, _DICTIONARIES):
                yield from [(str(key), each) for key, each in slot.__get__(value).items()]
            elif isinstance(slot, types.MemberDescriptorType) and "__slots__" in vars(kind):
                try:
                    yield name, slot.__get__(value)
                except AttributeError:  # An empty slot.
                    continue


def is_users(code: type | types.ModuleType) -> bool:
    """Whether a class or a module is none of Python's, PyTorch's or numpy's."""
    home = code.__module__ if isinstance(code, type) else code.__name__
    return str(home).partition(".")[0] not in _OTHERS


def _held_by_class(kind: type) -> list[tuple[str, object]]:
    """What a class of the user's, and those that it is made of, keep, with their functions."""
    if not is_users(kind):
        return []
    held = [
        (f".{name}", each)
        for name, each in list(vars(kind).items())
        if not name.endswith("__") and name != "_abc_impl"
        if isinstance(each, FunctionType) or not hasattr(type(each), "__get__")
    ]
    return [*held, *((".__base__", base) for base in kind.__bases__)]


def _held_by_code(value: object) -> list[tuple[str, object]]:
    """What a callable that is a plain attribute was made with."""
    names: tuple[str, ...] = ()
    if isinstance(value, FunctionType):
        names = ("__closure__", "__defaults__", "__kwdefaults__")
    elif isinstance(value, MethodType):
        names = ("__self__", "__func__")
    elif isinstance(value, types.BuiltinFunctionType):
        names = ("__self__",)
    elif isinstance(value, CellType):
        return [("", each) for each in contents(value)]
    elif isinstance(value, partial):
        names = ("func", "args", "keywords")
    return [(f".{name}", getattr(value, name)) for name in names]
