"""Modules and parameters that a network uses in several places, taken apart and tied again.

A fold changes one place only. So a shared module or parameter stays as it is, or it is cloned if
the user agrees.
"""

from __future__ import annotations

import copy
from collections.abc import Set

import torch
from torch import Tensor, nn

Groups = tuple[tuple[str, ...], ...]


def untie(module: nn.Module) -> tuple[Groups, Groups]:
    """Give each place of a shared submodule, and of a shared parameter, a copy of its own.

    Gives for `tie` the groups of names that shared a module, and those that shared a parameter. A
    submodule that one place calls several times is not copied. Nor are parameters that are views of
    the same memory.
    """
    shared = _named_alike(list(module.named_modules(remove_duplicate=False)))
    apart = []
    for first, *others in shared:
        # The parts of a module that is already copied are no longer shared.
        same = [name for name in others if _find(module, name) is _find(module, first)]
        if not first or not same:
            continue
        apart.append((first, *same))
        for name in same:
            _place(module, name, copy.deepcopy(module.get_submodule(first)))
    tied = _named_alike(list(module.named_parameters(remove_duplicate=False)))
    for first, *others in tied:
        value = module.get_parameter(first)
        for name in others:
            _place(module, name, nn.Parameter(value.detach().clone(), value.requires_grad))
    return tuple(apart), tied


def tie(module: nn.Module, groups: tuple[Groups, Groups], called: Set[str]) -> None:
    """Share again the modules and parameters that `untie` copied and that are equal, bit by bit.

    If a submodule has a name by which it is never ``called``, that name is tied to a called one.
    """
    modules, parameters = groups
    for names in reversed(modules):
        live = [name for name in names if name in called]
        for name in names:
            if live and name not in called:
                _place(module, name, module.get_submodule(live[0]))
        for first, name in _pairs(names):
            if _equal_modules(module.get_submodule(first), module.get_submodule(name)):
                _place(module, name, module.get_submodule(first))
    for names in parameters:
        for first, name in _pairs(names):
            one, other = _find(module, first), _find(module, name)
            if isinstance(one, nn.Parameter) and _equal(one, other):
                _place(module, name, one)


def _named_alike(named: list[tuple[str, nn.Module]] | list[tuple[str, nn.Parameter]]) -> Groups:
    places: dict[int, list[str]] = {}
    for name, what in named:
        places.setdefault(id(what), []).append(name)
    return tuple(tuple(names) for names in places.values() if len(names) > 1)


def _pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """All pairs of a name and a later one. In this order equal places get the earliest one."""
    return [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]


def _equal_modules(one: nn.Module, other: nn.Module) -> bool:
    first, second = dict(one.named_modules()), dict(other.named_modules())
    if [(n, type(m)) for n, m in first.items()] != [(n, type(m)) for n, m in second.items()]:
        return False
    mine = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    return mine.keys() == theirs.keys() and all(_equal(mine[n], theirs[n]) for n in mine)


def _equal(one: Tensor, other: object) -> bool:
    return (
        isinstance(other, Tensor)
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.requires_grad == other.requires_grad
        and torch.equal(one.detach(), other.detach())
    )


def _find(module: nn.Module, name: str) -> object:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module


def _place(module: nn.Module, name: str, what: nn.Module | nn.Parameter) -> None:
    prefix, _, last = name.rpartition(".")
    parent = module.get_submodule(prefix)
    if isinstance(what, nn.Module):
        parent._modules[last] = what
    else:
        setattr(parent, last, what)  # An LSTM notes its parameters in a list of its own, too.
