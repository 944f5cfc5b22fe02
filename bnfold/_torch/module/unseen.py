"""What a module's own code does that no graph of it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from bnfold._errors import first_line
from bnfold._torch.module.own_code import beyond_data
from bnfold._torch.read.export import OF_PYTORCH, Calls, key_of


def unseen(
    module: nn.Module, calls: Calls, rank: int, sizes: Mapping[int, int | None]
) -> str | None:
    """What would be lost if a module became the operators that a graph of it shows; None: nothing.

    It would be lost that the module keeps something in attributes or in containers that others
    have, too, and that it chooses its way by the values or sizes of the tensor that it is given, or
    by how the process runs. Of that tensor the ``rank`` is fixed, and the ``sizes`` of some axes.
    """
    if "forward" in module.__dict__:
        return "has a forward of its own, which its class does not know"
    if key_of(module) in calls.writing:
        return "keeps something in its attributes when it runs"
    if (found := beyond_data(module)) is not None:
        return found
    try:
        _Tracer(rank, sizes).trace(module)
    except Exception as error:  # Whatever the code does with a stand-in for its input.
        return f"has code that cannot be followed for every input ({first_line(error)})"
    return None


def state_of(module: nn.Module, calls: Calls) -> tuple[object, ...]:
    """All that a module's code could choose its way by, but for what it is given: modules in which
    this is equal do the same.
    """
    plain = (
        (name, value if isinstance(value, bool | int | float | str | None) else id(value))
        for name, value in module.__dict__.items()
        if name not in OF_PYTORCH
    )
    named = (*module._modules.items(), *module._parameters.items(), *module._buffers.items())
    held = ((name, None if each is None else type(each)) for name, each in named)
    return (type(module), module.training, key_of(module) in calls.writing, *plain, *held)


class _Tracer(fx.Tracer):
    """Follows one module's code for a tensor of which little but the rank is known."""

    trace_asserts = True

    def __init__(self, rank: int, sizes: Mapping[int, int | None]) -> None:
        super().__init__()
        self._known = rank, sizes

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self, *self._known)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _StandIn else super().create_arg(a)


class _StandIn(fx.Proxy):
    """A stand-in for a tensor. Of what is not known it gives a stand-in, too."""

    def __init__(
        self, node: fx.Node, tracer: fx.Tracer, rank: int, sizes: Mapping[int, int | None]
    ) -> None:
        super().__init__(node, tracer)
        self.ndim = rank
        self._sizes = sizes
        self._is_param = False

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What code takes it for that asks whether it was given a tensor."""
        return Tensor

    def dim(self) -> int:
        return self.ndim

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(map(self.size, range(self.ndim)))

    def size(self, axis: int | None = None) -> Any:
        if axis is None:
            return self.shape
        known = self._sizes.get(axis % self.ndim)
        if known is not None:
            return known
        return self.tracer.create_proxy("call_method", "size", (self, axis), {})
