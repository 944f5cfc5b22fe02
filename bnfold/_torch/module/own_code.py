"""What a module's own code keeps somewhere, or asks of the process, whatever tensor it is given.

It is read, not run: that of the module's class, and of the functions and methods that it reaches.
What is PyTorch's own is taken to do neither.
"""

from __future__ import annotations

import dis
import enum
import importlib.util
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from logging import Logger
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnfold._torch.module.held_values import contents, entries, is_flat, is_users
from bnfold._torch.read.export import OF_PYTORCH

_CONTAINERS = (list, dict, set, deque, bytearray)
_CHANGING = frozenset(
    name for kind in _CONTAINERS for name in vars(kind) if not name.startswith("_")
) - {*vars(bytes), *vars(frozenset), "count", "get", "index", "items", "keys", "values"}
"""Methods of containers that change them, or may."""
_CHANGING |= {"setitem", "delitem", "iadd", "iconcat", "ior", "heappush", "heappop", "heapify"}
_CHANGING |= {"heapreplace", "heappushpop", "insort", "insort_left", "insort_right"}
_ASKING = re.compile(
    r"(is|are)_\w*(enabled|tracing|compiling|exporting|export)"
    r"|get_default_dtype|get_autocast_\w+|initial_seed|is_inference|requires_grad|grad_fn|is_leaf"
)
"""Questions about how the process runs. One for TorchScript is none: no script is folded."""
_OUTSIDE = {"datetime", "io", "logging", "os", "random", "secrets", "socket", "subprocess", "sys"}
_OUTSIDE |= {"threading", "time", "uuid", "warnings"}
_SPEAKING = {"delattr", "eval", "exec", "globals", "input", "open", "print", "setattr"}
_FIXED = (bool, int, float, complex, str, bytes, range, slice, type, torch.Size, enum.Enum)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, staticmethod, classmethod)
_WRAPPED = (*_CODE, property, cached_property, partial)
_STATELESS = (*_FIXED, *_WRAPPED, *_CONTAINERS, tuple, frozenset, Tensor, nn.Module)
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")
_NAMING = (*_ATTRIBUTES, "LOAD_GLOBAL", "LOAD_NAME", "IMPORT_FROM")
_STORING = ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")
_MAKING = ("__new__", "__init__", "__post_init__")
"""Methods that run when an object of a class is made."""


def beyond_data(module: nn.Module) -> str | None:
    """What the code does besides computing with its data, in words; None if nothing is seen."""
    functions = _Reach(module).functions()
    changes = _Changes.by(functions)
    for function in functions:
        found = _asked(function) or _kept(function, changes)
        if found is not None:
            return found
    return None


def read_by_name(module: nn.Module) -> list[tuple[str, object]]:
    """What the code of a module and its submodules reads by global names, or from other modules.

    Loggers are left out: they note what they were asked, and nothing that is computed.
    """
    parts = dict[tuple[type, tuple[int, ...]], nn.Module]()
    for part in module.modules():
        own = [id(each) for each in vars(part).values() if isinstance(each, FunctionType)]
        parts[type(part), tuple(own)] = part
    found = dict[tuple[str, int], object]()
    for part in parts.values():
        for function in _Reach(part).functions() if _kinds(part) else ():
            for step, values in zip(function.steps, function.values, strict=True):
                if step.opname in _NAMING:
                    found.update({(str(step.argval), id(each)): each for each in values})
    return [(name, each) for (name, _), each in found.items() if not isinstance(each, Logger)]


class _Function(NamedTuple):
    """A function that the code of a module reaches, step by step, with what its names stand for.

    Attributes:
        code: the function's code.
        steps: its steps, and those of the functions within it.
        values: for each step what its name may stand for.
        defaults: the values of arguments that are not given.
    """

    code: CodeType
    steps: Sequence[dis.Instruction]
    values: Sequence[tuple[object, ...]]
    defaults: tuple[object, ...]


