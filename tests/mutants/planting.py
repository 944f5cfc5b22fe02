"""How a bug is planted, and how its tests are seen to go red.

Each is one change of the text of one file, in a copy of the checkout, and names the tests that have
to notice. A text that does not stand in its file exactly once is an error, so that no bug rots
unseen; so is a named test that fails without any bug.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__")
PATIENCE_S = 600
RED = 1
"""Pytest's exit code where tests failed; broken imports and unknown tests have others."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in ``file`` of the package, ``old`` becomes ``new``, and ``tests`` have to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        """The file, from the root of a checkout."""
        return Path("bnfold", self.file)

    def planted(self, text: str) -> str:
        """The text of the file with the bug.

        Raises:
            ValueError: what it changes does not stand in it exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.path} has {self.old!r} {count} times, not once")
        return text.replace(self.old, self.new)


def main(mutants: Sequence[Mutant], names: Iterable[str] = ()) -> None:
    """Plant those that are named, or all; run, tell; exit with 1 if a bug goes unnoticed."""
    wanted = set(names)
    unknown = wanted - {mutant.name for mutant in mutants}
    if unknown:
        sys.exit(f"there is no mutant {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in mutants if not wanted or mutant.name in wanted]
    sources = {mutant.path: (ROOT / mutant.path).read_text(encoding="utf-8") for mutant in chosen}
    changed = [(mutant, mutant.planted(sources[mutant.path])) for mutant in chosen]
    with tempfile.TemporaryDirectory(prefix="bnfold-mutants-") as scratch:
        checkout = Path(scratch, "checkout")
        shutil.copytree(ROOT, checkout, ignore=LEFT_OUT)
        tests = dict.fromkeys(test for mutant in chosen for test in mutant.tests.split())
        if _run(checkout, tests, "-n", "2", told=(RED,)) != 0:
            sys.exit("the tests fail without any bug")
        unnoticed = [
            mutant.name
            for number, (mutant, text) in enumerate(changed)
            if not _is_noticed(checkout, mutant, text, number)
        ]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} bugs are noticed")
    if unnoticed:
        sys.exit("\n".join(["unnoticed:", *unnoticed]))


def _is_noticed(checkout: Path, mutant: Mutant, text: str, number: int) -> bool:
    """Whether the tests go red with a bug, which is gone afterwards."""
    path, begun = checkout / mutant.path, time.monotonic()
    status, right = path.stat(), path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    # Another time than any that compiled code was made for.
    os.utime(path, (status.st_atime, status.st_mtime + 1 + number))
    code = _run(checkout, mutant.tests.split(), "-x")
    path.write_text(right, encoding="utf-8")
    os.utime(path, (status.st_atime, status.st_mtime))
    told = "red" if code == RED else f"NOT RED (pytest ends with {code})"
    print(f"{told}: {mutant.name} ({time.monotonic() - begun:.0f} s)", flush=True)
    return code == RED


def _run(checkout: Path, tests: Iterable[str], *options: str, told: tuple[int, ...] = ()) -> int:
    """Pytest's exit code in a copy of the checkout, whose package goes before an installed one.

    The patience is for a few files of tests; many get more. What it says is shown if its code is
    one of ``told``, or is neither that of green nor of red.
    """
    tests = list(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * (1 + len(tests) // 20),
        check=False,
    )
    if done.returncode in told or done.returncode not in (0, RED):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode
