"""Inputs for a module without example inputs, from a symbolic trace and the module's layers.

The trace shows that the module's code does not depend on values of its inputs, and which layers
read them first. Inputs that fit these layers are made up. Their sizes prove nothing. So a map is
folded only if its module accepts a single number of dimensions, such as BatchNorm2d.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from bnfold._core.laws import Mixed
from bnfold._core.pointwise import Homogeneous
from bnfold._core.reasons import Reason
from bnfold._core.view import Carrier, Crossing
from bnfold._errors import UsageError, first_line
from bnfold._plan.planner import Move
from bnfold._torch.read.export import check, quiet, refuse_pruned
from bnfold._torch.read.graph import Graph, path_of

_ASK = "give example inputs: bnfold.fold(module, (example,))"
_CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
_SIZES = (64, 224, 32, 28, 8, 299, 128, 256, 16, 4, 1)
_ONE_RANK = (nn.BatchNorm2d, nn.BatchNorm3d)


def made_up(module: nn.Module) -> tuple[Tensor, ...]:
    """Inputs on which a module in eval mode runs. Raises `UsageError` if none can be made up."""
    check(module)
    refuse_pruned(module)
    try:
        traced = torch.fx.symbolic_trace(module)
    except Exception as error:  # Whatever the module's code does with a stand-in for its input.
        raise UsageError(
            f"{type(module).__name__} cannot be traced without inputs ({first_line(error)}): {_ASK}"
        ) from error
    holders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    layers = [_first_layer(traced, node) for node in holders]
    if not holders or None in layers:
        raise UsageError(
            f"what {type(module).__name__} takes cannot be told from its layers: {_ASK}"
        )
    for size in _SIZES:
        inputs = tuple(_input(layer, size) for layer in layers if layer is not None)
        if _runs(traced, inputs):
            return inputs
    raise UsageError(f"no size of input was found that {type(module).__name__} takes: {_ASK}")


def unsure(graph: Graph, module: nn.Module, moves: Sequence[Move]) -> Mapping[int, Reason]:
    """The reasons why moves may be wrong for inputs of other sizes or ranks, by move number."""
    found = {}
    for number, move in enumerate(moves):
        for index in move.maps:
            home = module.get_submodule(path_of(graph.nodes[index]))
            if not isinstance(home, _ONE_RANK):
                label = graph.view.nodes[index].label
                message = f"without example inputs it is not known how many dimensions {label} sees"
                found[number] = Reason("unknown-shape", label, message)
        passed = next((node for node in move.crossed if not _is_certain(graph, node)), None)
        if passed is not None or (move.law == "carry" and not move.ends):
            label = graph.view.nodes[move.maps[0] if passed is None else passed].label
            message = f"without example inputs it is not known what {label} does to maps"
            found[number] = Reason("unknown-shape", label, message)
    return found


def _is_certain(graph: Graph, index: int) -> bool:
    """Whether the way of maps across an operator is the same for all sizes.

    It is for elementwise operators of one tensor, and for pools, which take one number of
    dimensions.
    """
    role = graph.view.nodes[index].role
    if isinstance(role, Carrier):
        return True
    assert isinstance(role, Crossing)
    return isinstance(role.law, Homogeneous) or (
        isinstance(role.law, Mixed) and "pool" in graph.view.nodes[index].op
    )


def _first_layer(traced: GraphModule, node: Node) -> nn.Module | None:
    """The convolution or linear layer that an input reaches first, past elementwise modules."""
    seen, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop(0).users:
            layer = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
            if type(layer) in _CONVOLUTIONS or isinstance(layer, nn.Linear):
                return layer
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return None


def _input(layer: nn.Module, size: int) -> Tensor:
    """Zeros that a layer takes: a batch of two, and the given size along every spatial axis."""
    weight = next(layer.parameters())
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, layer.in_features)
    else:
        channels = layer.in_channels
        assert isinstance(channels, int)
        shape = (2, channels, *itertools.repeat(size, _CONVOLUTIONS[type(layer)]))
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)


def _runs(traced: GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a module runs on inputs of these shapes, tried without computing anything."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with quiet("torch._subclasses.fake_tensor"), mode, torch.no_grad():
        try:
            traced(*(mode.from_tensor(tensor) for tensor in inputs))
        except Exception:  # Any complaint of any layer: not these shapes.
            return False
    return True