class _Reach:
    """What the forwards that a module's class has or inherits reach, but for PyTorch's own code.

    A name of an attribute may stand for what the module, or any class or module of the user's that
    is reached, has by this name: where an object goes is not followed.
    """

    def __init__(self, module: nn.Module) -> None:
        held = {name: value for name, value in vars(module).items() if name not in OF_PYTORCH}
        self._spaces: list[Mapping[str, object]] = [held, *map(vars, _kinds(module))]
        self._seen: dict[int, object] = {id(kind): kind for kind in type(module).__mro__}
        self._reached = list[tuple[FunctionType, list[dis.Instruction]]]()
        for kind in _kinds(module):
            self._note(vars(kind).get("forward"))

    def functions(self) -> list[_Function]:
        """All functions. What one stands for may make a name of another one stand for more."""
        while True:
            known = len(self._seen)
            found = [self._with_values(*each) for each in self._reached]
            for function in found:
                for value in (value for values in function.values for value in values):
                    self._note(value)
            if len(self._seen) == known:
                return found

    def _note(self, value: object) -> None:
        """Follow a function, and what a container, a class or a wrapped function leads to."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if not isinstance(one, (*_WRAPPED, *_CONTAINERS, tuple, frozenset, type)):
                continue
            if id(one) in self._seen:
                continue
            self._seen[id(one)] = one
            waiting += _within(one)
            if isinstance(one, FunctionType):
                waiting += _cells(one).values()  # What a decorator has wrapped.
                if not _is_of_torch(one.__globals__.get("__name__")):
                    waiting += _defaults(one)
                    self._reached.append((one, list(_steps(one.__code__))))
            elif isinstance(one, type) and is_users(one):
                spaces = [vars(kind) for kind in one.__mro__ if is_users(kind)]
                self._spaces += spaces
                making = () if issubclass(one, enum.Enum) else _MAKING  # Its objects are made.
                waiting += [space[name] for space in spaces for name in making if name in space]
            elif isinstance(one, ModuleType) and is_users(one):
                self._spaces.append(vars(one))  # Some modules import as soon as they are asked.

    def _with_values(self, function: FunctionType, steps: list[dis.Instruction]) -> _Function:
        cells, values = _cells(function), list[tuple[object, ...]]()
        asks = any(step.opname == "LOAD_GLOBAL" and step.argval == "getattr" for step in steps)
        before: tuple[object, ...] = ()
        imported: tuple[object, ...] = ()
        for number, step in enumerate(steps):
            name, found = step.argval, list[object]()
            if step.opname in _ATTRIBUTES or (asks and step.opname == "LOAD_CONST"):
                modules = [vars(each) for each in before if isinstance(each, ModuleType)]
                found += [
                    space[name]
                    for space in (*self._spaces, *modules)
                    if isinstance(name, str) and name in space
                ]
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in function.__globals__:
                if name.isidentifier():  # Others are pytest's, which writes asserts anew.
                    found.append(function.__globals__[name])
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
                found.append(cells[name])
            elif step.opname == "IMPORT_NAME":
                imported = _imported(function, name, steps[number - 2].argval)
                found += imported
            elif step.opname == "IMPORT_FROM":
                found += [vars(each)[name] for each in imported if name in vars(each)]
            values.append(tuple(found))
            before = values[-1]
        return _Function(function.__code__, steps, values, _defaults(function))


def _imported(function: FunctionType, name: str, level: Any) -> tuple[object, ...]:
    """The module that a function imports, which has been loaded when the function ran."""
    if isinstance(level, int) and level > 0:
        package = str(function.__globals__.get("__package__") or "")
        try:
            name = importlib.util.resolve_name("." * level + name, package)
        except ImportError:
            return ()
    names = [name, name.partition(".")[0]]
    return tuple(sys.modules[each] for each in names if each in sys.modules)


def _within(value: object) -> list[object]:
    """What a container holds, or a wrapped function is made of."""
    if (held := entries(value)) is not None:
        return [] if is_flat(held) else [*held[1], *held[0]]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, cached_property):
        return [value.func]
    return [value.__self__] if isinstance(value, BuiltinFunctionType) else []


def _parts(value: object) -> Iterator[object]:
    """A value, and all that it leads to without code that runs."""
    waiting, seen = [value], dict[int, object]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            yield one
            waiting += _within(one)


class _Changes(NamedTuple):
    """Whether code may change a container, whichever: at all, or by ``+=`` and the like."""

    any: bool
    in_place: bool

    @classmethod
    def by(cls, functions: Sequence[_Function]) -> _Changes:
        """What functions do to containers. Nobody follows where one is handed on to."""
        steps = [step for function in functions for step in function.steps]
        values = (value for function in functions for each in function.values for value in each)
        bound = (part for value in values for part in _parts(value))
        named = (*_ATTRIBUTES, "LOAD_GLOBAL", "IMPORT_FROM")
        return cls(
            any(step.opname in _STORING for step in steps)
            or any(step.opname in named and step.argval in _CHANGING for step in steps)
            or any(isinstance(b, BuiltinFunctionType) and b.__name__ in _CHANGING for b in bound),
            any(
                step.opname.startswith("INPLACE_")
                or (step.opname == "BINARY_OP" and step.argrepr.endswith("="))
                for step in steps
            ),
        )


def _kept(function: _Function, changes: _Changes) -> str | None:
    """Where a function may keep something beyond its call; None if nowhere."""
    making = function.code.co_name in _MAKING
    before: Any = None
    for number, (step, values) in enumerate(zip(function.steps, function.values, strict=True)):
        of_new = making and before is not None and before.argval == _first_of(function.code)
        before = step
        kind, _, where = step.opname.partition("_")
        if kind in ("STORE", "DELETE") and (
            where == "GLOBAL"
            or (where == "ATTR" and not of_new)
            or (where == "DEREF" and step.argval in function.code.co_freevars)
        ):
            return f"keeps something in {step.argval} when it runs"
        following = [each.argval for each in function.steps[number + 1 : number + 2]]
        read = _is_read(function.steps[number + 1 :])
        if any(_keeps(value, changes, read, *following) for value in values):
            return f"keeps something in {step.argval} when it runs"
    if any(_keeps(value, changes, False) for value in function.defaults):
        return f"keeps something in a default of {function.code.co_name} when it runs"
    return None


def _keeps(value: object, changes: _Changes, read: bool, name: object = None) -> bool:
    """Whether a value may be other than it was when code has run.

    It may be no more than ``read``. What follows it is a ``name``, perhaps of its attribute.
    """
    parts = list(_parts(value))
    containers = sum(isinstance(each, _CONTAINERS) for each in parts)
    changed = changes.any or (changes.in_place and not (read and containers == 1))
    return (changed and containers > 0) or any(
        _has_state(each) and (each is not value or _may_run(each, name)) for each in parts
    )


def _first_of(code: CodeType) -> str | None:
    return code.co_varnames[0] if code.co_varnames else None


def _is_read(ahead: Sequence[dis.Instruction]) -> bool:
    """Whether the steps ahead ask a container for what it holds, and do no more with it."""
    names = [step.opname for step in ahead[:4]]
    if names[:1] == ["GET_ITER"] or {*names[:1]} <= {*_ATTRIBUTES}:
        return True
    key = 1 + (names[1:2] == ["LOAD_ATTR"])  # A name, or an attribute of what it stands for.
    return names[0].startswith("LOAD_") and names[key : key + 1] == ["BINARY_SUBSCR"]


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


def _defaults(function: FunctionType) -> tuple[object, ...]:
    return (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def _has_state(value: object) -> bool:
    """Whether a value is an object that could change, as far as anybody can tell."""
    if value is None or type(value) is object or isinstance(value, _STATELESS):
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
