"""Time and peak memory of the command on a 100 MB ResNet-50, next to what it is compared with.

Every figure is of a whole process, started from scratch: wall-clock time and peak resident memory
as the kernel reports them. The commands are interleaved over several rounds after one that does not
count, so that a slow minute of the machine hits all of them; medians are compared. The processor's
time, for program and system, depends less on what else the machine does. All run from bytecode, as
`pip install` leaves it, whatever the environment says::

    python benchmarks/command.py
    python benchmarks/command.py --rounds 9 --json command.json

Uses the interpreter it runs in, and onnxsim where that is installed. It imports nothing but the
standard library itself, since a child's peak memory starts from its parent's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOAD_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
PACKAGES = ("bnfold", "onnx", "onnxruntime", "onnxsim", "click", "numpy")


@dataclass
class Case:
    """A command to measure and its samples: seconds, those of the processor, peak memory in MB."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def sample(self, output: Path, keep: bool) -> None:
        """Run the command once; RuntimeError with what it printed if it fails."""
        for file in output.parent.glob(f"{output.name}*"):
            file.unlink()
        with tempfile.TemporaryFile() as log:
            start = time.perf_counter()
            process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=installed_as(output.parent)
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                text = log.read().decode(errors="replace").strip()
                raise RuntimeError(f"{self.name}: exit code {process.returncode}\n{text}")
        if keep:
            self.seconds.append(seconds)
            self.processor.append(usage.ru_utime + usage.ru_stime)
            # Linux counts ru_maxrss in KiB, macOS in bytes.
            unit = 1 if sys.platform == "darwin" else 1024
            self.megabytes.append(usage.ru_maxrss * unit / 1e6)


def installed_as(folder: Path) -> dict[str, str]:
    """An environment in which modules are compiled once, in the round that does not count."""
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


@dataclass(frozen=True)
class Comparison:
    """One figure of two cases, and what is wanted of it."""

    what: str
    value: float
    unit: str
    limit: float


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def bnfold_command() -> list[str]:
    """The console script where bnfold is installed, else the checkout's own."""
    path = Path(sys.executable).with_name("bnfold")
    return [str(path)] if path.exists() else [sys.executable, str(HERE.parent / "cli.py")]


def measure(cases: list[Case], rounds: int, output: Path) -> None:
    """Fill the cases' samples: one round to warm up, then `rounds` that count."""
    for turn in range(rounds + 1):
        for case in cases:
            case.sample(output, keep=turn > 0)


def ratio(what: str, a: list[float], b: list[float], limit: float) -> Comparison:
    """The ratio of two medians."""
    return Comparison(what, statistics.median(a) / statistics.median(b), "x", limit)


def run(model: Path, rounds: int) -> tuple[list[Case], list[Comparison]]:
    """Measure everything on `model`."""
    bnfold, python = bnfold_command(), sys.executable
    output = model.with_name("output.onnx")
    source, target = str(model), str(output)

    verified = Case("bnfold", [*bnfold, source, "-o", target])
    folded = Case("bnfold --no-verify", [*bnfold, source, "-o", target, "--no-verify"])
    floor = Case("onnx.load + onnx.save", [python, "-c", LOAD_SAVE, source, target])
    heavy = [verified, folded, floor]
    if installed("onnxsim"):
        onnxsim = Case("onnxsim, no check", [python, "-m", "onnxsim", source, target, "0"])
        heavy.append(onnxsim)
    measure(heavy, rounds, output)

    shown = Case("bnfold --help", [*bnfold, "--help"])
    click = Case("import click", [python, "-c", "import click"])
    measure([shown, click], 3 * rounds, output)

    size = model.stat().st_size / 1e6
    comparisons = [
        Comparison("bnfold / model, memory", statistics.median(verified.megabytes) / size, "x", 4),
        ratio("bnfold --no-verify / load + save, time", folded.seconds, floor.seconds, 1.1),
        ratio("bnfold --no-verify / load + save, CPU", folded.processor, floor.processor, 1.1),
        ratio("bnfold --no-verify / load + save, memory", folded.megabytes, floor.megabytes, 0.4),
        Comparison(
            "bnfold --help - import click",
            statistics.median(shown.seconds) - statistics.median(click.seconds),
            "s",
            0.15,
        ),
    ]
    if installed("onnxsim"):
        comparisons = [
            ratio("bnfold / onnxsim, time", verified.seconds, onnxsim.seconds, 1.0),
            ratio("bnfold / onnxsim, memory", verified.megabytes, onnxsim.megabytes, 1.0),
            *comparisons,
        ]
    return [*heavy, shown, click], comparisons


def spread(values: list[float], digits: int) -> str:
    """Median, and least to most."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(cases: list[Case], comparisons: list[Comparison]) -> str:
    """Both lists as plain text."""
    lines = [f"{'command':<24}{'seconds':>24}{'of processor':>24}{'peak MB':>22}"]
    for case in cases:
        memory = spread(case.megabytes, 0)
        times = f"{spread(case.seconds, 3):>24}{spread(case.processor, 3):>24}"
        lines.append(f"{case.name:<24}{times}{memory:>22}")
    lines += ["", f"{'comparison':<44}{'measured':>12}{'limit':>14}"]
    for c in comparisons:
        lines.append(f"{c.what:<44}{c.value:>10.2f} {c.unit}{c.limit:>12.2f} {c.unit}")
    return "\n".join(lines)


def main() -> None:
    """Build the model, measure, print."""
    parser = argparse.ArgumentParser(description="Time and peak memory of the bnfold command.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        model = Path(folder) / "resnet50.onnx"
        subprocess.run([sys.executable, str(HERE / "resnet50.py"), str(model)], check=True)
        try:
            cases, comparisons = run(model, arguments.rounds)
        except RuntimeError as error:
            sys.exit(str(error))
    print(table(cases, comparisons))
    if arguments.json:
        record = {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "packages": {name: installed(name) for name in PACKAGES},
            "cases": [asdict(case) for case in cases],
            "comparisons": [asdict(c) for c in comparisons],
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
