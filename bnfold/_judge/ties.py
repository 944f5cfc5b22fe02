"""Outputs that are indices of the largest or smallest values. They may differ where values tie.

If the two largest numbers differ by less than rounding, ArgMax may give the index of either. Then
the numbers are compared, not the indices. The numbers of both models have to agree, and the
original's numbers at the two indices have to be equal up to rounding.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from bnfold._run.noise import Array
from bnfold._system.records import record

_CHOOSING = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
# Operators that change neither the elements nor their order.
_KEEPING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@record(frozen=True)
class Choice:
    """Where the indices of an output come from: a tensor, and the axis that is searched.

    ``many`` says whether several elements are chosen along the axis (TopK), or one (ArgMax).
    """

    data: str
    axis: int
    many: bool


def choices(graph: onnx.GraphProto) -> dict[str, Choice]:
    """Return the choices whose indices a graph puts out, by the name of the output.

    Operators that keep the order of elements may follow the choice.
    """
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

    ``data`` is the tensor that the choice searches. ``left`` and ``right`` hold indices in the
    order in which the choice puts them out; both have the same shape. An index outside the data is
    not tied.
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
