"""Write the new scales of a weight that is stored as integers, or rounded to them at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

from bnfold._core.quantized import Rescaled
from bnfold._torch.program.draft import set_argument
from bnfold._torch.read.nodes import arguments, kind_of, shape_of, values_read
from bnfold._torch.read.quantized import Dequantized
from bnfold._torch.tensors import Array

Store = Callable[[Node | None, Array, str], Node]
"""Gives the node that holds new values of a constant: its own, or a new one that is named so."""
_PER_CHANNEL = {
    "dequantize_per_tensor": ("quantized_decomposed", "dequantize_per_channel"),
    "quantize_per_tensor": ("quantized_decomposed", "quantize_per_channel"),
    "fake_quantize_per_tensor_affine": ("aten", "fake_quantize_per_channel_affine"),
    "fake_quantize_per_tensor_affine_cachemask": (
        "aten",
        "fake_quantize_per_channel_affine_cachemask",
    ),
}


def rescale(graph: Graph, reader: Node, found: Dequantized, new: Rescaled, store: Store) -> Node:
    """Give the operators between the integers and their ``reader`` a new scale. Gives the weight.

    Operators that others read, too, are copied for this reader. ``found`` is of the graph's nodes.
    """
    rounds = found.quantizer is not None and found.quantizer is not found.node
    first = [found.quantizer] if found.quantizer is not None and rounds else []
    chain = [*first, found.node, *found.path]
    if not all(_is_read_once(node) for node in chain):
        chain = _copied(graph, chain, reader)
    values = new.integers if found.quantizer is None else new.numbers
    if values is not None:
        name = "input" if "input" in arguments(chain[0]) else "self"
        _set(chain[0], name, values, store)
    for node in chain[: len(first) + 1]:
        _write(graph, node, found, new, store)
    return chain[-1]


def _is_read_once(node: Node) -> bool:
    return sum(values_read(user).count(node) for user in node.users) == 1


def _copied(graph: Graph, chain: list[Node], reader: Node) -> list[Node]:
    copies = dict[Node, Node]()
    with graph.inserting_before(reader):
        for node in chain:
            copies[node] = graph.node_copy(node, lambda source: copies.get(source, source))
    return list(copies.values())


def _write(graph: Graph, node: Node, found: Dequantized, new: Rescaled, store: Store) -> None:
    """Write the scale of one operator."""
    if new.axis is None:
        _set(node, found.scale, new.scale, store)
        return
    args, stem, rank = arguments(node), f"{node.name}_scale", len(shape_of(node) or ())
    with graph.inserting_before(node):
        if kind_of(node) == "mul":
            held = args[found.scale] if isinstance(args[found.scale], Node) else None
            values = new.scale.reshape(-1, *(1,) * (rank - 1 - new.axis))
            set_argument(node, found.scale, store(held, values, stem))
            node.target = torch.ops.aten.mul.Tensor
            return
        scale = store(None, new.scale.astype(np.float32), stem)
        zero = found.quantized.zero
        if zero is not None:
            zeros = np.full(new.scale.size, int(zero.load().reshape(-1)[0]), np.int32)
            if kind_of(node) in ("dequantize_per_tensor", "quantize_per_tensor"):
                zeros = zeros.astype(np.int64)
            args["zero_point"] = store(None, zeros, f"{node.name}_zero_point")
    target = node.target
    if "block_size" in args:
        sizes = shape_of(node) or ()
        args["block_size"] = [1 if k == new.axis else size for k, size in enumerate(sizes)]
    else:
        space, name = _PER_CHANNEL[kind_of(node)]
        target = getattr(getattr(torch.ops, space), name).default
    _call(node, target, {**args, "scale": scale, "axis": new.axis})


def _set(node: Node, name: str, values: Array, store: Store) -> None:
    """Give an operator new values of an argument that is a number or a constant."""
    old = arguments(node)[name]
    held = store(old, values, f"{node.name}_{name}") if isinstance(old, Node) else float(values)
    set_argument(node, name, held)


def _call(node: Node, target: Any, given: dict[str, Any]) -> None:
    """Make a node call another operator with the arguments that it has, by name."""
    given = {**given, "scales": given["scale"], "zero_points": given.get("zero_point")}
    asked = target._schema.arguments
    node.target = target
    node.args = tuple(given[each.name] for each in asked if not each.kwarg_only)
    node.kwargs = {each.name: given[each.name] for each in asked if each.kwarg_only}
