"""Attribute values of a node, with the operator's defaults."""

from __future__ import annotations

from onnx import NodeProto


def integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute, or the default where the node does not set it."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def number(node: NodeProto, name: str, default: float) -> float:
    """A float attribute, exactly as stored in float32, or the default."""
    return next((float(a.f) for a in node.attribute if a.name == name), default)


def has(node: NodeProto, name: str) -> bool:
    """Whether the node sets an attribute."""
    return any(a.name == name for a in node.attribute)


def depends_on_call(node: NodeProto) -> bool:
    """Whether an attribute takes its value from the call of the function around the node."""
    return any(a.ref_attr_name for a in node.attribute)
