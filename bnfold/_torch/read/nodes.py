"""What single nodes of an exported program say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bnfold._core.broadcast import Shape
from bnfold._core.index_maps import Size

# Operators that ask for the shape or the type of a tensor and for none of its values.
SHAPE_OR_TYPE = ("sym_size", "sym_numel", "sym_stride", "_assert_tensor_metadata")


def kind_of(node: Node) -> str:
    """What kind of operator a node is: ``conv2d``, ``batch_norm``."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema.arguments, node.args, strict=False)})
    bound.update(node.kwargs)
    return bound


def reads_of(node: Node) -> Iterator[Node]:
    """The tensors that a node reads, once for each read."""
    yield from _nodes_in((node.args, node.kwargs))


def places(node: Node) -> dict[str, tuple[int, ...]]:
    """Which of the tensors that an operator reads, by number, each of its arguments is."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    found, count = {}, 0
    for name, value in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        start, count = count, count + len(_nodes_in(value))
        found[name] = tuple(range(start, count))
    return found


def _nodes_in(value: Any) -> list[Node]:
    found: list[Node] = []

    def note(source: Node) -> Node:
        found.append(source)
        return source

    torch.fx.map_arg(value, note)
    return found


def is_tensor(node: Node) -> bool:
    """Whether a node puts out one tensor, not a list of them."""
    return isinstance(node.meta.get("val"), Tensor)


def parts_of(node: Node) -> tuple[Node, ...]:
    """What is taken from a list and used."""
    return tuple(user for user in node.users if user.users)


def number_of(part: Node) -> int:
    """Which element of a list a getitem takes."""
    number = part.args[1]
    assert isinstance(number, int)
    return number


def rank_of(node: Node) -> int:
    """The number of axes of what a node puts out."""
    shape = shape_of(node)
    assert shape is not None
    return len(shape)


def listed(value: object) -> list[int]:
    """An argument that is one number for all axes, or one for each."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]


def shape_of(value: object) -> Shape | None:
    """The sizes of what a node puts out, None for those that may change from call to call."""
    sizes = sizes_of(value)
    if sizes is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in sizes)


def sizes_of(value: object) -> tuple[Size, ...] | None:
    """The sizes of what a node puts out, each as a number or as the expression that gives it."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(example, Tensor):
        return None
    sizes: Sequence[object] = example.shape
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def dtype_of(value: object) -> torch.dtype | None:
    """The element type of what a node puts out."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    return example.dtype if isinstance(example, Tensor) else None
