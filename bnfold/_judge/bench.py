"""Two models side by side, ready to be run: what the stages of a comparison ask of them.

Files of ONNX are one pair of such models (`onnx_bench`), modules and programs of PyTorch another
(`torch_bench`). Every stage works on both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bnfold._judge.settings import Settings
from bnfold._judge.ties import Choice
from bnfold._judge.verdict import Status
from bnfold._run.bounds import Bounds
from bnfold._run.input_sets import InputSet
from bnfold._run.perturbable_model import PerturbableModel


class Settled(Exception):
    """The verdict is known before any output was compared."""

    def __init__(self, status: Status, text: str) -> None:
        """Keep the verdict, and why."""
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Terms:
    """How a comparison is made.

    Of tensors on the way (``thorough`` false) there are many: each is held against fewer draws and
    a wider tolerance, and no errors are planted.
    """

    settings: Settings
    bounds: Bounds
    progress: Callable[[str], None]
    thorough: bool = True


@dataclass(frozen=True)
class Seen:
    """One input set, and what the original makes of it."""

    inputs: InputSet
    outputs: Sequence[Any]


@dataclass(frozen=True)
class Trial:
    """One input set, and what both models made of it."""

    inputs: InputSet
    original: Sequence[Any]
    folded: Sequence[Any]


class Ahead(NamedTuple):
    """What a tensor on the way is put out for: an output, and the saturating function between."""

    output: str
    function: str


class Bench(Protocol):
    """Two models side by side.

    Attributes:
        original: the original, its weights to be moved.
        touched: the weights that errors are planted in, all if none is.
        width: bytes of the narrowest weight.
        floor: the least rounding noise, in units in the last place of the largest output value.
        outputs: what both put out; tensors on the way come last.
        ahead: by name of such a tensor, what it is put out for.
        random: the outputs that depend on random numbers which the model draws.
        reached: the outputs that depend on the touched weights.
        unmovable: why weights cannot be moved, where the original loads only without that.
        notes: what concerns the whole comparison; stages add to them.
        runtime: name and version of what runs the models.
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
    def ahead(self) -> Mapping[str, Ahead]: ...

    @property
    def random(self) -> Collection[str]: ...

    @property
    def reached(self) -> Collection[str]: ...

    @property
    def unmovable(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    def run_original(self) -> tuple[Seen, ...]:
        """Run the original on every input set. Raises `Settled` where it does not run."""

    def run_folded(self, seen: Sequence[Seen]) -> tuple[Trial, ...]:
        """Run the folded model on the same inputs. Raises `Settled` where it does not run, or does
        not ask for and give the same.
        """

    def in_float64(self, inputs: InputSet) -> tuple[list[Any], list[Any]]:
        """What both models give in float64; nothing where that is not known."""

    def choices(self) -> Mapping[str, Choice]:
        """The outputs that are indices of the largest or smallest in both models, and of what in
        the original.
        """

    def chosen_from(self, output: str, inputs: InputSet) -> Bench:
        """The two models with what such an output is chosen from in place of their outputs, on one
        input set. Raises as `run_original` does.
        """
