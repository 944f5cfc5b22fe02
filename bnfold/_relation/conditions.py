"""Booleans that follow from sizes, such as the condition of an If that asks for a rank.

They are kept beside the integers, as 0 and 1. An amount is compared where the answer is the same
for all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import NodeProto, TensorProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.amounts import Size, are_equal
from bnfold._relation.integers import KINDS, Integers, Numbers, in_pairs, read_all

_EVERYWHERE = 7
"""From this opset on, operators on two tensors broadcast them as NumPy does."""


def follow(held: Integers, scope: Scope, node: NodeProto) -> bool:
    """Whether a node computes booleans from sizes alone, or integers from these; they are noted."""
    kind = type_of(node)
    if not node.output or not node.output[0] or any(node.output[1:]):
        return False
    try:
        made = _cast(held, scope, node) if kind == "Cast" else _logic(held, scope, node)
    except (IndexError, ValueError):  # An invalid node.
        return False
    if made is None:
        return False
    held.found[scope.path, node.output[0]] = made
    return True


def _cast(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    """A Cast between booleans and integers: all numbers but 0 are true."""
    before, after = (held.side.shapes.type(scope, n) for n in (node.input[0], node.output[0]))
    data = held.of_names(scope, node.input[0])
    if data is None or TensorProto.BOOL not in (before, after):
        return None
    if any(each not in (*KINDS, TensorProto.BOOL) for each in (before, after)):
        return None
    if not all(isinstance(value, int) for value in data.values):
        return None  # A size may be 0.
    return Numbers(tuple(int(value != 0) for value in data.values), data.is_scalar)


def _logic(held: Integers, scope: Scope, node: NodeProto) -> Numbers | None:
    rule = _RULES.get(type_of(node))
    read = read_all(held, scope, node) if rule is not None else None
    if rule is None or read is None or not read:
        return None
    if len(read) > 1 and scope.opset < _EVERYWHERE:
        return None
    pairs = in_pairs(read)
    if pairs is None:
        return None
    answers = [rule(values) for values in pairs[0]]
    known = tuple(int(answer) for answer in answers if answer is not None)
    return Numbers(known, pairs[1]) if len(known) == len(answers) else None


def _equal(values: Sequence[Size]) -> bool | None:
    one, other = values
    return are_equal(one, other)


def _of_numbers(rule: Callable[[int, int], bool]) -> Callable[[Sequence[Size]], bool | None]:
    """An answer about two integers that are both known."""

    def answer(values: Sequence[Size]) -> bool | None:
        one, other = values
        return rule(one, other) if isinstance(one, int) and isinstance(other, int) else None

    return answer


def _negated(values: Sequence[Size]) -> bool | None:
    (value,) = values
    return not value if isinstance(value, int) else None


_RULES: dict[str, Callable[[Sequence[Size]], bool | None]] = {
    "And": _of_numbers(lambda one, other: bool(one and other)),
    "Equal": _equal,
    "Greater": _of_numbers(lambda one, other: one > other),
    "GreaterOrEqual": _of_numbers(lambda one, other: one >= other),
    "Less": _of_numbers(lambda one, other: one < other),
    "LessOrEqual": _of_numbers(lambda one, other: one <= other),
    "Not": _negated,
    "Or": _of_numbers(lambda one, other: bool(one or other)),
    "Xor": _of_numbers(lambda one, other: bool(one) != bool(other)),
}
