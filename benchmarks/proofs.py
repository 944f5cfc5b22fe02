"""Of how many models bnfold proves what each tool makes of them, from the weights alone.

    PYTHONPATH=models python benchmarks/proofs.py [--made FOLDER] [NAME...] > benchmarks/proofs.md

The models are those of `benchmarks/packages.py`, whose text says how they are had; names are
beginnings of names. FOLDER has what the tools made before, ``TOOL/PACKAGE__PATH.onnx``; without it
they are run. What is not proved is compared by running it, which tells what is wrong from what is
right and not seen to be. A right result is never refuted: the exit status is 1 if one is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from packages import packaged
from simplifiers import TOOLS, is_there, simplify

import bnfold
from bnfold import UsageError
from bnfold._onnx.files.load import load_model

SECONDS = 600.0
_LONGEST = 90
TEXT = """# What is proved of what each tool makes of a model

Made by `python benchmarks/proofs.py`; its text says how. The models are those of `packages.md`.
"The first file has no such" says where the walk ended: what the tool has put there is not known to
be the same. A result that is not proved is compared by running both: "wrong" is one that is no
valid model, does not run where the model does, or puts out something else.
"""
WRONG = "wrong"


def took(action: Callable[[], object]) -> float:
    """Seconds of the processor that an action takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def result(tool: str, name: str, source: Path, made: Path | None, folder: Path) -> Path | None:
    """The file that a tool makes of a model, or has made before; None where it makes none."""
    if made is not None:
        package, _, path = name.partition("/")
        target = made / tool / f"{package}__{path.replace('/', '_')}.onnx"
        return target if target.exists() else None
    target = folder / f"{tool}.onnx"
    return None if simplify(tool, source, target, SECONDS) else target


def ratio(first: Path, second: Path) -> float:
    """The processor time of a proof over that of reading both files twice."""
    once = took(lambda: [load_model(path) for path in (first, second)])
    return took(lambda: bnfold.prove(first, second)) / max(2 * once, 1e-3)


def seen(first: Path, second: Path) -> str:
    """What a comparison in onnxruntime says of a result that is not proved."""
    try:
        verdict = bnfold.verify(first, second, prove=False, timeout=SECONDS / 4)
    except UsageError as error:
        return f"{WRONG}: {shortened(str(error))}"
    if verdict.status == "pass":
        return "right, as far as runs show"
    said = [str(check.note) for check in verdict.checks if check.status != "pass" and check.note]
    told = shortened("; ".join([*said, *map(str, verdict.notes)]) or str(verdict))
    return f"{WRONG if verdict.status == 'fail' else 'open'}: {told}"


def shortened(text: str) -> str:
    """A reason in one cell of a table."""
    text = " ".join(text.split()).replace("|", "/").replace("`", "'")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def main() -> int:
    """Print a line for each tool, and one for each result that is not proved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--made", type=Path)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    names = tuple(asked.names) or ("",)
    tools = [tool for tool in TOOLS if asked.made is not None or is_there(tool)]
    found = {tool: Counter[str]() for tool in tools}
    rows, ratios = [], []
    for model in packaged():
        if not model.name.startswith(names):
            continue
        print(model.name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            source = model.write(Path(folder))
            for tool in tools:
                target = result(tool, model.name, source, asked.made, Path(folder))
                if target is None:
                    found[tool]["none"] += 1
                    continue
                pair = source, target
                proof = bnfold.prove(*pair)
                status = proof.status
                if status != "proved":
                    place, run = proof.at.partition(";")[0], seen(*pair)
                    why = shortened(f"{status} at {place}: {proof.why}")
                    rows.append(f"| {tool} | {model.name} | {why} | {run} |")
                    status = WRONG if run.startswith(WRONG) else status
                found[tool][status] += 1
                if tool == "bnfold":
                    ratios.append(ratio(*pair))
    only = f"\nOf the models whose names begin with {', '.join(names)}.\n" if asked.names else ""
    print(
        f"{TEXT}{only}\n| tool | proved | not proved | refuted | wrong | makes no file |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for tool, counts in found.items():
        cells = (counts[each] for each in ("proved", "not proved", "refuted", WRONG, "none"))
        print(f"| {tool} | {' | '.join(map(str, cells))} |")
    if ratios:
        middle, most = statistics.median(ratios), max(ratios)
        print(
            "\nThe proof of bnfold's own result takes the processor as long as reading both files "
            f"twice,\ntimes {middle:.1f} in the middle of the models and {most:.1f} at most."
        )
    head = "| tool | model | why it is not proved | what a run says |\n|---|---|---|---|"
    print(f"\n{head}", *rows, sep="\n")
    return int(any(counts["refuted"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
