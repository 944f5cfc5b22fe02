"""Which checks of a folded model notice that it is wrong, and which take a right one for wrong.

Bugs that fold BatchNorms wrongly are planted into real models and example networks (see bugs.py),
and every checker compares what comes out with the model as it was (see checkers.py)::

    python benchmarks/kills.py
    python benchmarks/kills.py digits ppocrv5-cls --cases

Whether a bug changes the function at all is measured apart from all checkers, in float64 (see
exact.py): a change counts if it moves an output on some input more than `BEYOND` times as far as
rounding does, of the weights or of the arithmetic in float32. Among the inputs are some that no
checker draws. Bugs that stay below that are counted in the last column alone.

A cell says in how many models a bug was noticed, of those whose function it changes; for bnfold the
verdict "inconclusive" counts as noticed and stands in brackets. Below, how many folds, by bnfold
and by other tools, each checker takes for wrong; a tool's fold that changes the function stands
among the bugs. Folds with operators that float64 cannot run are trusted. The exit status is 1 if
bnfold passes a bug that changes the function, or fails a fold that does not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bugs import Net, wrong_folds
from catalogue import Model, chosen
from checkers import CHECKERS, judged, run, uniform
from exact import Yardstick
from numpy.typing import NDArray
from onnx import ModelProto
from simplifiers import TOOLS, is_there, simplify

# Networks whose BatchNorms matter to their outputs, and that take seconds.
USUAL = (
    "digits",
    "ppocrv5",
    "drawn-shufflenet",
    "efficientnet-lite0",
    "resnet",
    "mobilenet-v2",
    "pool-first",
    "dcgan",
    "unet",
    "tcn",
    "crepe",
)
BEYOND = 3.0
"""On the usual models right folds stay below 1, and bugs below 0.5 or above 5."""
SECONDS = 120.0
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A wrong or right fold of a model: how far it is off in units of rounding, None where that is
    not known, and what each checker says.
    """

    model: str
    what: str
    excess: float | None
    verdicts: dict[str, str]

    @property
    def is_wrong(self) -> bool:
        """Whether the function is another one."""
        return self.excess is not None and self.excess > BEYOND

    def __str__(self) -> str:
        size = "?" if self.excess is None else f"{self.excess:.2g}"
        said = ", ".join(f"{checker} {verdict}" for checker, verdict in self.verdicts.items())
        return f"{self.model}: {self.what}: {size} x rounding: {said}"


@dataclass
class Matrix:
    """All cases, of bugs and of tools' folds."""

    bugs: list[Case] = field(default_factory=list)
    folds: list[Case] = field(default_factory=list)

    def complaints(self) -> Iterator[str]:
        """What bnfold got wrong."""
        for case in (*self.bugs, *self.folds):
            verdict = case.verdicts["bnfold"]
            if case.is_wrong and verdict == "pass":
                yield f"bnfold passes {case}"
        for case in self.folds:
            if not case.is_wrong and case.verdicts["bnfold"] in ("fail", "error"):
                yield f"bnfold fails {case}"

    def show(self) -> None:
        """Print both tables."""
        wrong = [case for case in (*self.bugs, *self.folds) if case.is_wrong]
        names = list(dict.fromkeys(case.what for case in (*self.bugs, *wrong)))
        width = max(map(len, ("fold: taken for wrong", *names))) + 2
        head = "".join(f"{name:>13}" for name in CHECKERS)
        print(f"{'bug: noticed':<{width}}{head}{'rounding':>13}")
        for name in names:
            cases = [case for case in wrong if case.what == name]
            within = sum(case.what == name and not case.is_wrong for case in self.bugs)
            print(f"{name:<{width}}{_row(cases, _noticed)}{within:>13}")
        print(f"{'all':<{width}}{_row(wrong, _noticed)}")
        right = [case for case in self.folds if not case.is_wrong]
        print(f"\n{'fold: taken for wrong':<{width}}{head}")
        for name in dict.fromkeys(case.what for case in right):
            cases = [case for case in right if case.what == name]
            print(f"{name:<{width}}{_row(cases, _alarms)}")
        print(f"{'all':<{width}}{_row(right, _alarms)}")


