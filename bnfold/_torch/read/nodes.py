"""What single nodes of an exported program say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
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
