"""Compares an original model with its folded form by running both.

The tolerance is measured on the original: P is the largest change of an output over a few draws in
which every weight moves by at most one unit in the last place. A right fold rounds each new weight
once, so it moves the output by about that much; `tolerance = FACTOR · max(P, floor)`. A check that
does not notice a 1 % error in some folded layers (10 % in float16) is inconclusive, never a pass.

Three draws can underrate P where weights are few, so a difference is held against sixteen more
before it counts as a failure. On 5,000 right folds of small random models three draws alone gave
one false alarm, which the further ones cleared; against twenty draws, 1,000 such folds stayed below
1.4 P. Four real models with twelve seeds stayed at or below 2 P of three draws. The verdicts on
right and wrong folds are printed by `python -m tests.verify.calibration 1000`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold._errors import UsageError
from bnfold._verify._bisect import Instruments, Values, locate
from bnfold._verify._deployed import Deployment, Expected
from bnfold._verify._difference import distance, is_float, magnitude, mismatch
from bnfold._verify._inputs import ONLY, USUAL, InputSet, InputSource, UndrawableError, Wanted
from bnfold._verify._noise import Array
from bnfold._verify._providers import CPU, Provider
from bnfold._verify._sensitivity import Sensitivity
from bnfold._verify._session import EngineError, OnnxRuntime, Port, Reference
from bnfold._verify._skeleton import reached
from bnfold._verify._source import Source, common_functions
from bnfold._verify._verdict import (
    Divergence,
    EndToEnd,
    OutputCheck,
    ProviderCheck,
    Status,
    combined,
    overall,
)

FACTOR = 3.0
"""How many times its own rounding noise a fold may move an output."""
DRAWS = 3
"""Noise draws for every comparison."""
MORE_DRAWS = 16
"""Further draws before a difference counts as a failure."""
ROUGH = 3.0
"""How many times the tolerance a tensor on the way may move, which is held against few draws."""
FLOOR = 1.0
"""Least rounding noise, in units in the last place of the largest output value."""
_BLIND = "a planted error in some folded layers does not show here; pass real inputs"
FALLBACK = {2: 2e-2, 4: 1e-4, 8: 1e-11}
"""Tolerance relative to the largest output value, by element width in bytes, where P is unknown."""


def compare(
    original: Path,
    folded: Path,
    *,
    parameters: Mapping[str, Array],
    touched: Collection[str] = (),
    inputs: Sequence[InputSet] | None = None,
    seed: int = 0,
    wanted: Wanted = USUAL,
    bisect: bool = False,
    providers: Sequence[Provider] = (CPU,),
    progress: Callable[[str], None] | None = None,
) -> EndToEnd:
    """Run two models on the same inputs and judge whether they are the same function.

    Args:
        original: the model as it was.
        folded: the model that claims to be equal; external data lies beside each file.
        parameters: weights of the original's main graph by value name. They are what rounding
            noise is added to; anything that is not a weight must not be among them.
        touched: those of them that belong to folded layers, all if empty.
        inputs: input sets to compare on; by default sets are drawn.
        wanted: which sets to draw.
        seed: seed of drawn inputs and of the noise.
        bisect: look for the first tensor that differs even where no output does.
        providers: where the folded model is run as deployed, its optimizations on.
        progress: called with a few words before each lengthy step.

    Raises:
        UsageError: given inputs do not have the names, types or shapes of the model's inputs, or
            the model has no dimension of a wanted name.
    """
    say = progress or _silent
    comparison = _Comparison(Source(Path(original)), Source(Path(folded)), seed, say, wanted)
    try:
        checks = comparison.judge(parameters, touched, inputs)
    except _Settled as settled:
        return comparison.report(settled.status, (), str(settled))
    if any(check.note == _BLIND for check in checks):
        say("looking ahead of the last function")
        checks = comparison.look_ahead(checks, parameters, touched)
    status, divergence = overall(checks), None
    deployed: tuple[ProviderCheck, ...] = ()
    if status != "fail":
        deployed = comparison.deploy(providers)
        status = combined(status, deployed)
    if bisect or any(check.status == "fail" for check in checks):
        say("looking for the first difference")
        divergence = comparison.locate(checks, parameters, touched)
    result = comparison.report(status, checks)
    return replace(result, providers=deployed, divergence=divergence)


def _silent(step: str) -> None:
    pass


class _Settled(Exception):
    """The verdict is known before any output was compared."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class _Trial:
    """One input set, and what both models made of it."""

    inputs: InputSet
    original: list[Any]
    folded: list[Any]


