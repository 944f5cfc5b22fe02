"""Runs two models on the same inputs and holds every output of the one against the other's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from bnfold._judge.difference import is_float, mismatch
from bnfold._judge.power import Power, Sets
from bnfold._judge.sensitivity import Sensitivity
from bnfold._judge.settings import Settings
from bnfold._judge.tolerance import DRAWS, MORE_DRAWS, Measured, Tolerance
from bnfold._judge.untaken import IfBranch, with_weights
from bnfold._judge.verdict import OutputCheck, Status
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.early import Early
from bnfold._run.given import named, refuse_unfit
from bnfold._run.inputs import InputSet, InputSource, UndrawableError
from bnfold._run.nodes import reached
from bnfold._run.noise import Array
from bnfold._run.randomness import rolled
from bnfold._run.session import EngineError, OnnxRuntime, Port, Reference
from bnfold._run.source import Source, Tap, tapped_before
from bnfold._run.varied import Varied
from bnfold._system import memory

FEW = 2
"""Further draws for tensors on the way."""
ROUGH = 3.0
"""How many times the tolerance they may move, for so few."""
UNSETTLED = "rounding alone changes it"
_BLIND = "a planted error in some folded layers does not show here; pass real inputs"


class Settled(Exception):
    """The verdict is known before any output was compared."""

    def __init__(self, status: Status, text: str) -> None:
        """Keep the verdict, and why."""
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Trial:
    """One input set, and what both models made of it."""

    inputs: InputSet
    original: list[Any]
    folded: list[Any]


@dataclass(frozen=True)
class Pair:
    """Two models, the weights of the original by name, and which of them errors are planted in;
    all if none is.
    """

    original: Source
    folded: Source
    weights: Mapping[str, Array | None]
    touched: Collection[str]

    def tapped(self, original: Sequence[Tap], folded: Sequence[Tap]) -> Pair:
        """The two with tensors on the way in place of their outputs."""
        return replace(
            self,
            original=replace(self.original, taps=tuple(original), alone=True),
            folded=replace(self.folded, taps=tuple(folded), alone=True),
        )


class Comparison:
    """Two models side by side.

    Of tensors on the way (``thorough`` false) there are many: each is held against fewer draws and
    a wider tolerance, and no errors are planted. With an ``executor`` the folded model loads while
    the original runs.

    Attributes:
        engine: what runs the models.
        outputs: the outputs of both; those with an alias of a tensor on the way come last.
        trials: the input sets, and what came of them.
        tolerance: how far outputs may be apart.
        power: what planted errors showed.
        notes: what concerns the whole comparison.
        inaccurate: input sets and outputs, by number, for which float64 agrees with the folded
            model and not with the original.
    """

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        bounds: Bounds,
        progress: Callable[[str], None],
        thorough: bool = True,
        executor: Executor | None = None,
    ) -> None:
        self.pair = pair
        self.settings = settings
        self.bounds = bounds
        self.progress = progress
        self.engine: type[OnnxRuntime] | type[Reference] = OnnxRuntime
        self.outputs: tuple[Port, ...] = ()
        self.trials: list[Trial] = []
        self.tolerance = Tolerance(None)
        self.power: Power | None = None
        self.notes: list[str] = []
        self.inaccurate: set[tuple[int, int]] = set()
        self.branches: list[IfBranch] = []
        self._thorough = thorough
        self._executor = executor
        self._dice: set[str] = set()
        self._ahead: dict[str, tuple[str, str]] = {}
        self._unvaried = ""

    def judge(self, inputs: Sequence[InputSet] | None) -> list[OutputCheck]:
        """Run both models, measure the tolerance, and compare every output on every input set.

        Raises:
            Settled: a model does not run, or the two do not ask for and give the same.
            UsageError: given inputs do not fit the model, or it has no dimension of a wanted name.
        """
        model = self._read()
        self.branches = list(with_weights(model))
        self._dice = rolled(model.graph)
        reach = reached(model.graph, self.pair.touched or self.pair.weights.keys())
        folded = Early(lambda: self.load(self.pair.folded), self._executor)
        self.progress("running the original")
        drawing = self._drawing(model) if inputs is None else None  # before weights are inputs
        original = self._open_original(model)
        if self.engine is not OnnxRuntime:
            folded = Early(lambda: self.load(self.pair.folded), None)
        del model
        if isinstance(drawing, InputSource):
            seen = self._run_drawn(original, drawing)
        elif drawing is not None:
            raise Settled("inconclusive", f"{drawing}; pass real inputs") from drawing
        else:
            seen = self._run_given(original, inputs or ())
        self.outputs = original.outputs
        self.progress("measuring the tolerance")
        sensitivity = self._measure(original, dict(enumerate(seen)))
        original.release()
        self.progress("running the folded model")
        self.trials = self._run_folded(folded, original, seen)
        if sensitivity is not None and not self._settle_doubt(sensitivity):
            sensitivity = None
        wider = 1.0 if self._thorough else ROUGH
        widths = [each.dtype.itemsize for each in self.pair.weights.values() if each is not None]
        width = min(widths, default=8)
        self.tolerance = Tolerance(sensitivity, self.settings.fixed, wider, width)
        return [
            self._check(reach, index, trial, output)
            for index, trial in enumerate(self.trials)
            for output in range(len(self.outputs))
        ]

    def own(self, checks: Sequence[OutputCheck]) -> list[OutputCheck]:
        """The checks of the models' own outputs. One that is blind on some inputs is judged by the
        tensor ahead of its last function, on all of them; one that agrees while that tensor does
        not is not judged at all.
        """
        found = {(check.inputs, check.output): check for check in checks}
        return [
            self._seen_ahead(check, found, check.output in self.blind(checks))
            for check in checks
            if check.output not in self._ahead
        ]

    def blind(self, checks: Sequence[OutputCheck]) -> set[str]:
        """The outputs in which planted errors do not show on some inputs."""
        return {check.output for check in checks if check.note == _BLIND}

    def of(self, number: int) -> tuple[tuple[int, int], Trial]:
        """Which input set and output the check of a number is of, and the trial."""
        index, output = divmod(number, len(self.outputs))
        return (index, output), self.trials[index]

    def sets(self) -> dict[int, tuple[InputSet, list[Any]]]:
        """The input sets by number, with what the original makes of each."""
        return {n: (trial.inputs, trial.original) for n, trial in enumerate(self.trials)}

    def allowed(self, at: tuple[int, int], expected: Any) -> float | None:
        """The tolerance of an output; None where rounding or chance alone changes it."""
        if not isinstance(expected, np.ndarray) or self.tolerance.jumps(at):
            return None
        if self.outputs[at[1]].name in self._dice:
            return None
        return self.tolerance.allowed(at, expected)

    def is_ahead(self, output: str) -> bool:
        """Whether an output is a tensor on the way."""
        return output in self._ahead

    def load(self, source: Source) -> OnnxRuntime | Reference:
        """A session of the engine that runs both models."""
        return self.engine(source.content(), source.folder, bounds=self.bounds)

    def _read(self) -> onnx.ModelProto:
        """Parse the original, and tap both models ahead of the functions that saturate outputs."""
        original, folded = self.pair.original, self.pair.folded
        model = _parsed(original, "original", "inconclusive")
        if not self._thorough or original.alone:
            return model
        found = tapped_before(
            model, _parsed(folded, "folded model", "fail")
        )  # which is dropped here
        ours, theirs = [], []
        for output, ahead in found.items():
            alias = f"{output} ahead of its {ahead.function}"
            ours.append(Tap(ahead.original, alias))
            theirs.append(Tap(ahead.folded, alias))
            self._ahead[alias] = (output, ahead.function)
        self.pair = replace(
            self.pair,
            original=replace(original, taps=tuple(ours)),
            folded=replace(folded, taps=tuple(theirs)),
        )
        self.pair.original.tap(model)
        return model

    def _seen_ahead(
        self, check: OutputCheck, found: Mapping[tuple[str, str], OutputCheck], blind: bool
    ) -> OutputCheck:
        """A check, next to that of the tensor ahead of its output where there is one."""
        for alias, (output, function) in self._ahead.items():
            seen = found[check.inputs, alias]
            if output != check.output or check.status == "fail" or seen.ratio is None:
                continue
            if blind and seen.status != "inconclusive":
                return replace(seen, output=output, note=f"compared ahead of its {function}")
            if seen.status == "fail":
                note = f"ahead of its {function} the two differ by {seen.difference:.2e}, and "
                note += f"{seen.tolerance:.2e} is allowed there"
                return replace(check, status="inconclusive", note=note, contested=True)
        return check

    def _drawing(self, model: onnx.ModelProto) -> InputSource | UndrawableError:
        try:
            return InputSource(model, self.settings.seed, self.settings.wanted)
        except UndrawableError as error:
            return error

    def _open_original(self, model: onnx.ModelProto) -> Varied:
        """The original, loaded: with weights that can be moved, if it loads like that."""
        try:
            return self._opened(model)
        except EngineError as error:
            if not error.missing_kernel:
                raise Settled("inconclusive", f"the original does not load: {error}") from error
            missing = str(error)
        self.engine = Reference
        self.notes.append(f"onnxruntime cannot run the original ({missing}); onnx.reference did")
        try:
            return self._opened(self.pair.original.structure())
        except EngineError as error:
            raise Settled("inconclusive", f"onnx.reference cannot either: {error}") from error

    def _opened(self, model: onnx.ModelProto) -> Varied:
        source, engine, bounds = self.pair.original, self.engine, self.bounds
        try:
            return Varied(source, model, self.pair.weights, engine, bounds)
        except EngineError as error:
            unvaried = str(error)
        varied = Varied(source, source.structure(), {}, engine, bounds)
        self._unvaried = unvaried
        return varied

    def _run_folded(
        self,
        early: Early[OnnxRuntime | Reference],
        original: Varied,
        seen: Sequence[tuple[InputSet, list[Any]]],
    ) -> list[Trial]:
        try:
            folded = early.get()
            self._agree("input", original.inputs, folded.inputs)
            self._agree("output", original.outputs, folded.outputs)
            return [Trial(feeds, outputs, folded.run(feeds.feeds)) for feeds, outputs in seen]
        except EngineError as error:
            raise Settled("fail", f"the folded model does not run: {error}") from error

    def _run_drawn(self, original: Varied, source: InputSource) -> list[tuple[InputSet, list[Any]]]:
        seen = [self._drawn(original, source.first())]
        for number in range(1, len(source)):
            seen.append(self._drawn(original, source.further(number, seen[0][0])))
        found = (self._first_that_runs(original, sets)[0] for sets in source.otherwise())
        return [*seen, *(ran for ran in found if ran is not None)]

    def _drawn(self, original: Varied, proposals: Iterable[InputSet]) -> tuple[InputSet, list[Any]]:
        ran, reason = self._first_that_runs(original, proposals)
        if ran is None:
            text = f"the original runs on no drawn inputs ({reason}); pass real inputs"
            raise Settled("inconclusive", text)
        return ran

    def _first_that_runs(
        self, original: Varied, proposals: Iterable[InputSet]
    ) -> tuple[tuple[InputSet, list[Any]] | None, str]:
        """The first inputs that the original runs on, and what it makes of them; or else why it
        does not run on the likeliest.
        """
        reasons = []
        for proposal in proposals:
            try:
                return (proposal, original.run(proposal.feeds)), ""
            except EngineError as error:
                reasons.append(str(error))
        return None, reasons[0] if reasons else ""

    def _run_given(
        self, original: Varied, inputs: Sequence[InputSet]
    ) -> list[tuple[InputSet, list[Any]]]:
        inputs = [named(given, original.inputs) for given in inputs]
        for given in inputs:
            refuse_unfit(given, original.inputs)
        try:
            return [(given, original.run(given.feeds)) for given in inputs]
        except EngineError as error:
            raise Settled("inconclusive", f"the original does not run: {error}") from error

    def _agree(self, what: str, left: tuple[Port, ...], right: tuple[Port, ...]) -> None:
        """Settle for failure unless the models ask for and give the same."""
        names, others = [port.name for port in left], [port.name for port in right]
        if names != others:
            lost, new = sorted({*names} - {*others}), sorted({*others} - {*names})
            text = f"lost {lost[:4]}, new {new[:4]}" if lost or new else "in another order"
            raise Settled("fail", f"the folded model's {what}s are not the same: {text}")
        for port, other in zip(left, right, strict=True):
            if port.type != other.type:
                raise Settled("fail", f"{what} {port.name} is {port.type} and {other.type}")
            if what == "input" and _sizes(port) != _sizes(other):
                raise Settled(
                    "fail", f"{what} {port.name} is {list(port.shape)} and {list(other.shape)}"
                )

    def _measure(self, original: Varied, sets: Sets) -> Sensitivity | None:
        """Measure rounding and power on every input set; None where that cannot be done."""
        try:
            sensitivity = Sensitivity(original, self.settings.seed)
            for _ in range(DRAWS):
                sensitivity.draw_rounding(sets)
            if self._thorough:
                tolerance = Tolerance(sensitivity, self.settings.fixed)
                self.power = Power(sensitivity, tolerance, self.pair.touched, self._stand_ins())
                self._plant(self.power, sets)
        except EngineError as error:
            self._cannot_vary(str(error))
            return None
        return sensitivity

    def _plant(self, power: Power, sets: Sets) -> None:
        power.plant(sets)
        if self.settings.power:
            power.plant_each(sets)

    def _settle_doubt(self, sensitivity: Sensitivity) -> bool:
        """Draw again while outputs differ by more than is known to be rounding; where the tolerance
        comes to hide an error, errors are planted again. False where it cannot be done after all.
        """
        sets, tolerance = self.sets(), Tolerance(sensitivity, self.settings.fixed)
        more = MORE_DRAWS if self._thorough else FEW
        widened = False
        try:
            for _ in range(more if self.settings.fixed is None else 0):
                doubtful = {n: sets[n] for n in sets if self._is_doubtful(tolerance, n)}
                if not doubtful:
                    break
                sensitivity.draw_rounding(doubtful)
                widened = True
            if widened and self.power is not None and self.power.is_stale():
                self._plant(self.power, sets)
        except EngineError as error:
            self._cannot_vary(str(error))
            return False
        return True

    def _cannot_vary(self, why: str) -> None:
        self.power = None
        self.notes.append(
            f"the weights cannot be varied ({self._unvaried or why}); tolerances are fixed "
            "fractions of the largest output value, and power is not known"
        )

    def _stand_ins(self) -> dict[int, int]:
        """The number of the tensor ahead of an output, by that of the output."""
        places = {port.name: number for number, port in enumerate(self.outputs)}
        return {places[output]: places[alias] for alias, (output, _) in self._ahead.items()}

    def _is_doubtful(self, tolerance: Tolerance, index: int) -> bool:
        """Whether an output differs on an input set by more than is known to be rounding."""
        trial = self.trials[index]
        return any(
            tolerance.exceeded((index, output), left, right, mismatch(left, right))
            for output, (left, right) in enumerate(zip(trial.original, trial.folded, strict=True))
            if isinstance(left, np.ndarray)
        )

    def _check(self, reach: Collection[str], index: int, trial: Trial, output: int) -> OutputCheck:
        name, label, at = self.outputs[output].name, trial.inputs.label, (index, output)
        left, right = trial.original[output], trial.folded[output]
        jumps = self.tolerance.jumps(at)
        if name in self._dice:
            note = "it depends on random numbers that the model draws"
            return OutputCheck(name, label, "inconclusive", note=note)
        if not isinstance(left, np.ndarray):
            return OutputCheck(name, label, "inconclusive", note="not a tensor")
        if reason := mismatch(left, right):
            status: Status = "inconclusive" if jumps else "fail"
            note = f"{reason}, as rounding alone causes" if jumps else reason
            return OutputCheck(name, label, status, note=note, contested=True)
        if left.size == 0:
            return OutputCheck(name, label, "inconclusive", note="empty")
        if is_float(left) and not np.isfinite(left).any():
            return OutputCheck(name, label, "inconclusive", note="no finite value")
        found = self.tolerance.measure(at, left, right)
        if found.ratio > 1.0:
            status, note = ("inconclusive", UNSETTLED) if jumps else ("fail", "")
        else:
            status, note = self._seen(at, left, found, name in reach)
        sensitivity, power = self.tolerance.sensitivity, self.power
        rounding = _largest(sensitivity.rounding.get(at) if sensitivity else None)
        moved = _largest(power.least.get(at) if power else None)
        contested = found.ratio > 1.0
        return OutputCheck(name, label, status, *found, rounding, moved, note, contested)

    def _seen(
        self, at: tuple[int, int], left: Array, found: Measured, reached: bool
    ) -> tuple[Status, str]:
        """The verdict on an output within the tolerance: whether an error would have been seen."""
        if self.tolerance.sensitivity is None or self.power is None:
            still = left.size > 1 and bool((left == left.flat[0]).all())
            return ("inconclusive", "constant") if still else ("pass", "power not known")
        if not reached:
            status: Status = "inconclusive" if found.difference else "pass"
            return status, "no folded layer reaches this output"
        if self.power.noticed(at):
            return "pass", ""
        if self.settings.fixed is not None:
            return "pass", "within what was asked for, as an error of 1 % in some layers would be"
        return "inconclusive", _BLIND


def _largest(movements: Array | None) -> float | None:
    return None if movements is None else float(movements.max())


def _sizes(port: Port) -> list[int | None]:
    """The sizes that are known: what a free one is called does not matter."""
    return [size if isinstance(size, int) else None for size in port.shape]


def _parsed(source: Source, what: str, verdict: Status) -> onnx.ModelProto:
    """A model, or the verdict if it cannot be read."""
    try:
        return source.structure()
    except Exception as error:
        if memory.ran_out(error):
            raise Exhausted("out of memory") from error
        raise Settled(verdict, f"the {what} cannot be read: {error}") from error
