"""Affine operators that bnfold leaves in a model, next to what other tools leave.

Each tool gets each model in a process of its own, and what it wrote is counted by one count that
knows nothing of any of them (counting.py says what is an affine operator)::

    python benchmarks/leftovers.py
    python benchmarks/leftovers.py ppocrv5 vit --seconds 300 --operators

Names are beginnings of names. The tools are bnfold, onnxruntime (offline, extended optimizations),
onnxsim, onnxslim and onnxscript's optimizer, as far as they are installed. A cell is a sum:

    12      operators that remain as such
    +8b     biases: Adds right behind a MatMul by a constant
    +6g     those in GELUs that onnxruntime runs as one operator, 3 in each
    +3f     others inside operators that the tool made by fusion

Biases and GELUs count for all tools alike, whether written out or inside an operator, and stand
apart, for fewer of them are no gain. A Gemm takes a bias in, but has matrices alone: of data with
more axes the tool lays rows flat, at two Reshapes or more for one Add. And a GELU with one of its
constants merged into a neighbour is no GELU to onnxruntime, which runs five operators for one.

`error`, `crash` and `timeout` are what they say; a tool that is not there has a column of dashes.
The last lines say whether bnfold leaves no more than any other tool on every row, biases and GELUs
apart, and where it leaves more if these count.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
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
    biases: int = 0
    gelus: int = 0
    problem: str = "-"

    @classmethod
    def of(cls, tool: str, found: Count, original: Count) -> Left:
        """What a count says. Only those inside operators that the tool made count as inside."""
        new = sum(max(0, n - original.inside[op]) for op, n in found.inside.items())
        biases = max(0, found.biases_inside - original.biases_inside)
        gelus = max(0, found.fused_gelus - original.fused_gelus)
        inside = new - biases - 3 * gelus
        return cls(tool, found, inside, found.biases + biases, 3 * (found.gelus + gelus))

    @property
    def total(self) -> int | None:
        """Everything that is counted."""
        apart = self.total_apart
        return None if apart is None else apart + self.biases + self.gelus

    @property
    def total_apart(self) -> int | None:
        """The same without biases and GELUs."""
        return None if self.found is None else self._plain + self.inside

    @property
    def _plain(self) -> int:
        assert self.found is not None
        return self.found.total - self.found.biases - 3 * self.found.gelus

    def __str__(self) -> str:
        if self.found is None:
            return self.problem
        marked = ((self.biases, "b"), (self.gelus, "g"), (self.inside, "f"))
        return " ".join([f"{self._plain}", *(f"+{n}{mark}" for n, mark in marked if n)])


@dataclass(frozen=True)
class Row:
    """One model: its own count, and what each tool left."""

    name: str
    original: Count
    left: tuple[Left, ...]

    def totals(self, everything: bool) -> dict[str, int]:
        """What each tool that finished leaves, with biases and GELUs or without."""
        found = {one.tool: one.total if everything else one.total_apart for one in self.left}
        return {tool: total for tool, total in found.items() if total is not None}

    def better(self, everything: bool) -> list[str]:
        """The tools that leave fewer than bnfold does, biases and GELUs apart or with them."""
        totals = self.totals(everything)
        own = totals.get("bnfold")
        if own is None:
            return ["bnfold did not finish"]
        return [f"{tool} {total} < {own}" for tool, total in totals.items() if total < own]


def measure(model: Model, folder: Path, seconds: float) -> Row:
    """Apply every tool to one model."""
    with contextlib.redirect_stdout(sys.stderr):
        source = model.write(folder)
    for name in external_files(source) if source.parent != folder else ():
        shutil.copyfile(source.parent / name, folder / name)  # onnxruntime still refers to them
    original = count(onnx.load(source))
    left = tuple(_left(tool, source, original, folder, seconds) for tool in TOOLS)
    return Row(model.name, original, left)


def external_files(source: Path) -> set[str]:
    """The names of the files beside a model that hold its weights."""
    tensors = onnx.load(source, load_external_data=False).graph.initializer
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


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
    return Left.of(tool, found, original)


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
    return Left.of("original", row.original, row.original)


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
    apart, whole = (
        {row.name: row.better(everything) for row in rows if row.better(everything)}
        for everything in (False, True)
    )
    return "\n".join(
        (
            f"biases and GELUs apart, bnfold leaves {_where(apart, len(rows))}",
            f"with them it leaves {_where(whole, len(rows))}",
        )
    )


def _where(worse: dict[str, list[str]], rows: int) -> str:
    if not worse:
        return "no more than any other tool on every row"
    listed = "; ".join(f"{name} ({', '.join(tools)})" for name, tools in worse.items())
    return f"more than another tool on {len(worse)} of {rows} rows: {listed}"


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
