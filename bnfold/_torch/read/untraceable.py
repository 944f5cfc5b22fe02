"""Why PyTorch could not trace a module, and what to do about it: one line, whatever it raised."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Iterator
from types import TracebackType

import torch
from torch import nn

from bnfold import _errors

# What PyTorch says of code that depends on values: of Python's branches, of sizes, of conversions.
_BY_VALUE = (
    "data-dependent",
    "DataDependentOutput",
    "DynamicOutputShape",
    "unbacked symint",
    "is not supported for tensor subclasses",
    "data is not allocated",
)
_UNKNOWN_CLASS = re.compile(
    r"(?:Found|[Uu]nsupported input type) <class '([^']+)'>(?: in output, which is not a known)?"
)
_GUARD = re.compile(r"^\s*- (.+?)\.?$", re.MULTILINE)
_FIXES = re.compile(r"Suggested fixes:\n((?:[ \t]+\S.*\n?)+)")
_PYTHON = sysconfig.get_path("stdlib")
_TORCH = os.path.dirname(torch.__file__)
_SYMPY = os.path.join(os.path.dirname(_TORCH), "sympy")
_FOREIGN = tuple(f + os.sep for f in (_TORCH, _SYMPY, os.path.dirname(_errors.__file__)))


def why(module: nn.Module, error: Exception) -> str:
    """What stopped the trace of a module, where in its code, and what to do; without line breaks.

    ``error`` is what torch.export, or a symbolic trace, has raised.
    """
    text = str(error)
    scripted = next((n for n, part in module.named_modules() if _is_scripted(part)), None)
    if scripted is not None:
        return (
            f"{scripted} is a TorchScript module: put the module that it was made from in its place"
        )
    unknown = _UNKNOWN_CLASS.search(text)
    if unknown is not None:
        return _unknown_class(unknown.group(1), "in output" in unknown.group(0))
    if "Constraints violated" in text:
        return _violated(text)
    kind = f"{type(error).__name__}: {text}"
    if any(sign in kind for sign in _BY_VALUE):
        return (
            f"its code depends on the values of a tensor{_place(error)}: write that with "
            "torch.cond or torch.where, or fold the parts without it by themselves, "
            "model.part = bnfold.fold(model.part, (example of its input,))"
        )
    line = _errors.first_line(error).partition(" For more information about this error")[0]
    kind = type(error).__name__
    return f"{kind if line == kind else f'{kind}: {line}'}{_place(error)}"


def _is_scripted(module: nn.Module) -> bool:
    """Whether a module is TorchScript, and has tensors: one without any does no harm."""
    return isinstance(module, torch.jit.ScriptModule) and bool(module.state_dict())


def _unknown_class(path: str, is_output: bool) -> str:
    """The advice for a class that PyTorch cannot look into."""
    name = path.rpartition(".")[2]
    what = "its code gives back" if is_output else "the example inputs hold"
    return (
        f"{what} the class {name}, into which PyTorch cannot look: call "
        f"torch.export.register_dataclass({name}) first if it is a dataclass, else "
        f"torch.utils._pytree.register_pytree_node({name}, …), or use a tuple or dict in its place"
    )


def _violated(text: str) -> str:
    """The first guard that ``dynamic_shapes`` violates, and what PyTorch suggests instead."""
    text = re.sub(r"L\['(\w+)'\]", r"\1", text)
    guards = _GUARD.findall(text)
    said = guards[0] if guards else "the sizes cannot vary as asked"
    said = said.partition(". If you're using mark_dynamic")[0]  # Nobody is, here.
    said += f" (and {len(guards) - 1} more)" if len(guards) > 1 else ""
    fixes = _FIXES.search(text)
    lines = [line.strip() for line in fixes.group(1).splitlines()] if fixes is not None else []
    return f"dynamic_shapes: {said}" + (f"; possible: {', '.join(lines)}" if lines else "")


def _place(error: BaseException) -> str:
    """The line of the module's own code that raised an error, as text; "" if none did."""
    for each in _chain(error):
        own = [place for place in _frames(each.__traceback__) if not _is_foreign(place[0])]
        if own:
            file, line, name = own[-1]
            code = linecache.getline(file, line).strip()
            return f", at {file}:{line} in {name}" + (f" ({code})" if code else "")
    return ""


def _is_foreign(file: str) -> bool:
    """Whether a file is of PyTorch, bnfold, or what PyTorch itself calls."""
    if file.startswith(("<", *_FOREIGN)):
        return True
    return file.startswith(_PYTHON) and "site-packages" not in file


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those during whose handling it was raised."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    """The file, line and function of each call between where an error was caught and raised."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        yield code.co_filename, traceback.tb_lineno, code.co_name
        traceback = traceback.tb_next
