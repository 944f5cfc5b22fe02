"""Which channels of a value anything reads: of the others no difference can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold._relation.table import Table


def is_read(table: Table, base: int, channels: Sequence[int]) -> bool:
    """Whether one of some channels of a base is read, as the first file tells.

    A channel that only operators with zero weights for it read is not. Through an operator that is
    not linear every channel counts as read.
    """
    readers = [
        term.linear
        for sums in table.sums.values()
        for known in sums
        for term in known.expression.terms
        if term.base == base and term.linear is not None and not term.linear.of_shift
    ]
    others = any(
        term.base == base and (term.linear is None)
        for sums in table.sums.values()
        for known in sums
        for term in known.expression.terms
    ) or any(
        value is not None and value.map is not None and value.map.base == base
        for operators in table.operators.values()
        for known in operators
        for value in known.inputs
    )
    if others or not readers:
        return True
    for linear in readers:
        weights = np.abs(linear.load().astype(np.float64)).max(axis=2)
        per_group = weights.reshape(linear.group, -1, linear.columns).max(axis=1).reshape(-1)
        if linear.gain is not None:
            per_group = per_group * np.abs(linear.gain)
        if any(per_group[channel] > 0 for channel in channels if channel < per_group.size):
            return True
    return False
