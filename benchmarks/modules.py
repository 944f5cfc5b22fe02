"""Speed on PyTorch modules: folding two networks, and running one of them before and after.

Networks in plain torch, with statistics as training leaves them: a ResNet-50 of 102 MB, and an
EfficientNet-B0. Folding is compared with torch.export, which it starts with, by the time that the
process has of the processors: then it counts for little what else the machine does. Of the first,
eager inference of the folded module is compared with the original and with what torch.fx's own
fusion makes of it. Everything is interleaved over several rounds after one that does not count, and
from round to round the order goes round, forth and back, so that no case always follows the same
one; a ratio is the median of the ratios within each round::

    python benchmarks/modules.py
    python benchmarks/modules.py --rounds 9 --json modules.json

Needs bnfold to be installed, and torch. The exit status is 1 if folding takes more than its limit.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from networks import SEED, calibrate, signal
from networks.residual import efficientnet_b0, resnet
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import bnfold

DEPTHS, WIDTH, CLASSES = (3, 4, 6, 3), 64, 1000
FOLD_LIMIT = 1.2
TOLERANCE = 1e-3
PACKAGES = ("bnfold", "torch", "numpy")


@dataclass
class Case:
    """Something to time, and its samples in seconds."""

    name: str
    call: Callable[[], object]
    clock: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list)

    def sample(self, keep: bool) -> None:
        """Time one call, what others left behind being collected first."""
        gc.collect()
        start = self.clock()
        result = self.call()
        seconds = self.clock() - start
        del result
        if keep:
            self.seconds.append(seconds)


@dataclass(frozen=True)
class Comparison:
    """The median ratio of two cases within a round, its quartiles, and the limit if it has one."""

    what: str
    value: float
    low: float
    high: float
    limit: float | None = None


def measure(cases: list[Case], rounds: int) -> None:
    """Fill the cases' samples: one round to warm up, then `rounds` that count."""
    for turn in range(rounds + 1):
        first = turn % len(cases)
        order = cases[first:] + cases[:first]
        for case in order if turn // len(cases) % 2 else reversed(order):
            case.sample(keep=turn > 0)


def ratio(a: Case, b: Case, limit: float | None = None) -> Comparison:
    """How a compares with b."""
    pairs = [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return Comparison(f"{a.name} / {b.name}", middle, low, high, limit)


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with the statistics of a batch of small images, in eval mode."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    module = make()
    calibrate(module, generator, signal(generator, 8, (3, 64, 64)))
    return module


def check(modules: list[nn.Module], inputs: Tensor) -> None:
    """RuntimeError unless all modules put out the same up to float32's error."""
    first, *others = [module(inputs) for module in modules]
    for other in others:
        error = float((other - first).abs().max() / first.abs().max())
        if not error < TOLERANCE:
            raise RuntimeError(f"the outputs differ by {error:g} of the largest")


@torch.no_grad()
def run(rounds: int, batch: int) -> tuple[list[Case], list[Comparison]]:
    """Measure everything."""
    original, other = build(lambda: resnet(DEPTHS, WIDTH, CLASSES)), build(efficientnet_b0)
    inputs = signal(torch.Generator().manual_seed(SEED + 1), batch, (3, 224, 224))
    cases, comparisons, cpu = [], [], time.process_time
    for name, network in (("ResNet-50", original), ("EfficientNet-B0", other)):
        fold = Case(f"bnfold.fold {name}", partial(bnfold.fold, network, (inputs,)), cpu)
        run = partial(torch.export.export, network, (inputs,))
        export = Case(f"torch.export {name}", run, cpu)
        measure([fold, export], rounds)
        cases += [fold, export]
        comparisons.append(ratio(fold, export, FOLD_LIMIT))

    folded, fused = bnfold.fold(original, (inputs,)), fuse(original)
    check([original, folded, fused], inputs)
    before = Case("run original", lambda: original(inputs))
    after = Case("run folded", lambda: folded(inputs))
    others = Case("run torch.fx fuse", lambda: fused(inputs))
    measure([before, after, others], 3 * rounds)
    comparisons += [ratio(after, before), ratio(after, others)]
    return [*cases, before, after, others], comparisons


def spread(values: list[float]) -> str:
    """Median, and least to most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(cases: list[Case], comparisons: list[Comparison]) -> str:
    """Both lists as plain text."""
    lines = [f"{'case':<54}{'seconds':>24}"]
    lines += [f"{case.name:<54}{spread(case.seconds):>24}" for case in cases]
    lines += ["", f"{'comparison':<54}{'measured (quartiles)':>26}{'limit':>9}"]
    for c in comparisons:
        value = f"{c.value:.2f} ({c.low:.2f} to {c.high:.2f}) x"
        limit = f"{c.limit:.2f} x" if c.limit is not None else "-"
        lines.append(f"{c.what:<54}{value:>26}{limit:>9}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print; exit with 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description="Speed of bnfold on modules of PyTorch.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7)")
    parser.add_argument("--batch", type=int, default=1, help="images per run (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cases, comparisons = run(arguments.rounds, arguments.batch)
    print(table(cases, comparisons))
    if arguments.json:
        record = {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "threads": torch.get_num_threads(),
            "packages": {name: installed(name) for name in PACKAGES},
            "cases": [{"name": case.name, "seconds": case.seconds} for case in cases],
            "comparisons": [asdict(c) for c in comparisons],
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    if any(c.limit is not None and c.value > c.limit for c in comparisons):
        sys.exit("a limit is passed")


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
