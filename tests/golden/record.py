"""The file of hashes, and how what is computed now is held against it.

A difference counts where the libraries that the models are made and read with have the versions
that the file was written with. Elsewhere a difference may be theirs, and is told but does not fail.
So is a model of another package whose file is another one here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from .models import FOREIGN, TORCH_SOURCES, Build, models, source
from .outcome import Outcome, digest, outcome

FILE = Path(__file__).with_name("golden.json")
LIBRARIES = ("numpy", "onnx", "torch")
HASHES = ("given", "plan", "reasons", "result", "rounded")
# Kernels of OpenBLAS that any processor since 2013 runs; numpy and torch without their wider
# instructions.
OTHER_PROCESSORS: tuple[dict[str, str], ...] = (
    {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        "ATEN_CPU_CAPABILITY": "default",
    },
    {"OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2"},
)

Row = dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A model that is not as recorded, the hashes that are not, and whether another version of a
    library, or another file, may be why.
    """

    name: str
    fields: tuple[str, ...]
    old: Row
    new: Row
    excused: bool

    def __str__(self) -> str:
        if not self.old:
            return f"{self.name}: not recorded"
        if not self.new:
            return f"{self.name}: recorded, but no longer among the models"
        changes = ", ".join(
            f"{field} {self.old.get(field, '–')} → {self.new.get(field, '–')}"
            for field in self.fields
        )
        return f"{self.name}: {changes}"


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries, without the build that they are of."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library).partition("+")[0]
        except PackageNotFoundError:
            found[library] = "–"
    return found


def row(made: Outcome, rounded: bool) -> Row:
    """The hashes of one model, and what its plan says."""
    result = {"rounded": digest(made.rounded)} if rounded else {"result": digest(made.result)}
    return {
        "given": digest(made.given),
        "plan": digest(made.plan),
        "reasons": digest(made.reasons),
        **result,
        "says": "; ".join(made.says),
    }


@cache
def load(file: Path = FILE) -> tuple[dict[str, str], dict[str, Row]]:
    """Versions, and rows by name."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return data["versions"], data["models"]


def write(rows: Mapping[str, Row], file: Path = FILE) -> None:
    """A line per model, sorted."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(rows[name], ensure_ascii=False, sort_keys=True)}"
        for name in sorted(rows)
    ]
    head = json.dumps(versions(), sort_keys=True)
    text = f'{{"versions": {head},\n "models": {{\n' + ",\n".join(lines) + "\n}}\n"
    file.write_text(text, encoding="utf-8")


def compare(
    names: Iterable[str], built: Mapping[str, Build]
) -> Iterator[tuple[str, Outcome | None, Difference | None]]:
    """What each model folds to, and how that differs; nothing where its package is missing."""
    recorded, rows = load()
    for name in names:
        old = rows.get(name, {})
        try:
            made = outcome(built[name]())
        except pytest.skip.Exception:
            yield name, None, None
            continue
        new = row(made, "rounded" in old)
        fields = tuple(field for field in HASHES if old.get(field) != new.get(field))
        other_file = source(name) in FOREIGN and "given" in fields
        excused = bool(old and fields) and (_elsewhere(name, recorded) or other_file)
        yield name, made, Difference(name, fields, old, new, excused) if fields else None


def _elsewhere(name: str, recorded: Mapping[str, str]) -> bool:
    wanted = LIBRARIES if source(name) in TORCH_SOURCES else LIBRARIES[:2]
    here = versions()
    return any(recorded[library] != here[library] for library in wanted)


def unsteady(names: Iterable[str]) -> set[str]:
    """The models whose result has other bits on other processors, as far as these can be had here:
    by other kernels of the same libraries.
    """
    wanted = sorted(names)
    if not wanted:
        return set()
    results = []
    for more in ({}, *OTHER_PROCESSORS):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.golden", "--bits"],
            input="\n".join(wanted),
            env=os.environ | more,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout))
    first, *others = results
    return {name for name in wanted if any(other[name] != first[name] for other in others)}


def bits(names: Iterable[str]) -> dict[str, str]:
    """Hashes of results bit by bit."""
    built = models()
    return {name: digest(outcome(built[name]()).result) for name in names}
