"""Export a module to the small, canonical set of operators that bnfold reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from bnfold._errors import UsageError


def export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """Export a module with example inputs.

    Raises `UsageError` for a module that is not ready (training mode, lazy or meta parameters) or
    that torch.export cannot trace with these inputs.
    """
    check(module)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # torch.export raises whatever the module's own code raises.
        line = next((text for text in str(error).splitlines() if text.strip()), "")
        raise UsageError(
            f"torch.export could not trace {type(module).__name__} with these inputs: "
            f"{type(error).__name__}: {line}"
        ) from error


def check(module: nn.Module) -> None:
    """Raise `UsageError` for a module that cannot be folded as it is."""
    if module.training:
        raise UsageError(
            f"{type(module).__name__} is in training mode: call .eval() first, or pass "
            "as_eval=True to fold it as if it were in eval"
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
