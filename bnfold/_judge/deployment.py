"""What onnxruntime makes of a folded model as it is deployed: optimized, on a provider.

Two models that agree without optimizations may differ with them: a fold can bring together what
onnxruntime then merges wrongly. That is no wrong fold, but a wrong result for whoever runs it. What
is right is always what the original gives on the CPU without optimizations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold._judge.bench import Terms
from bnfold._judge.comparison import Compared, allowed
from bnfold._judge.difference import is_float, step
from bnfold._judge.measurement import drawn_more
from bnfold._judge.onnx_bench import OnnxBench, Pair
from bnfold._judge.verdict import ProviderCheck
from bnfold._run.bounds import UNBOUNDED, Bounds
from bnfold._run.input_sets import InputSet
from bnfold._run.providers import CPU, Provider, ran_on
from bnfold._run.session import BackgroundLoad, EngineError, OnnxRuntime, Port
from bnfold._run.source import Source

FACTOR = 10.0
"""How many times the tolerance a runtime may move an output, since fused kernels sum in other
orders."""


@dataclass(frozen=True)
class Expected:
    """One input set, what the original makes of it without optimizations, and how far each output
    may be off; None for one that rounding alone changes.
    """

    inputs: InputSet
    outputs: Sequence[Any]
    tolerances: Sequence[float | None]


@dataclass(frozen=True, order=True)
class _Excess:
    """The largest difference in units of what is allowed, and where it is."""

    excess: float
    said: str


@dataclass(frozen=True)
class Deployment:
    """Two models, and their outputs. ``early`` is the folded one on the CPU, if that has been sent
    for.
    """

    original: Source
    folded: Source
    outputs: Sequence[Port]
    bounds: Bounds = UNBOUNDED
    early: BackgroundLoad[OnnxRuntime] | None = None

    def check(self, provider: Provider, expected: Sequence[Expected]) -> ProviderCheck:
        """Whether the folded model gives what it should on a provider.

        It does not where it is off and the original there is not: a bug of the runtime that only
        the fold meets. A model that no longer loads or runs is off. Where both are off alike that
        is the runtime's own doing. Nothing is known of a provider that is not there, or runs none
        of the operators.
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
            except _Absent as absent:
                return ProviderCheck(provider.name, "inconclusive", str(absent))
            if usual is None:
                continue
            state = "on" if optimized else "off"
            what = f"{OnnxRuntime.runtime} on {provider.name} with its optimizations {state}"
            what += " gives something else for"
            if worst.excess > FACTOR * usual.excess:
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
        """How far a model is off. Integers, and shapes that depend on values, may turn on the last
        digit of something: they are passed over.
        """
        worst = _Excess(0.0, "nothing")
        with _scratch(provider) as scratch:
            profile = None if scratch is None else Path(scratch) / "profile"
            try:
                if self.early is not None and source is self.folded and provider == CPU:
                    engine = self.early.get()
                else:
                    engine = opened(source, optimized, provider, profile, self.bounds)
                if provider.full_name not in engine.active:
                    raise _Absent(
                        f"{provider.full_name} was asked for and is not active: its libraries are "
                        f"missing, or there is no device; it takes {provider.install}"
                    )
                for each in expected:
                    found = engine.run(each.inputs.feeds)
                    rows = zip(self.outputs, each.outputs, found, each.tolerances, strict=True)
                    for port, left, right, tolerance in rows:
                        if tolerance is None or not is_float(left):
                            continue
                        gap, allowed = step(left, right), FACTOR * tolerance
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
                    raise _Absent(f"{provider.full_name} ran no operator; they ran on {places}")
        return worst


def as_deployed(
    bench: OnnxBench,
    terms: Terms,
    pair: Pair,
    compared: Compared,
    early: BackgroundLoad[OnnxRuntime],
) -> tuple[ProviderCheck, ...]:
    """What each provider makes of the folded model of a pair, of the tensors ahead of its last
    functions too where its outputs are blind. Nothing runs there that onnxruntime cannot run at
    all. A difference is held against further draws before it counts.
    """
    if bench.engine is not OnnxRuntime:
        return ()
    blind = bool(compared.blind())
    outputs = [port for port in bench.ports if blind or port.name not in bench.ahead]
    sources = bench.pair if blind else pair
    deployment = Deployment(
        sources.original, sources.folded, outputs, terms.bounds, None if blind else early
    )
    checks = []
    for provider in terms.settings.providers:
        terms.progress(f"running on {provider.name} as deployed")
        check = deployment.check(provider, _expected(bench, compared, len(outputs)))
        if check.status == "fail" and drawn_more(terms, compared.measured, compared.trials):
            check = deployment.check(provider, _expected(bench, compared, len(outputs)))
        checks.append(check)
    return tuple(checks)


def _expected(bench: OnnxBench, compared: Compared, outputs: int) -> list[Expected]:
    """What a provider has to give, and how far it may be off: what the original gives, but where
    that is the inaccurate one.
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


def opened(
    source: Source,
    optimized: bool = True,
    provider: Provider = CPU,
    profile: Path | None = None,
    bounds: Bounds = UNBOUNDED,
) -> OnnxRuntime:
    """A model on a provider. Raises `EngineError` where it does not load."""
    return OnnxRuntime(
        source.content(),
        source.folder,
        optimized=optimized,
        provider=provider,
        profile=profile,
        bounds=bounds,
    )


def _scratch(provider: Provider) -> AbstractContextManager[str | None]:
    """Where a profile can be written, if one says something: on the CPU all nodes run."""
    return nullcontext() if provider == CPU else tempfile.TemporaryDirectory(prefix="bnfold-")


class _Absent(Exception):
    """A provider that is not there after all."""
