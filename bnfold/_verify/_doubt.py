"""A second look at outputs that differ by more than they may.

Indices of the largest or smallest may differ where the values tie. And where sums of large numbers
cancel, the original itself may be the one that is off: float64 decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold._verify._comparison import UNSETTLED, Comparison, Settled
from bnfold._verify._difference import distance, is_float, mismatch
from bnfold._verify._session import EngineError
from bnfold._verify._source import Tap
from bnfold._verify._ties import Choice, choices, tied
from bnfold._verify._verdict import OutputCheck
from bnfold._verify._wide import Wide


def reconsidered(comparison: Comparison, checks: Sequence[OutputCheck]) -> list[OutputCheck]:
    """The checks of a comparison, those that fail, or that rounding alone may fail, looked at once
    more.
    """
    truths: dict[int, list[Any]] = {}
    ours, theirs = (
        choices(side.proto().graph) for side in (comparison.pair.original, comparison.pair.folded)
    )
    result = []
    for number, check in enumerate(checks):
        doubtful = check.status == "fail" or check.note == UNSETTLED
        if doubtful and check.output in ours and check.output in theirs:
            check = _where_tied(comparison, number, check, ours[check.output], theirs[check.output])
        elif check.status == "fail" and not comparison.is_ahead(check.output):
            check = _with_truth(comparison, number, check, truths)
        result.append(check)
    return result


def _with_truth(
    comparison: Comparison, number: int, check: OutputCheck, truths: dict[int, list[Any]]
) -> OutputCheck:
    """A failing check of an output, held against the original in float64.

    It passes where the folded model is within the tolerance of that. A tolerance that the user has
    chosen is about the original as it is.
    """
    at, trial = comparison.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if comparison.settings.fixed is not None or mismatch(left, right) or not is_float(left):
        return check
    if at[0] not in truths:
        comparison.progress("running the original in float64")
        try:
            wide = Wide(comparison.pair.original, comparison.bounds)
            truths[at[0]] = wide.run(trial.inputs.feeds)
        except EngineError:
            truths[at[0]] = []
    if not truths[at[0]]:
        return check
    truth = truths[at[0]][at[1]]
    sides = [np.asarray(side, np.float64) for side in (left, right)]
    if any(mismatch(truth, side) for side in sides):
        return check
    ours, theirs = (distance(truth, side) for side in sides)
    note = f"next to float64 the original is off by {ours:.2e}, the folded model by {theirs:.2e}"
    if theirs > comparison.tolerance.allowed(at, left):
        return replace(check, note=note)
    comparison.inaccurate.add(at)
    blame = "the original is the inaccurate one: " if theirs < ours else ""
    return replace(check, status="pass", note=blame + note)


def _where_tied(
    comparison: Comparison, number: int, check: OutputCheck, ours: Choice, theirs: Choice
) -> OutputCheck:
    """A failing check of indices. It stands as that of what they are chosen from does, where the
    original's values at the two indices are no further apart than both may be off.
    """
    at, trial = comparison.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if mismatch(left, right) or left.dtype.kind not in "iu":
        return check
    alias = f"what {check.output} is chosen from"
    pair = comparison.pair.tapped([Tap(ours.data, alias)], [Tap(theirs.data, alias)])
    inner = Comparison(pair, comparison.settings, comparison.bounds, comparison.progress)
    try:
        (seen,) = inner.judge([trial.inputs])
    except Settled:
        return check
    (data,) = inner.trials[0].original
    allowed = 2 * inner.tolerance.allowed((0, 0), data)
    if seen.status == "fail" or not tied(ours, data, left, right, allowed):
        return check
    note = f"other indices where the values tie; {seen.note}".rstrip("; ")
    return replace(check, status=seen.status, note=note)
