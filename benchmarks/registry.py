"""Models per minute of a whole registry, and what each model costs beside its own work.

Draws a registry of small models (`tests/fuzz` mutates models of the golden plans), with real ones
from a folder, broken ones and a large one if asked, and folds it in four ways: a process of the
command for each model, one after the other; ``--output-dir`` with one job and with two; and again
with ``--resume``. Checks on the way that each writes the same bytes::

    python benchmarks/registry.py
    python benchmarks/registry.py --models 200 --real /path/to/site-packages --json registry.json

The overhead is what a model takes that has nothing to fold: next to nothing is its own work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

COMMAND = (sys.executable, "-c", "from bnfold._command.guard import main; main()")
LARGEST_REAL = 12_000_000
"""Bytes of the largest real model that is taken."""


def draw(folder: Path, count: int, real: Path | None, huge: bool) -> None:
    """Make a registry of so many models: real ones, five that are broken, drawn ones."""
    import numpy as np
    import onnx

    from tests import graphs
    from tests.fuzz import mutation

    folder.mkdir()
    made = 0
    if real is not None:
        for path in sorted(real.rglob("*.onnx")):
            if path.stat().st_size <= LARGEST_REAL and made < count // 4:
                place = folder / "real" / f"{made:03d}-{path.name}"
                place.parent.mkdir(exist_ok=True)
                shutil.copy(path, place)
                made += 1
    for k in range(5):
        (folder / f"broken-{k}.onnx").write_bytes(
            (b"", b"no model", b"\x08\x07", b"\0" * 64, b"{}")[k]
        )
        made += 1
    if huge:
        pieces, source = [], "x"
        for k in range(20):
            pieces += [
                graphs.conv(f"conv{k}", source, f"c{k}", (1024, 1024, 3, 3), pads=[1, 1, 1, 1]),
                graphs.bn(f"bn{k}", f"c{k}", f"b{k}", 1024),
            ]
            source = f"b{k}"
        whole = graphs.model(*pieces, x=(1, 1024, 4, 4), y=source)
        onnx.save(whole, folder / "huge.onnx", save_as_external_data=True, location="huge.bin")
        made += 1
    bases, rng = mutation.corpus(), np.random.default_rng(0)
    number = 0
    while made < count:
        number += 1
        model = mutation.mutated(bases, number) if number % 4 == 0 else None
        if model is None:
            model = onnx.ModelProto.FromString(bases[int(rng.integers(len(bases)))])
        try:
            data = model.SerializeToString()
        except Exception:
            continue
        place = folder / f"drawn-{made % 7}" / f"{made:04d}.onnx"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        made += 1


def one_by_one(folder: Path, out: Path, words: list[str]) -> float:
    """Fold each model with a command of its own. Gives the seconds."""
    begun = time.perf_counter()
    for path in sorted(folder.rglob("*.onnx")):
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _run([*COMMAND, str(path), "-o", str(target), *words])
    return time.perf_counter() - begun


def at_once(folder: Path, out: Path, words: list[str]) -> float:
    """Fold all of them with one command. Gives the seconds."""
    begun = time.perf_counter()
    _run([*COMMAND, str(folder), "--output-dir", str(out), *words])
    return time.perf_counter() - begun


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run(command, env=environment, capture_output=True, check=False)


def _computed() -> float:
    """CPU seconds of all processes that were started so far and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def written(folder: Path) -> dict[str, bytes]:
    """The models and data in a folder, without reports and the index."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".report.json", "index.json", "index.html"))
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--real", type=Path, help="a folder to take real models from")
    parser.add_argument("--huge", action="store_true", help="one of 750 MB among them")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    words = ["--threads", "1", "--memory", given.memory, "--timeout", "120"]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        draw(home / "in", given.models, given.real, given.huge)
        ways: dict[str, Callable[[Path], float]] = {
            "a command for each": lambda out: one_by_one(home / "in", out, words),
            "--jobs 1": lambda out: at_once(home / "in", out, [*words, "--jobs", "1"]),
            "--jobs 2": lambda out: at_once(home / "in", out, [*words, "--jobs", "2"]),
        }
        again = [*words, "--jobs", "1", "--resume"]
        ways["--resume"] = lambda _: at_once(home / "in", home / "1", again)
        seconds, computed = {}, {}
        for number, (name, way) in enumerate(ways.items()):
            out = home / str(number)
            out.mkdir()
            before = _computed()
            seconds[name] = way(out)
            computed[name] = _computed() - before
        same = written(home / "0") == written(home / "1") == written(home / "2")
        print(f"{given.models} models, {os.cpu_count()} cores; the same bytes: {same}")
        for name, taken in seconds.items():
            rate, each = 60 * given.models / taken, 1000 * taken / given.models
            cpu = 1000 * computed[name] / given.models
            print(
                f"  {name:20} {taken:8.1f} s {rate:8.0f} models per minute {each:8.0f} ms each, "
                f"{cpu:.0f} ms of them computed"
            )
        if given.json is not None:
            told: dict[str, object] = {
                "models": given.models,
                "cores": os.cpu_count(),
                "same": same,
            }
            told |= {"seconds": seconds, "computed": computed}
            given.json.write_text(json.dumps(told, indent=2) + "\n")
    sys.exit(not same)


if __name__ == "__main__":
    main()
