"""Two models side by side, ready to run. The stages of a comparison see them only through this.

There are two benches: one for ONNX files (`onnx_bench`), one for modules and programs of PyTorch
(`torch_bench`). Every stage works on both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from bnfold._judge.settings import Settings
from bnfold._judge.ties import Choice
from bnfold._judge.verdict import Status
from bnfold._run.bounds import Bounds
from bnfold._run.input_sets import InputSet, Port
from bnfold._run.noise import Array
from bnfold._run.perturbable_model import PerturbableModel
from bnfold._run.source import Source, Tap
from bnfold._system.records import record


@record(frozen=True)
class Pair:
    """Two files, the weights of the original, and the names of the weights to plant errors in.

    If no weight is named, errors are planted in all. ``filled`` are inputs that the user does not
    know of: a cut has made them.
    """

    original: Source
    folded: Source
    weights: Mapping[str, Array | None]
    touched: Collection[str]
    filled: Collection[str] = ()

    def tapped(self, original: Sequence[Tap], folded: Sequence[Tap]) -> Pair:
        """The same two files with inner tensors in place of their outputs."""
        return replace(
            self,
            original=replace(self.original, taps=tuple(original), alone=True),
            folded=replace(self.folded, taps=tuple(folded), alone=True),
        )


class EarlyVerdict(Exception):
    """The verdict is known before any output was compared."""

    def __init__(self, status: Status, text: str) -> None:
        """Keep the verdict, and why."""
        super().__init__(text)
        self.status = status


class NotLoadedError(EarlyVerdict):
    """The original does not load; ``why`` is the first thing that the engine says."""

    def __init__(self, why: str, text: str) -> None:
        """Keep both; the verdict is "inconclusive"."""
        super().__init__("inconclusive", text)
        self.why = why


@record(frozen=True)
class Terms:
    """How a comparison is made.

    Attributes:
        settings: what the user has chosen.
        bounds: the threads and the time that it may use.
        progress: called with a few words before each lengthy step.
        thorough: false for inner tensors. There are many of them, so each gets fewer draws and a
            wider tolerance, and no errors are planted.
        plants: false where errors are not planted, for the weights have proved all outputs.
        still: whether both models are taken to hold the same weights: then rounding moves none of
            them.
    """

    settings: Settings
    bounds: Bounds
    progress: Callable[[str], None]
    thorough: bool = True
    plants: bool = True
    still: bool = False


@record(frozen=True)
class OriginalRun:
    """One input set, and the outputs of the original on it."""

    inputs: InputSet
    outputs: Sequence[Any]


@record(frozen=True)
class Trial:
    """One input set, and the outputs of both models on it."""

    inputs: InputSet
    original: Sequence[Any]
    folded: Sequence[Any]


class SaturatedOutput(NamedTuple):
    """An output that comes from a saturating function, and the name of that function.

    The input of the function is put out too, and stands for the output: for example, what the last
    Sigmoid of a detector reads.
    """

    output: str
    function: str


def agree(what: str, left: tuple[Port, ...], right: tuple[Port, ...]) -> None:
    """Raise `EarlyVerdict` with "fail" unless the inputs, or outputs, of both models agree."""
    names, others = [port.name for port in left], [port.name for port in right]
    if names != others:
        lost, new = sorted({*names} - {*others}), sorted({*others} - {*names})
        text = f"lost {lost[:4]}, new {new[:4]}" if lost or new else "in another order"
        raise EarlyVerdict("fail", f"the folded model's {what}s are not the same: {text}")
    for port, other in zip(left, right, strict=True):
        if port.type != other.type:
            raise EarlyVerdict("fail", f"{what} {port.name} is {port.type} and {other.type}")
        if what == "input" and _sizes(port) != _sizes(other):
            raise EarlyVerdict(
                "fail", f"{what} {port.name} is {list(port.shape)} and {list(other.shape)}"
            )


def _sizes(port: Port) -> list[int | None]:
    """The sizes of a port; None for a free size, whatever its name."""
    return [size if isinstance(size, int) else None for size in port.shape]


class Bench(Protocol):
    """Two models side by side.

    Attributes:
        original: the original, its weights to be moved.
        touched: the weights to plant errors in; if empty, all weights.
        width: bytes of the narrowest weight.
        floor: the least rounding noise, in units in the last place of the largest output value.
        outputs: the names of what both put out; inner tensors come last.
        saturated: by the name of such an inner tensor, the output that it stands for.
        random: the outputs that depend on random numbers which the model draws.
        reached: the outputs that depend on the touched weights.
        unmoved: the outputs that depend on inputs, and on no weight that can be moved.
        hollow: the outputs that are empty on all inputs of these sizes, and that no weight reaches
            but those that reach others, too.
        unmovable: why weights cannot be moved; "" if they can.
        notes: remarks about the whole comparison; the stages add to them.
        runtime: name and version of what runs the models.
        apart: whether the two run in different runtimes, which compute functions differently.
    """

    notes: list[str]

    @property
    def original(self) -> PerturbableModel: ...

    @property
    def touched(self) -> Collection[str]: ...

    @property
    def width(self) -> int: ...

    @property
    def floor(self) -> float: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    @property
    def saturated(self) -> Mapping[str, SaturatedOutput]: ...

    @property
    def random(self) -> Collection[str]: ...

    @property
    def reached(self) -> Collection[str]: ...

    @property
    def unmoved(self) -> Collection[str]: ...

    @property
    def hollow(self) -> Collection[str]: ...

    @property
    def unmovable(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def apart(self) -> bool: ...

    def run_original(self) -> tuple[OriginalRun, ...]:
        """Run the original on every input set. Raises `EarlyVerdict` where it does not run."""

    def run_folded(self, seen: Sequence[OriginalRun]) -> tuple[Trial, ...]:
        """Run the folded model on the same inputs.

        Raises:
            EarlyVerdict: it does not run, or its inputs and outputs are not those of the original.
        """

    def in_float64(self, inputs: InputSet) -> tuple[list[Any], list[Any]]:
        """The outputs of the original and of the folded model in float64, empty if not known."""

    def original_again(self, inputs: InputSet) -> Sequence[Any] | None:
        """The outputs of the original in its own types, by what runs it `in_float64`.

        Empty if they are not known; None where that is what ran it before.
        """

    def moved_by_sums(self, inputs: InputSet) -> Sequence[Any]:
        """How far each output of the folded model in float64 moves if sums are off (`long_sums`).

        Empty if that is not known.
        """

    def choices(self) -> Mapping[str, Choice]:
        """By output, the choice that it comes from, where both models choose.

        Such an output holds the indices of the largest or smallest values of a tensor.
        """

    def chosen_from(self, output: str, inputs: InputSet) -> Bench:
        """A bench of the same two models on one input set, with another output.

        The new output is the tensor that ``output`` chooses from. Raises as `run_original` does.
        """

    def ahead(
        self, outputs: Sequence[str], sets: Sequence[InputSet]
    ) -> tuple[Mapping[str, Sequence[str]], Bench]:
        """A bench of the same two models that puts out the tensors ahead of some outputs.

        By output, the names of those tensors, as the new bench calls them: from there on both
        models compute it alike. An output is left out if they do not. Raises as `run_original`
        does, and if there is no such tensor.
        """

    def cut_at_quantizers(self, trials: Sequence[Trial]) -> Bench | None:
        """A bench of the same two models in parts, cut where both round data to integers.

        What is rounded is put out, and the integers of the original are put in, on both sides. None
        where nothing is rounded, or where the models cannot be cut.
        """

    def rounds_elsewhere(self) -> bool:
        """Whether the models round data to integers where they cannot be cut, or not both of them.

        It is asked for after an attempt to cut them.
        """

    def moved_by_steps(self, trials: Sequence[Trial]) -> Mapping[tuple[int, int], float]:
        """How far the outputs of the original move when some integers are off by a step.

        By the numbers of input set and output. Empty where nothing is rounded to integers, or where
        that cannot be told.
        """
