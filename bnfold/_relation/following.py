"""Operators that are one with the operator whose result they read.

A Where behind a Not takes its two sides the other way. A Cast behind one to a type that holds all
numbers of its data is a Cast of these. Of two Clips, or a Clip and a Relu, the bounds are those of
the second, and of the first as the second leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import NodeProto, TensorProto, helper

from bnfold._onnx import tensors
from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._relation import cores
from bnfold._relation.cores import Core
from bnfold._relation.expressions import Expression
from bnfold._relation.joining import Joining
from bnfold._system.records import record

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_SMALL = (*_FLOATS, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SIGNED = (TensorProto.INT16, TensorProto.INT32, TensorProto.INT64)
WIDER: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT16: _FLOATS,
    TensorProto.BFLOAT16: _FLOATS,
    TensorProto.FLOAT: (TensorProto.DOUBLE,),
    TensorProto.BOOL: (*_SMALL, *_SIGNED, TensorProto.INT8, TensorProto.UINT8),
    TensorProto.INT8: (*_SMALL, *_SIGNED),
    TensorProto.UINT8: (*_SMALL, *_SIGNED),
    TensorProto.INT16: (*_FLOATS, *_SIGNED[1:]),
    TensorProto.INT32: (TensorProto.DOUBLE, TensorProto.INT64),
}
"""The types that hold all numbers of a type."""


@record(eq=False)
class Following(Joining):
    """The tensors of one file, and what operators ahead have made of them."""

    def followed(self, scope: Scope, node: NodeProto) -> bool:
        """Whether an operator is done with that is one with the operator ahead."""
        rule = _RULES.get(type_of(node))
        value = self.value(scope, node.input[0]) if rule is not None and node.input else None
        if rule is None or value is None or value.map is None or not value.is_base:
            return False
        return rule(self, scope, node, value.map.base)

    def note_behind(self, node: NodeProto, core: Core, made: Expression) -> None:
        """Note what operators behind this one may be one with."""
        data, own, table = core.given[0] if core.given else None, made.map, self.found.table
        if data is None or own is None or not made.is_base:
            return
        kind = type_of(core.node)
        if type_of(node) == "Not":
            table.nots.setdefault(own.base, data)
        elif kind == "Relu":
            table.clips.setdefault(own.base, (data, 0.0, float("inf")))
        elif kind == "Clip" and len(core.numbers) == 2:
            table.clips.setdefault(own.base, (data, core.numbers[0], core.numbers[1]))

    def _instead(
        self, scope: Scope, node: NodeProto, data: Expression, kind: int, others: Sequence[str] = ()
    ) -> NodeProto:
        """The operator with other data, of an element type, which the file may not have."""
        name = f"\0data of {node.output[0]}"
        rank = self.side.rank(scope, node.input[0])
        unknown = None if rank is None else (None,) * rank
        sizes = self.side.shapes.sizes(scope, node.input[0]) or unknown
        if sizes is not None:
            self._hide(scope, name, sizes)  # type: ignore[arg-type]
        else:
            scope.inputs.add(name)
        self.side.shapes.types[scope.path, name] = kind
        self.give(scope, name, data)
        made = NodeProto(op_type=node.op_type, name=label(node), output=node.output)
        made.input.extend([name, *others])
        made.attribute.extend(node.attribute)
        return made


def _where(held: Following, scope: Scope, node: NodeProto, base: int) -> bool:
    """``Where(not c, a, b)`` is ``Where(c, b, a)``."""
    inner = held.found.table.nots.get(base)
    if inner is None or len(node.input) != 3:
        return False
    others = [node.input[2], node.input[1]]
    held.node(scope, held._instead(scope, node, inner, TensorProto.BOOL, others))
    return True


def _not(held: Following, scope: Scope, node: NodeProto, base: int) -> bool:
    """Not of Not is none."""
    inner = held.found.table.nots.get(base)
    if inner is not None:
        held.give(scope, node.output[0], inner)
    return inner is not None


def _cast(held: Following, scope: Scope, node: NodeProto, base: int) -> bool:
    """A Cast of numbers that were cast to a type which holds them all.

    Outside of the range of an integer type, floats are cut in no way that is told. So an integer is
    made of floats only where it holds all numbers that there may be.
    """
    before, after = (held.side.shapes.type(scope, n) for n in (node.input[0], node.output[0]))
    for kind in WIDER:
        inner = held.found.table.widened.get((base, kind))
        if inner is None or kind == after:
            continue
        is_cut = bool({kind, before} & tensors.FLOATS) and after not in _UNCUT
        if after not in _NUMBERS or (is_cut and after not in WIDER[kind]):
            return False
        held.node(scope, held._instead(scope, node, inner, kind))
        return True
    return False


def _clip(held: Following, scope: Scope, node: NodeProto, base: int) -> bool:
    """``clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d), clip(b, c, d))`` for a ≤ b, c ≤ d."""
    before, kind = held.found.table.clips.get(base), held.side.shapes.type(scope, node.input[0])
    own = cores.bounds(held.side, scope, node)
    if before is None or own is None or kind != TensorProto.FLOAT:
        return False
    (data, *first), (low, high) = before, own
    if not (first[0] <= first[1] and low <= high):
        return False
    both = [min(max(bound, low), high) for bound in first]
    if both == first:
        held.give(scope, node.output[0], held.value(scope, node.input[0]) or data)
        return True
    made = held._instead(scope, _as_clip(node), data, kind)
    del made.attribute[:]
    bounds = zip(("min", "max"), both, strict=True)
    made.attribute.extend(helper.make_attribute(name, bound) for name, bound in bounds)
    held.node(scope, made)
    return True


def _as_clip(node: NodeProto) -> NodeProto:
    """A Clip in the place of a Relu."""
    return NodeProto(op_type="Clip", name=label(node), input=node.input[:1], output=node.output)


_NUMBERS = frozenset((*WIDER, TensorProto.DOUBLE, TensorProto.INT64))
_UNCUT = frozenset((*tensors.FLOATS, TensorProto.BOOL))
_RULES: dict[str, Callable[[Following, Scope, NodeProto, int], bool]] = {
    "Cast": _cast,
    "Clip": _clip,
    "Not": _not,
    "Relu": _clip,
    "Where": _where,
}
