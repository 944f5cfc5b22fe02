"""Graph modules of operators (``program.module()``), which fold as the programs that they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from bnfold._errors import UsageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Options(Protocol):
    """What is asked of a module."""

    @property
    def args(self) -> Any:
        """Example inputs."""

    @property
    def kwargs(self) -> Mapping[str, Any] | None:
        """Example inputs by name."""

    @property
    def dynamic_shapes(self) -> Any:
        """Which of their sizes may vary."""

    @property
    def inplace(self) -> bool:
        """Whether to change the module itself."""

    @property
    def keep(self) -> tuple[str, ...]:
        """What may not change."""


def program_of(model: Any, options: Options) -> ExportedProgram | None:
    """The program of a graph module of operators; None for any other module.

    It holds for the sizes that the graph holds for. Without example inputs they are of the sizes
    that the graph was made with.
    """
    if "torch.fx" not in sys.modules:
        return None
    from torch.fx import GraphModule

    from bnfold._torch.read.export import export
    from bnfold._torch.read.lowered import inputs_of, is_lowered, varying_sizes

    if not isinstance(model, GraphModule) or not is_lowered(model):
        return None
    for name in ("inplace", "keep"):
        if getattr(options, name):
            raise UsageError(f"{name}: a graph of operators folds as a program; leave it out")
    if options.args is not None and not isinstance(options.args, tuple):
        kind = type(options.args).__name__
        raise UsageError(f"give the module's example inputs as a tuple, not {kind}: (example,)")
    args, kwargs = inputs_of(model, options.args, options.kwargs)
    shapes = options.dynamic_shapes
    shapes = varying_sizes(model, (args, kwargs)) if shapes is None else shapes
    return export(model, args, kwargs, shapes)
