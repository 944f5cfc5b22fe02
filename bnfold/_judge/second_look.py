"""A second look at outputs that differ by more than they may.

Indices of the largest or smallest may differ where the values tie. And where sums of large numbers
cancel, the original itself may be the one that is off, and where one operator sums what several did
its float32 arithmetic may be: float64 decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold._judge.comparison import UNSETTLED, Comparison, Settled, Trial
from bnfold._judge.difference import distance, gaps, is_float, mismatch
from bnfold._judge.double import Float64Model
from bnfold._judge.ties import Choice, choices, tied
from bnfold._judge.verdict import OutputCheck
from bnfold._run.noise import Array
from bnfold._run.session import EngineError
from bnfold._run.source import Source, Tap

ARITHMETIC = 10.0
"""How many times the tolerance float32 arithmetic may put a folded model off whose weights are
right."""


def reconsidered(comparison: Comparison, checks: Sequence[OutputCheck]) -> list[OutputCheck]:
    """The checks of a comparison, those that fail, or that rounding alone may fail, looked at once
    more.
    """
    truths: dict[int, list[list[Any]]] = {}
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
    comparison: Comparison, number: int, check: OutputCheck, truths: dict[int, list[list[Any]]]
) -> OutputCheck:
    """A failing check of an output, held against the original in float64.

    It passes where the folded model is within the tolerance of that. It passes too where the folded
    model in float64 is, so that its weights are right, and float32 arithmetic puts it off by no
    more than ``ARITHMETIC`` times as much: a sum of many products rounds at each of them, where the
    original added one small number in the end. A tolerance that the user has chosen is about the
    original as it is.
    """
    at, trial = comparison.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if comparison.settings.fixed is not None or mismatch(left, right) or not is_float(left):
        return check
    if at[0] not in truths:
        comparison.progress("running both models in float64")
        sources = comparison.pair.original, comparison.pair.folded
        truths[at[0]] = [_in_float64(comparison, source, trial) for source in sources]
    wanted, made = truths[at[0]]
    if not wanted:
        return check
    truth = wanted[at[1]]
    sides = [np.asarray(side, np.float64) for side in (left, right)]
    if any(mismatch(truth, side) for side in sides):
        return check
    ours, theirs = (distance(truth, side) for side in sides)
    note = f"next to float64 the original is off by {ours:.2e}, the folded model by {theirs:.2e}"
    tolerance = comparison.tolerance

    def ratio(side: Array) -> float:
        return tolerance.held(at, left, gaps(truth, side)).ratio

    if (off := ratio(sides[1])) > 1.0:
        agree = bool(made) and not mismatch(truth, made[at[1]])
        if not agree or ratio(made[at[1]]) > 1.0 or off > ARITHMETIC:
            return replace(check, note=note)
        blame = "in float64 the two agree: "
    else:
        blame = "the original is the inaccurate one: " if theirs < ours else ""
    comparison.inaccurate.add(at)
    return replace(check, status="pass", note=blame + note)


def _in_float64(comparison: Comparison, source: Source, trial: Trial) -> list[Any]:
    """What a model gives in float64; nothing where that is not known."""
    try:
        return Float64Model(source, comparison.bounds).run(trial.inputs.feeds)
    except EngineError:
        return []


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
