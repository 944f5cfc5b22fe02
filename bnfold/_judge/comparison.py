"""The first stages: run both models, measure the tolerance, compare all outputs on all input sets.

Each stage is a function that takes the result of the stage before and returns its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold._judge.bench import Bench, Terms, Trial
from bnfold._judge.difference import is_float, mismatch, spread
from bnfold._judge.measurement import Measurement, measure, measured_again
from bnfold._judge.tolerance import Measured
from bnfold._judge.verdict import Cause, OutputCheck, Status
from bnfold._run.noise import Array
from bnfold._system import memory


@dataclass(frozen=True)
class Comparison:
    """The result of the first stages.

    Attributes:
        outputs: the names of the outputs.
        trials: the outputs of both models, one trial for each input set.
        measured: how far outputs may be apart.
        checks: one check for each output of the first input set, then of the second, and so on.
        inaccurate: the numbers of an input set and an output where float64 agrees with the folded
            model and not with the original.
    """

    outputs: Sequence[str]
    trials: Sequence[Trial]
    measured: Measurement
    checks: Sequence[OutputCheck]
    inaccurate: frozenset[tuple[int, int]] = frozenset()

    def of(self, number: int) -> tuple[tuple[int, int], Trial]:
        """For the number of a check: the numbers of its input set and its output, and the trial."""
        index, output = divmod(number, len(self.outputs))
        return (index, output), self.trials[index]

    def blind(self) -> set[str]:
        """The outputs in which planted errors do not show on some inputs."""
        return {check.output for check in self.checks if check.cause is Cause.HIDDEN_ERRORS}


def run_and_compare(
    bench: Bench, terms: Terms, resting: Sequence[Collection[str]] = ()
) -> Comparison:
    """Run both models, measure the tolerance, and compare every output on every input set.

    ``resting`` are the layers of folds that rest on the comparison alone, see `measure`.

    Raises:
        EarlyVerdict: a model does not run, or the inputs and outputs of the two are not the same.
        UsageError: given inputs do not fit the model.
    """
    seen = bench.run_original()
    terms.progress("measuring the tolerance")
    measured = measure(bench, terms, seen, resting)
    _give_back(bench, measured)
    terms.progress("running the folded model")
    trials = bench.run_folded(seen)
    measured = measured_again(bench, terms, measured, trials)
    _give_back(bench, measured)
    checks = [
        _check(bench, measured, (index, output), trial)
        for index, trial in enumerate(trials)
        for output in range(len(bench.outputs))
    ]
    if terms.settings.spread:
        outputs = [pair for t in trials for pair in zip(t.original, t.folded, strict=True)]
        checks = [_with_spread(check, *pair) for check, pair in zip(checks, outputs, strict=True)]
    return Comparison(bench.outputs, trials, measured, checks)


def _give_back(bench: Bench, measured: Measurement) -> None:
    """Give back the memory of the original and of its moved weights, until they run again."""
    bench.original.release()
    if measured.sensitivity is not None:
        measured.sensitivity.release()
    memory.give_back(of_process=False)


def without_taps(bench: Bench, compared: Comparison) -> list[OutputCheck]:
    """The checks of the models' own outputs.

    A saturated output may be blind on some inputs. Then the tensor ahead of its last function is
    judged in its place, on all inputs. Where the output agrees and that tensor does not, the check
    is inconclusive.
    """
    found = {(check.inputs, check.output): check for check in compared.checks}
    blind = compared.blind()
    return [
        _judged_by_tap(bench, check, found, check.output in blind)
        for check in compared.checks
        if check.output not in bench.saturated
    ]


def _judged_by_tap(
    bench: Bench,
    check: OutputCheck,
    found: Mapping[tuple[str, str], OutputCheck],
    blind: bool,
) -> OutputCheck:
    """The check of an output, after a look at the tensor ahead of its last function."""
    for alias, (output, function) in bench.saturated.items():
        seen = found[check.inputs, alias]
        if output != check.output or check.status == "fail" or seen.ratio is None:
            continue
        if blind and seen.status != "inconclusive":
            return replace(seen, output=output, cause=Cause.SEEN_AHEAD, about=(function,))
        if seen.status == "fail":
            about = (function, seen.difference, seen.tolerance)
            status: Status = "inconclusive"
            cause = Cause.DIFFERS_AHEAD
            return replace(check, status=status, cause=cause, about=about, contested=True)
    return check


def _check(bench: Bench, measured: Measurement, at: tuple[int, int], trial: Trial) -> OutputCheck:
    """The check of one output on one input set; ``at`` holds their numbers, the set's first."""
    name, label = bench.outputs[at[1]], trial.inputs.label
    left, right = trial.original[at[1]], trial.folded[at[1]]
    jumps = measured.tolerance.jumps(at)

    def without_figures(cause: Cause) -> OutputCheck:
        return OutputCheck(name, label, "inconclusive", cause=cause)

    if name in bench.random:
        return without_figures(Cause.RANDOM)
    if not isinstance(left, np.ndarray):
        return without_figures(Cause.NOT_A_TENSOR)
    if reason := mismatch(left, right):
        status: Status = "inconclusive" if jumps else "fail"
        apart = Cause.MISMATCH_BY_ROUNDING if jumps else Cause.MISMATCH
        return OutputCheck(name, label, status, cause=apart, about=(reason,), contested=True)
    if left.size == 0:
        if name in bench.hollow:
            return OutputCheck(name, label, "pass", cause=Cause.ALWAYS_EMPTY)
        return without_figures(Cause.EMPTY)
    if is_float(left) and not np.isfinite(left).any():
        return without_figures(Cause.NOT_FINITE)
    found = measured.tolerance.measure(at, left, right)
    cause: Cause | None
    if found.ratio > 1.0:
        alone = jumps or measured.tolerance.explained(at, left, found.difference)
        status, cause = ("inconclusive", Cause.ROUNDING_ALONE) if alone else ("fail", None)
    else:
        status, cause = _status_in_tolerance(measured, at, left, found, name in bench.reached)
    sensitivity, power = measured.sensitivity, measured.power
    rounding = _largest(sensitivity.rounding.get(at) if sensitivity else None)
    moved = _largest(power.least.get(at) if power else None)
    contested = found.ratio > 1.0
    return OutputCheck(name, label, status, *found, rounding, moved, cause, (), contested)