def _row(cases: list[Case], cell: Callable[[list[str]], str]) -> str:
    columns = ([case.verdicts[checker] for case in cases] for checker in CHECKERS)
    return "".join(f"{cell(verdicts):>13}" for verdicts in columns)


def _noticed(verdicts: list[str]) -> str:
    open_ = verdicts.count("inconclusive")
    told = f"{len(verdicts) - verdicts.count('pass')}/{len(verdicts)}"
    return f"{told} ({open_})" if open_ else told


def _alarms(verdicts: list[str]) -> str:
    return f"{verdicts.count('fail') + verdicts.count('error')}/{len(verdicts)}"


def right_folds(source: Path, folder: Path) -> Iterator[tuple[str, ModelProto]]:
    """What tools make of a model."""
    for tool in TOOLS:
        target = folder / f"{tool}.onnx"
        if is_there(tool) and not simplify(tool, source, target, SECONDS):
            yield f"fold by {tool}", onnx.load(target)


def inputs(model: ModelProto) -> list[dict[str, Array]]:
    """Noise of one sign, of both, three times as large, and pages; none that a checker draws.

    Noise alone leaves channels dead whose errors any picture would show.
    """
    rng = np.random.default_rng(1)
    unsigned = uniform(model, seed=1)
    signed = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in unsigned.items()}
    large = {name: 3 * x for name, x in signed.items()}
    pages = {name: _page(x.shape, rng).astype(x.dtype) for name, x in unsigned.items()}
    return [unsigned, signed, large, pages]


def _page(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Dark marks, 3 wide, on a light ground with wide margins, the same in all channels."""
    spatial = shape[2:]
    marks = rng.random([-(-size // 3) for size in spatial]) < 0.3
    for axis, size in enumerate(spatial):
        marks = np.take(marks.repeat(3, axis), range(size), axis)
        inside = np.arange(size) >= size // 4
        inside &= inside[::-1]
        marks = marks & np.expand_dims(inside, [k for k in range(len(spatial)) if k != axis])
    return np.broadcast_to(np.where(marks, -2.0, 2.0), shape)


def examine(model: Model) -> Iterator[tuple[bool, Case]]:
    """All cases of one model, and whether each is a tool's fold."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        with contextlib.redirect_stdout(sys.stderr):
            source = model.write(Path(folder))
        original = onnx.load(source)
        if not Net(original).norms:
            return
        yardstick = Yardstick(original, inputs(original))
        for bug, wrong in wrong_folds(original):
            yield False, Case(model.name, bug, yardstick.excess(wrong), judged(original, wrong))
        for tool, folded in right_folds(source, Path(folder)):
            excess = _excess(yardstick, original, folded)
            yield True, Case(model.name, tool, excess, judged(original, folded))


def _excess(yardstick: Yardstick, original: ModelProto, folded: ModelProto) -> float | None:
    """None where the evaluator has no such operator, as those that onnxruntime fuses; infinite
    where the fold does not run as the original does.
    """
    try:
        run(folded, uniform(original))
    except Exception:  # onnxruntime and NumPy share no class of errors
        return float("inf")
    try:
        return yardstick.excess(folded)
    except RuntimeError:
        return None


def main() -> None:
    """Judge, print; exit with 1 if bnfold lets a bug pass or fails a right fold."""
    parser = argparse.ArgumentParser(description="Which checkers notice which bugs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: the quick ones)")
    parser.add_argument("--cases", action="store_true", help="also print each case, as it comes")
    arguments = parser.parse_args()
    try:
        models = chosen(arguments.names or USUAL)
    except ValueError as error:
        parser.error(str(error))
    matrix = Matrix()
    for model in models:
        print(f"{model.name} …", file=sys.stderr, flush=True)
        for is_fold, case in examine(model):
            (matrix.folds if is_fold else matrix.bugs).append(case)
            if arguments.cases:
                print(case, flush=True)
    matrix.show()
    complaints = list(matrix.complaints())
    if complaints:
        sys.exit("\n".join(["", *complaints]))


if __name__ == "__main__":
    main()
