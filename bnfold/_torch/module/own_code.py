"""What a module's own code keeps somewhere, or asks of the process, whatever tensor it is given.

It is read, not run: that of the module's class, and of the functions and methods that it reaches.
What is PyTorch's own is taken to do neither.
"""

from __future__ import annotations

import dis
import re
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnfold._torch.module.held_values import contents
from bnfold._torch.read.export import OF_PYTORCH

_CONTAINERS = (list, dict, set, deque)
_CHANGING = frozenset(
    name for kind in _CONTAINERS for name in vars(kind) if not name.startswith("_")
) - {"copy", "count", "get", "index", "items", "keys", "values"}
"""Methods of containers that change them, or may."""
_ASKING = re.compile(
    r"(is|are)_\w*(enabled|tracing|compiling|exporting|export)"
    r"|get_default_dtype|get_autocast_\w+|initial_seed|is_inference|requires_grad|grad_fn|is_leaf"
)
"""Questions about how the process runs. One for TorchScript is none: no script is folded."""
_OUTSIDE = {"datetime", "io", "logging", "os", "random", "secrets", "socket", "subprocess", "sys"}
_OUTSIDE |= {"threading", "time", "uuid", "warnings"}
_SPEAKING = {"delattr", "eval", "exec", "globals", "input", "open", "print", "setattr"}
_FIXED = (bool, int, float, complex, str, bytes, range, slice, type, torch.Size)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, staticmethod, classmethod)
_WRAPPED = (*_CODE, property, cached_property, partial)
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")


def beyond_data(module: nn.Module) -> str | None:
    """What the code does besides computing with its data, in words; None if nothing is seen."""
    for function in _reached(module):
        found = _kept(function) or _asked(function)
        if found is not None:
            return found
    return None


class _Function(NamedTuple):
    """A function that the code of a module reaches, step by step, with what its names stand for."""

    code: CodeType
    steps: list[dis.Instruction]
    values: list[tuple[object, ...]]

    @classmethod
    def of(cls, function: FunctionType, module: nn.Module) -> _Function:
        """Look at a function and those within it."""
        steps = list(_steps(function.__code__))
        own = vars(module).items()
        held = {name: value for name, value in own if name not in OF_PYTORCH}
        spaces = [held, *map(vars, _kinds(module))]
        cells, values = _cells(function), list[tuple[object, ...]]()
        before: tuple[object, ...] = ()
        for step in steps:
            name, found = step.argval, list[object]()
            if step.opname in _ATTRIBUTES:
                # Read from what they hold: some modules import as soon as they are asked.
                modules = [vars(each) for each in before if isinstance(each, ModuleType)]
                found += [space[name] for space in (*spaces, *modules) if name in space]
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in function.__globals__:
                if name.isidentifier():  # Others are pytest's, which writes asserts anew.
                    found.append(function.__globals__[name])
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
                found.append(cells[name])
            values.append(tuple(found))
            before = values[-1]
        return cls(function.__code__, steps, values)


def _reached(module: nn.Module) -> Iterator[_Function]:
    """The forwards that a module's class has or inherits, and what they call, but for PyTorch's."""
    waiting = [vars(kind).get("forward") for kind in _kinds(module)]
    seen = set[int]()
    while waiting:
        function = _unwrapped(waiting.pop())
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        waiting += _cells(function).values()  # What a decorator has wrapped.
        if not _is_of_torch(function.__globals__.get("__name__")):
            found = _Function.of(function, module)
            waiting += [each for values in found.values for each in values]
            yield found


def _kept(function: _Function) -> str | None:
    """Where a function may keep something beyond its call; None if nowhere."""
    names = [step.argval for step in function.steps if step.opname in _ATTRIBUTES]
    stores = any(step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") for step in function.steps)
    changes = stores or not _CHANGING.isdisjoint(names)
    following = [*(step.argval for step in function.steps[1:]), None]
    for step, values, name in zip(function.steps, function.values, following, strict=True):
        kind, _, where = step.opname.partition("_")
        if kind in ("STORE", "DELETE") and (
            where in ("GLOBAL", "ATTR")
            or (where == "DEREF" and step.argval in function.code.co_freevars)
        ):
            return f"keeps something in {step.argval} when it runs"
        for value in values:
            if changes if _is_container(value) else _has_state(value) and _may_run(value, name):
                return f"keeps something in {step.argval} when it runs"
    return None


def _asked(function: _Function) -> str | None:
    """What a function asks or tells the process; None if nothing."""
    for step, values in zip(function.steps, function.values, strict=True):
        name = str(step.argval)
        by_name = step.opname in (*_ATTRIBUTES, "LOAD_GLOBAL")
        if by_name and _ASKING.fullmatch(name):
            return f"asks for {name}"
        if (
            (step.opname == "LOAD_GLOBAL" and name in _SPEAKING and not values)
            or (step.opname == "IMPORT_NAME" and _is_outside(name))
            or any(_is_outside(_home(value)) for value in values)
        ):
            return f"uses {name}"
    return None


def _kinds(module: nn.Module) -> list[type]:
    """The classes of a module that are not PyTorch's."""
    return [kind for kind in type(module).__mro__ if not _is_of_torch(kind.__module__)][:-1]


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _steps(inner)


def _cells(function: FunctionType) -> Mapping[str, object]:
    """What the free variables of a function stand for, if they do."""
    names = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: each for name, cell in names for each in contents(cell)}


def _unwrapped(value: object) -> object:
    """The function within a method, a property or the like."""
    while isinstance(value, _WRAPPED) and not isinstance(value, FunctionType):
        inner = [getattr(value, name, None) for name in ("__func__", "fget", "func")]
        value = next((each for each in inner if each is not None), None)
    return value


def _is_container(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_container, value))
    return isinstance(value, _CONTAINERS)


def _has_state(value: object) -> bool:
    """Whether a value is an object that could change, as far as anybody can tell."""
    if isinstance(value, tuple | frozenset):
        return any(map(_has_state, value))
    if value is None or isinstance(value, (*_FIXED, *_WRAPPED, *_CONTAINERS, Tensor, nn.Module)):
        return False
    return not _is_of_torch(type(value).__module__) and type(value).__module__ != "typing"


def _may_run(value: object, name: object) -> bool:
    """Whether what is done with an object may run code of it; reading a plain attribute does not.

    Raises nothing: an attribute that is computed is not asked.
    """
    held = getattr(value, "__dict__", {})
    return not (isinstance(name, str) and name in held and not callable(held[name]))


def _home(value: object) -> str:
    """The module that a function comes from, or which it is."""
    if isinstance(value, ModuleType):
        return value.__name__
    if not isinstance(value, BuiltinFunctionType | MethodType):
        return ""
    owner = getattr(value, "__self__", None)
    return value.__module__ or (type(owner).__module__ if owner is not None else "")


def _is_outside(name: Any) -> bool:
    return str(name).lstrip("_").partition(".")[0] in _OUTSIDE or str(name) == "numpy.random"


def _is_of_torch(name: object) -> bool:
    return str(name).partition(".")[0] == "torch"
