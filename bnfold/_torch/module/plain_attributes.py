"""What modules hold beside parameters, buffers and submodules: plain attributes.

Nothing of PyTorch looks after them. A tensor among them may have the memory of a parameter, and a
module's own loading may set them.
"""

from __future__ import annotations

import array
import bisect
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bnfold._torch.module.held_values import (
    BYTES,
    FIXED,
    Entries,
    entries,
    held_values,
    hides,
    is_flat,
    shared_values,
)
from bnfold._torch.module.own_code import read_by_name
from bnfold._torch.module.parameters import stored

_THEMSELVES = (type, types.FunctionType, types.BuiltinFunctionType)
"""What is no other one for holding the same."""


class Aliases(NamedTuple):
    """What plain attributes have of a module's parameters and buffers.

    ``names`` are those whose memory they have, too. Who holds the very parameter is not meant: what
    changes there changes for all, also in a copy. ``any`` counts that, too.
    """

    names: frozenset[str]
    any: bool


def aliases(module: nn.Module) -> Aliases:
    """What plain attributes have of a module's parameters and buffers."""
    named, values = stored(module), [each for _, each in held_values(module)]
    own = {id(tensor) for tensor in named.values()}
    names = _sharing(named, [each for each in values if id(each) not in own])
    return Aliases(names, bool(names or _sharing(named, values)))


def snapshot(module: nn.Module) -> Sequence[tuple[str, object]]:
    """The values of all plain attributes, each with what leads to it; see `changed`."""
    return [(name, _copied(value)) for name, value in held_values(module)]


def common(module: nn.Module) -> Sequence[tuple[str, object]]:
    """The same of what a copy of the module has in common with it: classes, and what its code reads
    by global names; see `changed`.
    """
    values = shared_values(module, read_by_name(module))
    return [(name, _copied(value)) for name, value in values]


def changed(
    before: Sequence[tuple[str, object]], after: Sequence[tuple[str, object]]
) -> str | None:
    """The first plain attribute that is another one in the second snapshot; None if none is."""
    for one, other in zip_longest(before, after, fillvalue=("", None)):
        if one[0] != other[0]:
            return one[0] or other[0]
        if not _same(one[1], other[1]):
            return one[0] + _first_apart(one[1], other[1])
    return None


def hidden(module: nn.Module) -> str | None:
    """The first plain attribute that holds what no snapshot shows; None if none does."""
    return next((name for name, value in held_values(module) if hides(value)), None)


def _sharing(named: Mapping[str, Tensor], values: Iterable[object]) -> frozenset[str]:
    """The names of the tensors that lie in the memory of some value."""
    starts, ends = list[int](), list[int]()
    for start, end in sorted(span for value in values if (span := _span(value)) is not None):
        if ends and start <= ends[-1]:
            ends[-1] = max(end, ends[-1])
        else:
            starts.append(start)
            ends.append(end)
    found = set[str]()
    for name, tensor in named.items():
        if (own := _span(tensor)) is not None:
            last = bisect.bisect_left(starts, own[1]) - 1
            if last >= 0 and own[0] < ends[last]:
                found.add(name)
    return frozenset(found)


def _span(value: object) -> tuple[int, int] | None:
    """Where the memory of a tensor, an array or bytes begins and ends; None if there is none.

    Of a tensor it is all of its storage; an array may begin ahead of a tensor that was made of it.
    """
    if isinstance(value, array.array):
        address, count = value.buffer_info()
        return (address, address + count * value.itemsize) if count else None
    if isinstance(value, bytearray | memoryview):
        value = _as_array(value)
    if isinstance(value, np.ndarray):
        start = int(value.__array_interface__["data"][0])
        steps = [(n - 1) * step for n, step in zip(value.shape, value.strides, strict=True)]
        before, behind = (sum(pick(0, step) for step in steps) for pick in (min, max))
        return (start + before, start + behind + value.itemsize) if value.size else None
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return None
    try:
        storage = value.untyped_storage()
        start = storage.data_ptr()
    except RuntimeError:  # a tensor that is made of others
        return None
    return (start, start + storage.nbytes()) if start else None


def _as_array(value: Any) -> np.ndarray | None:
    """The bytes of a buffer where they are; None for one that was given back."""
    try:
        return np.asarray(memoryview(value))
    except (ValueError, TypeError):
        return None


class _Copy(NamedTuple):
    """A container as it was: its type and length, and where they are plain, what it held."""

    kind: type
    length: int
    keys: tuple[object, ...]
    values: tuple[object, ...]
    kinds: tuple[type, ...]

    @classmethod
    def of(cls, value: object, held: Entries) -> _Copy:
        """Copy a container."""
        keys, values = map(tuple, held) if is_flat(held) else ((), ())
        return cls(type(value), len(held[1]), keys, values, tuple(map(type, (*keys, *values))))


def _copied(value: object) -> object:
    """What a value is now, whatever becomes of it. An object is here what it is a kind of: what it
    holds stands for itself.
    """
    if (held := entries(value)) is not None:
        return _Copy.of(value, held)
    if isinstance(value, BYTES):
        found = _as_array(value)
        return None if found is None else (found.shape, str(found.dtype), found.tobytes())
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Tensor) and not value.is_meta:
        try:
            return value.detach().clone()
        except (RuntimeError, NotImplementedError, TypeError):  # A tensor with code of its own.
            return value
    itself = isinstance(value, (*FIXED, *_THEMSELVES)) or hides(value)
    return value if itself else type(value)


def _same(one: object, other: object) -> bool:
    """Whether two values are equal, where they are plain ones; or one object."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    first: Any = one
    second: Any = other
    try:
        if isinstance(one, Tensor):
            return first.layout == second.layout and _agree(_numbers(first), _numbers(second))
        if isinstance(one, np.ndarray):
            return _agree(one, other)
        if isinstance(one, (*FIXED, _Copy, tuple)):
            return bool(one == other or (one != one and other != other))
        return False
    except Exception:  # What a value of another library does where it is compared.
        return False


def _numbers(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, however it stores them."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _agree(one: Any, other: Any) -> bool:
    """Whether two tensors or arrays have the same numbers; one that is none is itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _first_apart(one: object, other: object) -> str:
    """What leads to the first difference within two containers of plain values."""
    if not (isinstance(one, _Copy) and isinstance(other, _Copy) and one.keys == other.keys):
        return ""
    pairs = zip(one.keys, one.values, other.values, strict=False)
    return next((f"[{key!r}]" for key, first, second in pairs if not _same(first, second)), "")
