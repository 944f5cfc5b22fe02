"""Affine operators that bnfold leaves in a model, next to what other tools leave.

Each tool gets each model in a process of its own, and what it wrote is counted by one count that
knows nothing of any of them (counting.py says what is an affine operator)::

    python benchmarks/leftovers.py
    python benchmarks/leftovers.py ppocrv5 vit --seconds 300 --operators

Names are beginnings of names. The tools are bnfold, onnxruntime (offline, extended optimizations),
onnxsim, onnxslim and onnxscript's optimizer, as far as they are installed. A cell is a sum:

    12      operators that remain as such
    +8b     biases: Adds right behind a MatMul by a constant, which a Gemm has inside
    +6f     inside operators that the tool made by fusion: a Gelu scales twice and adds once

`error`, `crash` and `timeout` are what they say; a tool that is not there has a column of dashes.
The last line says whether bnfold leaves no more than any other tool on every row.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from catalogue import Model, chosen
from counting import Count, count
from simplifiers import TOOLS, is_there, simplify


@dataclass(frozen=True)
class Left:
    """What a tool left of a model, or what became of the tool."""

    tool: str
    found: Count | None = None
    inside: int = 0
    problem: str = "-"

    @property
    def total(self) -> int | None:
        """Everything that is counted."""
        return None if self.found is None else self.found.total + self.inside

    @property
    def total_but_biases(self) -> int | None:
        """The same without the biases of MatMuls."""
        return None if self.found is None else self.found.total + self.inside - self.found.biases

    def __str__(self) -> str:
        if self.found is None:
            return self.problem
        parts = [f"{self.found.total - self.found.biases}"]
        parts += [f"+{self.found.biases}b"] if self.found.biases else []
        parts += [f"+{self.inside}f"] if self.inside else []
        return " ".join(parts)


@dataclass(frozen=True)
class Row:
    """One model: its own count, and what each tool left."""

    name: str
    original: Count
    left: tuple[Left, ...]

    def better(self, biases: bool) -> list[str]:
        """The tools that leave fewer than bnfold does."""
        totals = {
            one.tool: one.total if biases else one.total_but_biases
            for one in self.left
            if one.found is not None
        }
        own = totals.get("bnfold")
        if own is None:
            return ["bnfold did not finish"]
        return [f"{tool} {n} < {own}" for tool, n in totals.items() if n is not None and n < own]


def measure(model: Model, folder: Path, seconds: float) -> Row:
    """Apply every tool to one model."""
    with contextlib.redirect_stdout(sys.stderr):
        source = model.write(folder)
    original = count(onnx.load(source))
    left = tuple(_left(tool, source, original, folder, seconds) for tool in TOOLS)
    return Row(model.name, original, left)


def _left(tool: str, source: Path, original: Count, folder: Path, seconds: float) -> Left:
    if not is_there(tool):
        return Left(tool)
    target = folder / f"{tool}.onnx"
    target.unlink(missing_ok=True)
    problem = simplify(tool, source, target, seconds)
    if problem:
        return Left(tool, problem=problem)
    found = count(onnx.load(target))
    target.unlink()
    inside = sum(n - original.inside[op] for op, n in found.inside.items())
    return Left(tool, found, max(0, inside))


def table(rows: list[Row]) -> list[str]:
    """The rows in Markdown, its columns aligned."""
    cells = [["model", "original", *TOOLS]]
    cells += [[row.name, str(_original(row)), *map(str, row.left)] for row in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    lines = [f"| {' | '.join(_padded(line, widths))} |" for line in cells]
    first, *others = widths
    rule = "|".join(["", "-" * (first + 2), *("-" * (width + 1) + ":" for width in others), ""])
    return [lines[0], rule, *lines[1:]]


def _original(row: Row) -> Left:
    return Left("original", row.original)


def _padded(line: list[str], widths: list[int]) -> list[str]:
    numbers = zip(line[1:], widths[1:], strict=True)
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in numbers)]


def new_operators(row: Row) -> list[str]:
    """What tools put into a model that it had less of."""
    lines = []
    for left in row.left:
        if left.found is None:
            continue
        more = left.found.operators - row.original.operators
        if more:
            listed = ", ".join(f"{op} +{n}" for op, n in sorted(more.items()))
            lines.append(f"{row.name}, {left.tool}: {listed}")
    return lines


def conclusion(rows: list[Row]) -> str:
    """Whether bnfold leaves no more than any other tool on every row."""
    worse = {row.name: row.better(biases=True) for row in rows if row.better(biases=True)}
    if not worse:
        return "bnfold leaves no more than any other tool on every row"
    apart = {row.name: row.better(biases=False) for row in rows if row.better(biases=False)}
    listed = "; ".join(f"{name} ({', '.join(tools)})" for name, tools in worse.items())
    rest = "; ".join(f"{name} ({', '.join(tools)})" for name, tools in apart.items())
    return (
        f"bnfold leaves more than another tool on {len(worse)} of {len(rows)} rows: {listed}; "
        f"biases of MatMuls apart, on {len(apart)}{': ' + rest if rest else ''}"
    )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="Affine operators that tools leave in models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--seconds", type=float, default=120, help="limit per tool and model")
    parser.add_argument("--operators", action="store_true", help="also list what operators came in")
    arguments = parser.parse_args()
    try:
        models = chosen(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            rows.append(measure(model, Path(folder), arguments.seconds))
        print(rows[-1].name, *rows[-1].left, sep="  ", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    if arguments.operators:
        print("", *(line for row in rows for line in new_operators(row)), sep="\n")
    print(f"\n{conclusion(rows)}")


if __name__ == "__main__":
    main()
