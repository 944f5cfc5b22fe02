"""The stage for outputs that hide errors or cannot be compared: the tensors ahead of them decide.

Such are indices, masks, sequences, optional values, random numbers, and what saturates. Both
models may compute such an output alike from some tensors on, with the same operators and constants.
Then they agree if these tensors do. These are compared as outputs are: with a measured tolerance,
and with planted errors that have to show.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from bnfold._judge.bench import Bench, EarlyVerdict, Terms
from bnfold._judge.comparison import Comparison, run_and_compare
from bnfold._judge.difference import is_float
from bnfold._judge.power import Power
from bnfold._judge.second_look import looked_at_again
from bnfold._judge.verdict import Cause, OutputCheck, overall

_OPEN = {
    Cause.RANDOM,
    Cause.NOT_A_TENSOR,
    Cause.MISMATCH_BY_ROUNDING,
    Cause.EMPTY,
    Cause.NOT_FINITE,
    Cause.ROUNDING_ALONE,
    Cause.CONSTANT,
    Cause.HIDDEN_ERRORS,
}
_MOST_TOLD = 3


class LookAhead(NamedTuple):
    """The checks of the outputs after a look ahead of them, and what planted errors showed there.

    ``power`` is None if there was nothing to look at.
    """

    checks: list[OutputCheck]
    power: Power | None = None


def judged_ahead(
    bench: Bench,
    terms: Terms,
    compared: Comparison,
    checks: list[OutputCheck],
    resting: Sequence[Collection[str]],
) -> LookAhead:
    """The checks of the outputs; those that are open are judged by the tensors ahead of them.

    An output is open if it has not passed, and no comparison of its numbers has failed. Open, too,
    is one that has passed and may hide an error of another place or size than the planted ones:
    where these were hidden on some inputs, where its values are no floating-point numbers, or where
    rounding of weights moves none of them. An open output passes if all tensors ahead of it do. If
    one of them fails, it stays open. Agreement on other inputs does not settle that.
    """
    by_output: dict[str, list[OutputCheck]] = {}
    for check in checks:
        by_output.setdefault(check.output, []).append(check)
    wanted = [name for name, found in by_output.items() if _is_open(compared, name, found)]
    if not wanted:
        return LookAhead(checks)
    terms.progress("comparing ahead of outputs that show nothing")
    sets = [trial.inputs for trial in compared.trials]
    try:
        ahead, inner = bench.ahead(wanted, sets)
        seen = None
        if any(ahead.values()):
            seen = looked_at_again(inner, terms, run_and_compare(inner, terms, resting))
    except EarlyVerdict:
        return LookAhead(checks)
    if seen is not None and seen.measured.sensitivity is None:  # a fixed tolerance settles nothing
        return LookAhead(checks)
    found = seen.checks if seen is not None else ()
    judged = [
        _judged(check, ahead[check.output], found) if check.output in ahead else check
        for check in checks
    ]
    return LookAhead(judged, seen.measured.power if seen is not None else None)


def _is_open(compared: Comparison, output: str, checks: Sequence[OutputCheck]) -> bool:
    number = list(compared.outputs).index(output)
    numbers = any(
        isinstance(trial.original[number], np.ndarray) and is_float(trial.original[number])
        for trial in compared.trials
    )
    if overall(checks) == "pass" and not any(map(partial(_may_hide, numbers), checks)):
        return False
    return all(
        check.status == "pass"
        or check.cause in _OPEN
        or (check.status == "fail" and (not numbers or check.cause is Cause.MISMATCH))
        for check in checks
    )


def _may_hide(numbers: bool, check: OutputCheck) -> bool:
    """Whether errors may be hidden where an output has passed; see `judged_ahead`."""
    if check.cause is None:
        return not numbers or check.rounding == 0.0
    return check.cause is Cause.HIDDEN_ERRORS


def _judged(check: OutputCheck, names: Sequence[str], found: Sequence[OutputCheck]) -> OutputCheck:
    """The check of an output, from those ``found`` of all tensors ahead of it on all input sets.

    A tensor without a check has not been compared: it settles nothing.
    """
    by_tensor = {name: [each for each in found if each.output == name] for name in names}
    ahead = [each for checks in by_tensor.values() for each in checks]
    statuses = {overall(checks) for checks in by_tensor.values()}
    if statuses <= {"pass"} and (ahead or check.status != "fail"):
        told = ", ".join([*names[:_MOST_TOLD], *["…"][: len(names) > _MOST_TOLD]])
        cause, about = (Cause.SAME_BEHIND, (told,)) if names else (Cause.SAME, ())
        here = [each for each in ahead if each.inputs == check.inputs and each.ratio is not None]
        worst = max(here, key=lambda each: each.ratio or 0.0, default=OutputCheck("", "", "pass"))
        return replace(
            worst,
            output=check.output,
            inputs=check.inputs,
            status="pass",
            cause=cause,
            about=about,
            contested=False,
        )
    wrong = [each for each in ahead if each.status == "fail" and each.inputs == check.inputs]
    if wrong and check.status != "fail":
        return replace(
            check,
            status="inconclusive",
            cause=Cause.DIFFERS_AT,
            about=(wrong[0].output,),
            contested=True,
        )
    return check
