"""What the default verification costs, next to loading and running both models.

That is to load both in onnxruntime and to run each once on every input set, on the very inputs that
the verification draws. First as anyone would type it: the command, next to a script that does that
and no more, both from the start of the process to its end, by the clock and in time of the
processor; modules are compiled before, as `pip install` leaves them. Then within one process,
without what imports take: with onnxruntime's own options, and without optimizations and packed
weights, which loads fastest and is what a reference has to do. Beside them stands what a
verification takes that does not begin with a proof: the original, run as it is, with rounding and
with planted errors; the folded model; and the folded model as it is deployed.
All are done in turn, and a ratio is the median of the ratios of the rounds::

    python benchmarks/verification.py
    python benchmarks/verification.py ppocrv5 resnet --rounds 9
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from catalogue import Model, chosen
from command import bnfold_command, installed_as

import bnfold
from bnfold._run.drawing import InputSource
from bnfold._run.input_sets import InputSet
from bnfold._run.session import EngineError, OnnxRuntime

INCONCLUSIVE = 3
"""The exit code of a verification without a verdict."""


def inputs(path: Path) -> list[InputSet]:
    """The sets that the verification draws: of those proposed, the first that run."""
    source = InputSource(onnx.load(path, load_external_data=False), 0)
    engine = OnnxRuntime(path)
    found: list[InputSet] = []

    def keep(proposals: Iterable[InputSet]) -> None:
        for proposal in proposals:
            with contextlib.suppress(EngineError):
                engine.run(proposal.feeds)
                found.append(proposal)
                return

    for number in range(len(source)):
        keep(source.further(number, found[0]) if number else source.first())
    for others in source.with_other_integers():
        keep(others)
    return found


SCRIPT = """
import sys
import numpy
import onnxruntime

_, *models, folder = sys.argv
with numpy.load(folder) as sets:
    feeds = {}
    for key in sets:
        number, name = key.split("/", 1)
        feeds.setdefault(number, {})[name] = sets[key]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for model in models:
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for each in feeds.values():
        session.run(None, each)
"""
"""Loads two models and runs each on every set of an .npz file, and does nothing else."""


def taken(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds from the start of a process to its end, and those of the processor."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=installed_as(folder)
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, INCONCLUSIVE):
            log.seek(0)
            text = log.read().decode(errors="replace").strip()
            raise RuntimeError(f"exit code {process.returncode}: {text}")
    return seconds, usage.ru_utime + usage.ru_stime


def plain(paths: tuple[Path, Path], sets: list[InputSet], optimized: bool) -> float:
    """Seconds to load two models and to run each once on every set."""
    start = time.perf_counter()
    for path in paths:
        if optimized:
            silent = ort.SessionOptions()
            silent.log_severity_level = 4
            session = ort.InferenceSession(str(path), silent, providers=["CPUExecutionProvider"])
            for each in sets:
                session.run(None, dict(each.feeds))
        else:
            engine = OnnxRuntime(path)
            for each in sets:
                engine.run(each.feeds)
    return time.perf_counter() - start


def bare(paths: tuple[Path, Path], sets: list[InputSet]) -> float:
    """Seconds of the sessions and runs alone that a verification is made of."""
    original, folded = paths
    start = time.perf_counter()
    for path, optimized, times in ((original, False, 3), (folded, False, 1), (folded, True, 1)):
        engine = OnnxRuntime(path, optimized=optimized)
        for each in sets * times:
            engine.run(each.feeds)
    return time.perf_counter() - start


def verified(paths: tuple[Path, Path]) -> float:
    """Seconds that the verification takes."""
    start = time.perf_counter()
    bnfold.verify(*paths)
    return time.perf_counter() - start


def measure(model: Model, rounds: int) -> str:
    """One row: the command and the script, the verification and what it is held against, each with
    the ratio.
    """
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        with contextlib.redirect_stdout(sys.stderr):
            source = model.write(Path(folder))
        target = Path(folder) / "folded.onnx"
        bnfold.fold(source, target)
        paths, sets = (source, target), inputs(source)
        samples = Path(folder) / "sets.npz"
        arrays = {f"{n}/{name}": a for n, each in enumerate(sets) for name, a in each.feeds.items()}
        np.savez(samples, allow_pickle=False, **arrays)
        typed = [*bnfold_command(), "verify", *map(str, paths)]
        script = [sys.executable, "-c", SCRIPT, *map(str, paths), str(samples)]
        by_clock, of_processor = [], []
        for turn in range(rounds + 1):
            pair = taken(script, Path(folder)), taken(typed, Path(folder))
            if turn:  # the first fills caches
                (least, spent), (whole, used) = pair
                by_clock.append((least, whole))
                of_processor.append((spent, used))
        verified(paths)
        within = []
        for _ in range(rounds):
            floors = plain(paths, sets, True), plain(paths, sets, False), bare(paths, sets)
            within.append((*floors, verified(paths)))
    return f"{model.name:<22}{_cells(by_clock)}{_cells(of_processor)}{_cells(within)}"


def _cells(rows: Sequence[tuple[float, ...]]) -> str:
    """Medians in milliseconds: that of what is measured, then each floor with the ratio to it."""
    cells = [f"{statistics.median(row[-1] for row in rows) * 1e3:>10.1f}"]
    for floor in range(len(rows[0]) - 1):
        cost = statistics.median(row[floor] for row in rows)
        ratio = statistics.median(row[-1] / row[floor] for row in rows)
        cells.append(f"{cost * 1e3:>10.1f}{ratio:>7.2f}")
    return "".join(cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Verification over loading and running both.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a model (default: 5)")
    arguments = parser.parse_args()
    try:
        models = chosen(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    floors = {"command": ["script"], "processor": ["script"], "verify": ["usual", "least", "bare"]}
    heads = [
        f"{what:>10}" + "".join(f"{floor:>10}{'ratio':>7}" for floor in of)
        for what, of in floors.items()
    ]
    print(f"{'model, ms':<22}{''.join(heads)}")
    for model in models:
        print(measure(model, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
