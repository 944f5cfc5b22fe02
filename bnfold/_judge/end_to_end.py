"""Compares an original model with its folded form by running both.

How far outputs may be apart is measured on the original, see `tolerance`; what the comparison
would have noticed too, see `power`. One that would not notice errors in some folded layers is
inconclusive, never a pass. The stages: both run, the tolerance is measured, outputs are compared
(`comparison`), what differs too much is looked at again (`second_look`), the folded model runs as
deployed (`deployment`), where the two begin to differ is looked for (`location`), and all that was
found is reduced to a verdict (`conclusion`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bnfold._judge.bench import Bench, Settled, Terms
from bnfold._judge.comparison import Compared, run_and_compare, without_taps
from bnfold._judge.conclusion import Evidence, conclude
from bnfold._judge.deployment import as_deployed, opened
from bnfold._judge.location import first_difference
from bnfold._judge.onnx_bench import OnnxBench, Pair
from bnfold._judge.power import RestingFold
from bnfold._judge.second_look import reconsidered
from bnfold._judge.settings import DEFAULT, Settings
from bnfold._judge.untaken_branches import not_compared
from bnfold._judge.verdict import EndToEnd, OutputCheck, Status
from bnfold._onnx.files.external import external_files, runnable
from bnfold._onnx.files.load import load_model, understood
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.hoist import hoist
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array
from bnfold._run.perturbable import find, telling
from bnfold._run.providers import CPU
from bnfold._run.session import BackgroundLoad, OnnxRuntime, background
from bnfold._run.source import Parsed, Source


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
) -> EndToEnd:
    """Run two models on the same inputs and judge whether they are the same function.

    Args:
        original: the file of the model as it was.
        folded: that of the model that claims to be equal; external data lies beside each file.
        parameters: weights of the original's main graph by value name, or None for one that
            operators make of constants: the engine says what that is. They are what rounding noise
            is added to; anything that is not a weight must not be among them.
        touched: those of them that belong to folded layers, all if empty.
        inputs: input sets to compare on; by default sets are drawn.
        settings: what the user may choose.
        bounds: time that is running already, if any.
        certified: whether every fold has a certificate that holds, on which a layer rests whose
            error would not show here.
        resting: the folds whose certificates are unchecked: an error in any of their layers has to
            show here.
        progress: called with a few words before each lengthy step.

    Raises:
        UsageError: given inputs do not have the names, types or shapes of the model's inputs, or
            the model has no dimension of a wanted name.
    """
    pair = Pair(_source(original), _source(folded), parameters, touched)
    bounds = bounds or Bounds.beginning(settings.threads, settings.seconds)
    terms = Terms(settings, bounds, progress or _silent)
    paths = pair.original.path, pair.folded.path
    with background(paths, parameters.values(), bounds) as executor:
        on_cpu = executor if CPU in settings.providers else None
        deployed = BackgroundLoad(partial(opened, pair.folded, bounds=bounds), on_cpu)
        bench = OnnxBench(pair, inputs, terms, executor)
        judged = partial(_judged, bench, terms, pair, certified, resting, inputs is None, deployed)
        return settled(bench, terms, judged)


def compare_files(
    original: Path,
    folded: Path,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    progress: Callable[[str], None] | None = None,
) -> EndToEnd:
    """Judge whether two files are the same function, on given inputs or drawn ones.

    Raises `UsageError` for models or inputs that cannot be read.
    """
    other = load_model(folded, lean=True)
    theirs, right_parsed = external_files(other), Parsed(other)
    model = load_model(original, lean=True)
    ours, left_parsed = external_files(model), Parsed(model)
    with understood(model, original):
        hoisted = hoist(model)
        weights = find(model, original.parent)
        touched = telling(model, weights)
    del model, other
    with runnable(original, ours) as left, runnable(folded, theirs) as right:
        return compare(
            Source(left, parsed=left_parsed, hoisted=hoisted),
            Source(right, parsed=right_parsed),
            parameters=weights.values,
            touched=touched,
            inputs=inputs,
            settings=settings,
            progress=progress,
        )


def settled(bench: Bench, terms: Terms, judge: Callable[[], EndToEnd]) -> EndToEnd:
    """A verdict; that which was known early where the models cannot be compared."""
    try:
        return judge()
    except Settled as error:
        return told(bench, terms, error.status, (), str(error))
    except Exhausted as error:
        return told(bench, terms, "inconclusive", (), str(error))
    except MemoryError:
        return told(bench, terms, "inconclusive", (), "out of memory")


def told(
    bench: Bench, terms: Terms, status: Status, checks: Iterable[OutputCheck], *notes: str
) -> EndToEnd:
    """What is said of a comparison."""
    seed, all_notes = terms.settings.seed, (*bench.notes, *notes)
    return EndToEnd(status, tuple(checks), all_notes, seed, bench.runtime, CPU.full_name)


def looked_at(
    bench: Bench, terms: Terms, resting: Sequence[RestingFold] = ()
) -> tuple[Compared, Evidence]:
    """The stages that are the same for all models: run, measure, compare, look again."""
    layers = [fold.layers for fold in resting]
    compared = reconsidered(bench, terms, run_and_compare(bench, terms, layers))
    power = compared.measured.power
    unnoticed = power.unnoticed() if power is not None else range(len(resting))
    return compared, Evidence(
        without_taps(bench, compared),
        planted=power.told() if power is not None else (),
        every_layer=terms.settings.power,
        unnoticed=[resting[number].into for number in unnoticed],
    )


def _judged(
    bench: OnnxBench,
    terms: Terms,
    pair: Pair,
    certified: bool,
    resting: Sequence[RestingFold],
    drawn: bool,
    early: BackgroundLoad[OnnxRuntime],
) -> EndToEnd:
    """All stages; ``pair`` has both models as they are, without taps."""
    compared, found = looked_at(bench, terms, resting)
    found = replace(found, certified=certified, drawn=drawn)
    fails = any(check.status == "fail" for check in found.checks)
    if not fails:
        inputs = [trial.inputs for trial in compared.trials]
        missed = not_compared(bench.branches, pair.original, pair.folded, inputs, bench.load)
        found = replace(found, untaken=missed)
        providers = as_deployed(bench, terms, pair, compared, early)
        found = replace(found, providers=providers)
    if terms.settings.bisect or fails:
        terms.progress("looking for the first difference")
        divergence = first_difference(bench, terms, pair, compared.trials, found.checks)
        found = replace(found, divergence=divergence)
    status, notes = conclude(found)
    return replace(
        told(bench, terms, status, found.checks, *notes),
        providers=tuple(found.providers),
        divergence=found.divergence,
        power=tuple(found.planted),
    )


def _source(model: Path | Source) -> Source:
    return model if isinstance(model, Source) else Source(Path(model))


def _silent(step: str) -> None:
    pass
