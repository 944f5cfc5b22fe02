"""Operators on transposed data, as operators on the data and a Transpose behind them.

``f(T·x) = T·f(x)`` for an f that goes number by number, and for one along axes if it goes along
those that T puts there. So a Transpose may stand on either side: it is put behind. Of several data
the first one known is taken as it is, and the others are transposed the other way:
``f(T·x, y) = T·f(x, T⁻¹·y)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onnx import NodeProto, helper

from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._relation import roots
from bnfold._relation.expressions import Expression
from bnfold._relation.integers import ranges
from bnfold._relation.moving import Moving
from bnfold._relation.places import place_of
from bnfold._relation.side import attributes
from bnfold._system.records import record

Order = tuple[int, ...]
POINTWISE = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal"),
        *("Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
        *("HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max"),
        *("Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow"),
        *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus"),
        *("Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
    )
)
"""Operators that go number by number, and broadcast their data from the last axis on."""
_OF_PRODUCTS = ("Gemm", "com.microsoft::FusedMatMul")


class Turned(NamedTuple):
    """A tensor as a Transpose of another one: axis n is axis ``order[n]``."""

    name: str
    value: Expression
    order: Order


@record(eq=False)
class Turning(Moving):
    """The tensors of one file, some of which are others transposed."""

    def node(self, scope: Scope, node: NodeProto) -> None:
        """Go through an operator."""
        raise NotImplementedError

    def untransposed(self, scope: Scope, node: NodeProto) -> bool:
        """Whether an operator reads transposed data and is done with, as the module says."""
        rule = _axes_of(scope, node)
        if rule is None or len(node.output) != 1 or scope.opset < 7:
            return False
        read = self._read(scope, node)
        if read is None:
            return False
        first = min((each for each in read if each), key=lambda e: (e.value.terms[0].base, e.order))
        order = first.order
        if order == tuple(range(len(order))):
            return False
        changed = rule(self, scope, node, order)
        if changed is None:
            return False
        back = tuple(order.index(axis) for axis in range(len(order)))
        names = list(node.input)
        for place, each in enumerate(read):
            if each is not None:
                left = tuple(each.order[axis] for axis in back)
                names[place] = self._turned_as(scope, node, place, each, left, back)
        name = f"\0{node.output[0]} ahead of a Transpose"
        self._hide_like(scope, name, node.output[0], back)
        inner = NodeProto(op_type=node.op_type, name=label(node), input=names, output=[name])
        inner.attribute.extend(a for a in node.attribute if a.name not in changed)
        inner.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items() if v != ())
        if "axes" in changed:
            del inner.input[1:]
        self.node(scope, inner)
        data = self.closed(scope, name)
        assert data is not None
        self._transpose(scope, node, name, node.output[0], order)
        return True

    def _read(self, scope: Scope, node: NodeProto) -> list[Turned | None] | None:
        """What an operator reads; None where that is a constant that has no axes.

        None if nothing is transposed, and for data of several ranks.
        """
        found: list[Turned | None] = []
        ranks: set[int] = set()
        is_of_all = node.op_type in POINTWISE or node.op_type == "Concat"
        names = [*node.input] if is_of_all else [*node.input[:1]]
        if not any(self._is_turned(scope, name) for name in names):
            return None  # What is a sum yet stays one.
        for name in names:
            value = self.closed(scope, name) if name else None
            if value is None:
                constant = self.side.constant(scope, name) if name else None
                if name and (constant is None or constant.shape not in ((), (1,))):
                    return None
                found.append(None)
                continue
            turn = None if value.map is None else self.found.table.turns.get(value.map.base)
            rank = self.side.rank(scope, name) if turn is None else len(turn[1])
            if value.map is None or rank is None:
                return None
            ranks.add(rank)
            order = tuple(range(rank)) if turn is None else turn[1]
            found.append(Turned(name, value, order))
        if len(ranks) != 1 or all(e is None or _is_whole(e.order) for e in found):
            return None
        # What is transposed is told by its own data, with its scale and shift where these were.
        return [None if each is None else self._ahead(each) for each in found]

    def _is_turned(self, scope: Scope, name: str) -> bool:
        value = self.value(scope, name)
        term = None if value is None else value.map
        return term is not None and term.base in self.found.table.turns

    def _ahead(self, each: Turned) -> Turned:
        """The data of a Transpose in place of what it puts out."""
        term = each.value.map
        if term is None or _is_whole(each.order):
            return each
        back = tuple(each.order.index(axis) for axis in range(len(each.order)))
        root = self.found.table.turns[term.base][0]
        return each._replace(value=roots.transposed(each.value, root, back))

    def _turned_as(
        self, scope: Scope, node: NodeProto, place: int, each: Turned, order: Order, back: Order
    ) -> str:
        """The name of a tensor that the file does not have: data in another order of axes."""
        name = f"\0{place} of {node.output[0]} ahead of a Transpose"
        self._hide_like(scope, name, each.name, back)
        if _is_whole(order):
            self.give(scope, name, each.value)
            return name
        data = f"{name}, as it is"
        self._hide_like(
            scope, data, each.name, tuple(each.order.index(axis) for axis in range(len(order)))
        )
        self.give(scope, data, each.value)
        self._transpose(scope, node, data, name, order)
        return name

    def _transpose(self, scope: Scope, node: NodeProto, data: str, name: str, order: Order) -> None:
        """A Transpose that the file does not have."""
        made = NodeProto(op_type="Transpose", name=label(node), input=[data], output=[name])
        made.attribute.append(helper.make_attribute("perm", order))
        self.node(scope, made)

    def _hide_like(self, scope: Scope, name: str, like: str, order: Order) -> None:
        """A tensor that the file does not have: the sizes of another one in an order."""
        shapes = self.side.shapes
        sizes = shapes.sizes(scope, like) or (None,) * len(order)
        self._hide(scope, name, tuple(sizes[axis] for axis in order))  # type: ignore[misc]
        shapes.types[scope.path, name] = shapes.type(scope, like)

    def product(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a Gemm or FusedMatMul is done with that reads a transposed operand.

        The last two axes are exchanged; of a constant operand they are as they are. Ahead of a
        vector onnxruntime exchanges nothing: nothing is made of that.
        """
        if type_of(node) not in _OF_PRODUCTS or len(node.input) < 2:
            return False
        given = attributes(node)
        if any(given.get(key, 0) for key in ("transBatchA", "transBatchB")):
            return False
        names, left = list(node.input), []
        ranks = [self.side.rank(scope, name) for name in names[:2]]
        if type_of(node) != "Gemm" and not (ranks[1] or 0) > 1:
            return False
        for place, key in enumerate(("transA", "transB")):
            if not given.get(key, 0):
                continue
            rank = ranks[place]
            if self.side.floats(scope, names[place]) is not None or rank is None or rank < 2:
                left.append(key)
                continue
            order = (*range(rank - 2), rank - 1, rank - 2)
            name = f"\0operand {place} of {node.output[0]}"
            self._hide_like(scope, name, names[place], order)
            self._transpose(scope, node, names[place], name, order)
            names[place] = name
        if names == list(node.input) or (left and type_of(node) != "Gemm"):
            return False
        kind = "Gemm" if type_of(node) == "Gemm" else "MatMul"
        inner = NodeProto(op_type=kind, name=label(node), input=names, output=node.output)
        kept = ("alpha", "beta", *left) if kind == "Gemm" else ()
        inner.attribute.extend(a for a in node.attribute if a.name in kept)
        self.node(scope, inner)
        return True


