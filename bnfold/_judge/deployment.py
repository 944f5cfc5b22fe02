"""Runs a folded model as it is deployed: with onnxruntime's optimizations, on a provider.

Two models may agree without optimizations and differ with them. A fold can bring two operators
together, and onnxruntime may then merge them wrongly. The fold is right, but its user gets a wrong
result. The original on the CPU without optimizations always says what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold._judge.bench import Pair, Terms
from bnfold._judge.between_quantizers import STEPS
from bnfold._judge.comparison import Comparison, allowed
from bnfold._judge.difference import is_float, step
from bnfold._judge.measurement import draw_more
from bnfold._judge.onnx_bench import OnnxBench
from bnfold._judge.tolerance import DEPLOYED
from bnfold._judge.verdict import ProviderCheck
from bnfold._run.bounds import UNBOUNDED, Bounds
from bnfold._run.input_sets import InputSet, Port
from bnfold._run.providers import CPU, Provider, ran_on
from bnfold._run.session import BackgroundLoad, EngineError, OnnxRuntime
from bnfold._run.source import Source
from bnfold._system import memory, scratch


@dataclass(frozen=True)
class Expected:
    """One input set, and the right outputs on it.

    The original gives them without optimizations. For each output there is a tolerance, or None
    where rounding alone changes the output.
    """

    inputs: InputSet
    outputs: Sequence[Any]
    tolerances: Sequence[float | None]


@dataclass(frozen=True, order=True)
class _Excess:
    """The largest difference in units of the tolerance, and where it is."""

    excess: float
    said: str


@dataclass(frozen=True)
class Deployment:
    """Two models and their outputs, to be run on providers.

    ``preloaded`` is the folded model on the CPU, if somebody has begun to load it. ``precise``:
    sums of products of integers do not saturate, as they do on CPUs without instructions for them.
    """

    original: Source
    folded: Source
    outputs: Sequence[Port]
    bounds: Bounds = UNBOUNDED
    preloaded: BackgroundLoad[OnnxRuntime] | None = None
    precise: bool = False

    def check(self, provider: Provider, expected: Sequence[Expected]) -> ProviderCheck:
        """Check whether the folded model gives the right outputs on a provider.

        It fails where the folded model is off and the original on that provider is not: the runtime
        has a bug that only the fold meets. A model that does not load or run counts as off. Where
        both models are off alike, the runtime causes it, and the check does not fail. It is
        inconclusive where the provider is missing or runs none of the operators.
        """
        if not provider.is_there:
            note = f"this onnxruntime has no {provider.full_name}; install {provider.install}"
            return ProviderCheck(provider.name, "inconclusive", note)
        notes = []
        for optimized in (True,) if provider == CPU else (False, True):
            try:
                worst = self._excess(self.folded, provider, optimized, expected)
                usual = (
                    None
                    if worst.excess <= 1.0
                    else self._excess(self.original, provider, optimized, expected)
                )
            except _ProviderMissing as absent:
                return ProviderCheck(provider.name, "inconclusive", str(absent))
            if usual is None:
                continue
            state = "on" if optimized else "off"
            what = f"{OnnxRuntime.runtime} on {provider.name} with its optimizations {state}"
            what += " gives something else for"
            if worst.excess > DEPLOYED * usual.excess:
                note = (
                    f"{what} the folded model ({worst.said}) and not for the original; on the CPU "
                    "with them off both agree: a bug of onnxruntime that the original does not "
                    "meet. Deploy without optimizations or on another runtime, or keep the original"
                )
                return ProviderCheck(provider.name, "fail", note)
            notes.append(f"{what} both models ({usual.said}): that is its own doing")
        return ProviderCheck(provider.name, "pass", "; ".join(notes))

    def _excess(
        self, source: Source, provider: Provider, optimized: bool, expected: Sequence[Expected]
    ) -> _Excess:
        """How far a model is off on a provider.

        Integers and shapes that depend on values are left out: a difference in the last digit may
        change them.
        """
        worst = _Excess(0.0, "nothing")
        with _temporary(provider) as folder:
            profile = None if folder is None else folder / "profile"
            try:
                preloaded = None if self.precise or provider != CPU else self.preloaded
                if preloaded is not None and source is self.folded:
                    engine = preloaded.get()
                else:
                    engine = opened_session(
                        source, optimized, provider, profile, self.bounds, self.precise
                    )
                if provider.full_name not in engine.active:
                    raise _ProviderMissing(
                        f"{provider.full_name} was asked for and is not active: its libraries are "
                        f"missing, or there is no device; it takes {provider.install}"
                    )
                for each in expected:
                    found = engine.run(each.inputs.feeds)
                    rows = zip(self.outputs, each.outputs, found, each.tolerances, strict=True)
                    for port, left, right, tolerance in rows:
                        if tolerance is None or not is_float(left):
                            continue
                        gap, allowed = step(left, right), DEPLOYED * tolerance
                        if gap is None:
                            if np.shape(left) != np.shape(right):
                                continue
                            gap = np.inf  # not finite where it was, or of another type
                        excess = gap / allowed if allowed else (np.inf if gap else 0.0)
                        said = f"{port.name} on {each.inputs.label} inputs: difference {gap:.2e}"
                        worst = max(worst, _Excess(float(excess), said))
            except EngineError as error:
                return _Excess(float("inf"), str(error))
            if profile is not None:
                ran = ran_on(engine.end_profile())
                if not ran[provider.full_name]:
                    places = ", ".join(sorted(ran)) or "nowhere"
                    raise _ProviderMissing(
                        f"{provider.full_name} ran no operator; they ran on {places}"
                    )
        return worst


def as_deployed(
    bench: OnnxBench,
    terms: Terms,
    pair: Pair,
    compared: Comparison,
    preloaded: BackgroundLoad[OnnxRuntime],
) -> tuple[ProviderCheck, ...]:
    """One check of the folded model for each provider.

    Where outputs are blind, the tensors ahead of their last functions are checked too. There is no
    check if onnxruntime cannot run the model at all. Further noise is drawn before a difference
    counts. An optimized session takes twice the model's size and more while it loads: where it has
    not begun to, what the stages before have left is given back first.
    """
    if bench.engine is not OnnxRuntime:
        return ()
    blind = bool(compared.blind())
    outputs = [port for port in bench.ports if blind or port.name not in bench.saturated]
    sources = bench.pair if blind else pair
    deployment = Deployment(
        sources.original, sources.folded, outputs, terms.bounds, None if blind else preloaded
    )
    checks = []
    if preloaded.is_due:
        memory.give_back(of_process=scratch.is_watched())
    for provider in terms.settings.providers:
        terms.progress(f"running on {provider.name} as deployed")
        check = deployment.check(provider, _expected(bench, compared, len(outputs)))
        if check.status == "fail" and draw_more(terms, compared.measured, compared.trials):
            check = deployment.check(provider, _expected(bench, compared, len(outputs)))
        if check.status == "fail":
            check = _by_steps(bench, compared, deployment, provider, len(outputs)) or check
        checks.append(check)
    return tuple(checks)


def _by_steps(
    bench: OnnxBench, compared: Comparison, deployment: Deployment, provider: Provider, outputs: int
) -> ProviderCheck | None:
    """A passing check of a model that rounds data to integers, or None.

    Runtimes compute with these integers, and round what comes of it to the next ones. So they are
    off by steps of the quantizers, and by what steps make of all that follows. How far steps move
    the original is measured; where that has no bound, the verdict is open. On some CPUs sums of
    such products saturate, unless a session is told to avoid it. That is no error of the fold, but
    the original does not saturate alike, so the verdict is open, too.
    """
    moved = bench.moved_by_steps(compared.trials)
    if not moved:
        return None
    if not np.isfinite(list(moved.values())).all():
        note = "steps of its quantizers move its outputs beyond all bounds"
        return ProviderCheck(provider.name, "inconclusive", note=note)
    expected = [
        replace(
            each,
            tolerances=[
                None if given is None else max(given, STEPS / DEPLOYED * moved.get((k, n), 0.0))
                for n, given in enumerate(each.tolerances)
            ],
        )
        for k, each in enumerate(_expected(bench, compared, outputs))
    ]
    check = deployment.check(provider, expected)
    if check.status == "pass":
        note = "it is off by steps of its quantizers, as runtimes round"
        return replace(check, note="; ".join(filter(None, [note, check.note])))
    check = replace(deployment, precise=True).check(provider, expected)
    if check.status != "pass":
        return None
    note = (
        "sums of products of integers saturate on this CPU; the session option "
        "session.x64quantprecision = 1 avoids it"
    )
    return replace(check, status="inconclusive", note="; ".join(filter(None, [note, check.note])))


def _expected(bench: OnnxBench, compared: Comparison, outputs: int) -> list[Expected]:
    """The outputs that a provider has to give, and how far it may be off.

    They are those of the original, or those of the folded model where the original is inaccurate.
    """
    return [
        Expected(
            trial.inputs,
            [
                (trial.folded if (k, n) in compared.inaccurate else trial.original)[n]
                for n in range(outputs)
            ],
            [allowed(bench, compared, (k, n), trial.original[n]) for n in range(outputs)],
        )
        for k, trial in enumerate(compared.trials)
    ]


def opened_session(
    source: Source,
    optimized: bool = True,
    provider: Provider = CPU,
    profile: Path | None = None,
    bounds: Bounds = UNBOUNDED,
    precise: bool = False,
) -> OnnxRuntime:
    """A session of a model on a provider. Raises `EngineError` where it does not load."""
    return OnnxRuntime(
        source.content(),
        source.folder,
        optimized=optimized,
        precise=precise,
        provider=provider,
        profile=profile,
        bounds=bounds,
    )


def _temporary(provider: Provider) -> AbstractContextManager[Path | None]:
    """A folder for a profile, or None for the CPU: all nodes run there, so no profile is needed."""
    return nullcontext() if provider == CPU else scratch.beside(None)


class _ProviderMissing(Exception):
    """A provider is missing, or it runs no operator."""
