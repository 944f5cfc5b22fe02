"""Of how many models bnfold proves what each tool makes of them, from the weights alone.

    PYTHONPATH=models python benchmarks/proofs.py [NAME...]

The models are those of `benchmarks/packages.py`, whose text says how they are had; names are
beginnings of names. A right result is never refuted: the exit status is 1 if one is. ``time`` is
the processor time of the proof over that of reading both files twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from packages import packaged
from simplifiers import TOOLS, is_there, simplify

import bnfold
from bnfold._onnx.files.load import load_model

SECONDS = 600.0


def took(action: object) -> float:
    """Seconds of the processor that an action takes."""
    assert callable(action)
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> int:
    """Print a row for each model and a line for each tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    names = tuple(parser.parse_args().names) or ("",)
    tools = [tool for tool in TOOLS if is_there(tool)]
    print(f"| model | {' | '.join(tools)} | time |\n|---|{'---|' * len(tools)}---|")
    found = {tool: Counter[str]() for tool in tools}
    for model in packaged():
        if not model.name.startswith(names):
            continue
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            source = model.write(Path(folder))
            ratio = 0.0
            for tool in tools:
                target = Path(folder) / f"{tool}.onnx"
                if simplify(tool, source, target, SECONDS):
                    cells.append("-")
                    continue
                proof = bnfold.prove(source, target)
                found[tool][proof.status] += 1
                cells.append(proof.status if proof.status == "proved" else str(proof))
                if tool == "bnfold":
                    pair = (source, target)
                    once = took(lambda pair=pair: [load_model(path) for path in pair])
                    ratio = took(lambda pair=pair: bnfold.prove(*pair)) / max(2 * once, 1e-3)
        print(f"| {model.name} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)
    for tool, counts in found.items():
        print(f"\n{tool}: {counts['proved']} of {counts.total()} proved")
    return int(any(counts["refuted"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
