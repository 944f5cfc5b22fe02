"""How large the constant is that an operator makes, told before it is made.

A file of some hundred bytes can ask for a constant of any size. What is no larger than what it is
made from is always made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read import attributes

Array = NDArray[Any]

_LARGEST = 1 << 26
"""So many numbers may be made of fewer."""


_ELEMENTWISE = """
    Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or Pow Sub Sum Where
    Xor
"""
_BROADCAST = frozenset(_ELEMENTWISE.split())


def refuse_huge(node: NodeProto, inputs: Sequence[Array | None]) -> None:
    """Raise ``ValueError`` if an operator would make many more numbers than it reads."""
    given = [values for values in inputs if values is not None]
    count = _count(node, given)
    if count > max(_LARGEST, sum(values.size for values in given)):
        raise ValueError(f"it would have {count} elements")


def _count(node: NodeProto, given: Sequence[Array]) -> int:
    """The number of elements of an operator's output; 0 for one that makes no more than it reads.

    Shapes that do not fit are an error of the operator, and none here.
    """
    kind, shapes = node.op_type, [values.shape for values in given]
    if not given:
        return 0
    if kind == "ConstantOfShape":
        return _product(given[0])
    if kind == "Range" and len(given) == 3:
        start, limit, delta = (float(values.reshape(-1)[0]) for values in given)
        steps = (limit - start) / delta if delta else 0.0
        return math.ceil(min(max(steps, 0.0), 1e18))
    if kind == "Tile" and len(given) > 1:
        return given[0].size * _product(given[1])
    if kind == "Pad":
        pads = given[1] if len(given) > 1 else np.asarray(attributes.integers(node, "pads") or ())
        more = pads.reshape(-1).tolist()
        ends = zip(shapes[0], more[: len(more) // 2], more[len(more) // 2 :], strict=False)
        return math.prod(size + before + after for size, before, after in ends)
    if kind == "Gather" and len(given) > 1:
        axis = attributes.integer(node, "axis", 0)
        known = -given[0].ndim <= axis < given[0].ndim
        return given[1].size * (given[0].size // max(shapes[0][axis], 1)) if known else 0
    if kind == "MatMul" and len(given) > 1 and min(map(len, shapes)) > 1:
        return _broadcast([(*shapes[0][:-1], 1), (*shapes[1][:-2], 1, shapes[1][-1])])
    if kind == "Einsum":
        return _einsum(attributes.text(node, "equation", ""), shapes)
    if kind == "Expand" and len(given) > 1:
        return _broadcast([shapes[0], tuple(int(size) for size in given[1].reshape(-1))])
    return _broadcast(shapes) if kind in _BROADCAST else 0


def _product(sizes: Array) -> int:
    return math.prod(max(int(size), 0) for size in sizes.reshape(-1))


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of elements that shapes broadcast to; 0 where they do not."""
    rank = max(map(len, shapes))
    full = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return math.prod(max(sizes) for sizes in zip(*full, strict=True))


def _einsum(equation: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of elements that an equation makes; 0 for one that leaves axes without letters."""
    read, arrow, made = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for letters, shape in zip(read.split(","), shapes, strict=False):
        sizes |= dict(zip(letters, shape, strict=False))
    if not arrow or "." in equation:
        return 0
    return math.prod(sizes.get(letter, 1) for letter in made)
