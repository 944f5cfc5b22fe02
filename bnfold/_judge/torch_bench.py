"""Two PyTorch modules side by side, or the modules of two programs. PyTorch runs them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from bnfold._judge.bench import Bench, EarlyVerdict, OriginalRun, SaturatedOutput, Trial
from bnfold._judge.difference import is_float
from bnfold._judge.ties import Choice
from bnfold._judge.tolerance import FLOOR
from bnfold._run.input_sets import InputSet
from bnfold._run.perturbable_model import RunnableModel
from bnfold._run.session import EngineError
from bnfold._run.torch_model import Call, TorchModel
from bnfold._run.torch_outputs import is_positional
from bnfold._torch.module.copying import copied

RUNTIME = f"torch {torch.__version__}"
_FLOOR = 64.0
"""In float64 weights hardly move, and operators may sum in other orders. That is no error."""

_FAR = "large"
"""The kind of inputs on which a model may overflow that does not on others."""

_LEFT_OUT = f"on {_FAR} inputs the original puts out infinities or NaN: they are left out"


class NamedOutputs(RunnableModel, Protocol):
    """A model that tells the names of what its last run has put out."""

    @property
    def outputs(self) -> Sequence[str]: ...


class TorchBench:
    """See `Bench`.

    With ``double`` both run in float64, and only the rounding of the folded weights differs. Else
    both run in their own types.
    """

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
        self._module, self._folded = original, folded
        self._call = call
        self._sets = sets
        self.double = double

    @cached_property
    def hollow(self) -> Collection[str]:
        """The outputs whose sizes torch.export knows to be 0, none of the inputs being empty."""
        if not all(tensor.numel() for tensor in self._call.tensors().values()):
            return ()
        sizes = self._sizes()
        if len(sizes) != len(self.outputs):
            return ()
        empty = {number for number, shape in enumerate(sizes) if 0 in shape}
        seen = self.original.weights_of(set(range(len(sizes))) - empty)
        return [self.outputs[n] for n in empty if self.original.weights_of([n]) <= seen]

    def _sizes(self) -> list[list[int | None]]:
        """The sizes of the outputs as torch.export knows them; no outputs if it does not."""
        example = self._call.example
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    copied(self._module), example.args, dict(example.kwargs), strict=False
                )
        except Exception:  # Whatever torch.export raises.
            return []
        (result,) = (node for node in program.graph.nodes if node.op == "output")
        nodes = [each for each in pytree.tree_leaves(result.args) if isinstance(each, Node)]
        values = [node.meta.get("val") for node in nodes]
        shapes: list[Any] = [each.shape for each in values if isinstance(each, Tensor)]
        return [[size if isinstance(size, int) else None for size in shape] for shape in shapes]

    @property
    def apart(self) -> bool:
        """False: one runtime runs both."""
        return False

    @property
    def runtime(self) -> str:
        """Name and version of PyTorch."""
        return RUNTIME

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
        """See `Bench.run_original`. Inputs so large that the original overflows are left out.

        A note says so.
        """
        seen = list[OriginalRun]()
        for each in self._sets:
            try:
                found = self.original.run(each.feeds)
                if each.label != _FAR or _is_finite(found):
                    seen.append(OriginalRun(each, found))
                else:
                    self.notes.append(_LEFT_OUT)
            except EngineError as error:
                if not seen:
                    raise EarlyVerdict("inconclusive", str(error)) from error
                self.notes.append(f"on {each.label} inputs {error}")
        self.outputs = self.original.outputs
        return tuple(seen)

    def run_folded(self, seen: Sequence[OriginalRun]) -> tuple[Trial, ...]:
        """See `Bench.run_folded`."""
        trials = list[Trial]()
        try:
            folded = self._other(self.double)
        except EngineError as error:
            raise EarlyVerdict("inconclusive", str(error)) from error
        for each in seen:
            try:
                found = folded.run(each.inputs.feeds)
            except EngineError as error:
                raise EarlyVerdict("inconclusive" if self.double else "fail", str(error)) from error
            order = _paired(self.outputs, folded.outputs)
            trials.append(Trial(each.inputs, each.outputs, [found[number] for number in order]))
        return tuple(trials)

    def in_float64(self, inputs: InputSet) -> tuple[list[Any], list[Any]]:
        """See `Bench.in_float64`."""
        if self.double:
            return [], []
        try:
            wanted = TorchModel(self._module, self._call, double=True).run(inputs.feeds)
        except EngineError:
            return [], []
        try:
            folded = self._other(double=True)
            made = folded.run(inputs.feeds)
        except EngineError:
            return wanted, []
        return wanted, [made[number] for number in _paired(self.outputs, folded.outputs)]

    def original_again(self, inputs: InputSet) -> None:
        """None: PyTorch runs a module in float64, too; see `Bench.original_again`."""

    def moved_by_sums(self, inputs: InputSet) -> Sequence[Any]:
        """Empty: a module is not moved; see `Bench.moved_by_sums`."""
        return ()

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

    def _other(self, double: bool) -> NamedOutputs:
        """The folded model, ready to run."""
        return TorchModel(self._folded, self._call, double=double)


def _paired(wanted: Sequence[str], found: Sequence[str]) -> list[int]:
    """The position of each wanted output among those that were found.

    Names tell where both results have some, as dictionaries do, and position where one has none.
    Raises `EarlyVerdict` with "fail" where they do not belong together.
    """
    if len(wanted) != len(found):
        counts = f"{len(found)} outputs instead of {len(wanted)}"
        raise EarlyVerdict("fail", f"the folded model puts out {counts}")
    if wanted == found or any(all(map(is_positional, names)) for names in (wanted, found)):
        return list(range(len(wanted)))
    places = {name: number for number, name in enumerate(found)}
    if lost := [name for name in wanted if name not in places]:
        new = [name for name in found if name not in wanted]
        raise EarlyVerdict("fail", f"the folded model puts out {new[:4]} instead of {lost[:4]}")
    return [places[name] for name in wanted]


def _is_finite(outputs: Sequence[Any]) -> bool:
    return all(bool(np.isfinite(each).all()) for each in outputs if is_float(each))