class _Comparison:
    def __init__(
        self,
        original: Source,
        folded: Source,
        seed: int,
        progress: Callable[[str], None],
        wanted: Wanted = USUAL,
        thorough: bool = True,
    ) -> None:
        self._original = original
        self._folded = folded
        self._seed = seed
        self._wanted = wanted
        self._thorough = thorough
        self._progress = progress
        self._engine: type[OnnxRuntime] | type[Reference] = OnnxRuntime
        self._outputs: tuple[Port, ...] = ()
        self._inputs: list[InputSet] = []
        self._expected: list[Expected] = []
        self._notes: list[str] = []

    def report(self, status: Status, checks: Iterable[OutputCheck], *notes: str) -> EndToEnd:
        runtime = self._engine.runtime
        all_notes = (*self._notes, *notes)
        return EndToEnd(status, tuple(checks), all_notes, self._seed, runtime, CPU.full_name)

    def judge(
        self,
        parameters: Mapping[str, Array],
        touched: Collection[str],
        inputs: Sequence[InputSet] | None,
    ) -> list[OutputCheck]:
        """Run both models, measure the tolerance, and compare every output."""
        try:
            model = self._original.proto()
        except Exception as error:
            raise _Settled("inconclusive", f"the original cannot be read: {error}") from error
        trials = self._run_both(model, inputs)
        reach = reached(model.graph, touched or parameters.keys())
        sensitivity = self._measure(model, parameters, touched, trials)
        self._inputs = [trial.inputs for trial in trials]
        self._expected = [
            Expected(
                trial.inputs,
                trial.original,
                [_allowed(sensitivity, (k, n), left) for n, left in enumerate(trial.original)],
            )
            for k, trial in enumerate(trials)
        ]
        return [
            self._check(sensitivity, reach, index, trial, output)
            for index, trial in enumerate(trials)
            for output in range(len(self._outputs))
        ]

    def look_ahead(
        self,
        checks: list[OutputCheck],
        parameters: Mapping[str, Array],
        touched: Collection[str],
    ) -> list[OutputCheck]:
        """Compare blind outputs once more, ahead of the function that saturates them."""
        functions = common_functions(self._original.proto(), self._folded.proto())
        short_of = frozenset(c.output for c in checks if c.note == _BLIND) & functions.keys()
        if not short_of:
            return checks
        ahead = _Comparison(
            replace(self._original, short_of=short_of),
            replace(self._folded, short_of=short_of),
            self._seed,
            self._progress,
        )
        try:
            seen = ahead.judge(parameters, touched, self._inputs)
        except _Settled:
            return checks
        return [
            replace(new, note=f"compared ahead of its {functions[new.output]}")
            if old.note == _BLIND and old.output in short_of and new.status != "inconclusive"
            else old
            for old, new in zip(checks, seen, strict=True)
        ]

    def locate(
        self,
        checks: list[OutputCheck],
        parameters: Mapping[str, Array],
        touched: Collection[str],
    ) -> Divergence | None:
        """The first tensor at which the two differ; None where none does, or none can be run.

        Tensors on the way are held against fewer draws than outputs and a wider tolerance, on the
        inputs alone on which an output fails, if one does.
        """
        failing = {check.inputs for check in checks if check.status == "fail"}
        inputs = [each for each in self._inputs if not failing or each.label in failing][:1]

        def judge(names: Sequence[str]) -> list[OutputCheck]:
            left = replace(self._original, tapped=tuple(names))
            right = replace(self._folded, tapped=tuple(names))
            inner = _Comparison(left, right, self._seed, _silent, thorough=False)
            return inner.judge(parameters, touched, inputs)

        def values(side: Source) -> Values:
            def run(names: Sequence[str]) -> dict[str, Any]:
                tapped = replace(side, tapped=tuple(names))
                engine = self._engine(tapped.content(), tapped.folder)
                return dict(zip(names, engine.run(inputs[0].feeds), strict=True))

            return run

        instruments = Instruments(judge, values(self._original), values(self._folded))
        try:
            return locate(self._original.proto(), self._folded.proto(), checks, instruments)
        except (_Settled, EngineError) as error:
            self._notes.append(f"where the two begin to differ is not known: {error}")
            return None

    def deploy(self, providers: Sequence[Provider]) -> tuple[ProviderCheck, ...]:
        """What each provider makes of the folded model. Nothing runs there that onnxruntime cannot
        run at all.
        """
        if self._engine is not OnnxRuntime:
            return ()
        outputs = [port.name for port in self._outputs]
        deployment = Deployment(self._original, self._folded, self._expected, outputs)
        checks = []
        for provider in providers:
            self._progress(f"running on {provider.name} as deployed")
            checks.append(deployment.check(provider))
        return tuple(checks)

    def _run_both(self, model: onnx.ModelProto, inputs: Sequence[InputSet] | None) -> list[_Trial]:
        self._progress("running the original")
        engine = self._open_original()
        seen = self._run_drawn(engine, model) if inputs is None else self._run_given(engine, inputs)
        asked, self._outputs = engine.inputs, engine.outputs
        del engine
        self._progress("running the folded model")
        try:
            other = self._engine(self._folded.content(), self._folded.folder)
            self._agree("input", asked, other.inputs)
            self._agree("output", self._outputs, other.outputs)
            return [_Trial(feeds, outputs, other.run(feeds.feeds)) for feeds, outputs in seen]
        except EngineError as error:
            raise _Settled("fail", f"the folded model does not run: {error}") from error

    def _open_original(self) -> OnnxRuntime | Reference:
        try:
            return OnnxRuntime(self._original.content(), self._original.folder)
        except EngineError as error:
            if not error.missing_kernel:
                raise _Settled("inconclusive", f"the original does not load: {error}") from error
            missing = str(error)
        self._engine = Reference
        self._notes.append(f"onnxruntime cannot run the original ({missing}); onnx.reference did")
        try:
            return Reference(self._original.content(), self._original.folder)
        except EngineError as error:
            raise _Settled("inconclusive", f"onnx.reference cannot either: {error}") from error

    def _run_drawn(
        self, engine: OnnxRuntime | Reference, model: onnx.ModelProto
    ) -> list[tuple[InputSet, list[Any]]]:
        try:
            source = InputSource(model, self._seed, self._wanted)
        except UndrawableError as error:
            raise _Settled("inconclusive", f"{error}; pass real inputs") from error
        seen = [self._first_that_runs(engine, source.first())]
        for number in range(1, len(source)):
            seen.append(self._first_that_runs(engine, source.further(number, seen[0][0])))
        return seen

    def _first_that_runs(
        self, engine: OnnxRuntime | Reference, proposals: Iterable[InputSet]
    ) -> tuple[InputSet, list[Any]]:
        reasons = []
        for proposal in proposals:
            try:
                return proposal, engine.run(proposal.feeds)
            except EngineError as error:
                reasons.append(str(error))
        text = f"the original runs on no drawn inputs ({reasons[0]}); pass real inputs"
        raise _Settled("inconclusive", text)

    def _run_given(
        self, engine: OnnxRuntime | Reference, inputs: Sequence[InputSet]
    ) -> list[tuple[InputSet, list[Any]]]:
        inputs = [_named(given, engine.inputs) for given in inputs]
        for given in inputs:
            _refuse_unfit(given, engine.inputs)
        try:
            return [(given, engine.run(given.feeds)) for given in inputs]
        except EngineError as error:
            raise _Settled("inconclusive", f"the original does not run: {error}") from error

    def _agree(self, what: str, left: tuple[Port, ...], right: tuple[Port, ...]) -> None:
        """Settle for failure unless the models ask for and give the same."""
        names, others = [port.name for port in left], [port.name for port in right]
        if names != others:
            lost, new = sorted({*names} - {*others}), sorted({*others} - {*names})
            text = f"lost {lost[:4]}, new {new[:4]}" if lost or new else "in another order"
            raise _Settled("fail", f"the folded model's {what}s are not the same: {text}")
        for port, other in zip(left, right, strict=True):
            if port.type != other.type:
                raise _Settled("fail", f"{what} {port.name} is {port.type} and {other.type}")
            if what == "input" and port.shape != other.shape:
                raise _Settled(
                    "fail", f"{what} {port.name} is {list(port.shape)} and {list(other.shape)}"
                )

    def _measure(
        self,
        model: onnx.ModelProto,
        parameters: Mapping[str, Array],
        touched: Collection[str],
        trials: list[_Trial],
    ) -> Sensitivity | None:
        """Measure rounding and power on every trial; None where that cannot be done."""
        self._progress("measuring the tolerance")
        sets = {index: (trial.inputs, trial.original) for index, trial in enumerate(trials)}
        try:
            sensitivity = Sensitivity(
                model, self._original.folder, self._engine, parameters, self._seed
            )
            for _ in range(DRAWS):
                sensitivity.draw_rounding(sets)
            for _ in range(MORE_DRAWS if self._thorough else 0):
                doubtful = {
                    index: sets[index]
                    for index, trial in enumerate(trials)
                    if any(
                        _exceeds(sensitivity, index, trial, output)
                        for output in range(len(self._outputs))
                    )
                }
                if not doubtful:
                    break
                sensitivity.draw_rounding(doubtful)
            if self._thorough:
                sensitivity.draw_mistakes(sets, touched)
        except EngineError as error:
            self._notes.append(
                f"the weights cannot be varied ({error}); tolerances are fixed fractions of the "
                "largest output value, and power is not known"
            )
            return None
        return sensitivity

    def _check(
        self,
        sensitivity: Sensitivity | None,
        reach: Collection[str],
        index: int,
        trial: _Trial,
        output: int,
    ) -> OutputCheck:
        name, label, at = self._outputs[output].name, trial.inputs.label, (index, output)
        left, right = trial.original[output], trial.folded[output]
        jumps = sensitivity is not None and sensitivity.jumps.get(at, False)
        if not isinstance(left, np.ndarray):
            return OutputCheck(name, label, "inconclusive", note="not a tensor")
        if reason := mismatch(left, right):
            status: Status = "inconclusive" if jumps else "fail"
            note = f"{reason}, as rounding alone causes" if jumps else reason
            return OutputCheck(name, label, status, note=note)
        if left.size == 0:
            return OutputCheck(name, label, "inconclusive", note="empty")
        if is_float(left) and not np.isfinite(left).any():
            return OutputCheck(name, label, "inconclusive", note="no finite value")
        difference, tolerance = distance(left, right), _tolerance(sensitivity, at, left)
        tolerance *= 1.0 if self._thorough else ROUGH
        rounding = sensitivity.rounding.get(at) if sensitivity else None
        power = sensitivity.power.get(at) if sensitivity else None
        if difference > tolerance:
            status, note = ("inconclusive", "rounding alone changes it") if jumps else ("fail", "")
        elif power is None:
            still = left.size > 1 and bool((left == left.flat[0]).all())
            status, note = ("inconclusive", "constant") if still else ("pass", "power not known")
        elif name not in reach:
            status = "inconclusive" if difference else "pass"
            note = "no folded layer reaches this output"
        elif power <= tolerance:
            status = "inconclusive"
            note = _BLIND
        else:
            status, note = "pass", ""
        ratio = difference / tolerance if tolerance else (np.inf if difference else 0.0)
        return OutputCheck(
            name, label, status, difference, tolerance, float(ratio), rounding, power, note
        )


