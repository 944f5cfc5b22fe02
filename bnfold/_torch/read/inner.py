"""Norms where no map is looked for: in code that a program calls, and in operators of others."""

from __future__ import annotations

from collections.abc import Iterator

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bnfold._core.reasons import Reason
from bnfold._core.result import Kept
from bnfold._torch.read.nodes import kind_of

_NORMS = ("batch_norm", "instance_norm")


def is_norm(node: Node) -> bool:
    """Whether an operator is a norm by its name, whoever has defined it."""
    name = str(getattr(node.target, "__name__", node.target))
    return any(norm in name for norm in _NORMS)


def foreign_norm(node: Node, label: str) -> Reason:
    """Why a norm of another library stays."""
    return Reason("unread-code", label, f"{label} is no operator of PyTorch's own")


def inner_norms(program: ExportedProgram) -> tuple[Kept, ...]:
    """The norms in branches and other code that operators of a program call, all of which stay."""
    return tuple(
        Kept(node.name, kind_of(node), reason.code, reason.at, reason.message, reason.advice, "")
        for caller, node in _inside(program.graph_module)
        for reason in [_reason(caller, node)]
    )


def _reason(caller: Node, node: Node) -> Reason:
    where = caller.name
    message = f"{node.name} is in code that {where} calls, where nothing folds"
    return Reason("unread-code", where, message)


def _inside(module: GraphModule) -> Iterator[tuple[Node, Node]]:
    """Each norm in code that operators call, with the operator."""
    for held in module.graph.nodes:
        code = getattr(module, str(held.target), None) if held.op == "get_attr" else None
        if not isinstance(code, GraphModule):
            continue
        for caller in held.users:
            for node in code.graph.nodes:
                if node.op == "call_function" and is_norm(node):
                    yield caller, node
            for _, node in _inside(code):
                yield caller, node
