"""What is asked of a module: its example inputs, and how to fold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold._errors import UsageError
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._torch.module.fold import Example

_FLAGS = ("as_eval", "clone", "inplace", "keep", "merge")


@record(frozen=True)
class ModuleOptions:
    """The options for a module: its example inputs, and how to fold it; see `bnfold.fold`.

    Raises ``TypeError`` where the example inputs by name have no names.
    """

    args: Any = None
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    as_eval: bool = False
    clone: bool = False
    inplace: bool = False
    keep: tuple[str, ...] = ()
    merge: bool = False

    def __post_init__(self) -> None:
        if self.kwargs is not None and not isinstance(self.kwargs, Mapping):
            kind = type(self.kwargs).__name__
            raise TypeError(f"expected a mapping from names to inputs for kwargs, got {kind}")

    @property
    def given(self) -> list[str]:
        """The names of the options that are given, but for ``args``: `fold` takes the output there.

        Of example inputs, which may be arrays, it is asked only whether they are there.
        """
        return [
            name
            for name, value in vars(self).items()
            if name != "args" and (bool(value) if name in _FLAGS else value is not None)
        ]

    def refuse(self) -> None:
        """Raise `UsageError` if an option is given: the model is no module."""
        if self.given:
            names = ", ".join(self.given)
            raise UsageError(f"{names}: this is for a torch.nn.Module; leave it out")

    def refuse_for_lowered(self) -> None:
        """Raise `UsageError` if more is given than inputs: the model is a graph of operators."""
        flags = ", ".join(name for name in self.given if name in _FLAGS)
        if flags:
            raise UsageError(f"{flags}: a graph of operators folds as a program; leave it out")

    def check_args(self) -> None:
        """Raise `UsageError` if the example inputs are no tuple."""
        if self.args is not None and not isinstance(self.args, tuple):
            kind = type(self.args).__name__
            raise UsageError(f"give the module's example inputs as a tuple, not {kind}: (example,)")

    def example(self) -> Example:
        """The example inputs, ready for a module. Raises `UsageError` if there are none."""
        from bnfold._torch.module.fold import Example

        if self.args is None and not self.kwargs:
            raise UsageError(
                "a module needs example inputs: bnfold.fold(module, (example,)), "
                "bnfold.verify(module, folded, (example,))"
            )
        self.check_args()
        return Example(self.args or (), self.kwargs or {}, self.dynamic_shapes)