def _exceeds(sensitivity: Sensitivity, index: int, trial: _Trial, output: int) -> bool:
    """Tell whether an output differs by more than rounding, as far as rounding is known."""
    at, left, right = (index, output), trial.original[output], trial.folded[output]
    if sensitivity.jumps.get(at):
        return False
    if mismatch(left, right):
        return True
    return distance(left, right) > _tolerance(sensitivity, at, left)


def _allowed(sensitivity: Sensitivity | None, at: tuple[int, int], expected: Any) -> float | None:
    """The tolerance of an output, None where rounding alone changes it or it is no array."""
    jumps = sensitivity is not None and sensitivity.jumps.get(at, False)
    return (
        _tolerance(sensitivity, at, expected)
        if isinstance(expected, np.ndarray) and not jumps
        else None
    )


def _tolerance(sensitivity: Sensitivity | None, at: tuple[int, int], expected: Array) -> float:
    if not is_float(expected):
        return 0.0
    largest = magnitude(expected)
    if sensitivity is None:
        return FALLBACK[expected.dtype.itemsize] * largest
    floor = FLOOR * float(np.spacing(expected.dtype.type(largest)))
    return FACTOR * max(sensitivity.rounding.get(at, 0.0), floor)


def _named(given: InputSet, ports: tuple[Port, ...]) -> InputSet:
    """An array without a name is that of the only input."""
    if ONLY not in given.feeds:
        return given
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise UsageError(f"{given.label} has no names, and the model has inputs {names}: use .npz")
    return InputSet(given.label, {ports[0].name: given.feeds[ONLY]})


def _refuse_unfit(given: InputSet, ports: tuple[Port, ...]) -> None:
    """Raise UsageError unless the arrays are what the model asks for."""
    wanted = {port.name: port for port in ports}
    missing, unknown = wanted.keys() - given.feeds.keys(), given.feeds.keys() - wanted.keys()
    if missing or unknown:
        raise UsageError(
            f"{given.label}: the model's inputs are {sorted(wanted)}, got {sorted(given.feeds)}"
        )
    for name, array in given.feeds.items():
        port = wanted[name]
        if port.type in _TYPES and _TYPES[port.type] != array.dtype:
            raise UsageError(
                f"{given.label}: {name} is {array.dtype}, the model takes {_TYPES[port.type]}"
            )
        fixed = [dim if isinstance(dim, int) and dim > 0 else None for dim in port.shape]
        if fixed and (
            len(fixed) != array.ndim
            or any(d not in (None, size) for d, size in zip(fixed, array.shape, strict=True))
        ):
            raise UsageError(
                f"{given.label}: {name} has shape {list(array.shape)}, "
                f"the model takes {list(port.shape)}"
            )


_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
