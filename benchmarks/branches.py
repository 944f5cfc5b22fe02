"""Speed of networks of summed branches: as trained, folded by bnfold, and collapsed by hand.

Each network is exported by torch with its defaults and run in onnxruntime with all optimizations
and two threads, which do not spin while they wait. PyTorch runs it eagerly on one thread, as its
threads do spin, and by the processor's time: the module, what bnfold makes of its exported program,
and the module collapsed by hand. The three forms of a network live in one process and take turns in
drawn orders, so that a slow minute of the machine hits all alike. A ratio is the median of the
ratios within each round, above 1 where the first one is slower::

    python benchmarks/branches.py
    python benchmarks/branches.py mobileone repvgg --rounds 60 --json branches.json

Needs bnfold to be installed, torch and onnxruntime. The exit status is 1 if the forms disagree, if
the folded MobileOne is less than three times as fast as the unfolded one in onnxruntime, or if
folding gains less than collapsing by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from inference import session
from networks import SEED, calibrate, signal
from networks.branches import BRANCHED, SIDE, collapsed
from torch import Tensor, nn

import bnfold

THREADS = 2
FORMS = ("unfolded", "folded", "by hand")
LEAST_GAIN = {"mobileone-s0": 3.0}
LEAST_SHARE = 0.95
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Result:
    """One network in one runtime: operators that it has in each form, the median milliseconds, and
    quartiles of the ratios within a round.
    """

    name: str
    runtime: str
    operators: dict[str, int]
    milliseconds: dict[str, float]
    gain: tuple[float, float, float]
    gain_by_hand: tuple[float, float, float]
    share: tuple[float, float, float]
    rounds: int

    def __str__(self) -> str:
        counts = " ".join(f"{self.operators[form]:>5}" for form in FORMS)
        times = " ".join(f"{self.milliseconds[form]:>8.2f}" for form in FORMS)
        ratios = "".join(
            f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>24}"
            for low, middle, high in (self.gain, self.gain_by_hand, self.share)
        )
        return f"{self.name:<14}{self.runtime:<13}{counts}  {times}{ratios}{self.rounds:>8}"

    @property
    def trouble(self) -> str:
        """What is less than it should be, or nothing."""
        least = LEAST_GAIN.get(self.name, 0.0) if self.runtime == "onnxruntime" else 0.0
        if self.gain[1] < least:
            return f"{self.name}, {self.runtime}: {self.gain[1]:.2f} times as fast, not {least}"
        if self.share[1] < LEAST_SHARE:
            return f"{self.name}, {self.runtime}: folding gains {self.share[1]:.2f} of by hand"
        return ""


HEADER = (
    f"{'network':<14}{'runtime':<13}{'operators':>17}  {'ms as trained, folded, hand':>26}"
    f"{'unfolded / folded':>24}{'unfolded / by hand':>24}{'by hand / folded':>24}{'rounds':>8}"
)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network with the statistics of a few images, and an image."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network = BRANCHED[name]()
    calibrate(network, generator, signal(generator, 4, (3, 64, 64)))
    return network, signal(generator, 1, (3, SIDE, SIDE))


def written(network: nn.Module, image: Tensor, path: Path) -> Path:
    """A network exported as its users would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), path, input_names=["image"], dynamo=False)
    return path


Call = Callable[[], np.ndarray]


def in_onnxruntime(network: nn.Module, image: Tensor, folder: Path) -> tuple[list[int], list[Call]]:
    """How many operators each form has, and how to run it."""
    unfolded = written(network, image, folder / "unfolded.onnx")
    folded = bnfold.fold(unfolded, folder / "folded.onnx")
    by_hand = written(collapsed(network), image, folder / "by_hand.onnx")
    files = (unfolded, folded, by_hand)
    feeds = {"image": image.numpy()}

    def call(path: Path) -> Call:
        run = session(path, THREADS, path.with_suffix(".executed.onnx"))
        return lambda: np.asarray(run.run(None, feeds)[0])

    return [len(onnx.load(path).graph.node) for path in files], [call(path) for path in files]


def in_torch(network: nn.Module, image: Tensor) -> tuple[list[int], list[Call]]:
    """The same for PyTorch; operators are those of the exported programs."""
    torch.set_num_threads(1)
    program = torch.export.export(network, (image,))
    folded = bnfold.fold(program)
    by_hand = collapsed(network).eval()
    programs = (program, folded, torch.export.export(by_hand, (image,)))
    modules = (network, folded.module(), by_hand)

    def call(module: nn.Module) -> Call:
        return lambda: np.asarray(module(image).numpy())

    operators = [sum(node.op == "call_function" for node in p.graph.nodes) for p in programs]
    return operators, [call(module) for module in modules]


def measure(
    name: str,
    runtime: str,
    clock: Callable[[], float],
    operators: Sequence[int],
    calls: Sequence[Call],
    rounds: int,
) -> Result:
    """Run all forms in turn. Raises `RuntimeError` where they disagree."""
    first, *others = [call() for call in calls]
    for other in others:
        error = float(np.abs(other - first).max() / np.abs(first).max())
        if not error < TOLERANCE:
            raise RuntimeError(f"{name}: the outputs differ by {error:g} of the largest")
    samples: list[list[float]] = []
    for order in _orders(len(calls), rounds + 2):
        seconds = [0.0] * len(calls)
        for place in order:
            start = clock()
            calls[place]()
            seconds[place] = clock() - start
        samples.append(seconds)
    kept = samples[2:]

    def ratio(a: int, b: int) -> tuple[float, float, float]:
        low, middle, high = statistics.quantiles([s[a] / s[b] for s in kept], n=4)
        return low, middle, high

    times = [statistics.median(column) * 1e3 for column in zip(*kept, strict=True)]
    return Result(
        name,
        runtime,
        dict(zip(FORMS, operators, strict=True)),
        dict(zip(FORMS, times, strict=True)),
        ratio(0, 1),
        ratio(0, 2),
        ratio(2, 1),
        rounds,
    )


def _orders(count: int, rounds: int) -> Iterator[list[int]]:
    """Drawn orders; none begins with what the one before ended with, whose weights would still be
    in the cache.
    """
    rng, last = np.random.default_rng(0), -1
    for _ in range(rounds):
        order = rng.permutation(count).tolist()
        while order[0] == last:
            order = rng.permutation(count).tolist()
        last = order[-1]
        yield order


@torch.no_grad()
def run(names: Sequence[str], rounds: int) -> list[Result]:
    """Measure networks in both runtimes, and print each result as it comes."""
    results = []
    print(HEADER)
    for name in names:
        network, image = build(name)
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            given = in_onnxruntime(network, image, Path(folder))
            results.append(measure(name, "onnxruntime", time.perf_counter, *given, rounds))
        print(results[-1], flush=True)
        given = in_torch(network, image)
        results.append(measure(name, "torch eager", time.process_time, *given, rounds))
        print(results[-1], flush=True)
    return results


def main() -> None:
    """Measure, print; exit with 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description="Speed of networks of branches, merged.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of names (all)")
    parser.add_argument("--rounds", type=int, default=40, help="rounds that count (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    wanted = tuple(arguments.names) or ("",)
    names = [name for name in BRANCHED if name.startswith(wanted)]
    if not names:
        parser.error(f"the networks are {', '.join(BRANCHED)}")
    results = run(names, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    troubles = [result.trouble for result in results if result.trouble]
    if troubles:
        sys.exit("\n".join(troubles))


if __name__ == "__main__":
    main()
