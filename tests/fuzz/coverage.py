"""Bytes that are drawn by what they reach in the code, where atheris is installed.

``python -m tests.fuzz.coverage [SECONDS] [--folder FOLDER] [--seed S]``: atheris changes the bytes
of small models, and keeps those that reach a line of bnfold that none before did. They are read as
a file would be, planned and folded. Nothing but `UsageError` may come of it, in bounded time and
memory; a folded model is a model again. What is found is left as ``crash-…`` in the folder.

No case is compared by running it: the mutation by structure does that, see `library`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS_EACH = 20
MEGABYTES = 3000
LARGEST, MODELS = 4096, 200
"""Bytes of the largest model to begin with, and how many there are: few and small ones are changed
often."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for some time. Gives 1 if something is wrong, and 0 without atheris."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage")
    parser.add_argument("seconds", type=int, nargs="?", default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    if find_spec("atheris") is None:
        print("atheris is not installed: nothing was searched")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = asked.folder or Path(name)
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        _search(folder, asked.seconds, asked.seed)
    return 0


def _search(folder: Path, seconds: int, seed: int) -> None:
    """Run libFuzzer, which ends the process: with 0 after the time, otherwise where it finds."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["bnfold"]):
        check = _check()
    from .mutation import corpus

    small = [data for data in corpus() if len(data) <= LARGEST]
    for number, data in enumerate(random.Random(seed).sample(small, MODELS)):
        (folder / "corpus" / f"{number}.onnx").write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS_EACH}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-max_len={2 * LARGEST}",
        f"-seed={seed}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], check)
    atheris.Fuzz()


def _check() -> Any:
    """What is done with the bytes of a case."""
    from onnx import ModelProto

    from bnfold import UsageError, fold, plan
    from bnfold._onnx.files.load import load_model

    home = tempfile.TemporaryDirectory()
    path = Path(home.name, "m.onnx")

    def check(data: bytes) -> None:
        assert home
        path.write_bytes(data)
        try:
            load_model(path, lean=True)
            plan(path)
            folded = fold(path)
        except UsageError:
            return
        ModelProto.FromString(folded.SerializeToString())

    return check


if __name__ == "__main__":
    sys.exit(main())
