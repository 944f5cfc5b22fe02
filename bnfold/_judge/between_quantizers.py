"""A look at two models between their quantizers, where data are rounded to integers.

A right fold may move a number across the border of two integers. All that follows then moves by a
step, and so does the noise that is measured. So both models are cut there: what is rounded is
compared like an output, and the integers of the original go into both. Then every part is held to
its own rounding, and a planted error shows right behind its layer. If the parts are equal, and the
quantizers are, the models differ by such steps alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from bnfold._judge.bench import Bench, EarlyVerdict, Terms
from bnfold._judge.comparison import Comparison, run_and_compare, without_taps
from bnfold._judge.second_look import looked_at_again
from bnfold._judge.verdict import Cause, OutputCheck, Status, overall

STEPS = 3.0
"""How many times as far as a few steps of quantizers move an output is what they explain."""
_BY_ROUNDING = (Cause.ROUNDING_ALONE, Cause.MISMATCH_BY_ROUNDING, Cause.HIDDEN_ERRORS)


def between_quantizers(
    bench: Bench, terms: Terms, compared: Comparison, resting: Sequence[Collection[str]] = ()
) -> Comparison:
    """The comparison after a look at the parts between quantizers.

    It is made for all models that have some: a quantizer hides errors that are small next to its
    step. A part that differs fails. A check that is unsettled, for it fails or because rounding
    alone changes its output or hides errors in it, takes the status of the parts; but where these
    settle nothing, a difference stays a failure that steps of the quantizers do not explain.
    ``resting`` are the layers of folds that rest on the comparison, see `measure`. Where the models
    round elsewhere too, a difference that steps explain is no failure, and no pass. A tolerance of
    the user's is about the outputs themselves, and nothing is looked at here.
    """
    if terms.settings.fixed is not None:
        return compared
    parts = _parts(bench, terms, compared, resting)
    unsettled = [_is_unsettled(check) for check in compared.checks]
    status: Status = "fail" if parts is None else overall(parts[1])
    if status == "fail" and bench.rounds_elsewhere():
        return _by_steps(bench, compared, unsettled)
    if parts is None:
        return compared
    found, checks = parts
    concerned = [True] * len(unsettled) if status == "fail" else unsettled
    if status == "inconclusive":
        larger = _larger_than_steps(bench, compared)
        concerned = [one and not more for one, more in zip(unsettled, larger, strict=True)]
    cause, about = Cause.BY_STEPS, tuple[str, ...]()
    if status != "pass":
        cause, about = Cause.BETWEEN_QUANTIZERS, (_worst(checks, status),)
    seen = [
        replace(check, status=status, cause=cause, about=about) if one else check
        for one, check in zip(concerned, compared.checks, strict=True)
    ]
    power = found.measured.power if status == "pass" else None
    measured = compared.measured
    return replace(compared, checks=seen, measured=replace(measured, power=power or measured.power))


def _is_unsettled(check: OutputCheck) -> bool:
    return check.status == "fail" or check.cause in _BY_ROUNDING


def _parts(
    bench: Bench, terms: Terms, compared: Comparison, resting: Sequence[Collection[str]]
) -> tuple[Comparison, list[OutputCheck]] | None:
    """The comparison of the parts, and its checks; None where there are none."""
    cut = bench.cut_at_quantizers(compared.trials)
    if cut is None:
        return None
    terms.progress("comparing between quantizers")
    try:
        found = looked_at_again(cut, terms, run_and_compare(cut, terms, resting))
    except EarlyVerdict:
        return None
    return found, without_taps(cut, found)


def _larger_than_steps(bench: Bench, compared: Comparison) -> list[bool]:
    """For each check whether it fails by more than steps of quantizers move its output."""
    fails = [check.status == "fail" for check in compared.checks]
    moved = bench.moved_by_steps(compared.trials) if any(fails) else {}
    most = [moved.get(compared.of(number)[0]) for number in range(len(fails))]
    return [
        wrong and by is not None and check.difference is not None and check.difference > STEPS * by
        for wrong, by, check in zip(fails, most, compared.checks, strict=True)
    ]


def _by_steps(bench: Bench, compared: Comparison, unsettled: Sequence[bool]) -> Comparison:
    """The comparison in which what steps explain is inconclusive."""
    moved = bench.moved_by_steps(compared.trials) if any(unsettled) else {}
    checks = list(compared.checks)
    for number, check in enumerate(checks):
        most = moved.get(compared.of(number)[0], 0.0)
        if unsettled[number] and check.difference is not None and most > 0:
            status: Status = "fail" if check.difference > STEPS * most else "inconclusive"
            checks[number] = replace(check, status=status, cause=Cause.STEPS_MOVE, about=(most,))
    return replace(compared, checks=checks)


def _worst(checks: Sequence[OutputCheck], status: Status) -> str:
    """What is wrong with the first check of a status, in words."""
    check = next(one for one in checks if one.status == status)
    text = f"{check.output} on {check.inputs} inputs"
    if check.status == "fail" and check.difference is not None:
        return f"{text} by {check.difference:.2e}, tolerance {check.tolerance:.2e}"
    return f"{text}: {check.note}"
