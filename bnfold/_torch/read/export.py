"""Export a module to the small, canonical set of operators that bnfold reads."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.unflatten import UnflattenedModule
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from bnfold._errors import UsageError
from bnfold._torch.read.lowered import is_lowered
from bnfold._torch.read.spared import SPARED
from bnfold._torch.read.untraceable import why

_WRAPPERS = (DataParallel, DistributedDataParallel)


def export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    given: bool = False,
) -> ExportedProgram:
    """Export a module with example inputs. Nothing is spared (`spared`) where the program, or what
    is made of it, is ``given`` to somebody.

    Raises `UsageError` for a module that is not ready (training mode, lazy or meta parameters) or
    that torch.export cannot trace with these inputs.
    """
    check(module)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(torch.no_grad())
            stack.enter_context(_without_dumps())
            if not given:
                stack.enter_context(SPARED.left_out())
            warnings.simplefilter("ignore")
            return torch.export.export(
                module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # torch.export raises whatever the module's own code raises.
        raise UsageError(
            f"torch.export could not trace {type(module).__name__} with these inputs: "
            f"{why(module, error)}"
        ) from error


@dataclass
class Calls:
    """How the submodules were called while a module ran.

    ``plain`` has submodules that took one tensor and gave one back. ``others`` has submodules that
    did something else in at least one call. ``writing`` has those that changed attributes of their
    own. ``inner`` has for each submodule the rows of calls that it made of others, one row for each
    of its own calls: whom, and whether that one gave back the very tensor that it was given.
    """

    plain: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)
    writing: set[int] = field(default_factory=set)
    inner: dict[int, set[tuple[tuple[int, bool], ...]]] = field(default_factory=dict)

    def are_plain(self, module: nn.Module) -> bool:
        """Whether an Identity could take a module's place: all its calls were plain."""
        return key_of(module) in self.plain and key_of(module) not in self.others

    def moved(self, before: Mapping[str, nn.Module], after: Mapping[str, nn.Module]) -> Calls:
        """The same calls of a copy, whose modules have the same names."""
        keys = {key_of(module): key_of(after[name]) for name, module in before.items()}

        def renamed(found: set[int]) -> set[int]:
            return {keys[key] for key in found if key in keys}

        inner = {
            keys[key]: {tuple((keys.get(k, k), same) for k, same in row) for row in rows}
            for key, rows in self.inner.items()
            if key in keys
        }
        return Calls(renamed(self.plain), renamed(self.others), renamed(self.writing), inner)


def key_of(module: nn.Module) -> int:
    """A key that a module shares with the proxy that torch.export may call in its place."""
    return id(module.__dict__)


@contextmanager
def watched() -> Iterator[Calls]:
    """Note how modules are called while the context is open."""
    calls = Calls()
    open_calls: list[_Call] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_dynamo_compiling():  # In a branch, where nothing may be noted.
            return
        open_calls.append(_Call(key_of(module), _Attributes(module)))

    def end(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        if torch.compiler.is_dynamo_compiling():
            return
        key, given = key_of(module), [*args, *kwargs.values()]
        plain = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(result, Tensor)
        named = set(kwargs) <= {"input"}  # The name of Identity's argument.
        (calls.plain if plain and named else calls.others).add(key)
        while (call := open_calls.pop()).key != key:  # One that ended by an error.
            calls.others.add(call.key)
        if not call.attributes.is_as_before(module):
            calls.writing.add(key)
        calls.inner.setdefault(key, set()).add(tuple(call.made))
        if open_calls:
            open_calls[-1].made.append((key, plain and result is given[0]))

    handles = (
        register_module_forward_pre_hook(begin),
        register_module_forward_hook(end, with_kwargs=True),
    )
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Call:
    """A call that has begun: of whom, its attributes by then, and the calls that it has made."""

    key: int
    attributes: _Attributes
    made: list[tuple[int, bool]] = field(default_factory=list)


class _Attributes:
    """Which values a module's own attributes have, and how long those are that can grow."""

    def __init__(self, module: nn.Module) -> None:
        self._values = {k: v for k, v in module.__dict__.items() if k not in OF_PYTORCH}
        self._lengths = {k: len(v) for k, v in self._values.items() if isinstance(v, _GROWING)}

    def is_as_before(self, module: nn.Module) -> bool:
        """Whether the attributes have the very same values, and as long ones."""
        now = _Attributes(module)
        return (
            now._values.keys() == self._values.keys()
            and all(now._values[name] is value for name, value in self._values.items())
            and now._lengths == self._lengths
        )


_GROWING = (list, dict, set, deque)
OF_PYTORCH = set(nn.Module().__dict__)
"""Attributes that every module has; tracing changes some of them."""


def check(module: nn.Module) -> None:
    """Raise `UsageError` for a module that cannot be folded, or compared, as it is."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("a TorchScript module cannot be folded: give the module it was made from")
    if isinstance(module, UnflattenedModule):
        raise UsageError(
            "an unflattened program cannot be folded: give the program it was made from"
        )
    refuse_wrapped(module)
    for path, part in module.named_modules():
        forward = part.__dict__.get("forward")
        # torch.compile(module) makes a module of its own, which copies well.
        if hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(part, "_orig_mod"):
            raise UsageError(
                f"the forward of {path or name} is compiled, so that a copy would run the "
                "original's code: give the module as it was, and compile what bnfold.fold gives"
            )
    if module.training and not is_lowered(module):
        raise UsageError(
            f"{name} is in training mode: call .eval() first (bnfold.fold takes as_eval=True to "
            "fold it as if it were in eval)"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"{name} is not initialized: run the module once so that its lazy parameters "
                "get their shapes"
            )
        if tensor.is_meta:
            raise UsageError(
                f"{name} is a meta tensor, which has no values: load the weights first"
            )


def refuse_wrapped(module: nn.Module) -> None:
    """Raise `UsageError` for a network that is in a wrapper for several devices."""
    if isinstance(module, _WRAPPERS):
        name = type(module).__name__
        raise UsageError(
            f"a {name} is a wrapper around the network: give the network itself, model.module"
        )


def refuse_pruned(module: nn.Module) -> None:
    """Raise `UsageError` for a module with pruned tensors, which hooks compute in every run."""
    found = [
        (path or "model", hook._tensor_name)
        for path, part in module.named_modules()
        for hook in part._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    ]
    if not found:
        return
    path, tensor = found[0]
    others = f" and {len(found) - 1} more are" if len(found) > 1 else " is"
    part = "model" if path == "model" else f'model.get_submodule("{path}")'
    raise UsageError(
        f"{path}.{tensor}{others} pruned, and computed anew in every run: make that permanent "
        f'first, torch.nn.utils.prune.remove({part}, "{tensor}")'
        + (", and so the others" if len(found) > 1 else "")
    )


@contextmanager
def _without_dumps() -> Iterator[None]:
    """Keep PyTorch from printing the graph of a trace that fails, and hints for its developers.

    What else goes to standard error comes out at the end.
    """
    dump = ""
    with redirect_stderr(io.StringIO()) as said:
        try:
            with quiet("torch.export"), quiet("torch.fx.experimental.symbolic_shapes"):
                yield
        except Exception as error:
            dump = str(getattr(error, "partial_fx_graph", ""))
            raise
        finally:
            text = said.getvalue()
            rest = text.replace(dump, "") if dump else text
            if sys.__stderr__ is not None and rest.strip():
                sys.__stderr__.write(rest)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a logger of PyTorch from printing tracebacks of errors that PyTorch then raises."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
