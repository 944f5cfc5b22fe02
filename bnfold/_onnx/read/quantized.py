"""Weights stored as integers behind a DequantizeLinear, or rounded to integers ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from bnfold._core.broadcast import Shape
from bnfold._core.quantized import Grid, Quantized, Rounding, Sharing
from bnfold._core.reasons import Reason, Refusal
from bnfold._onnx.read import attributes
from bnfold._onnx.read.constants import Constant, Constants, agree
from bnfold._onnx.read.scopes import DEQUANTIZERS, QUANTIZERS, Scope, label
from bnfold._system.records import record

MADE_BYTES = 1 << 28
"""How large dequantized weights may be, all together, where they are needed as floats."""
_PER_AXIS = 13
"""The first opset of ONNX in which scales may lie along an axis; in onnxruntime's own domain they
always may.
"""
_INTEGERS = {
    getattr(TensorProto, name): limits
    for name, limits in {
        "INT2": (-2, 1),
        "UINT2": (0, 3),
        "INT4": (-8, 7),
        "UINT4": (0, 15),
        "INT8": (-128, 127),
        "UINT8": (0, 255),
        "INT16": (-(1 << 15), (1 << 15) - 1),
        "UINT16": (0, (1 << 16) - 1),
    }.items()
    if hasattr(TensorProto, name)
}
"""The types that QuantizeLinear rounds to, with their smallest and largest numbers."""


@record(frozen=True)
class Quantizer:
    """The QuantizeLinear at ``position`` that rounds the floats of a weight, and its scale and zero
    point.
    """

    position: int
    numbers: Constant
    scale: Constant
    zero: Constant | None


@record(frozen=True)
class Dequantized:
    """A weight as its operator sees it, and what of it may change.

    ``position`` is the position of the DequantizeLinear in its graph's nodes, ``zero`` its zero
    point. ``integers`` are what it reads, where they are stored; where they are rounded at every
    run, ``quantizer`` does that.
    """

    weight: Constant
    quantized: Quantized
    scale: Constant
    zero: Constant | None
    position: int
    integers: Constant | None
    quantizer: Quantizer | None = None


def dequantized(constants: Constants, scope: Scope, name: str) -> Dequantized | Reason | None:
    """The output of a DequantizeLinear of constants, or why it cannot change.

    The output is ``(q − z)·s``, with s and z per tensor, per position of an axis, or per block
    (ONNX DequantizeLinear; onnxruntime's own is the same, without blocks). The integers q are
    stored, or a QuantizeLinear rounds stored floats to them, as quantization-aware training writes
    it; a Clip may stand between the two. Transpose and Identity may follow. None if another
    operator writes the name. What operators of the same graph read changes for all of them or for
    none, or is copied (`Quantized.sharing`); what others read on the way there cannot change.
    """
    try:
        return _Reader(constants, scope).read(name)
    except Refusal as no:
        return no.reason


class _Reader:
    """Reads one weight. Its methods raise `Refusal` where that cannot change."""

    def __init__(self, constants: Constants, scope: Scope) -> None:
        self.constants = constants
        self.scope = scope

    def read(self, name: str) -> Dequantized | None:
        orders: list[list[int] | None] = []
        tensor = name
        while True:
            node = self.scope.writer(tensor)
            kind = self.scope.kind(node)
            if kind in DEQUANTIZERS:
                break
            if kind not in ("Identity", "Transpose") or attributes.depends_on_call(node):
                return None
            if node.op_type == "Transpose":
                orders.append(attributes.integers(node, "perm"))
            tensor = node.input[0]
        position = self.scope.producers[tensor]
        found = self._dequantized(name, tensor, node, position, orders)
        for between in self._between(name, tensor):
            if between != name:
                self._refuse_shared(between, node)
        readers = self.scope.readers.get(name, ())
        if len(readers) < 2 or name in self.scope.captures or name in self.scope.outputs:
            self._refuse_shared(name, node)
            return found
        alone = name == tensor and found.quantizer is None
        labels = tuple(label(self.scope.nodes[one]) for one in readers)
        sharing = Sharing(name, labels, node.op_type if alone else "")
        return replace(found, quantized=replace(found.quantized, sharing=sharing))

    def _between(self, name: str, tensor: str) -> Iterator[str]:
        """The tensors from a weight back to the output of its DequantizeLinear."""
        yield name
        while name != tensor:
            name = self.scope.nodes[self.scope.producers[name]].input[0]
            yield name

    def _dequantized(
        self,
        name: str,
        tensor: str,
        node: NodeProto,
        position: int,
        orders: list[list[int] | None],
    ) -> Dequantized:
        where = label(node)
        scale, zero = self._scale_and_zero(node, tensor)
        stored = self.constants.find(self.scope, node.input[0])
        quantizer, rounding = None, None
        spreads = _per_axis(node, self.scope.opset)
        if isinstance(stored, Reason):
            quantizer, rounding, stored = self._rounded(node, scale, zero)
            spreads &= _per_axis(self.scope.nodes[quantizer.position], self.scope.opset)
        self._refuse_protected(stored)
        grid = grid_of(node, self.scope.opset, stored.shape, scale, zero)
        order = tuple(range(len(stored.shape)))
        for perm in reversed(orders):
            turned = tuple(reversed(range(len(order)))) if perm is None else tuple(perm)
            if sorted(turned) != sorted(order):
                raise Refusal.of("quantized-weight", where, f"{name} is transposed otherwise")
            order = tuple(order[k] for k in turned)
        quantized = Quantized(stored, scale, zero, grid, order, spreads, rounding)
        weight = Constant(
            name,
            tuple(stored.shape[k] for k in order),
            scale.data_type,
            lambda: quantized.values(scale.dtype),
        )
        integers = stored if quantizer is None else None
        return Dequantized(weight, quantized, scale, zero, position, integers, quantizer)

    def _scale_and_zero(self, node: NodeProto, tensor: str) -> tuple[Constant, Constant | None]:
        """The scale and the zero point of a QuantizeLinear or DequantizeLinear."""
        parts: list[Constant | None] = [None, None]
        for number, source in enumerate(node.input[1:3]):
            found = self.constants.find(self.scope, source) if source else None
            if isinstance(found, Reason):
                message = f"{tensor} is dequantized at run time"
                raise Refusal.of("quantized-weight", label(node), message)
            if found is not None:
                self._refuse_protected(found)
                parts[number] = found
        scale, zero = parts
        if scale is None or not scale.is_float:
            raise Refusal(_unlike(node))
        return scale, zero

    def _rounded(
        self, node: NodeProto, scale: Constant, zero: Constant | None
    ) -> tuple[Quantizer, Rounding, Constant]:
        """What rounds floats to the integers that a DequantizeLinear reads, and these integers.

        Only float32: of narrower types runtimes divide in different ways. Its scale and zero point
        must be those of the DequantizeLinear.
        """
        where, name = label(node), node.input[0]
        bounds: list[int] = []
        rounder = self.scope.writer(name)
        if self.scope.kind(rounder) == "Clip":
            self._refuse_shared(name, node)
            bounds, name = self._bounds(rounder), rounder.input[0]
            rounder = self.scope.writer(name)
        numbers = self.constants.find(self.scope, rounder.input[0]) if rounder.input else None
        if self.scope.kind(rounder) not in QUANTIZERS or not isinstance(numbers, Constant):
            message = f"{node.input[0]} is computed at run time"
            raise Refusal.of("dynamic-weight", where, message)
        self._refuse_shared(name, node)
        self._refuse_protected(numbers)
        theirs, other = self._scale_and_zero(rounder, name)
        if not _same(scale, theirs) or not _same(zero, other):
            message = f"{label(rounder)} rounds by other numbers than {where} multiplies with"
            raise Refusal.of("quantized-weight", where, message)
        grid = grid_of(node, self.scope.opset, numbers.shape, scale, zero)
        if grid_of(rounder, self.scope.opset, numbers.shape, theirs, other) != grid:
            raise Refusal(_unlike(rounder))
        kind = other.data_type if other else attributes.integer(rounder, "output_dtype", 0)
        kind = kind or TensorProto.UINT8
        plain = numbers.data_type == scale.data_type == TensorProto.FLOAT
        precise = attributes.integer(rounder, "precision", 0) in (0, TensorProto.FLOAT)
        if kind not in _INTEGERS or not plain or not precise:
            message = f"how {label(rounder)} rounds depends on the runtime"
            raise Refusal.of("quantized-weight", where, message)
        lowest, highest = _INTEGERS[kind]
        if bounds:
            lowest, highest = max(lowest, bounds[0]), min(highest, bounds[1])
        rounding = Rounding(numbers, lowest, highest)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))

        def rounded(floats: NDArray[Any], by: NDArray[Any]) -> NDArray[np.generic]:
            zeros = other.load() if other is not None else np.zeros(theirs.shape)
            steps = grid.spread(by, numbers.shape)
            laid = grid.spread(zeros.astype(np.float64), numbers.shape)
            return rounding.integers(floats, steps, laid).astype(dtype)

        def load() -> NDArray[np.generic]:
            return rounded(numbers.load(), theirs.load())

        if not agree(rounded, numbers, theirs):
            message = (
                f"{label(rounder)} may round to other integers where an engine adds up otherwise"
            )
            raise Refusal.of("dynamic-weight", label(rounder), message)
        integers = Constant(node.input[0], numbers.shape, kind, load)
        position = self.scope.producers[name]
        return Quantizer(position, numbers, theirs, other), rounding, integers

    def _bounds(self, node: NodeProto) -> list[int]:
        """The bounds of a Clip of integers, which are inputs."""
        found = [self.constants.find(self.scope, name) if name else None for name in node.input[1:]]
        bounds = [one for one in found if isinstance(one, Constant) and not one.protected]
        if len(found) != 2 or len(bounds) != 2 or any(one.shape != () for one in bounds):
            raise Refusal(_unlike(node))
        return [int(one.load()) for one in bounds]

    def _refuse_shared(self, name: str, node: NodeProto) -> None:
        """Raise `Refusal` where more than one operator reads a tensor."""
        if not self.scope.is_read_once(name):
            message = f"{name} is also read by someone else"
            raise Refusal.of("quantized-weight", label(node), message)

    def _refuse_protected(self, constant: Constant) -> None:
        """Raise `Refusal` where a caller may set a constant."""
        name = constant.protected
        if name is not None:
            message = f"{name} is a parameter that a caller may override"
            raise Refusal.of("overridable-weight", name, message)


def grid_of(
    node: NodeProto, opset: int, shape: Shape, scale: Constant, zero: Constant | None
) -> Grid:
    """Which numbers of a tensor share a scale and a zero point. Sizes of it may not be known.

    One number is for the whole tensor, if its shape is ``[]`` or ``[1]``. The attribute ``axis``
    then means nothing: its default of 1 may lie outside the axes of a bias. From opset 13 several
    numbers are one for each position of ``axis``; with ``block_size``, from opset 21, one for each
    block of so many positions of it. Raises `Refusal` for shapes that ONNX does not allow, and for
    a type that is not that of the scale.
    """
    shapes = [scale.shape] if zero is None else [scale.shape, zero.shape]
    if attributes.depends_on_call(node):
        raise Refusal(_unlike(node))
    if node.op_type == "DequantizeLinear" and attributes.integer(node, "output_dtype", 0) not in (
        0,
        scale.data_type,
    ):
        message = f"{label(node)} puts out another type than its scale's"
        raise Refusal.of("quantized-weight", label(node), message)
    block = attributes.integer(node, "block_size", 0)
    if not block and all(known in ((), (1,)) for known in shapes):
        return Grid()
    axis, rank = attributes.integer(node, "axis", 1), len(shape)
    if not _per_axis(node, opset) or block < 0 or not -rank <= axis < rank:
        raise Refusal(_unlike(node))
    grid = Grid(axis % rank, block or None)
    sizes = tuple(size for size in shape if size is not None)
    if block and len(sizes) < rank:
        raise Refusal(_unlike(node))
    wanted = grid.cells(sizes) if block else (shape[axis],)
    if any(known != wanted and (wanted != (None,) or len(known) != 1) for known in shapes):
        raise Refusal(_unlike(node))
    return grid


def _per_axis(node: NodeProto, opset: int) -> bool:
    """Whether the scales of a QuantizeLinear or DequantizeLinear may lie along an axis."""
    return node.domain == "com.microsoft" or opset >= _PER_AXIS


def _unlike(node: NodeProto) -> Reason:
    where = label(node)
    return Reason("quantized-weight", where, f"the scale of {where} is not one per channel")


def _same(one: Constant | None, other: Constant | None) -> bool:
    """Whether two scales, or two zero points, are the same; a missing zero point is 0."""
    if one is None or other is None:
        given = one or other
        return given is None or not given.load().any()
    return one.shape == other.shape and np.array_equal(one.load(), other.load())


def is_weight(constants: Constants, scope: Scope, node: NodeProto) -> bool:
    """Whether a DequantizeLinear reads integers that are the same at every run: stored ones, or
    stored floats that a QuantizeLinear rounds, whatever else forbids that they change.
    """
    name = node.input[0]
    for kinds in (("Clip", *QUANTIZERS), QUANTIZERS, ()):
        if isinstance(constants.find(scope, name), Constant):
            return True
        writer = scope.writer(name)
        if scope.kind(writer) not in kinds or not writer.input:
            return False
        name = writer.input[0]
    return False


def spread_zero(
    node: NodeProto, size: int, axis: int, zero: NDArray[np.generic] | None
) -> NDArray[np.generic] | None:
    """Make a QuantizeLinear or DequantizeLinear of one scale one with a scale for each position of
    an axis.

    Gives the zero points that it then needs; None if it has no zero point.
    """
    for attribute in [a for a in node.attribute if a.name == "axis"]:
        node.attribute.remove(attribute)
    node.attribute.add(name="axis", type=2, i=axis)
    return None if zero is None else np.full((size,), zero.reshape(-1)[0])
