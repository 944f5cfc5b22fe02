"""Two ONNX files side by side, in sessions of onnxruntime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import onnx

from bnfold._judge.bench import (
    EarlyVerdict,
    NotLoadedError,
    OriginalRun,
    Pair,
    SaturatedOutput,
    Terms,
    Trial,
    agree,
)
from bnfold._judge.ties import Choice, choices
from bnfold._judge.tolerance import FLOOR
from bnfold._judge.untaken_branches import IfBranch, branches_with_weights
from bnfold._judge.verdict import Status
from bnfold._run.bounds import Exhausted
from bnfold._run.drawing import InputSource, UndrawableError
from bnfold._run.input_sets import InputSet, Port, named, refuse_unfit
from bnfold._run.nodes import always_empty, random_values, reached
from bnfold._run.onnx_model import OnnxModel
from bnfold._run.quantizers import rounds
from bnfold._run.session import BackgroundLoad, EngineError, OnnxRuntime
from bnfold._run.source import Source, Tap, saturations
from bnfold._system import memory

if TYPE_CHECKING:
    from bnfold._run.reference import Reference

_MOST_TOLD = 3


class OnnxBench:
    """See `Bench`.

    Attributes:
        pair: both files, which also put out what their last saturating functions read.
        ports: the outputs of both models.
        branches: the branches of the original that hold weights.
        engine: the class of the sessions that run the models.
    """

    def __init__(
        self,
        pair: Pair,
        inputs: Sequence[InputSet] | None,
        terms: Terms,
        executor: Executor | None = None,
    ) -> None:
        """Take both files. With an ``executor`` the folded model loads while the original runs."""
        self.pair = pair
        self.engine: type[OnnxRuntime] | type[Reference] = OnnxRuntime
        self.notes: list[str] = []
        self.unmovable = ""
        self.unmoved: Collection[str] = ()
        self.saturated: dict[str, SaturatedOutput] = {}
        self.branches: list[IfBranch] = []
        self.random: Collection[str] = ()
        self.reached: Collection[str] = ()
        self.ports: tuple[Port, ...] = ()
        self._inputs = inputs
        self._terms = terms
        self._executor = executor
        self._original: OnnxModel | None = None
        self._rounds = False
        self._uncut = False

    @cached_property
    def hollow(self) -> Collection[str]:
        """The outputs that are empty whatever the inputs are; of others what is ahead tells."""
        model = self.pair.original.proto()
        return always_empty(model, self.outputs, self.pair.weights.keys())

    @property
    def apart(self) -> bool:
        """False: one runtime runs both."""
        return False

    @property
    def runtime(self) -> str:
        """Name and version of what runs the models."""
        return self.engine.runtime

    @property
    def original(self) -> OnnxModel:
        """The original. It has to be run once before."""
        assert self._original is not None
        return self._original

    @property
    def touched(self) -> Collection[str]:
        """The names of the weights to plant errors in."""
        return self.pair.touched

    @property
    def width(self) -> int:
        """Bytes of the narrowest weight."""
        widths = (each.dtype.itemsize for each in self.pair.weights.values() if each is not None)
        return min(widths, default=8)

    @property
    def floor(self) -> float:
        """The least rounding noise."""
        return FLOOR

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the outputs; inner tensors come last."""
        return [port.name for port in self.ports]

    def run_original(self) -> tuple[OriginalRun, ...]:
        """Load the original and run it; see `Bench.run_original`."""
        model = self._read()
        self.look_at(model)
        self._folded = BackgroundLoad(self.open_folded, self._executor)
        self._terms.progress("running the original")
        drawn = self._inputs is None or bool(self.pair.filled)
        drawing = self._drawing(model) if drawn else None  # before it is changed
        original = self._original = self._open_original(model)
        if self.engine is not OnnxRuntime:
            self._folded = BackgroundLoad(self.open_folded, None)
        del model
        if isinstance(drawing, UndrawableError):
            raise EarlyVerdict("inconclusive", f"{drawing}; pass real inputs") from drawing
        if self._inputs is not None:
            seen = self._run_given(original, self._inputs, drawing)
        else:
            assert drawing is not None
            seen = self._run_drawn(original, drawing)
        self.ports = original.outputs
        touched = self.pair.touched or self.pair.weights.keys()
        self.reached = original.felt(touched)
        if self._terms.thorough and (dead := original.dead(touched)):
            self.notes.append(_told_dead(dead))
        varying = reached(original.graph, [port.name for port in original.inputs])
        self.unmoved = varying - reached(original.graph, original.weights.keys())
        return tuple(seen)

    def look_at(self, model: onnx.ModelProto) -> None:
        """Note what decides how the original is compared, ahead of its first run."""
        self._rounds = rounds(model)
        self.branches = list(branches_with_weights(model))
        self.random = random_values(model)

    def run_folded(self, seen: Sequence[OriginalRun]) -> tuple[Trial, ...]:
        """See `Bench.run_folded`."""
        original = self.original
        try:
            folded = self._folded.get()
            agree("input", original.inputs, folded.inputs)
            agree("output", original.outputs, folded.outputs)
            return tuple(Trial(s.inputs, s.outputs, folded.run(s.inputs.feeds)) for s in seen)
        except EngineError as error:
            if not self._runs_as_it_is(seen):
                raise EarlyVerdict(
                    "inconclusive", f"neither model runs as it is: {error}"
                ) from error
            raise EarlyVerdict("fail", f"the folded model does not run: {error}") from error

    def _runs_as_it_is(self, seen: Sequence[OriginalRun]) -> bool:
        """Whether the original's file runs, with operators that no output needs, too."""
        source = self.pair.original
        try:
            whole = self.engine(source.content(), source.folder, bounds=self._terms.bounds)
            return all(bool(whole.run(each.inputs.feeds)) for each in seen[:1])
        except EngineError:
            return False

    def in_float64(self, inputs: InputSet) -> tuple[list[Any], list[Any]]:
        """See `Bench.in_float64`."""
        found = (self._exact(source, inputs) for source in (self.pair.original, self.pair.folded))
        wanted, made = found
        return wanted, made

    def original_again(self, inputs: InputSet) -> Sequence[Any]:
        """See `Bench.original_again`."""
        from bnfold._run.reference import Reference

        source, bounds = self.pair.original, self._terms.bounds
        try:
            return Reference(source.content(), source.folder, bounds=bounds).run(inputs.feeds)
        except EngineError:
            return ()

    def moved_by_sums(self, inputs: InputSet) -> Sequence[Any]:
        """See `Bench.moved_by_sums`."""
        from bnfold._judge.long_sums import movements

        return movements(self.pair.folded, partial(self._exact, inputs=inputs))

    def choices(self) -> Mapping[str, Choice]:
        """See `Bench.choices`."""
        ours, theirs = self._choices()
        return {output: choice for output, choice in ours.items() if output in theirs}

    def chosen_from(self, output: str, inputs: InputSet) -> OnnxBench:
        """See `Bench.chosen_from`."""
        ours, theirs = (found[output].data for found in self._choices())
        alias = f"what {output} is chosen from"
        pair = self.pair.tapped([Tap(ours, alias)], [Tap(theirs, alias)])
        return OnnxBench(pair, [inputs], self._terms)

    def ahead(
        self, outputs: Sequence[str], sets: Sequence[InputSet]
    ) -> tuple[Mapping[str, Sequence[str]], OnnxBench]:
        """See `Bench.ahead`."""
        sides = [replace(side, taps=()) for side in (self.pair.original, self.pair.folded)]
        from bnfold._run.endings import Endings

        endings = Endings(*(side.proto() for side in sides))
        found = {output: endings.ahead(output) for output in outputs}
        places = {place for each in found.values() if each is not None for place in each}
        aliases = {
            place: place.original if place.original == place.folded else " is ".join(place)
            for place in sorted(places)
        }
        if not any(each is not None for each in found.values()):
            raise EarlyVerdict("inconclusive", "the two models end in other operators")
        pair = self.pair.tapped(
            [Tap(place.original, alias) for place, alias in aliases.items()],
            [Tap(place.folded, alias) for place, alias in aliases.items()],
        )
        names = {
            output: [aliases[place] for place in each]
            for output, each in found.items()
            if each is not None
        }
        return names, OnnxBench(pair, sets, self._terms)

    def cut_at_quantizers(self, trials: Sequence[Trial]) -> OnnxBench | None:
        """See `Bench.cut_at_quantizers`."""
        if not self._rounds:
            return None
        from bnfold._judge.rounded_pair import common_quantizers, cut_pair

        common = common_quantizers(self.pair)
        found = cut_pair(self.pair, common, trials, self.load) if common else None
        self._uncut = bool(common) and found is None
        return None if found is None else OnnxBench(*found, self._terms)

    def rounds_elsewhere(self) -> bool:
        """See `Bench.rounds_elsewhere`."""
        if not self._rounds or self._uncut:
            return self._rounds
        from bnfold._judge.rounded_pair import round_elsewhere

        return round_elsewhere(self.pair)

    def moved_by_steps(self, trials: Sequence[Trial]) -> Mapping[tuple[int, int], float]:
        """See `Bench.moved_by_steps`."""
        if not self._rounds:
            return {}
        from bnfold._judge.rounded_pair import moved_by_steps

        return moved_by_steps(self.pair.original, trials, self.load, self._terms.settings.seed)

    def load(self, source: Source) -> OnnxRuntime | Reference:
        """A session of the engine that runs both models."""
        return self.engine(source.content(), source.folder, bounds=self._terms.bounds)

    def open_folded(self) -> OnnxRuntime | Reference:
        """The folded model in a session, as it is compared with the original."""
        return self.load(self.pair.folded)

    def _choices(self) -> tuple[dict[str, Choice], dict[str, Choice]]:
        ours, theirs = (
            choices(side.proto().graph) for side in (self.pair.original, self.pair.folded)
        )
        return ours, theirs

    def _exact(self, source: Source, inputs: InputSet) -> list[Any]:
        try:
            from bnfold._judge.float64_model import Float64Model

            return Float64Model(source, self._terms.bounds).run(inputs.feeds)
        except EngineError:
            return []

    def _read(self) -> onnx.ModelProto:
        """Parse the original, and tap both models ahead of the functions that saturate outputs."""
        original, folded = self.pair.original, self.pair.folded
        model = _parsed(original, "original", "inconclusive")
        if not self._terms.thorough or original.alone:
            return model
        found = saturations(model, _parsed(folded, "folded model", "fail"))  # which is dropped here
        ours, theirs = [], []
        for output, tapped in found.items():
            alias = f"{output} ahead of its {tapped.function}"
            ours.append(Tap(tapped.original, alias))
            theirs.append(Tap(tapped.folded, alias))
            self.saturated[alias] = SaturatedOutput(output, tapped.function)
        self.pair = replace(
            self.pair,
            original=replace(original, taps=tuple(ours)),
            folded=replace(folded, taps=tuple(theirs)),
        )
        self.pair.original.tap(model)
        return model

    def _drawing(self, model: onnx.ModelProto) -> InputSource | UndrawableError:
        settings = self._terms.settings
        try:
            return InputSource(model, settings.seed, settings.wanted)
        except UndrawableError as error:
            return error

    def _open_original(self, model: onnx.ModelProto) -> OnnxModel:
        """The loaded original. Its weights can be moved, unless it loads only without that."""
        try:
            return self._opened(model)
        except EngineError as error:
            if not error.missing_kernel:
                text = f"the original does not load: {error}"
                raise NotLoadedError(str(error), text) from error
            missing = str(error)
        from bnfold._run.reference import Reference

        self.engine = Reference
        try:
            opened = self._opened(self.pair.original.structure())
        except EngineError as error:
            text = f"neither onnxruntime ({missing}) nor onnx.reference ({error}) runs the original"
            raise NotLoadedError(missing, text) from error
        self.notes.append(f"onnxruntime cannot run the original ({missing}); onnx.reference did")
        return opened

    def _opened(self, model: onnx.ModelProto) -> OnnxModel:
        """The original, loaded by the engine, with the weights of the pair."""
        source, engine, bounds = self.pair.original, self.engine, self._terms.bounds
        try:
            return OnnxModel(source, model, self.pair.weights, engine, bounds)
        except EngineError as error:
            unmovable = str(error)
        opened_session = OnnxModel(source, source.structure(), {}, engine, bounds)
        self.unmovable = unmovable
        return opened_session

    def _run_drawn(self, original: OnnxModel, source: InputSource) -> list[OriginalRun]:
        seen = [self._drawn(original, source.first())]
        for number in range(1, len(source)):
            seen.append(self._drawn(original, source.further(number, seen[0].inputs)))
        found = (_first_that_runs(original, sets)[0] for sets in source.with_other_integers())
        return [*seen, *(ran for ran in found if ran is not None)]

    def _drawn(self, original: OnnxModel, proposals: Iterable[InputSet]) -> OriginalRun:
        ran, reason = _first_that_runs(original, proposals)
        if ran is None:
            text = f"the original runs on no drawn inputs ({reason}); pass real inputs"
            raise EarlyVerdict("inconclusive", text)
        return ran

    def _run_given(
        self, original: OnnxModel, inputs: Sequence[InputSet], drawing: InputSource | None
    ) -> list[OriginalRun]:
        """Run the original on given inputs; those that a cut has made are drawn if they lack."""
        filled = [name for name in self.pair.filled if any(name not in g.feeds for g in inputs)]
        own = tuple(port for port in original.inputs if port.name not in filled)
        inputs = [named(given, own) for given in inputs]
        for given in inputs:
            refuse_unfit(given, own)
        if drawing is not None and filled:
            return [self._drawn(original, drawing.filling(given, filled)) for given in inputs]
        try:
            return [OriginalRun(given, original.run(given.feeds)) for given in inputs]
        except EngineError as error:
            raise EarlyVerdict("inconclusive", f"the original does not run: {error}") from error


def _told_dead(labels: Sequence[str]) -> str:
    """That no output feels some operators, in words."""
    told = ", ".join(labels[:_MOST_TOLD]) + ("" if len(labels) <= _MOST_TOLD else ", …")
    return f"dead, for what they put out is multiplied by zero or not read: {told}"


def _first_that_runs(
    original: OnnxModel, proposals: Iterable[InputSet]
) -> tuple[OriginalRun | None, str]:
    """The first inputs that the original runs on, with its outputs, and "".

    If it runs on none: None, and why it does not run on the likeliest inputs.
    """
    reasons = []
    for proposal in proposals:
        try:
            return OriginalRun(proposal, original.run(proposal.feeds)), ""
        except EngineError as error:
            reasons.append(str(error))
    return None, reasons[0] if reasons else ""


def _parsed(source: Source, what: str, verdict: Status) -> onnx.ModelProto:
    """The model of a file. Raises `EarlyVerdict` with ``verdict`` if it cannot be read."""
    try:
        return source.structure()
    except Exception as error:
        if memory.ran_out(error):
            raise Exhausted("out of memory") from error
        raise EarlyVerdict(verdict, f"the {what} cannot be read: {error}") from error
