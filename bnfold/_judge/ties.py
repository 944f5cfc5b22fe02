"""Indices of the largest or smallest: two models may differ in them where values tie, only there.

ArgMax of two numbers that differ by less than rounding is either. What is compared then are the
numbers: those of the folded model have to be the original's, and the original's numbers at the two
indices have to be as good as equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from bnfold._run.noise import Array

_CHOOSING = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
# What leaves elements as they are and in their order.
_KEEPING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Choice:
    """Where the indices of an output come from: the tensor chosen from, the axis chosen along, and
    whether ``many`` are chosen at each place or one.
    """

    data: str
    axis: int
    many: bool


def choices(graph: onnx.GraphProto) -> dict[str, Choice]:
    """Return, by output, the choice that it is the indices of, through what keeps their order."""
    makers = {name: node for node in graph.node for name in node.output if name}
    found = {}
    for value in graph.output:
        name = value.name
        while name in makers and makers[name].op_type in _KEEPING:
            name = makers[name].input[0]
        node = makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _CHOOSING:
            continue
        if list(node.output).index(name) == _CHOOSING[node.op_type]:
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            many = node.op_type == "TopK"
            axis = int(given.get("axis", -1 if many else 0))
            found[value.name] = Choice(node.input[0], axis, many)
    return found


def tied(choice: Choice, data: Array, left: Array, right: Array, tolerance: float) -> bool:
    """Whether the numbers at two arrays of indices differ by no more than a tolerance.

    ``left`` and ``right`` have one shape and the elements of what the choice puts out, in its
    order; ``data`` is what it chooses from. Indices outside the data are not tied.
    """
    axis = choice.axis % data.ndim
    size = data.shape[axis]
    if not choice.many:
        wanted = (*data.shape[:axis], 1, *data.shape[axis + 1 :])
    else:
        rest = int(np.prod([n for k, n in enumerate(data.shape) if k != axis], dtype=np.int64))
        if not rest or left.size % rest:
            return False
        wanted = (*data.shape[:axis], left.size // rest, *data.shape[axis + 1 :])
    if int(np.prod(wanted, dtype=np.int64)) != left.size:
        return False
    values = []
    for given in (left, right):
        indices = given.astype(np.int64).reshape(wanted)
        if indices.size and (indices.min() < 0 or indices.max() >= size):
            return False
        values.append(np.take_along_axis(data, indices, axis).astype(np.float64))
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values[0] - values[1]) <= tolerance).all())
