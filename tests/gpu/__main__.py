"""Runs the tests of this folder on a GPU, and measures how much faster folded networks are there.

    python -m tests.gpu [--seconds S] [REPORT.md]

Needs Python, CUDA, and beside it the wheels of onnxruntime-gpu, torch and what bnfold needs. It
takes at most six minutes. The report names the card beside every figure; the exit status is that of
the tests, and 0 without a GPU, whose absence is told.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import bnfold

from .device import MODELS, PROVIDER, card, missing, networks

WARM, BATCHES = 20, (1, 32)


def measured(one: Callable[[], Any], other: Callable[[], Any], seconds: float) -> tuple[float, str]:
    """Milliseconds of the first, and the ratio of the second to it: medians of runs by turns."""
    for _ in range(WARM):
        one(), other()
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < WARM:
        order = (one, other) if len(found) % 2 else (other, one)
        spans = {}
        for run in order:
            start = time.perf_counter()
            run()
            spans[run] = time.perf_counter() - start
        found.append((spans[one], spans[other]))
    low, middle, high = statistics.quantiles([b / a for a, b in found], n=4)
    return statistics.median(a for a, _ in found) * 1e3, f"{middle:.3f} ({low:.3f} to {high:.3f})"


def in_onnxruntime(seconds: float) -> Iterator[str]:
    """A row for each model and batch: TF32 on, inputs and outputs bound to the device."""
    for name in ("digits", "ResNet-50", "MobileNetV2", "PP-OCRv5 det", "float16"):
        try:
            made = MODELS[name]()
        except pytest.skip.Exception:
            continue
        pair = [one.SerializeToString() for one in (made, bnfold.fold(made))]
        for batch in BATCHES:
            runs = [_bound(one, batch) for one in pair]
            if all(run is not None for run in runs):
                before, ratio = measured(runs[0], runs[1], seconds)  # type: ignore[arg-type]
                yield f"| {name} | onnxruntime | {batch} | {before:.3f} | {ratio} |"


def _bound(model: bytes, batch: int) -> Callable[[], Any] | None:
    """A run with everything on the device; None where the model has another batch."""
    options = {"use_tf32": "1"} if PROVIDER.name == "cuda" else {}
    session = onnxruntime.InferenceSession(model, providers=[(PROVIDER.full_name, options)])
    value = session.get_inputs()[0]
    if isinstance(value.shape[0], int) and value.shape[0] != batch:
        return None
    shape = [batch, *(n if isinstance(n, int) else 224 for n in value.shape[1:])]
    dtype = np.float16 if value.type == "tensor(float16)" else np.float32
    binding = session.io_binding()
    place = "cuda" if PROVIDER.name == "cuda" else "cpu"
    data = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    given = onnxruntime.OrtValue.ortvalue_from_numpy(data, place, 0)
    binding.bind_ortvalue_input(value.name, given)
    for output in session.get_outputs():
        binding.bind_output(output.name, place)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def in_pytorch(seconds: float) -> Iterator[str]:
    """A row for each type, batch and way to run: as it is, and compiled."""
    import torch

    device = "cuda" if PROVIDER.name == "cuda" else "cpu"
    for name in ("resnet", "mobilenet-v2"):
        module, example = networks().make(name)
        folded = bnfold.fold(module, (example,), merge=True)
        for dtype in (torch.float32, torch.float16) if device == "cuda" else (torch.float32,):
            pair = [one.to(device, dtype) for one in (module, folded)]
            for batch in BATCHES:
                data = torch.randn(batch, *example.shape[1:], device=device, dtype=dtype)
                for way in ("eager", "torch.compile"):
                    ready = [torch.compile(one) if way != "eager" else one for one in pair]
                    runs = [_synchronized(one, data) for one in ready]
                    before, ratio = measured(runs[0], runs[1], seconds)
                    kind = str(dtype).removeprefix("torch.")
                    yield f"| {name}, {kind} | {way} | {batch} | {before:.3f} | {ratio} |"


def _synchronized(module: Any, data: Any) -> Callable[[], Any]:
    import torch

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run() -> None:
        module(data)
        if data.is_cuda:
            torch.cuda.synchronize()

    return run


def main() -> int:
    """Run the tests, measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each pair (default: 2)")
    arguments = parser.parse_args()
    if missing():
        print(f"no GPU checks: {missing()}")
        return 0
    status = int(pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]))
    lines = [
        f"Inference time of folded networks over their originals on {card()}, onnxruntime "
        f"{onnxruntime.__version__}; `python -m tests.gpu`. Medians of runs by turns, quartiles.",
        "",
        "| network | runtime | batch | ms before | ratio |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for rows in (in_onnxruntime, in_pytorch):
        for line in rows(arguments.seconds):
            print(line, flush=True)
            lines.append(line)
    if arguments.report is not None:
        arguments.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
