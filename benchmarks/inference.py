"""Inference time of folded models over their originals, in onnxruntime with all optimizations.

onnxruntime folds much itself when it loads a model, so this says what is left to gain: next to the
affine operators of the files stand the operators that it executes of each. Where those are as many,
it runs the same network twice, and a ratio off 1 is the noise of the machine.

Both sessions live in one process and take turns, the order alternating, so that a slow minute of
the machine hits both alike. A ratio is the median of the ratios within each pair of runs; less than
1 is faster::

    python benchmarks/inference.py
    python benchmarks/inference.py ppocrv5 resnet --threads 2 --seconds 20

Names are beginnings of names. Sizes that a model leaves open are set to small ones. Threads do not
spin while they wait. Models in which bnfold folds nothing are left out. The exit status is 1 if the
outputs of a pair differ by more than rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from catalogue import Model, chosen
from counting import count
from numpy.typing import NDArray

import bnfold

WARM, LEAST = 3, 15
SIZES = {0: 1, 2: 320, 3: 320}
TOLERANCE = 1e-3
SMALL = 1e-3
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Timing:
    """One model: affine operators before and after, operators that onnxruntime executes of both,
    milliseconds, and the ratios of the pairs.
    """

    name: str
    affine: tuple[int, int]
    executed: tuple[int, int]
    milliseconds: float
    ratios: tuple[float, ...]
    error: float

    def __str__(self) -> str:
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        return (
            f"{self.name:<22}{_change(self.affine):>14}{_change(self.executed):>14}"
            f"{self.milliseconds:>11.3f}"
            f"{middle:>9.3f}{f'({low:.3f} to {high:.3f})':>20}{len(self.ratios):>7}"
        )


HEADER = (
    f"{'model':<22}{'affine':>14}{'executed':>14}{'ms before':>11}"
    f"{'ratio':>9}{'(quartiles)':>20}{'pairs':>7}"
)


def _change(counts: tuple[int, int]) -> str:
    return "{} to {}".format(*counts)


def executed(path: Path) -> int:
    """Operators of a model that onnxruntime wrote once it was done with its optimizations."""
    return len(onnx.load(path, load_external_data=False).graph.node)


def session(path: Path, threads: int, optimized: Path) -> onnxruntime.InferenceSession:
    """A session as in use: every optimization. It writes down what they leave."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(run: onnxruntime.InferenceSession) -> Feeds:
    """Seeded noise for every input; a size that is open is 1 for the batch and small for images."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for entry in run.get_inputs():
        shape = [
            size if isinstance(size, int) else SIZES.get(axis, 1)
            for axis, size in enumerate(entry.shape)
        ]
        feeds[entry.name] = rng.standard_normal(shape).astype(TYPES[entry.type])
    return feeds


def elapsed(run: onnxruntime.InferenceSession, feeds: Feeds) -> float:
    """Seconds that one run takes."""
    start = time.perf_counter()
    run.run(None, feeds)
    return time.perf_counter() - start


def pairs(
    one: onnxruntime.InferenceSession,
    other: onnxruntime.InferenceSession,
    feeds: Feeds,
    seconds: float,
) -> list[tuple[float, float]]:
    """Times of both in turn, for so many seconds and at least a few pairs."""
    for _ in range(WARM):
        elapsed(one, feeds), elapsed(other, feeds)
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < LEAST:
        if len(found) % 2:
            second = elapsed(other, feeds)
            found.append((elapsed(one, feeds), second))
        else:
            found.append((elapsed(one, feeds), elapsed(other, feeds)))
    return found


def difference(
    one: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession, feeds: Feeds
) -> float:
    """The largest difference of two models' outputs, relative to the largest output.

    Outputs smaller than `SMALL` everywhere, such as those of a Sigmoid far from 0, hold only a few
    digits and are compared as if one were of that size.
    """
    worst = 0.0
    for a, b in zip(one.run(None, feeds), other.run(None, feeds), strict=True):
        scale = float(np.abs(a).max(initial=SMALL))
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)) / scale)
    return worst


def measure(model: Model, folder: Path, threads: int, seconds: float) -> Timing | None:
    """Time one model; None if nothing in it folds."""
    with contextlib.redirect_stdout(sys.stderr):
        source = model.write(folder)
    target = folder / "folded.onnx"
    bnfold.fold(source, target)
    affine = count(onnx.load(source)).total, count(onnx.load(target)).total
    if target.read_bytes() == source.read_bytes():
        return None
    left = folder / "original.executed.onnx", folder / "folded.executed.onnx"
    original, folded = session(source, threads, left[0]), session(target, threads, left[1])
    feeds = inputs(original)
    error = difference(original, folded, feeds)
    times = pairs(original, folded, feeds, seconds)
    middle = statistics.median(first for first, _ in times) * 1e3
    ratios = tuple(second / first for first, second in times)
    operators = executed(left[0]), executed(left[1])
    return Timing(model.name, affine, operators, middle, ratios, error)


def main() -> None:
    """Measure, print; exit with 1 if two models disagree."""
    parser = argparse.ArgumentParser(description="Inference time of folded models over originals.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument(
        "--threads", type=int, default=1, choices=(1, 2), help="intra-op threads (default: 1)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="time to spend on the runs of a model (default: 5)"
    )
    arguments = parser.parse_args()
    try:
        models = chosen(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    print(HEADER)
    wrong = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            timing = measure(model, Path(folder), arguments.threads, arguments.seconds)
        if timing is None:
            continue
        print(timing, flush=True)
        if not timing.error <= TOLERANCE:
            wrong.append(f"{timing.name}: the outputs differ by {timing.error:g} of the largest")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
