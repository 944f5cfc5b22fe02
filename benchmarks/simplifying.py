r"""What `--simplify` writes, next to the simplifier alone and to the fold alone.

    PYTHONPATH=models python benchmarks/simplifying.py [NAME...]

The models are those of `benchmarks/packages.py`, whose text says how they are had. The simplifier
is the one that `--simplify` uses: onnxslim, or onnxsim where that is not installed. A cell has the
operators that onnxruntime is given, and the median processor time of a run over that of the
original, in pairs, one thread, all its optimizations. Every file that `--simplify` writes has
passed its verification; what it refused of the simplifier's result stands in the last column. The
table in Markdown is `benchmarks/simplifying.md`. The exit status is 1 if a file of `--simplify` has
more operators than the simplifier alone leaves, and nothing was refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import onnx
from command import bnfold_command
from inference import session
from packages import in_pairs, packaged
from simplifiers import simplify

import bnfold
from bnfold._pipeline.simplifying import simplifier

HEAD = """# What `--simplify` writes

Made by `python benchmarks/simplifying.py`; its text says what the cells are, and
`benchmarks/packages.py` how the packages are had. The machine was shared: a few percent are noise.

"""


def operators(path: Path) -> int:
    """The operators of the main graph, without constants."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type != "Constant" for node in nodes)


def cell(source: Path, made: Path, folder: Path) -> str:
    """The operators of a file, and its time over that of the original."""
    took = in_pairs(source, [session(path, 1, folder / "run.onnx") for path in (source, made)])
    return f"{operators(made)}, {took:.2f}" if took is not None else f"{operators(made)}, -"


def row(name: str, source: Path, folder: Path, seconds: float) -> tuple[str, bool]:
    """A row of the table, and whether `--simplify` leaves no more than the simplifier does."""
    tool = simplifier()
    alone, folded, both = (folder / f"{form}.onnx" for form in ("alone", "folded", "both"))
    wrong = simplify(tool, source, alone, seconds)
    bnfold.fold(source, folded)
    command = [
        *bnfold_command(),
        str(source),
        "-o",
        str(both),
        "--simplify",
        "--output-format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    told = json.loads(done.stdout)["simplification"]
    cells = [
        wrong or cell(source, alone, folder),
        cell(source, folded, folder),
        cell(source, both, folder) if both.exists() else "-",
    ]
    why = told["refused"] or ("" if told["applied"] else "no fewer")
    fine = bool(wrong or told["refused"]) or operators(both) <= operators(alone)
    return f"| {name} | {operators(source)} | {' | '.join(cells)} | {why} |", fine


def main() -> int:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description="What --simplify writes, beside what it uses.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--seconds", type=float, default=300, help="limit of the simplifier")
    arguments = parser.parse_args()
    names = tuple(arguments.names) or ("",)
    tool = simplifier()
    print(f"{HEAD}| model | original | {tool} {metadata.version(tool)} | bnfold ", end="")
    print("| bnfold --simplify | not taken |\n|---|---|---|---|---|---|", flush=True)
    all_fine = True
    for model in packaged():
        if model.name.startswith(names):
            with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
                source = model.write(Path(folder))
                text, fine = row(model.name, source, Path(folder), arguments.seconds)
            all_fine = all_fine and fine
            print(text, flush=True)
    return int(not all_fine)


if __name__ == "__main__":
    sys.exit(main())
