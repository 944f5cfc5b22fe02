"""The graph around an operator, as the readers of single operators may ask about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field

from onnx import NodeProto

from bnfold._core.broadcast import Shape
from bnfold._core.index_maps import Size
from bnfold._core.laws import Law
from bnfold._core.operators.crossed import Crossed
from bnfold._core.operators.record import UNKNOWN, Operand, Operator, Row
from bnfold._core.reasons import Reason, Refusal
from bnfold._onnx.read.attributes import depends_on_call
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.quantized import Dequantized, dequantized
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.read.shapes import Shapes
from bnfold._system.records import record


@record
class Context:
    """One graph, its constants and its shapes.

    ``derived`` has shapes that ONNX's inference does not give, but the record of an operator does:
    the rank of a Conv's output is that of its weight. ``last`` has the size of the last axis of
    tensors whose rank is not known, where the record of an operator does: that of a MatMul is the
    weight's.
    """

    scope: Scope
    constants: Constants
    shapes: Shapes
    derived: dict[str, Shape] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.scope.opset

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor, or None where its rank is not known."""
        known = self.shapes.shape(self.scope, name)
        derived = self.derived.get(name)
        if known is None or derived is None or len(known) != len(derived):
            return known if known is not None else derived
        return tuple(a if a is not None else b for a, b in zip(known, derived, strict=True))

    def size(self, name: str, axis: int) -> int | None:
        """The size of an axis of a tensor, which may be 0; None where it is not known."""
        shape = self.shape(name)
        if shape is None or not 0 <= axis < len(shape):
            return None
        return 0 if self.shapes.is_empty(self.scope, name, axis) else shape[axis]

    def sizes(self, name: str) -> list[Size] | None:
        """The sizes of a tensor's axes, None for an unknown rank. Equal words are equal sizes."""
        shape, symbols = self.shape(name), self.shapes.sizes(self.scope, name)
        if shape is None or symbols is None or len(shape) != len(symbols):
            return None if shape is None else list(shape)
        return [s if n is None else n for n, s in zip(shape, symbols, strict=True)]

    def add(self, name: str, like: Sequence[str]) -> None:
        """Add a new tensor with what follows from the tensors that broadcast to it (ONNX Add)."""
        sizes = [self.sizes(other) for other in like]
        if all(other == sizes[0] for other in sizes[1:]):
            self.shapes.add(self.scope, name, like[0])
            shape = self.shape(like[0])
            if shape is not None:
                self.derived[name] = shape
            return
        shapes = [self.shape(other) for other in like]
        known = [shape for shape in shapes if shape is not None]
        if len(known) == len(like):
            rank = max(map(len, known))
            full = [(1,) * (rank - len(shape)) + shape for shape in known]
            self.derived[name] = tuple(map(_broadcast, zip(*full, strict=True)))

    def type(self, name: str) -> int:
        """The element type of a tensor, 0 where not known."""
        return self.shapes.type(self.scope, name)

    def constant(self, node: NodeProto, position: int) -> Constant | None:
        """The constant at an input, None where there is none."""
        found = self._found(node, position)
        return found if isinstance(found, Constant) else None

    def integers(self, node: NodeProto, position: int) -> list[int] | None:
        """The integers of a constant input that nobody may set; None if absent or not constant."""
        found = self.constant(node, position)
        if found is None or found.protected is not None or len(found.shape) > 1:
            return None
        return [int(value) for value in found.load().reshape(-1)]

    def given(self, node: NodeProto, position: int) -> Constant | None:
        """The constant at an input, None where that is absent.

        Raises `Refusal` where it is computed.
        """
        return _taken(self._found(node, position))

    def parameter(self, node: NodeProto, position: int) -> Constant | None:
        """The floating-point parameter at an input, None where that is absent.

        Raises `Refusal` where it is computed, or where a caller may set it.
        """
        return _taken(self._usable(node, position))

    def operand(self, node: NodeProto, position: int) -> Operand:
        """The parameter at an input, or why there is none."""
        found = self._usable(node, position)
        if isinstance(found, Reason):
            return Operand(position, missing=found)
        if found is not None and found.sparse is not None and len(found.shape) > 1:
            message = f"{found.name} is a sparse tensor, which as a part of another would be none"
            return Operand(position, found, unmerged=Reason("merge-cost", found.name, message))
        return Operand(position, found)

    def weight(self, node: NodeProto, position: int) -> Operand:
        """Like `operand`, for a parameter that may also be stored as integers."""
        found = self._usable(node, position)
        if not isinstance(found, Reason) or found.code != "quantized-weight":
            return self.operand(node, position)
        integers = self.dequantized(node, position)
        if isinstance(integers, Dequantized):
            return Operand(position, integers.weight, None, integers.quantized, found)
        return Operand(position, missing=integers or found)

    def vector(self, node: NodeProto, position: int) -> Constant | None:
        """Like `parameter`, for one that may be stored as integers: its floats are as constant.

        onnxruntime's static quantization stores the γ of a BatchNormalization so.
        """
        found = self.weight(node, position)
        if found.missing is not None:
            raise Refusal(found.missing)
        return found.value if isinstance(found.value, Constant) else None

    def dequantized(self, node: NodeProto, position: int) -> Dequantized | Reason | None:
        """The dequantized constant at an input, or why it cannot change.

        None if no DequantizeLinear writes the input.
        """
        return dequantized(self.constants, self.scope, node.input[position])

    def is_set_by_call(self, name: str) -> bool:
        """Whether each call of the function around may set this constant."""
        position = self.scope.producers.get(name)
        if position is None:
            return False
        node = self.scope.nodes[position]
        return node.op_type == "Constant" and depends_on_call(node)

    def _found(self, node: NodeProto, position: int) -> Constant | Reason | None:
        """The constant at an input, why it is none, or None where the input is absent."""
        if not has(node, position):
            return None
        return self.constants.find(self.scope, node.input[position])

    def _usable(self, node: NodeProto, position: int) -> Constant | Reason | None:
        """Like `_found`, for a floating-point parameter that nobody may set from outside."""
        found = self._found(node, position)
        if not isinstance(found, Constant):
            return found
        if found.protected is not None:
            return overridable(found.protected)
        if not found.is_float:
            return Reason(
                "unsupported-dtype",
                found.name,
                f"{found.name} is not of a floating-point type that can be folded",
            )
        return found


def has(node: NodeProto, position: int) -> bool:
    """Whether a node has an input."""
    return position < len(node.input) and bool(node.input[position])


def overridable(name: str) -> Reason:
    """The reason why a parameter may not change: the caller of the model may set it."""
    message = f"{name} is a parameter that a caller may override"
    return Reason("overridable-weight", name, message)


def _taken(found: Constant | Reason | None) -> Constant | None:
    if isinstance(found, Reason):
        raise Refusal(found)
    return found


# Reads one type of operator.
OnnxRow = Row[[Context, NodeProto]]


def of_one(read: Callable[[Context, NodeProto], Law | None]) -> OnnxRow:
    """The row of an operator that computes with its first input and has a law, if one is known."""

    def operator(context: Context, node: NodeProto) -> Operator:
        law = read(context, node)
        return UNKNOWN if law is None else Crossed(label=label(node), law=law)

    return Row(operator)


def _broadcast(sizes: Sequence[int | None]) -> int | None:
    """The size to which the sizes along one axis broadcast; None if that is not known."""
    larger = [size for size in sizes if size is not None and size > 1]
    if larger:
        return larger[0]
    return 1 if None not in sizes else None
