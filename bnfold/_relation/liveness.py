"""Which values depend on the inputs, and which channels of them anything reads.

Of the others no difference can show.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope
from bnfold._relation.expressions import Linear
from bnfold._relation.table import Table
from bnfold._run.nodes import reads

_ALIKE = frozenset(
    (
        *("AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu"),
        *("MaxPool", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
    )
)
"""Operators whose channels are made of the same channel of their data."""


def needed(scope: Scope, results: Collection[str]) -> list[NodeProto]:
    """The nodes of a graph that some of its tensors depend on, in order."""
    wanted, found = set(results), list[NodeProto]()
    for node in reversed(scope.nodes):
        if not wanted.isdisjoint(filter(None, node.output[:])):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def varies(table: Table, base: int) -> bool:
    """Whether a base depends on an input of the model, as far as the first file tells.

    ``x − x`` does not, and neither does what is made of it alone.
    """
    made = {
        b: known.inputs
        for each in table.operators.values()
        for known in each
        for b in known.outputs
    }
    for sums in table.sums.values():
        made.update({known.base: [known.expression] for known in sums})
    waiting, seen = [base], {base}
    while waiting:
        current = waiting.pop()
        given = [value for value in made.get(current, ()) if value is not None]
        if not given:  # An input, or random numbers.
            return True
        fresh = {t.base for value in given for t in value.terms if np.any(t.scale)} - seen
        seen |= fresh
        waiting += fresh
    return False


def is_read(table: Table, base: int, channels: Sequence[int], results: Collection[int]) -> bool:
    """Whether one of some channels of a base comes to an output, as the first file tells.

    A channel that only operators with zero weights for it read does not, also behind operators that
    make each channel of one. Through any other operator every channel counts as read. ``results``
    are the bases that the file puts out.
    """
    waiting: list[tuple[int, Sequence[int] | None]] = [(base, channels)]
    seen = {base}
    while waiting:
        current, some = waiting.pop()
        if current in results:
            return True
        found: list[tuple[int, Sequence[int] | None]] = []
        found += [(each, None) for each in _sums_of(table, current, some)]
        for known in itertools.chain.from_iterable(table.operators.values()):
            maps = [v.map for v in known.inputs if v is not None and v.map is not None]
            if any(term.base == current and np.any(term.scale) for term in maps):
                behind = some if known.kind in _ALIKE else None
                found += [(each, behind) for each in known.outputs]
        waiting += [pair for pair in found if pair[0] not in seen]
        seen |= {each for each, _ in found}
    return False


def _sums_of(table: Table, base: int, channels: Sequence[int] | None) -> list[int]:
    """The sums that read some channels of a base, or any; None stands for all channels."""
    return [
        known.base
        for known in itertools.chain.from_iterable(table.sums.values())
        for term in known.expression.terms
        if term.base == base
        and np.any(term.scale)
        and not (term.linear is not None and term.linear.of_shift)
        and (term.linear is None or channels is None or _reads(term.linear, channels))
    ]


def _reads(linear: Linear, channels: Sequence[int]) -> bool:
    """Whether a linear operator has a weight for one of some channels."""
    weights = np.abs(linear.load().astype(np.float64)).max(axis=2)
    size = weights.reshape(linear.group, -1, linear.columns).max(axis=1).reshape(-1)
    if linear.gain is not None:
        size = size * np.abs(linear.gain)
    return any(size[channel] != 0 for channel in channels if channel < size.size)
