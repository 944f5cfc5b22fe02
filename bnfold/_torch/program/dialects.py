"""Programs in the edge dialect of ExecuTorch, as ``to_edge`` makes them, and copies of programs.

They call operators of ATen through objects of ExecuTorch's own (``EdgeOpOverload``), each of which
holds the operator that it stands for. Here such a program becomes one of ATen, which folds and runs
as any other, and what is folded becomes one of the edge dialect again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bnfold._errors import UsageError, first_line
from bnfold._torch.read.nodes import arguments
from bnfold._torch.tensors import deep_copy

_EDGE = "executorch.exir.dialects"
_WINDOWS = {getattr(torch.ops.aten, f"conv{n}d").default: n for n in (1, 2, 3)}
"""Convolutions that a fold may write, by the number of axes of their windows."""


def in_aten(program: ExportedProgram) -> ExportedProgram:
    """A program whose operators are ATen's, and whose nodes have the names by which its signature
    knows them; the program itself if it is so already.

    Tensors and the order of nodes stay.
    """
    names = _misnamed(program)
    if not names and not any(map(_is_edge, _calls(program.graph_module))):
        return program
    module = copied_graph(program)
    for node in module.graph.nodes:
        node.name = names.get(node.name, node.name)
        if node.op == "call_function" and _is_edge(node):
            node.target = node.target._op
    return _program(module, program, None)


def _misnamed(program: ExportedProgram) -> dict[str, str]:
    """The names in the signature of nodes that have others.

    ``copy.deepcopy`` renames a node that hides a Python name, such as "input", in the graph alone.
    """
    signature, graph = program.graph_signature, program.graph
    held = [node for node in graph.nodes if node.op == "placeholder"]
    (given,) = graph.output_node().args
    pairs = [
        *zip(held, signature.input_specs, strict=True),
        *zip(given, signature.output_specs, strict=True),
    ]
    return {
        node.name: name
        for node, spec in pairs
        if isinstance(node, Node) and isinstance(name := getattr(spec.arg, "name", None), str)
        if name and name != node.name
    }


def in_dialect_of(original: ExportedProgram, program: ExportedProgram) -> ExportedProgram:
    """A program of ATen in the dialect of the one that it was made of.

    The edge dialect has one operator for all convolutions. Raises `UsageError` where it does not
    have an operator of the program at all.
    """
    if not any(map(_is_edge, _calls(original.graph_module))):
        return program
    edge = importlib.import_module(f"{_EDGE}._ops").ops.edge
    module = copied_graph(program)
    for node in _calls(module):
        windows = _WINDOWS.get(node.target)
        if windows is not None:
            node.args = _as_convolution(node, windows)
            node.target, node.kwargs = torch.ops.aten.convolution.default, {}
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _found(edge, node.target)
    try:
        return _program(module, program, original.verifiers)
    except Exception as error:  # Whatever ExecuTorch's verifier raises.
        raise UsageError(
            f"the folded program is none of the edge dialect: {first_line(error)}; fold the "
            "exported program, and give what that makes to to_edge"
        ) from error


def _calls(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def _is_edge(node: Node) -> bool:
    """Whether a node calls an operator through ExecuTorch, which need not be imported for that."""
    kind = type(node.target)
    return kind.__name__ == "EdgeOpOverload" and kind.__module__.startswith(_EDGE)


def _found(edge: Any, target: torch._ops.OpOverload) -> Callable[..., Any]:
    """The operator of the edge dialect for one of PyTorch's."""
    found: Any = edge
    for name in (target.namespace, target._schema.name.partition("::")[2], target._overloadname):
        found = getattr(found, name)
    called: Callable[..., Any] = found
    return called


def _as_convolution(node: Node, windows: int) -> tuple[Any, ...]:
    """The arguments of ``aten.convolution`` for a node that calls ``convNd``.

    Both mean the same for a batch: the call of the one may leave out or name what the other has to
    be given in its order.
    """
    given = arguments(node)
    first = [given[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation")]
    return (*first, False, [0] * windows, given["groups"])


def copied_graph(program: ExportedProgram) -> GraphModule:
    """A copy of the graph. Names stay, also those that a copy changes as they hide Python's."""
    module: GraphModule = deep_copy(program.graph_module)
    for old, new in zip(program.graph.nodes, module.graph.nodes, strict=True):
        new.name = old.name
    return module


def _program(module: GraphModule, like: ExportedProgram, verifiers: Any) -> ExportedProgram:
    module.recompile()
    return ExportedProgram(
        module,
        module.graph,
        like.graph_signature,
        like.state_dict,
        like.range_constraints,
        deep_copy(like.module_call_graph),
        like.example_inputs,
        like.constants,
        verifiers=verifiers,
    )
