"""Weights stored as integers, or rounded to integers at every call.

A weight is ``(q − z)·s``. An operator dequantizes it (quantized_decomposed, torchao), a factor of a
product is its scale, or a fake quantizer rounds floats and gives floats back.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bnfold._core.quantized import Grid, Quantized, Rounding
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.stored import Array, Parameter
from bnfold._torch.read.constants import Constant, Constants
from bnfold._torch.read.nodes import (
    arguments,
    dtype_of,
    kind_of,
    number_of,
    permuted_from,
    shape_of,
)
from bnfold._torch.tensors import DTYPES

DEQUANTIZERS = (
    "dequantize_per_tensor dequantize_per_channel dequantize_per_channel_group dequantize_affine"
)
QUANTIZERS = "quantize_per_tensor quantize_per_channel quantize_affine"
FAKE = (
    "fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask "
    "fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask"
)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_ROUNDING = "ceil floor round sign trunc"
_KEEPING = "_to_copy _unsafe_view alias clone contiguous detach getitem reshape to view"
"""Operators on the way to a weight that keep its axes, where they keep its shape."""
_NEAR = 2.0**-20
"""How near to the border of two integers, in parts of them, arithmetic may fall to either side."""


@dataclass(frozen=True)
class Number:
    """A number among the arguments of an operator."""

    name: str
    number: float
    shape: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Operators compute with it in float32."""
        return np.dtype(np.float32)

    @property
    def load(self) -> Callable[[], Array]:
        """Its value."""
        return lambda: np.asarray(self.number, self.dtype)


@dataclass(frozen=True)
class _Rounded:
    """The integers that a quantizer rounds floats to."""

    rounding: Rounding
    scale: Array
    zero: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Wide enough for all integers that are rounded to."""
        return np.dtype(np.int64)

    @property
    def name(self) -> str:
        """The name of the floats."""
        return self.rounding.numbers.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Their sizes."""
        return self.rounding.numbers.shape

    @property
    def load(self) -> Callable[[], Array]:
        """Raises `Refusal` where float32 and float64 do not give the same integers."""
        return lambda: self._exactly().astype(self.dtype)

    def _exactly(self) -> Array:
        rounding, numbers = self.rounding, self.rounding.numbers.load()
        quick = np.rint(numbers * (np.float32(1) / self.scale).astype(np.float32))
        exact = np.rint(numbers.astype(np.float64) / self.scale)
        found, other = (
            np.clip(steps.astype(np.float64) + self.zero, rounding.lowest, rounding.highest)
            for steps in (quick, exact)
        )
        if not bool((found == other).all()):
            message = f"a number of {self.name} lies on the border of two integers"
            raise Refusal.of("quantized-weight", self.name, message)
        return np.asarray(found)


class Rounded(Rounding):
    """``clip(round(x/s) + z)`` as PyTorch computes it, in float32, and in float64 the same."""

    def integers(self, numbers: Array, scale: Array, zero: Array) -> Array:
        """The integers of some floats; NaN near the border of two, to which none is to move."""
        with np.errstate(all="ignore"):
            exact = np.divide(numbers, scale, dtype=np.float64)
            border = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
            near = border <= _NEAR * np.maximum(1.0, np.abs(exact))
            found = np.clip(np.rint(exact) + zero, self.lowest, self.highest)
        return np.asarray(np.where(near, np.nan, found))


@dataclass(frozen=True)
class Dequantized:
    """A weight, and what of it may change.

    ``node`` multiplies by the scale, its argument ``scale``. ``quantizer`` rounds floats to the
    integers, if they are not stored; that may be the node itself. ``path`` are the operators from
    the node's output to the weight.
    """

    node: Node
    quantized: Quantized
    path: tuple[Node, ...]
    scale: str
    quantizer: Node | None = None


def dequantized(constants: Constants, weight: Node) -> Dequantized | Reason | None:
    """A constant weight that comes from integers, or why it cannot change; None for others."""
    if not _from_integers(weight):
        return None
    try:
        return _read(constants, weight)
    except Refusal as no:
        return no.reason


def _from_integers(weight: Node) -> bool:
    """Whether a constant holds integers, or is rounded to them.

    Integers are as many as its numbers, or fewer that hold several each. A mask of floats is none.
    """
    size, whole, found = _size(weight), False, False
    for node in _behind(weight):
        kind, dtype = kind_of(node).strip("_"), dtype_of(node)
        if node.op == "call_function" and (kind in _ROUNDING.split() or "quant" in kind):
            return True
        if dtype is None or str(dtype) == "torch.bool" or dtype.is_complex:
            continue
        if dtype in DTYPES:
            stored = node.op == "placeholder"
            stored = stored and not is_traceable_wrapper_subclass(node.meta["val"])
            whole = whole or (stored and _size(node) >= size)
        else:
            found = found or (8 * _size(node) >= size and len(shape_of(node) or ()) > 1)
    return found and not whole


