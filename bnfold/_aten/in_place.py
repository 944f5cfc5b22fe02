"""Operators that write into what they are given, and mean no more than what they give back.

``relu_(x)`` is ``relu(x)`` where nobody reads the memory of x by an older name afterwards: not by
x, nor by a view of it, nor from outside the program. Memory counts as shared where it may be.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

_COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd
_FRESH = frozenset(
    (
        *("batch_norm", "group_norm", "instance_norm", "layer_norm", "linear", "matmul"),
        *("gru", "log_softmax", "lstm", "prelu", "relu6", "rms_norm", "rnn_relu", "rnn_tanh"),
        *("scaled_dot_product_attention", "selu", "softmax", "square"),
        *(f"max_pool{n}d" for n in (1, 2, 3)),
        *(f"adaptive_avg_pool{n}d" for n in (1, 2, 3)),
        *(f"conv{n}d" for n in (1, 2, 3)),
        *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    )
)
"""Operators that are composed of others, and whose results are always in memory of their own."""


def is_changing(node: Node) -> bool:
    """Whether an operator writes into what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def twin(node: Node) -> torch._ops.OpOverload | None:
    """The operator that gives back what a writing one does, and writes nowhere; None without one.

    That is one of ATen which writes into its first argument alone, and gives that back.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    schema = target._schema
    name = schema.name.partition("::")[2]
    written = [each.name for each in schema.arguments if each.alias_info is not None]
    if not name.endswith("_") or name.startswith("_") or len(schema.returns) != 1:
        return None
    if written != [schema.arguments[0].name] or schema.returns[0].alias_info is None:
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    found = getattr(packet, target._overloadname, None)
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        return None
    names = [[each.name for each in one.arguments] for one in (schema, found._schema)]
    return found if names[0] == names[1] else None


def is_plain(graph: Graph) -> bool:
    """Whether all operators of a graph that write mean their twins."""
    nodes = list(graph.nodes)
    writing = [node for node in nodes if node.op == "call_function" and is_changing(node)]
    if not writing:
        return True
    order = {node: place for place, node in enumerate(nodes)}
    homes = _homes(nodes)
    for node in writing:
        source = node.args[0] if node.args else None
        if twin(node) is None or not isinstance(source, Node):
            return False
        others = _nodes_in((node.args[1:], node.kwargs))
        home = _home(homes, source)
        if any(_home(homes, each) is home for each in others):
            return False
        for held in nodes[: order[node]]:
            if _home(homes, held) is not home:
                continue
            if held.op != "call_function" or any(order[user] > order[node] for user in held.users):
                return False
    return True


def untold(graph: Graph) -> Node | None:
    """An operator that may give back memory into which something writes, without saying so.

    PyTorch takes what it gives back for memory of its own. None where there is no such operator.
    """
    nodes = list(graph.nodes)
    homes = _homes(nodes)
    writing = [node for node in nodes if node.op == "call_function" and is_changing(node)]
    written = {_home(homes, source) for node in writing for source in node.all_input_nodes}
    calls: list[Node] = [node for node in nodes if node.op == "call_function"]
    touched = (node for node in calls if _home(homes, node) in written)
    return next((node for node in touched if set(_kept(node)) - set(_told(node))), None)


def _homes(nodes: Iterable[Node]) -> dict[Node, Node]:
    """For each node one that stands for all that may have some memory in common."""
    homes: dict[Node, Node] = {}
    places: dict[int, Node] = {}
    for node in nodes:
        for tensor in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                memory: int = tensor.untyped_storage()._cdata
                _join(homes, places.setdefault(memory, node), node)
        if node.op == "call_function":
            for source in _kept(node):
                _join(homes, source, node)
    return homes


def _kept(node: Node) -> list[Node]:
    """What an operator may give back, or a view of it."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = target._schema.name.partition("::")[2]
        if name in _FRESH or not target.has_kernel_for_dispatch_key(_COMPOSED):
            return _told(node)
    return node.all_input_nodes  # Of operators that are composed of others no schema tells.


def _told(node: Node) -> list[Node]:
    """What an operator gives back, or a view of it, as its schema says."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.all_input_nodes if target is operator.getitem else []
    schema = target._schema
    names = [each.name for each in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    kept = [each.name for each in schema.arguments if each.alias_info is not None]
    return _nodes_in([given.get(name) for name in kept])


def _nodes_in(value: object) -> list[Node]:
    return [each for each in pytree.tree_leaves(value) if isinstance(each, Node)]


def _home(homes: dict[Node, Node], node: Node) -> Node:
    while (up := homes.setdefault(node, node)) is not node:
        homes[node] = homes[up]
        node = up
    return node


def _join(homes: dict[Node, Node], one: Node, other: Node) -> None:
    homes[_home(homes, other)] = _home(homes, one)