def _with_spread(check: OutputCheck, left: Any, right: Any) -> OutputCheck:
    """The check, with how many elements of a float output differ by how much."""
    if check.difference is None or not is_float(left):
        return check
    return replace(check, spread=spread(left, right))


def _status_in_tolerance(
    measured: Measurement, at: tuple[int, int], left: Array, found: Measured, reached: bool
) -> tuple[Status, Cause | None]:
    """The status of an output within the tolerance, and why.

    It passes only if the comparison would have noticed an error.
    """
    if measured.sensitivity is None or measured.power is None:
        still = left.size > 1 and bool((left == left.flat[0]).all())
        return ("inconclusive", Cause.CONSTANT) if still else ("pass", Cause.POWER_UNKNOWN)
    if not reached:
        status: Status = "inconclusive" if found.difference else "pass"
        return status, Cause.NOT_REACHED
    if measured.power.noticed(at):
        return "pass", None
    if measured.tolerance.fixed is not None:
        return "pass", Cause.AS_ASKED_FOR
    return "inconclusive", Cause.HIDDEN_ERRORS


def _largest(movements: Array | None) -> float | None:
    return None if movements is None else float(movements.max())


def allowed(bench: Bench, compared: Comparison, at: tuple[int, int], expected: Any) -> float | None:
    """The tolerance of an output, or None where rounding or random numbers alone change it."""
    tolerance = compared.measured.tolerance
    if not isinstance(expected, np.ndarray) or tolerance.jumps(at):
        return None
    if bench.outputs[at[1]] in bench.random:
        return None
    wanted = tolerance.allowed(at, expected)
    return None if tolerance.explained(at, expected, wanted) else wanted
