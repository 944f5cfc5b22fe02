"""What the default verification costs, next to loading and running both models.

That is to load both in onnxruntime and to run each once on every input set, on the very inputs that
the verification draws: with onnxruntime's own options, as anyone would, and without optimizations
and packed weights, which loads fastest and is what a reference has to do. Beside them stands what
no verification of this kind can do without: the original, run as it is, with rounding and with
planted errors; the folded model; and the folded model as it is deployed. All four are done in turn,
and a ratio is the median of the ratios of the rounds::

    python benchmarks/verification.py
    python benchmarks/verification.py ppocrv5 resnet --rounds 9
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnx
import onnxruntime as ort
from catalogue import Model, chosen

import bnfold
from bnfold._verify._inputs import InputSet, InputSource
from bnfold._verify._session import EngineError, OnnxRuntime


def inputs(path: Path) -> list[InputSet]:
    """The sets that the verification draws: of those proposed, the first that run."""
    source = InputSource(onnx.load(path, load_external_data=False), 0)
    engine = OnnxRuntime(path)
    found: list[InputSet] = []
    for number in range(len(source)):
        for proposal in source.further(number, found[0]) if number else source.first():
            with contextlib.suppress(EngineError):
                engine.run(proposal.feeds)
                found.append(proposal)
                break
    return found


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
    """One row."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        with contextlib.redirect_stdout(sys.stderr):
            source = model.write(Path(folder))
        target = Path(folder) / "folded.onnx"
        bnfold.fold(source, target)
        paths, sets = (source, target), inputs(source)
        verified(paths)
        seen = []
        for _ in range(rounds):
            floors = plain(paths, sets, True), plain(paths, sets, False), bare(paths, sets)
            seen.append((*floors, verified(paths)))
    cells = [f"{model.name:<22}{statistics.median(each[-1] for each in seen) * 1e3:>12.1f}"]
    for floor in range(3):
        cost = statistics.median(each[floor] for each in seen)
        ratio = statistics.median(each[-1] / each[floor] for each in seen)
        cells.append(f"{cost * 1e3:>12.1f}{ratio:>9.2f}")
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
    heads = "".join(f"{head:>12}{'ratio':>9}" for head in ("usual, ms", "least, ms", "bare, ms"))
    print(f"{'model':<22}{'verify, ms':>12}{heads}")
    for model in models:
        print(measure(model, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
