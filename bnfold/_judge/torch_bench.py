"""Two PyTorch modules side by side, or the modules of two programs. PyTorch runs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bnfold._judge.bench import Bench, EarlyVerdict, OriginalRun, SaturatedOutput, Trial
from bnfold._judge.ties import Choice
from bnfold._judge.tolerance import FLOOR
from bnfold._run.input_sets import InputSet
from bnfold._run.session import EngineError
from bnfold._run.torch_model import Call, TorchModel

RUNTIME = f"torch {torch.__version__}"
_FLOOR = 64.0
"""In float64 weights hardly move, and operators may sum in other orders. That is no error."""


class TorchBench:
    """See `Bench`.

    With ``double`` both run in float64, and only the rounding of the folded weights differs. Else
    both run in their own types.
    """

    runtime = RUNTIME
    unmovable = ""
    unmoved = ()

    def __init__(
        self,
        original: nn.Module,
        folded: nn.Module,
        call: Call,
        sets: Sequence[InputSet],
        *,
        double: bool,
    ) -> None:
        """Take two modules and the inputs to run them on. Raises `UsageError` where one cannot be
        copied.
        """
        self.original = TorchModel(original, call, double=double)
        self.notes: list[str] = []
        self.outputs: Sequence[str] = ()
        self.saturated: Mapping[str, SaturatedOutput] = {}
        self.floor = _FLOOR if double else FLOOR
        self._modules = original, folded
        self._call = call
        self._sets = sets
        self.double = double

    @property
    def touched(self) -> Collection[str]:
        """The weights of linear operators and norms, where all outputs depend on those."""
        return self.original.plantable_weights()

    @property
    def width(self) -> int:
        """Bytes of the narrowest weight."""
        return min((each.dtype.itemsize for each in self.original.weights.values()), default=8)

    @property
    def random(self) -> Collection[str]:
        """The outputs that depend on random numbers."""
        return [self.outputs[number] for number in self.original.random()]

    @property
    def reached(self) -> Collection[str]:
        """The outputs that depend on the touched weights."""
        return [self.outputs[number] for number in self.original.reached(self.touched)]

    def run_original(self) -> tuple[OriginalRun, ...]:
        """See `Bench.run_original`."""
        seen = list[OriginalRun]()
        for each in self._sets:
            try:
                seen.append(OriginalRun(each, self.original.run(each.feeds)))
            except EngineError as error:
                if not seen:
                    raise EarlyVerdict("inconclusive", str(error)) from error
                self.notes.append(f"on {each.label} inputs {error}")
        self.outputs = [f"output {number}" for number in range(len(seen[0].outputs))]
        return tuple(seen)

    def run_folded(self, seen: Sequence[OriginalRun]) -> tuple[Trial, ...]:
        """See `Bench.run_folded`."""
        folded = TorchModel(self._modules[1], self._call, double=self.double)
        try:
            trials = tuple(Trial(s.inputs, s.outputs, folded.run(s.inputs.feeds)) for s in seen)
        except EngineError as error:
            raise EarlyVerdict("inconclusive" if self.double else "fail", str(error)) from error
        for trial in trials:
            if len(trial.original) != len(trial.folded):
                counts = f"{len(trial.folded)} tensors instead of {len(trial.original)}"
                raise EarlyVerdict("fail", f"the folded model puts out {counts}")
        return trials

    def in_float64(self, inputs: InputSet) -> tuple[list[Any], list[Any]]:
        """See `Bench.in_float64`."""
        wanted, made = (self._exact(module, inputs) for module in self._modules)
        return wanted, made

    def choices(self) -> Mapping[str, Choice]:
        """Empty: a module does not say which tensor an output is chosen from."""
        return {}

    def chosen_from(self, output: str, inputs: InputSet) -> Bench:
        """See `Bench.chosen_from`."""
        raise EarlyVerdict("inconclusive", f"what {output} is chosen from is not known")

    def ahead(
        self, outputs: Sequence[str], sets: Sequence[InputSet]
    ) -> tuple[Mapping[str, Sequence[str]], Bench]:
        """See `Bench.ahead`."""
        raise EarlyVerdict("inconclusive", "what is ahead of an output of a module is not known")

    def cut_at_quantizers(self, trials: Sequence[Trial]) -> None:
        """None: in modules nothing is rounded to integers."""

    def rounds_elsewhere(self) -> bool:
        """False: in modules nothing is rounded to integers."""
        return False

    def moved_by_steps(self, trials: Sequence[Trial]) -> Mapping[tuple[int, int], float]:
        """Empty: in modules nothing is rounded to integers."""
        return {}

    def _exact(self, module: nn.Module, inputs: InputSet) -> list[Any]:
        if self.double:
            return []
        try:
            return TorchModel(module, self._call, double=True).run(inputs.feeds)
        except EngineError:
            return []
