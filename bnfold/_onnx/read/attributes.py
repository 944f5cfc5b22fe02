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


def integers(node: NodeProto, name: str) -> list[int] | None:
    """A list of integers, or None where the node does not set it."""
    return next(([int(i) for i in a.ints] for a in node.attribute if a.name == name), None)


def numbers(node: NodeProto, name: str) -> list[float] | None:
    """A list of floats, or None where the node does not set it."""
    return next(([float(f) for f in a.floats] for a in node.attribute if a.name == name), None)


def text(node: NodeProto, name: str, default: str) -> str:
    """A string attribute, or the default; bytes that are no text read as an unknown word."""
    found = next((a.s for a in node.attribute if a.name == name), None)
    return default if found is None else found.decode("utf-8", "replace")