def _behind(node: Node) -> Iterator[Node]:
    """A node and all that it is computed from."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        yield current
        new = [source for source in current.all_input_nodes if source not in seen]
        seen.update(new)
        waiting += new


def _size(node: Node) -> int:
    """How many numbers a constant has."""
    shape = shape_of(node)
    return int(np.prod([n or 0 for n in shape])) if shape is not None else 0


def _read(constants: Constants, weight: Node) -> Dequantized:
    """Raises `Refusal` where the weight cannot change."""
    node, path = weight, list[Node]()
    groups: tuple[tuple[int, ...], ...] | None = None
    order = list(range(len(shape_of(weight) or ())))
    while (kind := kind_of(node)) not in (*DEQUANTIZERS.split(), *FAKE.split(), "mul"):
        turned = permuted_from(node)
        kept = node.op == "call_function" and kind in _KEEPING.split() and _keeps(node)
        if turned is None and not kept and groups is None:
            groups = _merged(node) if kind in _KEEPING.split() else None
            kept = groups is not None
        if not kept and (turned is None or groups is not None):
            raise _refusal(weight, "comes from integers, and by more than a scale")
        path.insert(0, node)
        node = node.all_input_nodes[0]
        if turned is not None:
            order = [turned[1].index(axis) for axis in order]
    if groups is not None and kind != "mul":
        raise _refusal(weight, "comes from integers of another shape")
    found = _product(constants, node, groups) if kind == "mul" else _dequantizer(constants, node)
    quantized = replace(found.quantized, order=tuple(order))
    return replace(found, quantized=quantized, path=tuple(path))


def _keeps(node: Node) -> bool:
    """Whether an operator hands floats on in the shape that they have, or the first of a list."""
    data = node.all_input_nodes[0]
    if node.target is operator.getitem:
        return number_of(node) == 0
    return shape_of(data) == shape_of(node) and {dtype_of(data), dtype_of(node)} <= {*DTYPES}


def _dequantizer(constants: Constants, node: Node) -> Dequantized:
    """An operator that multiplies integers by scales, or a fake quantizer of floats."""
    args = arguments(node)
    data, shape = _data(args), shape_of(_data(args))
    name = "scale" if "scale" in args else "scales"
    if shape is None or None in shape:
        raise _refusal(node, "has no fixed shape")
    grid = _grid(node, args, tuple(n or 0 for n in shape))
    scale = _number_or_constant(constants, node, args[name])
    zeros = args.get("zero_point", args.get("zero_points"))
    zero = None if zeros is None else _number_or_constant(constants, node, zeros)
    quantizer = None
    if kind_of(node) in FAKE.split():
        quantizer = node
    elif data.op == "call_function" and kind_of(data) in QUANTIZERS.split():
        quantizer = _same_scales(constants, data, args, name)
    if quantizer is None:
        integers, rounding = constants.find(data), None
        if isinstance(integers, Reason):
            raise Refusal(integers)
        if dtype_of(data) not in _INTEGERS:
            raise _refusal(node, f"holds {dtype_of(data)}")
        quantized = Quantized(integers, scale, zero, grid, (), True)
        return Dequantized(node, quantized, (), name)
    rounding = _rounding(constants, quantizer)
    sizes = rounding.numbers.shape
    rounded = _Rounded(rounding, _spread(grid, scale, sizes), _spread(grid, zero, sizes))
    rounded.load()  # Raises where it is not the same in all arithmetic.
    quantized = Quantized(rounded, scale, zero, grid, (), True, rounding)
    return Dequantized(node, quantized, (), name, quantizer)


def _spread(grid: Grid, values: Parameter | None, shape: tuple[int, ...]) -> Array:
    """Scales or zero points as they meet the numbers."""
    return np.zeros((1,) * len(shape)) if values is None else grid.spread(values.load(), shape)


def _data(args: dict[str, Any]) -> Node:
    data: Node = args["input" if "input" in args else "self"]
    return data


def _rounding(constants: Constants, node: Node) -> Rounded:
    """What a quantizer does with stored floats."""
    args = arguments(node)
    numbers = _as_it_runs(constants.find(_data(args)))
    low, high = args.get("quant_min"), args.get("quant_max")
    if numbers.torch_dtype is not torch.float32 or low is None or high is None:
        raise _refusal(node, f"rounds {numbers.torch_dtype}, or to unknown integers")
    return Rounded(numbers, int(low), int(high))


def _same_scales(constants: Constants, quantizer: Node, args: dict[str, Any], name: str) -> Node:
    """A quantizer that has the scales of the dequantizer behind it."""
    other = arguments(quantizer)
    zero = "zero_point" if name == "scale" else "zero_points"
    same = all(other.get(each) == args.get(each) for each in ("axis", "block_size"))
    for each in (name, zero):
        one, two = (
            None if a is None else _number_or_constant(constants, quantizer, a)
            for a in (other.get(each), args.get(each))
        )
        same = same and (one is None) == (two is None)
        if one is not None and two is not None:
            same = same and np.array_equal(one.load(), two.load())
    if not same:
        raise _refusal(quantizer, "rounds by other scales")
    return quantizer


def _grid(node: Node, args: dict[str, Any], shape: tuple[int, ...]) -> Grid:
    """Which numbers share a scale."""
    if "block_size" in args:
        spans = [
            n if span == -1 else span for span, n in zip(args["block_size"], shape, strict=True)
        ]
        parts = [axis for axis, span in enumerate(spans) if span != shape[axis]]
        if not parts:
            return Grid()
        if len(parts) == 1 and spans[parts[0]] == 1:
            return Grid(parts[0])
        wide = [axis for axis, span in enumerate(spans) if span != 1]
        if len(wide) != 1:
            raise _refusal(node, "has scales for blocks along several axes")
        return Grid(wide[0], spans[wide[0]])
    if "group_size" in args:
        return Grid(len(shape) - 1, args["group_size"])
    return Grid(args["axis"] % len(shape)) if "axis" in args else Grid()


def _merged(node: Node) -> tuple[tuple[int, ...], ...] | None:
    """For each axis that a view puts out the sizes of the axes that it is made of, which follow
    each other; None where they are not made like that.
    """
    made, read = (shape_of(each) for each in (node, node.all_input_nodes[0]))
    if made is None or read is None or None in (*made, *read):
        return None
    left, groups = [n or 0 for n in reversed(read)], list[tuple[int, ...]]()
    for size in made:
        parts = list[int]()
        while left and (not parts or math.prod(parts) < (size or 0)):
            parts.append(left.pop())
        if math.prod(parts) != size:
            return None
        groups.append(tuple(parts))
    return None if left else tuple(groups)


def _product(
    constants: Constants, node: Node, groups: tuple[tuple[int, ...], ...] | None = None
) -> Dequantized:
    """A product of integers, as floats, and a constant scale, which any number may be.

    The scale varies along one axis, or is one number, and does not repeat the integers. With
    ``groups`` the product's axes are parts of those of the weight (`_merged`): then the scale may
    vary between groups of numbers that follow each other along one of them.
    """
    args, shape = arguments(node), shape_of(node)
    pairs = [("self", "other"), ("other", "self")]
    sides = [p for p in pairs if isinstance(args[p[0]], Node) and _from_integers(args[p[0]])]
    if len(sides) != 1 or shape_of(args[sides[0][0]]) != shape or shape is None:
        raise _refusal(node, "is no product of integers and a scale")
    data, name = args[sides[0][0]], sides[0][1]
    integers, scale = constants.find(data), _number_or_constant(constants, node, args[name])
    if isinstance(integers, Reason):
        raise Refusal(integers)
    laid = (1,) * (len(shape) - len(scale.shape)) + scale.shape
    grid = _laid_grid(laid, groups or tuple((n or 0,) for n in shape))
    if integers.torch_dtype not in (*DTYPES, *_INTEGERS) or grid is None:
        raise _refusal(node, "has scales along several axes, or no integers")
    if groups is not None:
        whole = tuple(map(math.prod, groups))
        given = integers.tensor
        integers = replace(integers, shape=whole, tensor=lambda: given().reshape(whole))
    spreads = groups is None
    quantized = Quantized(integers, scale, None, grid, (), spreads, multiplies=True)
    return Dequantized(node, quantized, (), name)


def _laid_grid(laid: Sequence[int], groups: Sequence[Sequence[int]]) -> Grid | None:
    """Which numbers of a weight share one of the scales that meet the parts of its axes; None where
    no `Grid` says it. It varies along the first parts of an axis, as a whole, or not at all.
    """
    cells, left = list[int](), list(laid)
    for parts in groups:
        sizes = [left.pop(0) for _ in parts]
        first = next((k for k, n in enumerate(sizes) if n == 1), len(sizes))
        if sizes != [*parts[:first], *[1] * len(parts[first:])]:
            return None
        cells.append(math.prod(sizes))
    whole = [math.prod(parts) for parts in groups]
    varying = [axis for axis, n in enumerate(cells) if n > 1]
    if not varying:
        return Grid()
    if len(varying) == 1 and cells[varying[0]] == whole[varying[0]]:
        return Grid(varying[0])
    apart = [axis for axis, n in enumerate(cells) if n != whole[axis]]
    return Grid(apart[0], whole[apart[0]] // cells[apart[0]]) if len(apart) == 1 else None


def _number_or_constant(constants: Constants, node: Node, value: object) -> Parameter:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(node.name, float(value))
    found = _as_it_runs(constants.find(value)) if isinstance(value, Node) else None
    if found is None or found.torch_dtype not in (*DTYPES, *_INTEGERS):
        raise _refusal(node, "has scales that are no numbers")
    return found


def _as_it_runs(found: Constant | Reason) -> Constant:
    """A constant as PyTorch computes it, in its own type. Raises `Refusal`."""
    if isinstance(found, Reason):
        raise Refusal(found)
    return replace(found, exact=None)


def _refusal(node: Node, what: str) -> Refusal:
    return Refusal.of("quantized-weight", node.name, f"{node.name} {what}")
