"""Compares an original model with its folded form by running both.

The tolerance is measured on the original (`tolerance`). So is the power, which says whether the
comparison would notice an error (`power`). A comparison that would miss errors in some folded
layers is inconclusive, never a pass.

The stages: both models run, the tolerance is measured, and outputs are compared (`comparison`). A
difference that is too large gets a second look (`second_look`). The folded model runs as deployed
(`deployment`). A search finds where the two models begin to differ (`location`). One status follows
from all of that (`conclusion`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bnfold._judge import by_proof
from bnfold._judge.ahead import judged_ahead
from bnfold._judge.bench import Bench, EarlyVerdict, NotLoadedError, Pair, Terms
from bnfold._judge.between_quantizers import between_quantizers
from bnfold._judge.comparison import Comparison, run_and_compare, without_taps
from bnfold._judge.conclusion import Evidence, conclude
from bnfold._judge.deployment import as_deployed, opened_session
from bnfold._judge.location import first_difference
from bnfold._judge.onnx_bench import OnnxBench
from bnfold._judge.power import RestingFold, best_shown
from bnfold._judge.second_look import looked_at_again
from bnfold._judge.settings import DEFAULT, Settings
from bnfold._judge.timing import not_timed, timed
from bnfold._judge.untaken_branches import uncompared_branches
from bnfold._judge.verdict import EndToEnd, OutputCheck, Status
from bnfold._relation.proof import Proof
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array
from bnfold._run.providers import CPU
from bnfold._run.session import BackgroundLoad, OnnxRuntime, background
from bnfold._run.source import Source


def compare(
    original: Path | Source,
    folded: Path | Source,
    *,
    parameters: Mapping[str, Array | None],
    touched: Collection[str] = (),
    inputs: Sequence[InputSet] | None = None,
    settings: Settings = DEFAULT,
    bounds: Bounds | None = None,
    certified: bool = False,
    resting: Sequence[RestingFold] = (),
    progress: Callable[[str], None] | None = None,
    notes: Sequence[str] = (),
    proof: Proof | None = None,
) -> EndToEnd:
    """Run two models on the same inputs and judge whether they are the same function.

    Args:
        original: the file of the model as it was.
        folded: that of the model that claims to be equal; external data lies beside each file.
        parameters: weights of the original's main graph by value name. None stands for a weight
            that operators make of constants: the engine computes it. Rounding noise is added to all
            of them, so nothing but weights may be among them.
        touched: the names of the weights in folded layers; if empty, all weights.
        inputs: input sets to compare on; by default sets are drawn.
        settings: what the user may choose.
        bounds: time that is running already, if any.
        certified: whether every fold has a certificate that holds. A layer whose error would not
            show in outputs rests on it.
        resting: the folds whose certificates are unchecked. An error in any of their layers has to
            show in outputs.
        progress: called with a few words before each lengthy step.
        notes: remarks about the whole comparison that are known already.
        proof: what the weights prove, if a proof was tried. Outputs that are proved pass unless
            a run shows that they differ.

    Raises:
        UsageError: given inputs do not have the names, types or shapes of the model's inputs, or
            the model has no dimension of a wanted name.
    """
    pair = Pair(_source(original), _source(folded), parameters, touched)
    bounds = bounds or Bounds.beginning(settings.threads, settings.seconds, settings.libraries)
    plants = settings.power or not by_proof.is_proved(proof)
    terms = Terms(settings, bounds, progress or _silent, plants=plants)
    rest = _Rest(certified, resting, inputs, proof)
    paths = pair.original.path, pair.folded.path
    with background(paths, parameters.values(), bounds) as executor:
        result = _compared(pair, terms, rest, executor, notes)
    result = by_proof.settled(result, proof, settings)
    if settings.timed and (result.timing is None or result.status == "fail"):
        why = "the two are not the same function" if result.status == "fail" else "see the notes"
        result = replace(result, timing=not_timed(why))
    return result


@dataclass(frozen=True)
class _Rest:
    """What is known of two models beside themselves; see `compare`."""

    certified: bool
    resting: Sequence[RestingFold]
    inputs: Sequence[InputSet] | None
    proof: Proof | None


def _compared(
    pair: Pair, terms: Terms, rest: _Rest, executor: Executor | None, notes: Sequence[str]
) -> EndToEnd:
    """The verdict on a pair. Where the original does not load, both are cut where they have to."""
    on_cpu = executor if CPU in terms.settings.providers else None
    load = partial(opened_session, pair.folded, bounds=terms.bounds)
    deployed = BackgroundLoad(load, on_cpu)
    bench = OnnxBench(pair, rest.inputs, terms, executor)
    bench.notes += notes
    fixed = terms.settings.fixed
    if fixed is not None and fixed.source:
        asked = f"rtol = {fixed.rtol:g} and atol = {fixed.atol:g}"
        bench.notes.append(f"the tolerance is {asked}, as {fixed.source} says")

    def judge() -> EndToEnd:
        try:
            return _judged(bench, terms, pair, rest, deployed)
        except NotLoadedError as error:
            from bnfold._judge.unknown_operators import cut_apart

            ways, note = cut_apart(pair, terms, error)
            if not ways:
                raise
            for way in ways:
                result = _compared(way, terms, rest, executor, (*notes, note))
                if result.checks or result.status != "inconclusive":
                    break
            return result

    return decided(bench, terms, judge)


def decided(bench: Bench, terms: Terms, judge: Callable[[], EndToEnd]) -> EndToEnd:
    """The verdict of a judge; where an error ends the comparison, the verdict that it leads to."""
    try:
        return judge()
    except EarlyVerdict as error:
        return end_to_end_result(bench, terms, error.status, (), str(error))
    except Exhausted as error:
        return end_to_end_result(bench, terms, "inconclusive", (), str(error))
    except MemoryError as error:
        why = str(error) or "out of memory"
        return end_to_end_result(bench, terms, "inconclusive", (), why)


def end_to_end_result(
    bench: Bench, terms: Terms, status: Status, checks: Iterable[OutputCheck], *notes: str
) -> EndToEnd:
    """A verdict with a status, checks and notes, and what the bench and the terms add to it."""
    seed, all_notes = terms.settings.seed, (*bench.notes, *notes)
    return EndToEnd(status, tuple(checks), all_notes, seed, bench.runtime, CPU.full_name)


def common_stages(
    bench: Bench, terms: Terms, resting: Sequence[RestingFold] = ()
) -> tuple[Comparison, Evidence]:
    """The stages that all models have: run, measure, compare, look again, look ahead."""
    layers = [fold.layers for fold in resting]
    compared = looked_at_again(bench, terms, run_and_compare(bench, terms, layers))
    compared = between_quantizers(bench, terms, compared, layers)
    looked = judged_ahead(bench, terms, compared, without_taps(bench, compared), layers)
    powers = [each for each in (compared.measured.power, looked.power) if each is not None]
    unnoticed = set(range(len(resting))).intersection(*(power.unnoticed() for power in powers))
    return compared, Evidence(
        looked.checks,
        planted=best_shown([power.planted_errors() for power in powers]),
        every_layer=terms.settings.power,
        unnoticed=[resting[number].into for number in sorted(unnoticed)],
    )


def _judged(
    bench: OnnxBench,
    terms: Terms,
    pair: Pair,
    rest: _Rest,
    preloaded: BackgroundLoad[OnnxRuntime],
) -> EndToEnd:
    """The verdict after all stages. ``pair`` has both models without taps."""
    compared, found = common_stages(bench, terms, rest.resting)
    found = replace(
        found,
        checks=by_proof.judged(found.checks, rest.proof),
        certified=rest.certified,
        proved=by_proof.is_proved(rest.proof),
        drawn=rest.inputs is None,
    )
    fails = any(check.status == "fail" for check in found.checks)
    if not fails:
        inputs = [trial.inputs for trial in compared.trials]
        missed = uncompared_branches(bench.branches, pair.original, pair.folded, inputs, bench.load)
        found = replace(found, untaken=missed)
        providers = as_deployed(bench, terms, pair, compared, preloaded)
        found = replace(found, providers=providers)
    if terms.settings.bisect or fails:
        terms.progress("looking for the first difference")
        divergence = first_difference(bench, terms, pair, compared.trials, found.checks)
        found = replace(found, divergence=divergence)
    status, notes = conclude(found)
    timing = None
    if terms.settings.timed and status != "fail":
        terms.progress("timing both models")
        first, threads = compared.trials[0].inputs, terms.settings.threads
        timing = timed(pair.original, pair.folded, first, threads, terms.bounds)
    return replace(
        end_to_end_result(bench, terms, status, found.checks, *notes),
        timing=timing,
        providers=tuple(found.providers),
        divergence=found.divergence,
        power=tuple(found.planted),
    )


def _source(model: Path | Source) -> Source:
    return model if isinstance(model, Source) else Source(Path(model))


def _silent(step: str) -> None:
    pass
