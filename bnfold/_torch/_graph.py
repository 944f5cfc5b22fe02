"""An exported program read into the neutral view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._plan import _view
from bnfold._plan._reasons import Reason
from bnfold._plan._view import View
from bnfold._sites import Reading
from bnfold._torch._constants import Constants
from bnfold._torch._roles import Context, arguments, read_node

# Operators that ask for the shape or the type of a tensor and for none of its values.
_SHAPE_OR_TYPE = ("sym_size", "sym_numel", "sym_stride", "_assert_tensor_metadata")


@dataclass(frozen=True)
class Graph:
    """A program, its view, and for each node of the view the operator and what was read of it."""

    program: ExportedProgram
    constants: Constants
    view: View
    nodes: tuple[Node, ...]
    readings: tuple[Reading, ...]


def read(program: ExportedProgram, module: nn.Module | None) -> Graph:
    """Read a program; ``module`` is what it was exported from, where there is one."""
    constants = Constants(program)
    nodes = tuple(node for node in program.graph.nodes if node.op == "call_function")
    labels = _labels(nodes)
    modules = dict(module.named_modules(remove_duplicate=False)) if module is not None else {}

    def in_training(node: Node) -> bool:
        home = modules.get(path_of(node))
        return home.training if home is not None else bool(arguments(node).get("training", False))

    context = Context(constants, labels.__getitem__, in_training)
    numbers = {node: number for number, node in enumerate(program.graph.nodes)}
    places = {node: place for place, node in enumerate(nodes)}
    readers: dict[Node, list[int]] = {}
    view_nodes, readings = [], []
    for place, node in enumerate(nodes):
        reading, data = read_node(context, node)
        inputs = list(_reads(node))
        if isinstance(data, Node):
            inputs.remove(data)
            inputs.insert(0, data)
        if kind_of(node) not in _SHAPE_OR_TYPE:
            for source in inputs:
                readers.setdefault(source, []).append(place)
        numbered = tuple(numbers[source] for source in inputs)
        view_nodes.append(
            _view.Node(labels[node], kind_of(node), reading.role, numbered, (numbers[node],))
        )
        readings.append(reading)
    pinned = {**_hooked(nodes, modules, labels), **_put_out(program)}
    values = tuple(
        _view.Value(node.name, places.get(node), tuple(readers.get(node, ())), pinned.get(node))
        for node in program.graph.nodes
    )
    return Graph(program, constants, View(tuple(view_nodes), values), nodes, tuple(readings))


def path_of(node: Node) -> str:
    """The innermost module that a node belongs to, "" for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()][-1] if stack else ""


def paths_of(node: Node) -> list[str]:
    """All modules that a node belongs to, innermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()][::-1]


def kind_of(node: Node) -> str:
    """What kind of operator a node is: ``conv2d``, ``batch_norm``."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _reads(node: Node) -> Iterator[Node]:
    found: list[Node] = []

    def note(source: Node) -> Node:
        found.append(source)
        return source

    torch.fx.map_arg((node.args, node.kwargs), note)
    yield from found


def _labels(nodes: tuple[Node, ...]) -> dict[Node, str]:
    """What a user calls each node: its module, with the operator where the module has several."""
    count = Counter(path_of(node) for node in nodes)
    return {
        node: path
        if (path := path_of(node)) and count[path] == 1
        else f"{path}: {node.name}"
        if path
        else node.name
        for node in nodes
    }


def _put_out(program: ExportedProgram) -> dict[Node, Reason]:
    """Why what the program gives back may not change."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    return {
        node: Reason("graph-output", node.name, f"{node.name} is an output of the model")
        for node in output.all_input_nodes
    }


def _hooked(
    nodes: tuple[Node, ...], modules: dict[str, nn.Module], labels: dict[Node, str]
) -> dict[Node, Reason]:
    """Why what a module's hooks get to see may not change: inputs of those with a forward
    pre-hook, inputs and outputs of those with another hook.

    Of a norm, which may itself go, hooks but the first kind see the output alone stay right.
    """
    pinned = {}
    for path, module in modules.items():
        after = bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
        before = (after and not isinstance(module, _BatchNorm | _InstanceNorm)) or any(
            not isinstance(hook, WeightNorm | SpectralNorm)
            for hook in module._forward_pre_hooks.values()
        )
        if not path or not (after or before):
            continue
        inside = {node for node in nodes if path in paths_of(node)}
        reason = Reason("shared-output", path, f"a hook on {path} sees it")
        for node in nodes:
            leaves = node in inside and any(user not in inside for user in node.users)
            enters = node not in inside and any(user in inside for user in node.users)
            if (after and leaves) or (before and enters):
                pinned[node] = reason
    return pinned
