"""The stage that measures how far outputs may be apart, and what a comparison would notice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold._judge.bench import Bench, OriginalRun, Terms, Trial
from bnfold._judge.difference import mismatch
from bnfold._judge.power import Power, Sets
from bnfold._judge.sensitivity import InputSensitivity, Sensitivity
from bnfold._judge.tolerance import DRAWS, MORE_DRAWS, Tolerance
from bnfold._run.input_sets import InputSet
from bnfold._run.session import EngineError

FEW_DRAWS = 2
"""Further draws for inner tensors."""
FEW_DRAWS_FACTOR = 3.0
"""How many times the tolerance inner tensors may differ, because their draws are few."""


@dataclass(frozen=True)
class Measurement:
    """How far outputs may be apart, and what planted errors showed.

    ``power`` is None where weights cannot be moved, or where no errors were planted.
    """

    tolerance: Tolerance
    power: Power | None = None

    @property
    def sensitivity(self) -> Sensitivity | None:
        """How the original moves with its weights, or None where they cannot be moved."""
        return self.tolerance.sensitivity


def measure(
    bench: Bench, terms: Terms, seen: Sequence[OriginalRun], resting: Sequence[Collection[str]] = ()
) -> Measurement:
    """Measure rounding and power on every input set.

    ``resting`` are the layers, by label, of each fold that rests on the comparison alone.
    """
    sets: Sets = {n: (each.inputs, each.outputs) for n, each in enumerate(seen)}
    try:
        sensitivity = Sensitivity(bench.original, terms.settings.seed)
        for _ in range(DRAWS):
            sensitivity.draw_rounding(sets, still=terms.still)
        measured = Measurement(_tolerance(bench, terms, sensitivity))
        if terms.thorough and terms.plants:
            places = {name: number for number, name in enumerate(bench.outputs)}
            stand_ins = {places[a.output]: places[alias] for alias, a in bench.saturated.items()}
            power = Power(sensitivity, measured.tolerance, bench.touched, stand_ins)
            _plant(power, sets, terms)
            power.plant_resting(sets, resting)
            measured = replace(measured, power=power)
    except EngineError as error:
        return _unmeasured(bench, terms, str(error))
    return measured


def measured_again(
    bench: Bench, terms: Terms, measured: Measurement, trials: Sequence[Trial]
) -> Measurement:
    """The measurement after further draws, which are made while outputs differ by too much.

    The draws may widen the tolerance so far that it hides a planted error. Then errors are planted
    again.
    """
    sensitivity, power, found = measured.sensitivity, measured.power, sets_of(trials)
    doubted = [n for n in found if _is_doubtful(measured.tolerance, n, trials[n])]
    _move_inputs(measured.tolerance, {n: found[n] for n in doubted})
    if sensitivity is None or terms.still:
        return measured
    sets, tolerance = sets_of(trials), replace(measured.tolerance, wider=1.0)
    more = MORE_DRAWS if terms.thorough else FEW_DRAWS
    widened = False
    try:
        for _ in range(more if terms.settings.fixed is None else 0):
            doubtful = {n: sets[n] for n in sets if _is_doubtful(tolerance, n, trials[n])}
            if not doubtful:
                break
            sensitivity.draw_rounding(doubtful)
            widened = True
        if widened and power is not None and power.is_stale():
            _plant(power, sets, terms)
    except EngineError as error:
        return _unmeasured(bench, terms, str(error))
    return measured


def draw_more(terms: Terms, measured: Measurement, trials: Sequence[Trial]) -> bool:
    """Draw further noise on all input sets; return whether that was possible."""
    if terms.settings.fixed is not None:
        return False
    moved = _move_inputs(measured.tolerance, sets_of(trials))
    if measured.sensitivity is None:
        return moved
    for _ in range(MORE_DRAWS):
        measured.sensitivity.draw_rounding(sets_of(trials))
    return True


def sets_of(trials: Sequence[Trial]) -> Mapping[int, tuple[InputSet, Sequence[Any]]]:
    """The input sets by number, each with the outputs of the original on it."""
    return {n: (trial.inputs, trial.original) for n, trial in enumerate(trials)}


def _plant(power: Power, sets: Sets, terms: Terms) -> None:
    power.plant(sets)
    if terms.settings.power:
        power.plant_each(sets)


def _tolerance(bench: Bench, terms: Terms, sensitivity: Sensitivity | None) -> Tolerance:
    wider = 1.0 if terms.thorough else FEW_DRAWS_FACTOR
    unmoved = [n for n, name in enumerate(bench.outputs) if name in bench.unmoved]
    by_inputs = None
    if sensitivity is None or unmoved:
        by_inputs = InputSensitivity(bench.original, terms.settings.seed)
    fixed, width, floor = terms.settings.fixed, bench.width, bench.floor
    return Tolerance(sensitivity, fixed, wider, width, floor, by_inputs, unmoved)


def _unmeasured(bench: Bench, terms: Terms, why: str) -> Measurement:
    bench.notes.append(
        f"the weights cannot be varied ({bench.unmovable or why}); the inputs are where outputs "
        "differ, tolerances are fixed fractions of the largest output value, and power is not known"
    )
    return Measurement(_tolerance(bench, terms, None))


def _move_inputs(tolerance: Tolerance, sets: Sets) -> bool:
    """Measure how the original moves with its inputs on some sets; return whether it could be."""
    if tolerance.by_inputs is None:
        return False
    try:
        for _ in range(MORE_DRAWS):
            tolerance.by_inputs.draw(sets)
    except EngineError:
        return False
    return True


def _is_doubtful(tolerance: Tolerance, index: int, trial: Trial) -> bool:
    """Whether an output differs on an input set by more than rounding is known to cause."""
    return any(
        tolerance.exceeded((index, output), left, right, mismatch(left, right))
        for output, (left, right) in enumerate(zip(trial.original, trial.folded, strict=True))
        if isinstance(left, np.ndarray)
    )
