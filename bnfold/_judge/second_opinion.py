"""The run of two files that are proved to be one function: a second opinion, of few runs.

No weight shows overflow or a bug of a runtime, so both files run although they are proved. The
original runs as its file says, without optimizations. The folded model runs as it is deployed. On
the same inputs their outputs are to be as near as a runtime leaves them: within ten times what the
rounding of the inputs moves the original, or a few units in the last place. So no error has to be
planted, and no weight has to be read and moved. What is farther apart, and what is no number, is
left to the whole comparison (`end_to_end`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from bnfold._judge import by_proof
from bnfold._judge.bench import EarlyVerdict, Pair, Terms, Trial
from bnfold._judge.conclusion import Evidence, conclude
from bnfold._judge.difference import gaps, is_float, mismatch
from bnfold._judge.onnx_bench import OnnxBench
from bnfold._judge.settings import Settings
from bnfold._judge.size_groups import SizeGroups
from bnfold._judge.tolerance import DEPLOYED, FACTOR, FLOOR, Measured, worst
from bnfold._judge.untaken_branches import uncompared_branches
from bnfold._judge.verdict import Cause, EndToEnd, OutputCheck, ProviderCheck, Status
from bnfold._relation.proof import Proof
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Noise, can_move
from bnfold._run.providers import CPU
from bnfold._run.session import EngineError, OnnxRuntime, background
from bnfold._run.source import Source
from bnfold._system import memory, scratch

_DRAWS = 3
"""So many times the inputs of a set are rounded, before its outputs count as too far apart."""
_JOINED = ("HardSigmoid", "Sigmoid", "Softsign", "Tanh")
"""Saturating functions that onnxruntime makes one with the operator ahead, unless somebody else
reads what is between the two."""


def second_opinion(
    original: Source,
    folded: Source,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    bounds: Bounds,
    progress: Callable[[str], None],
    proof: Proof | None,
    notes: Sequence[str] = (),
) -> EndToEnd | None:
    """The verdict on two files that are proved, if a few runs see them agree; else None.

    None, too, where the user has asked for more than that. Raises `UsageError` for given inputs
    that do not fit.
    """
    wants_more = settings.power or settings.bisect or settings.spread or settings.timed
    if not by_proof.is_proved(proof) or wants_more or settings.fixed is not None:
        return None
    if any(provider != CPU for provider in settings.providers):
        return None
    terms = Terms(settings, bounds, progress, plants=False)
    with background((original.path, folded.path), (), bounds) as executor:
        bench = _Bench(Pair(original, folded, {}, ()), inputs, terms, executor)
        bench.notes += notes
        try:
            return _seen_alike(bench, terms, proof, inputs is None, executor is None)
        except (_Unexplained, EarlyVerdict, EngineError, Exhausted, MemoryError):
            return None  # The whole comparison tells it, and what it follows from.


class _Bench(OnnxBench):
    """Both files, the folded one as it is deployed.

    What the last functions of both read is put out besides, as in any comparison. That changes
    what is deployed where such a function would be one with the operator ahead: only there the
    folded model runs without optimizations first.
    """

    @property
    def is_apart(self) -> bool:
        """Whether the folded model has to run once more, as it is deployed."""
        return any(each.function in _JOINED for each in self.saturated.values())

    def look_at(self, model: ModelProto) -> None:
        """See `OnnxBench.look_at`. Raises `_Unexplained` where more than runs decides."""
        super().look_at(model)
        if self.random or self._rounds:
            raise _Unexplained

    def open_folded(self) -> OnnxRuntime:
        """The folded model in a session."""
        return self.open(self.pair.folded, optimized=not self.is_apart)

    def open(self, source: Source, optimized: bool) -> OnnxRuntime:
        """A model in a session. Raises `EngineError` where it does not load."""
        bounds = self._terms.bounds
        return OnnxRuntime(source.content(), source.folder, optimized=optimized, bounds=bounds)


def _seen_alike(
    bench: _Bench, terms: Terms, proof: Proof | None, drawn: bool, large: bool
) -> EndToEnd:
    """The verdict where both models agree on all input sets. Raises `_Unexplained` otherwise."""
    pair = bench.pair
    seen = bench.run_original()
    if bench.engine is not OnnxRuntime:
        raise _Unexplained
    if large:  # An optimized session takes twice the model's size and more while it loads.
        bench.original.release()
        memory.give_back(of_process=scratch.is_watched())
    terms.progress("running the folded model")
    comparison = _Comparison(bench, terms.settings.seed)
    checks = comparison.checks(bench.run_folded(seen))
    if bench.is_apart:
        deployed = bench.open(pair.folded, optimized=True)
        trials = [
            Trial(
                each.inputs, each.outputs[: len(deployed.outputs)], deployed.run(each.inputs.feeds)
            )
            for each in seen
        ]
        del deployed  # The original may have to be loaded again.
        checks = comparison.checks(trials)
    inputs = [each.inputs for each in seen]
    untaken = uncompared_branches(bench.branches, pair.original, pair.folded, inputs, bench.load)
    deployed_well = (ProviderCheck(CPU.name, "pass"),)
    checks = by_proof.judged(checks, proof)
    found = Evidence(checks, proved=True, untaken=untaken, drawn=drawn, providers=deployed_well)
    status, notes = conclude(found)
    result = EndToEnd(
        status,
        tuple(checks),
        (*bench.notes, *notes),
        terms.settings.seed,
        bench.runtime,
        CPU.full_name,
        providers=deployed_well,
    )
    return by_proof.settled(result, proof, terms.settings)


class _Unexplained(Exception):
    """Two outputs are farther apart than a runtime moves them, or cannot be compared here."""


class _Comparison:
    """Compares outputs, and knows how far rounding of the inputs moves the original."""

    def __init__(self, bench: _Bench, seed: int) -> None:
        self._bench = bench
        self._seed = seed
        self._moved: dict[int, list[Sequence[Any]]] = {}
        self._noises: dict[int, Noise] = {}

    def checks(self, trials: Sequence[Trial]) -> list[OutputCheck]:
        """The checks of the models' own outputs. Raises `_Unexplained`."""
        found = []
        for index, trial in enumerate(trials):
            named = zip(self._bench.outputs, trial.original, trial.folded, strict=False)
            for number, (name, left, right) in enumerate(named):
                if mismatch(left, right) or not is_float(left) or not np.isfinite(left).any():
                    raise _Unexplained
                figures = self._figures(index, number, trial, left, right)
                if name in self._bench.saturated:
                    continue
                still = left.size > 1 and bool((left == left.flat[0]).all())
                status: Status = "inconclusive" if still else "pass"
                cause = Cause.CONSTANT if still else None
                found.append(OutputCheck(name, trial.inputs.label, status, *figures, cause=cause))
        return found

    def _figures(self, index: int, number: int, trial: Trial, left: Any, right: Any) -> Measured:
        """The difference of two outputs, and how far they may be apart. Raises `_Unexplained`.

        As long as they are farther apart, the original runs with rounded inputs.
        """
        groups = SizeGroups.of(left)
        units = FACTOR * FLOOR * np.spacing(groups.sizes.astype(left.dtype)).astype(np.float64)
        apart, moved = groups.peaks(gaps(left, right)), units
        for draw in range(_DRAWS + 1):
            found = worst(apart, DEPLOYED * moved)
            if found.ratio <= 1.0:
                return found
            if draw < _DRAWS:
                other = self._rounded(index, trial, draw)[number]
                if mismatch(left, other):
                    break
                moved = np.maximum(moved, groups.peaks(gaps(left, other)))
        raise _Unexplained

    def _rounded(self, index: int, trial: Trial, draw: int) -> Sequence[Any]:
        """The outputs of the original for an input set whose numbers move by their rounding."""
        feeds, known = trial.inputs.feeds, self._moved.setdefault(index, [])
        if draw == len(known):
            if index not in self._noises:
                floats = {name: array for name, array in feeds.items() if can_move(array)}
                rng = np.random.default_rng([self._seed, 3, index])
                self._noises[index] = Noise(floats, rng, alike=False)
            moved = self._noises[index].rounding()
            if not moved:
                raise _Unexplained
            known.append(self._bench.original.run({**feeds, **moved}))
        return known[draw]
