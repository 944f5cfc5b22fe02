"""A second look at outputs that differ by more than they may.

An output may hold indices of the largest or smallest values. These may differ where values tie.
Other outputs are compared in float64, for two reasons. Where sums of large numbers cancel, the
original itself may be off. And where one operator sums what several did before, its float32
arithmetic may be off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnfold._judge.bench import Bench, EarlyVerdict, Terms, Trial
from bnfold._judge.comparison import Comparison, run_and_compare
from bnfold._judge.difference import distance, gaps, is_float, magnitude, mismatch
from bnfold._judge.ties import Choice, tied
from bnfold._judge.verdict import Cause, OutputCheck
from bnfold._run.noise import Array

ARITHMETIC = 10.0
"""How many times the tolerance a folded model with right weights may be off by its arithmetic."""
_AS_FAR = 100.0
"""How many times as far as another runtime an original may be off by its rounding."""


def looked_at_again(bench: Bench, terms: Terms, compared: Comparison) -> Comparison:
    """The comparison after a second look at the doubtful checks.

    A check is doubtful if it fails, or if rounding alone changes its output.
    """
    doubtful = [_is_doubtful(check) for check in compared.checks]
    if not any(doubtful):
        return compared
    truths: dict[int, tuple[list[Any], list[Any]]] = {}
    choices = bench.choices()
    checks, inaccurate = [], set[tuple[int, int]]()
    for number, check in enumerate(compared.checks):
        if doubtful[number] and check.output in choices:
            check = _checked_for_ties(bench, terms, compared, number, choices[check.output])
        elif check.status == "fail" and check.output not in bench.saturated:
            found = _checked_in_float64(bench, terms, compared, number, truths)
            if found.status == "pass":
                inaccurate.add(compared.of(number)[0])
            check = found
        checks.append(check)
    return replace(compared, checks=checks, inaccurate=frozenset(inaccurate))


def _is_doubtful(check: OutputCheck) -> bool:
    return check.status == "fail" or check.cause is Cause.ROUNDING_ALONE


def _checked_in_float64(
    bench: Bench,
    terms: Terms,
    compared: Comparison,
    number: int,
    truths: dict[int, tuple[list[Any], list[Any]]],
) -> OutputCheck:
    """A failing check, after a comparison with the original in float64.

    It passes in two cases. First: the folded model is within the tolerance of the original in
    float64, and rounding is why the original is not. Second: the folded model in float64 is within
    that tolerance, so its weights are right, and in float32 it is off by at most ``ARITHMETIC``
    times the tolerance. Float32 arithmetic may cause that: a sum of many products rounds after each
    product, while the original added one small number at the end. Two runtimes may also be apart by
    a few roundings of 1, however small the output is: a sigmoid far from 0 is the small difference
    of numbers near 1 in one of them. And where the folded model adds up a hundred thousand numbers,
    it may be off by what that costs.

    The check stays as it is where the user has chosen the tolerance, because that is about the
    original in its own types.
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
        return tolerance.measure_differences(at, left, gaps(truth, side)).ratio

    if (off := ratio(sides[1])) > 1.0:
        agree = bool(made) and not mismatch(truth, made[at[1]])
        far = off > ARITHMETIC and not (bench.apart and about[1] <= _function_noise(left))
        if far and agree:
            moved = bench.moved_by_sums(trial.inputs)
            rest = np.maximum(gaps(truth, sides[1]) - moved[at[1]], 0.0) if moved else None
            far = rest is None or tolerance.measure_differences(at, left, rest).ratio > ARITHMETIC
        if not agree or ratio(made[at[1]]) > 1.0 or far:
            return replace(check, cause=Cause.NEXT_TO_FLOAT64, about=about)
        cause = Cause.ARITHMETIC
    else:
        ours, theirs = about
        if ratio(sides[0]) > ARITHMETIC and not _is_rounding(bench, trial, at[1], truth):
            return check
        cause = Cause.ORIGINAL_INACCURATE if theirs < ours else Cause.NEXT_TO_FLOAT64
    return replace(check, status="pass", cause=cause, about=about)


def _is_rounding(bench: Bench, trial: Trial, number: int, truth: Array) -> bool:
    """Whether rounding explains how far an output of the original is from what it is in float64.

    What runs it in float64 is then off by as much, in the original's types. If it is not, it does
    not compute what the original does: it has a bug, or takes an operator for that of a later
    opset. A folded model that is wrong in the same way would look right.
    """
    again = bench.original_again(trial.inputs)
    if again is None:
        return True
    if not again or mismatch(truth, other := np.asarray(again[number], np.float64)):
        return False
    off = distance(truth, np.asarray(trial.original[number], np.float64))
    return off <= _AS_FAR * distance(truth, other)


def _function_noise(output: Array) -> float:
    """How far two runtimes may be apart where they compute a function by other formulas."""
    return ARITHMETIC * float(np.spacing(np.asarray(max(1.0, magnitude(output)), output.dtype)))


def _checked_for_ties(
    bench: Bench, terms: Terms, compared: Comparison, number: int, choice: Choice
) -> OutputCheck:
    """A failing check of indices, after a look at the values that they were chosen from.

    The values of both models are compared. Where they agree, and the original's values at the two
    indices tie within twice the tolerance, the check takes the status of that comparison.
    """
    check, (at, trial) = compared.checks[number], compared.of(number)
    left, right = trial.original[at[1]], trial.folded[at[1]]
    if mismatch(left, right) or left.dtype.kind not in "iu":
        return check
    try:
        inner = run_and_compare(bench.chosen_from(check.output, trial.inputs), terms)
    except EarlyVerdict:
        return check
    (seen,) = inner.checks
    (data,) = inner.trials[0].original
    allowed = 2 * inner.measured.tolerance.allowed((0, 0), data)
    if seen.status == "fail" or not tied(choice, data, left, right, allowed):
        return check
    if not seen.note:
        return replace(check, status=seen.status, cause=Cause.TIED, about=())
    return replace(check, status=seen.status, cause=Cause.TIED_AND, about=(seen.note,))
