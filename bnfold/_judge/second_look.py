"""A second look at outputs that differ by more than they may.

Indices of the largest or smallest may differ where the values tie. And where sums of large numbers
cancel, the original itself may be the one that is off, and where one operator sums what several did
its float32 arithmetic may be: float64 decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnfold._judge.bench import Bench, Settled, Terms
from bnfold._judge.comparison import Compared, run_and_compare
from bnfold._judge.difference import distance, gaps, is_float, mismatch
from bnfold._judge.ties import Choice, tied
from bnfold._judge.verdict import Cause, OutputCheck
from bnfold._run.noise import Array

ARITHMETIC = 10.0
"""How many times the tolerance float32 arithmetic may put a folded model off whose weights are
right."""


def reconsidered(bench: Bench, terms: Terms, compared: Compared) -> Compared:
    """What was compared, the checks that fail, or that rounding alone may fail, looked at once
    more.
    """
    doubtful = [_is_doubtful(check) for check in compared.checks]
    if not any(doubtful):
        return compared
    truths: dict[int, tuple[list[Any], list[Any]]] = {}
    choices = bench.choices()
    checks, inaccurate = [], set[tuple[int, int]]()
    for number, check in enumerate(compared.checks):
        if doubtful[number] and check.output in choices:
            check = _where_tied(bench, terms, compared, number, choices[check.output])
        elif check.status == "fail" and check.output not in bench.ahead:
            found = _with_truth(bench, terms, compared, number, truths)
            if found.status == "pass":
                inaccurate.add(compared.of(number)[0])
            check = found
        checks.append(check)
    return replace(compared, checks=checks, inaccurate=frozenset(inaccurate))


def _is_doubtful(check: OutputCheck) -> bool:
    return check.status == "fail" or check.cause is Cause.ROUNDING_ALONE


def _with_truth(
    bench: Bench,
    terms: Terms,
    compared: Compared,
    number: int,
    truths: dict[int, tuple[list[Any], list[Any]]],
) -> OutputCheck:
    """A failing check of an output, held against the original in float64.

    It passes where the folded model is within the tolerance of that. It passes too where the folded
    model in float64 is, so that its weights are right, and float32 arithmetic puts it off by no
    more than ``ARITHMETIC`` times as much: a sum of many products rounds at each of them, where the
    original added one small number in the end. A tolerance that the user has chosen is about the
    original as it is.
    """
    check, (at, trial) = compared.checks[number], compared.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if terms.settings.fixed is not None or mismatch(left, right) or not is_float(left):
        return check
    if at[0] not in truths:
        terms.progress("running both models in float64")
        truths[at[0]] = bench.in_float64(trial.inputs)
    wanted, made = truths[at[0]]
    if not wanted:
        return check
    truth = wanted[at[1]]
    sides = [np.asarray(side, np.float64) for side in (left, right)]
    if any(mismatch(truth, side) for side in sides):
        return check
    about = tuple(distance(truth, side) for side in sides)
    tolerance = compared.measured.tolerance

    def ratio(side: Array) -> float:
        return tolerance.held(at, left, gaps(truth, side)).ratio

    if (off := ratio(sides[1])) > 1.0:
        agree = bool(made) and not mismatch(truth, made[at[1]])
        if not agree or ratio(made[at[1]]) > 1.0 or off > ARITHMETIC:
            return replace(check, cause=Cause.NEXT_TO_FLOAT64, about=about)
        cause = Cause.ARITHMETIC
    else:
        ours, theirs = about
        cause = Cause.ORIGINAL_INACCURATE if theirs < ours else Cause.NEXT_TO_FLOAT64
    return replace(check, status="pass", cause=cause, about=about)


def _where_tied(
    bench: Bench, terms: Terms, compared: Compared, number: int, choice: Choice
) -> OutputCheck:
    """A failing check of indices. It stands as that of what they are chosen from does, where the
    original's values at the two indices are no further apart than both may be off.
    """
    check, (at, trial) = compared.checks[number], compared.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if mismatch(left, right) or left.dtype.kind not in "iu":
        return check
    try:
        inner = run_and_compare(bench.chosen_from(check.output, trial.inputs), terms)
    except Settled:
        return check
    (seen,) = inner.checks
    (data,) = inner.trials[0].original
    allowed = 2 * inner.measured.tolerance.allowed((0, 0), data)
    if seen.status == "fail" or not tied(choice, data, left, right, allowed):
        return check
    if not seen.note:
        return replace(check, status=seen.status, cause=Cause.TIED, about=())
    return replace(check, status=seen.status, cause=Cause.TIED_AND, about=(seen.note,))
