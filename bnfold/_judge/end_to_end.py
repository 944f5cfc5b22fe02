"""Compares an original model with its folded form by running both.

How far outputs may be apart is measured on the original, see `tolerance`; what the comparison
would have noticed too, see `power`. One that would not notice errors in some folded layers is
inconclusive, never a pass. Where a difference is too large, `second_look` looks once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bnfold._judge import second_look
from bnfold._judge.comparison import UNSETTLED, Comparison, Pair, Settled
from bnfold._judge.deployment import Deployment, Expected, opened
from bnfold._judge.location import Instruments, Values, locate
from bnfold._judge.settings import DEFAULT, Settings
from bnfold._judge.tolerance import MORE_DRAWS
from bnfold._judge.untaken import Forms, IfBranch, untaken
from bnfold._judge.verdict import (
    Divergence,
    EndToEnd,
    OutputCheck,
    ProviderCheck,
    Status,
    combined,
    overall,
)
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.early import Early, background
from bnfold._run.inputs import InputSet
from bnfold._run.noise import Array
from bnfold._run.providers import CPU
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source, Tap


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
        progress: called with a few words before each lengthy step.

    Raises:
        UsageError: given inputs do not have the names, types or shapes of the model's inputs, or
            the model has no dimension of a wanted name.
    """
    pair = Pair(_source(original), _source(folded), parameters, touched)
    bounds = bounds or Bounds.beginning(settings.threads, settings.seconds)
    paths = pair.original.path, pair.folded.path
    with background(paths, parameters.values(), bounds) as executor:
        comparison = Comparison(pair, settings, bounds, progress or _silent, executor=executor)
        return _judged(comparison, _EndToEnd(comparison, pair, certified, executor), inputs)


def _judged(
    comparison: Comparison, steps: _EndToEnd, inputs: Sequence[InputSet] | None
) -> EndToEnd:
    try:
        return steps.run(inputs)
    except Settled as settled:
        return _told(comparison, settled.status, (), str(settled))
    except Exhausted as error:
        return _told(comparison, "inconclusive", (), str(error))
    except MemoryError:
        return _told(comparison, "inconclusive", (), "out of memory")


def _source(model: Path | Source) -> Source:
    return model if isinstance(model, Source) else Source(Path(model))


def _silent(step: str) -> None:
    pass


def _told(
    comparison: Comparison, status: Status, checks: Iterable[OutputCheck], *notes: str
) -> EndToEnd:
    seed, runtime = comparison.settings.seed, comparison.engine.runtime
    all_notes = (*comparison.notes, *notes)
    return EndToEnd(status, tuple(checks), all_notes, seed, runtime, CPU.full_name)


