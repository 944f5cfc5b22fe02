"""The command line of the fuzzer, see the package."""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

import onnx

from . import command, library
from .mutation import corpus, mutated

_A_SEED = 10_000_000
"""How many numbers of cases belong to a seed."""


def main() -> int:
    """Run what is asked for. Gives 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="store_true", help="files, through the command")
    parser.add_argument("--seconds", type=float, help="begin no case after this time")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help="run one case, and leave its files here")
    asked = parser.parse_args()
    if asked.work:
        stored, first, count = asked.work
        work = command.work if asked.command else library.work
        work(pickle.loads(Path(stored).read_bytes()), int(first), int(count))
        return 0
    if asked.case is not None:
        return command.show(asked.case) if asked.command else _show(asked.case)
    first = asked.seed * _A_SEED
    search = command.search if asked.command else library.search
    ends, wrong = search(first, asked.count, asked.seconds)
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    print(f"{sum(ends.values()) + len(wrong)} cases of seed {asked.seed}, {len(wrong)} are wrong")
    for number, what in wrong.items():
        print(f"case {number}: {what}")
    return 1 if wrong else 0


def _show(number: int) -> int:
    made = mutated(corpus(), number)
    assert made is not None
    onnx.save(made, f"case-{number}.onnx")
    print(library.check(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
