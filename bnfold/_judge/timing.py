"""How much faster a folded model is, with the uncertainty of that.

A ratio is that of the two times within a pair of samples, so that what slows down the machine hits
both. What is told is the median of these, and an interval that holds the true median with about
95 %: by the order of the ratios, whatever their distribution, and no narrower than the medians of
the pairs of sessions lie apart. A difference is told only where the clock and the processor's own
time both show it. The two times that are told are as far apart as the ratio says: medians of each
by itself may be one of a busy and one of a quiet moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold._system.records import record

if TYPE_CHECKING:  # Who tells a timing needs no runtime.
    from bnfold._run.bounds import Bounds
    from bnfold._run.input_sets import InputSet
    from bnfold._run.source import Source
    from bnfold._run.stopwatch import Sample

_NAMED = 3
"""How many inputs are named."""
_THREADS = 1
"""Threads of a session where nobody says how many."""
_LEAST_DIFFERENCE = 0.005
"""Ratios that are nearer to 1 are no difference that anybody could use."""


@record(frozen=True)
class Ratio:
    """How many times as fast the folded model is: a median, and the interval that it lies in."""

    median: float
    low: float
    high: float


@record(frozen=True)
class Timing:
    """How long both models take.

    Attributes:
        before: the milliseconds that a run of the original takes, in a pair of typical length.
        after: those of the folded model; ``before`` is ``clock.median`` times as many.
        clock: how many times as fast the folded model is by the clock.
        cpu: the same by the time of the processor.
        pairs: how many pairs of samples there are.
        threads: how many threads each session has.
        inputs: the inputs that were run, with their shapes, in words.
        note: why there are no numbers, "" where there are; the numbers are 0 then.
    """

    before: float
    after: float
    clock: Ratio
    cpu: Ratio
    pairs: int
    threads: int
    inputs: str = ""
    note: str = ""

    @property
    def is_measurable(self) -> bool:
        """Whether one of the two is faster."""
        slower = max(self.clock.high, self.cpu.high) < 1 - _LEAST_DIFFERENCE
        return min(self.clock.low, self.cpu.low) > 1 + _LEAST_DIFFERENCE or slower

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {**asdict(self), "measurable": self.is_measurable}

    def __str__(self) -> str:
        """How much faster, in one line."""
        if self.note:
            return f"not timed: {self.note}"
        times = f"{milliseconds(self.before)} before, {milliseconds(self.after)} after"
        return f"{times}: {self.change}"

    @property
    def change(self) -> str:
        """How much faster, with the uncertainty of that."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        on = f", {self.inputs}" if self.inputs else ""
        spread = f"{_span(self.clock)}; of CPU time {_span(self.cpu)}; {threads}{on}"
        said = f"{self.clock.median:.2f} times as fast"
        if not self.is_measurable:
            said = "no measurable difference"
        elif self.clock.median < 1:
            said += ", so slower"
        return f"{said} ({spread})"


def _span(ratio: Ratio) -> str:
    return f"{ratio.low:.2f} to {ratio.high:.2f}"


def milliseconds(number: float) -> str:
    """Three digits of a time."""
    decimals = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    return f"{number:.{min(decimals, 6)}f} ms"


def not_timed(note: str) -> Timing:
    """What stands for a timing that could not be made."""
    nothing = Ratio(0.0, 0.0, 0.0)
    return Timing(0.0, 0.0, nothing, nothing, 0, 0, note=note)


def timed(
    original: Source, folded: Source, inputs: InputSet, threads: int, bounds: Bounds
) -> Timing:
    """How much faster the folded model is, on one thread where ``threads`` is 0.

    What keeps a model from running, and time that is up, is no error: the result says so.
    """
    from bnfold._run.bounds import Exhausted
    from bnfold._run.session import EngineError
    from bnfold._run.stopwatch import interleaved

    threads = threads or _THREADS
    try:
        rounds = interleaved(original, folded, inputs.feeds, threads, bounds)
    except (EngineError, Exhausted) as error:
        return not_timed(str(error))
    shapes = [f"{name} {list(array.shape)}" for name, array in inputs.feeds.items()]
    more = f" and {len(shapes) - _NAMED} more" if len(shapes) > _NAMED else ""
    return of_samples(rounds, threads, ", ".join(shapes[:_NAMED]) + more)


def of_samples(rounds: Sequence[Sequence[Sample]], threads: int, inputs: str = "") -> Timing:
    """The timing that samples give, apart for each pair of sessions."""
    samples = [sample for each in rounds for sample in each]
    middle = _median([math.sqrt(sample.before * sample.after) for sample in samples]) * 1e3
    clock = _ratio([[s.before / max(s.after, 1e-12) for s in each] for each in rounds])
    apart = math.sqrt(max(clock.median, 1e-12))
    return Timing(
        middle * apart,
        middle / apart,
        clock,
        _ratio([[s.cpu_before / max(s.cpu_after, 1e-12) for s in each] for each in rounds]),
        len(samples),
        threads,
        inputs,
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _ratio(rounds: Sequence[Sequence[float]]) -> Ratio:
    """The median of all ratios, and its interval.

    Of n numbers in order, those 0.98·√n places off the middle hold the median with 95 % between
    them, by the binomial distribution.
    """
    ordered = sorted(ratio for each in rounds for ratio in each)
    middle, off = (len(ordered) - 1) / 2, 0.98 * math.sqrt(len(ordered))
    low = ordered[max(0, math.floor(middle - off))]
    high = ordered[min(len(ordered) - 1, math.ceil(middle + off))]
    medians = [_median(each) for each in rounds]
    return Ratio(_median(ordered), min(low, *medians), max(high, *medians))
