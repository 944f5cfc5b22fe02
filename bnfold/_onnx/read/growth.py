"""How large the constant is that an operator makes, told before it is made.

A file of some hundred bytes can ask for a constant of any size. What is no larger than what it is
made from is always made; but a Concat of one tensor with itself, over and over, doubles that each
time, so what it is made from is what the file stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read import attributes

Array = NDArray[Any]

LARGEST = 1 << 26
"""So many numbers may be made of fewer."""


_ELEMENTWISE = """
    Add And Clip Div Equal Greater GreaterOrEqual LayerNormalization Less LessOrEqual Max Mean Min
    Mul Or Pow Sub Sum Where Xor
"""
_BROADCAST = frozenset(_ELEMENTWISE.split())


def refuse_huge(node: NodeProto, inputs: Sequence[Array | None], stored: int) -> None:
    """Raise ``ValueError`` if an operator would make many more numbers than it reads.

    ``stored`` is how many numbers those of its inputs have that the file stores, each once.
    """
    given = [values for values in inputs if values is not None]
    count = _padded(node, inputs) if node.op_type == "Pad" else _count(node, given)
    read = stored if node.op_type == "Concat" else sum(values.size for values in given)
    if count > max(LARGEST, read):
        raise ValueError(f"it would have {count} elements")


def _count(node: NodeProto, given: Sequence[Array]) -> int:
    """The number of elements of an operator's output; 0 for one that makes no more than it reads.

    Shapes that do not fit are an error of the operator, and none here.
    """
    kind, shapes = node.op_type, [values.shape for values in given]
    if not given:
        return 0
    if kind == "Concat":
        return sum(values.size for values in given)
    if kind == "ConstantOfShape":
        return _product(given[0])
    if kind == "Range" and len(given) == 3:
        start, limit, delta = (float(values.reshape(-1)[0]) for values in given)
        steps = (limit - start) / delta if delta else 0.0
        return math.ceil(min(max(steps, 0.0), 1e18))
    if kind == "Tile" and len(given) > 1:
        return given[0].size * _product(given[1])
    if kind == "Gather" and len(given) > 1:
        axis = attributes.integer(node, "axis", 0)
        known = -given[0].ndim <= axis < given[0].ndim
        return given[1].size * (given[0].size // max(shapes[0][axis], 1)) if known else 0
    if kind == "GatherND" and len(given) > 1 and given[1].ndim:
        batch = attributes.integer(node, "batch_dims", 0)
        return math.prod((*shapes[1][:-1], *shapes[0][max(batch, 0) + shapes[1][-1] :]))
    if kind == "Gemm" and len(given) > 1:
        flags = (attributes.integer(node, name, 0) for name in ("transA", "transB"))
        one, other = (
            shape[::-1] if turned else shape
            for shape, turned in zip(shapes[:2], flags, strict=True)
        )
        # Of more axes than ONNX allows a dot product is made.
        return _broadcast([(*one[:-1], *other[:-2], *other[-1:]), *shapes[2:3]])
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


def _padded(node: NodeProto, inputs: Sequence[Array | None]) -> int:
    """The number of elements that a Pad makes.

    Its numbers are an input from opset 11; from opset 18 they may be for some axes only.
    """
    data, pads, _, axes = (*inputs, None, None, None)[:4]
    if data is None:
        return 0
    given = [attributes.integers(node, name) for name in ("pads", "paddings")]
    listed = next((one for one in given if one is not None), [])
    more = listed if pads is None else [int(n) for n in pads.reshape(-1)]
    places = range(len(more) // 2) if axes is None else [int(n) for n in axes.reshape(-1)]
    sizes = list(data.shape)
    for axis, before, after in zip(places, more, more[len(more) // 2 :], strict=False):
        if -len(sizes) <= axis < len(sizes):
            sizes[axis] = max(sizes[axis] + before + after, 0)
    return math.prod(sizes)


def _einsum(equation: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of elements that an equation makes.

    Without an arrow it makes the axes of all letters that stand in it once. Axes that an ellipsis
    stands for come out where there is one behind the arrow, or no arrow.
    """
    read, arrow, made = "".join(equation.split()).partition("->")
    sizes: dict[str, int] = {}
    left: list[tuple[int, ...]] = [()]
    for letters, shape in zip(read.split(","), shapes, strict=False):
        first, dots, last = letters.partition("...")
        inner = shape[len(first) : len(shape) - len(last)] if dots else ()
        left.append(inner)
        ends = (*shape[: len(first)], *shape[len(shape) - len(last) :]) if dots else shape
        for letter, size in zip(first + last, ends, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size)
    if not arrow:
        made = "..." + "".join(letter for letter in sizes if read.count(letter) == 1)
    others = _broadcast(left) if "." in made else 1
    return others * math.prod(sizes.get(letter, 1) for letter in made)
