"""Modules that PyTorch has made of an exported program: ``program.module()``.

Their code calls operators, which do not ask whether the module is in training mode, and ``eval()``
is refused there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnfold._errors import UsageError
from bnfold._torch.read.nodes import free_axes, sizes_in

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


def is_lowered(module: nn.Module) -> bool:
    """Whether a module is one graph of PyTorch's own operators."""
    if not isinstance(module, GraphModule):
        return False
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    if not all(_is_generated(module.get_submodule(path)) for path in called):
        return False
    operators = [node for node in module.graph.nodes if node.op == "call_function"]
    return any(isinstance(node.target, torch._ops.OpOverload) for node in operators)


def _is_generated(part: nn.Module) -> bool:
    """Whether a part is a graph itself, or looks at the sizes of inputs."""
    kind = type(part)
    is_guard = kind.__name__ == "GuardsFn" and kind.__module__.partition(".")[0] == "torch"
    return isinstance(part, GraphModule) or is_guard


def inputs_of(module: GraphModule, args: Any, kwargs: Mapping[str, Any] | None) -> Inputs:
    """The example inputs given, in the order in which the graph takes them; or zeros of the sizes
    that it was made with.

    Raises:
        UsageError: none are given, and the graph tells no sizes.
    """
    if args is not None or kwargs:
        return _in_order(module, (tuple(args or ()), dict(kwargs or {})))
    holders = _holders(module)
    found = [node.meta.get("val") for node in holders]
    examples = [each for each in found if isinstance(each, Tensor)]
    if not examples or len(examples) < len(holders):
        raise UsageError("give example inputs: bnfold.fold(module, (example,))")
    zeros = [torch.zeros(sizes_in(each), dtype=each.dtype, device=each.device) for each in examples]
    spec = _spec(module)
    if spec is None:
        return tuple(zeros), {}
    made = torch.utils._pytree.tree_unflatten(zeros, spec)
    return tuple(made[0]), made[1]


def _in_order(module: GraphModule, given: Inputs) -> Inputs:
    """Inputs with the keys of all dictionaries, and the keywords, in the order of the graph."""
    spec = _spec(module)
    if spec is None:
        return given
    try:
        leaves = spec.flatten_up_to(given)
    except ValueError:  # They do not fit; the graph says how when it runs.
        return given
    made: Inputs = torch.utils._pytree.tree_unflatten(leaves, spec)
    return made


def _spec(module: GraphModule) -> Any:
    """How a graph takes its inputs; None if it takes them one by one."""
    return getattr(module, "_in_spec", None)


def varying_sizes(module: GraphModule, given: Inputs) -> Any:
    """The sizes of inputs that vary in the graph, as ``dynamic_shapes`` of an export; None if none
    does, or what is given does not fit. See `inputs_of` for the order.
    """
    leaves, spec = torch.utils._pytree.tree_flatten(given)
    holders = _holders(module)
    if len(leaves) != len(holders) or _spec(module) not in (None, spec):
        return None
    shapes = [free_axes(node.meta.get("val")) for node in holders]
    if not any(shapes):
        return None
    args, kwargs = torch.utils._pytree.tree_unflatten([each or None for each in shapes], spec)
    return (*args, *kwargs.values())


def _holders(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]