def _is_whole(order: Order) -> bool:
    return order == tuple(range(len(order)))


Changed = dict[str, int | tuple[int, ...]]
Rule = Callable[[Turning, Scope, NodeProto, Order], Changed | None]


def _axes_of(scope: Scope, node: NodeProto) -> Rule | None:
    """How the attributes of an operator change with the axes of its data; None for others."""
    kind = type_of(node)
    if kind in POINTWISE:
        return lambda *_: {}
    if kind.startswith("Reduce"):
        return _of_reduction
    if kind == "Slice":
        return _of_slice
    if kind in ("Softmax", "LogSoftmax") and scope.opset < 13:
        return None
    if kind in ("ArgMax", "ArgMin") and not attributes(node).get("keepdims", 1):
        return None  # It is two operators, one of which keeps them.
    default = {"ArgMax": 0, "ArgMin": 0, "Softmax": -1, "LogSoftmax": -1, "Concat": 1}.get(kind)
    return None if default is None else _along(default)


def _along(default: int) -> Rule:
    def rule(_: Turning, scope: Scope, node: NodeProto, order: Order) -> Changed | None:
        axis = attributes(node).get("axis", default)
        return {"axis": order[axis]} if -len(order) <= axis < len(order) else None

    return rule


def _of_reduction(held: Turning, scope: Scope, node: NodeProto, order: Order) -> Changed | None:
    """The axes of a reduction that keeps them."""
    place = place_of(held.integers, scope, node)
    if not isinstance(place, tuple) or not place[2]:
        return None
    axes: Sequence[int] = place[1]
    return {"axes": tuple(sorted(order[axis] for axis in axes))}


def _of_slice(held: Turning, scope: Scope, node: NodeProto, order: Order) -> Changed | None:
    """The axes of ranges that are numbers."""
    found = ranges(held.integers, scope, node)
    if found is None or not all(isinstance(each, int) for row in found for each in row):
        return None
    if not found or any(not -len(order) <= row[2] < len(order) for row in found):
        return None
    starts, ends, axes, steps = zip(*found, strict=True)
    moved = tuple(order[axis] for axis in axes)
    return {"starts": starts, "ends": ends, "axes": moved, "steps": steps}