class _EndToEnd:
    """The steps of a comparison; ``pair`` has both models as they are."""

    def __init__(
        self, comparison: Comparison, pair: Pair, certified: bool, executor: Executor | None
    ) -> None:
        self._comparison = comparison
        self._pair = pair
        self._certified = certified
        on_cpu = executor if CPU in comparison.settings.providers else None
        self._deployed = Early(partial(opened, pair.folded, bounds=comparison.bounds), on_cpu)

    def run(self, inputs: Sequence[InputSet] | None) -> EndToEnd:
        comparison, settings = self._comparison, self._comparison.settings
        checks = comparison.judge(inputs)
        if any(check.status == "fail" or check.note == UNSETTLED for check in checks):
            checks = second_look.reconsidered(comparison, checks)
        blind = bool(comparison.blind(checks))
        checks = comparison.own(checks)
        status, divergence = overall(checks), None
        deployed: tuple[ProviderCheck, ...] = ()
        notes: tuple[str, ...] = ()
        planted = comparison.power.told() if comparison.power is not None else ()
        if settings.power and not all(part.noticed for part in planted):
            rests = "rests on its certificate" if self._certified else "is not proved"
            notes = (f"an error in a layer that would not have been noticed here {rests}",)
            status = status if self._certified else combined(status, ["inconclusive"])
        if status != "fail" and (missed := self._untaken()):
            rests = ", but rests on certificates" if self._certified else ""
            labels = ", ".join(branch.label for branch in missed)
            notes = (*notes, f"no input took {labels}: what is there was not compared{rests}")
            if inputs is None and not self._certified and any(b.owns_weights for b in missed):
                status = combined(status, ["inconclusive"])
        if status != "fail":
            deployed = self._deploy(blind)
            status = combined(status, [check.status for check in deployed])
        if settings.bisect or any(check.status == "fail" for check in checks):
            comparison.progress("looking for the first difference")
            divergence = self._locate(checks)
        if divergence is not None and status == "pass":
            status = "inconclusive"
            notes = (*notes, "a tensor on the way differs, which no output shows on these inputs")
        result = _told(comparison, status, checks, *notes)
        return replace(result, providers=deployed, divergence=divergence, power=planted)

    def _untaken(self) -> list[IfBranch]:
        """The branches with weights that the original took on no inputs, and that the folded model
        does not have as they are.
        """
        branches, ours, theirs = self._comparison.branches, self._pair.original, self._pair.folded

        def values(names: Sequence[str]) -> Iterator[dict[str, Any]]:
            taps = tuple(Tap(name, f"{name} taken") for name in names)
            engine = self._comparison.load(replace(ours, taps=taps, alone=True))
            for trial in self._comparison.trials:
                yield dict(zip(names, engine.run(trial.inputs.feeds), strict=True))

        try:
            missed = untaken(branches, values) if branches else []
        except EngineError:
            missed = branches
        if not missed:
            return []
        left, right = Forms(ours.proto(), ours.folder), Forms(theirs.proto(), theirs.folder)
        kept = list(right.all())
        return [branch for branch in missed if left.of(branch) not in kept]

    def _locate(self, checks: list[OutputCheck]) -> Divergence | None:
        """The first tensor at which the two differ; None where none does, or none can be run.

        Tensors on the way are looked at on the inputs alone on which an output fails, if one does.
        """
        failing = {check.inputs for check in checks if check.status == "fail"}
        sets = [trial.inputs for trial in self._comparison.trials]
        inputs = [each for each in sets if not failing or each.label in failing][:1]

        def judge(names: Mapping[str, str]) -> list[OutputCheck]:
            aliases = {
                name if name == other else f"{other} as {name}": name
                for name, other in names.items()
            }
            ours = [Tap(names[name], alias) for alias, name in aliases.items()]
            theirs = [Tap(name, alias) for alias, name in aliases.items()]
            pair, settings = self._pair.tapped(ours, theirs), self._comparison.settings
            inner = Comparison(pair, settings, self._comparison.bounds, _silent, thorough=False)
            return [replace(each, output=aliases[each.output]) for each in inner.judge(inputs)]

        def values(side: Source) -> Values:
            def run(names: Sequence[str]) -> dict[str, Any]:
                taps = tuple(Tap(name, name) for name in names)
                engine = self._comparison.load(replace(side, taps=taps, alone=True))
                return dict(zip(names, engine.run(inputs[0].feeds), strict=True))

            return run

        ours, theirs = self._pair.original, self._pair.folded
        instruments = Instruments(judge, values(ours), values(theirs))
        try:
            return locate(ours.proto(), theirs.proto(), checks, instruments)
        except (Settled, EngineError) as error:
            note = f"where the two begin to differ is not known: {error}"
            self._comparison.notes.append(note)
            return None

    def _deploy(self, blind: bool) -> tuple[ProviderCheck, ...]:
        """What each provider makes of the folded model, of the tensors ahead of its last functions
        too where its outputs are ``blind``. Nothing runs there that onnxruntime cannot run at all.
        A difference is held against further draws before it counts.
        """
        comparison = self._comparison
        if comparison.engine is not OnnxRuntime:
            return ()
        pair = comparison.pair if blind else self._pair
        outputs = [p for p in comparison.outputs if blind or not comparison.is_ahead(p.name)]
        checks = []
        for provider in comparison.settings.providers:
            comparison.progress(f"running on {provider.name} as deployed")
            early = None if blind else self._deployed
            deployment = Deployment(pair.original, pair.folded, outputs, comparison.bounds, early)
            check = deployment.check(provider, self._expected(len(outputs)))
            if check.status == "fail" and self._draw_more():
                check = deployment.check(provider, self._expected(len(outputs)))
            checks.append(check)
        return tuple(checks)

    def _expected(self, outputs: int) -> list[Expected]:
        """What a provider has to give, and how far it may be off: what the original gives, but
        where that is the inaccurate one.
        """
        comparison = self._comparison
        return [
            Expected(
                trial.inputs,
                [
                    (trial.folded if (k, n) in comparison.inaccurate else trial.original)[n]
                    for n in range(outputs)
                ],
                [comparison.allowed((k, n), trial.original[n]) for n in range(outputs)],
            )
            for k, trial in enumerate(comparison.trials)
        ]

    def _draw_more(self) -> bool:
        """Make the further draws on all input sets, if weights can be moved."""
        sensitivity = self._comparison.tolerance.sensitivity
        if sensitivity is None or self._comparison.settings.fixed is not None:
            return False
        for _ in range(MORE_DRAWS):
            sensitivity.draw_rounding(self._comparison.sets())
        return True
