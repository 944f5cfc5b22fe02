"""Which channels of a value anything reads: of the others no difference can show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from bnfold._relation.expressions import Linear
from bnfold._relation.table import Table

_ALIKE = frozenset(
    (
        *("AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu"),
        *("MaxPool", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
    )
)
"""Operators whose channels are made of the same channel of their data."""


def is_read(table: Table, base: int, channels: Sequence[int], results: Collection[int]) -> bool:
    """Whether one of some channels of a base is read, as the first file tells.

    A channel that only operators with zero weights for it read is not, also behind operators that
    make each channel of one. Through any other operator every channel counts as read. ``results``
    are the bases that the file puts out.
    """
    waiting, seen = [base], set[int]()
    while waiting:
        current = waiting.pop()
        if current in results:
            return True
        seen.add(current)
        for linear in _readers(table, current):
            if linear is None or _reads(linear, channels):
                return True
        for operators in table.operators.values():
            for known in operators:
                read = [v.map.base for v in known.inputs if v is not None and v.map is not None]
                if current not in read:
                    continue
                if known.kind not in _ALIKE:
                    return True
                waiting += [each for each in known.outputs if each not in seen]
    return False


def _readers(table: Table, base: int) -> list[Linear | None]:
    """The operators that read a base in sums; None for a sum that has the base itself."""
    return [
        term.linear
        for sums in table.sums.values()
        for known in sums
        for term in known.expression.terms
        if term.base == base and (term.linear is None or not term.linear.of_shift)
    ]


def _reads(linear: Linear, channels: Sequence[int]) -> bool:
    """Whether a linear operator has a weight for one of some channels."""
    weights = np.abs(linear.load().astype(np.float64)).max(axis=2)
    size = weights.reshape(linear.group, -1, linear.columns).max(axis=1).reshape(-1)
    if linear.gain is not None:
        size = size * np.abs(linear.gain)
    return any(size[channel] != 0 for channel in channels if channel < size.size)
