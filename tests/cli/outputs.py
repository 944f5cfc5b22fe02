"""Everything that the command says, in one file that is read as a whole: ``outputs.txt``.

Help, outputs and errors, as they stand in a pipe. Figures that depend on the machine are left out,
and so is the folder. ``python -m tests.cli.outputs --write`` writes the file anew; look at every
difference then.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold._command import terminal
from bnfold._run import stopwatch

from ..graphs import bn, const, conv, model, op, rand, reseed
from . import examples
from .command import CHECKOUT, TOO_LARGE, bnfold

FILE = Path(__file__).with_name("outputs.txt")

RUNS: tuple[str, ...] = (
    # help
    "--help",
    "fold --help",
    "verify --help",
    "explain --help",
    # what would fold
    "digits.onnx",
    "digits.onnx -v",
    "digits.onnx -q",
    "digits.onnx --no-verify",
    "digits.onnx --time",
    "digits.onnx --input-type uint8 --no-verify",
    "several.onnx --no-verify",
    "several.onnx --no-verify -v",
    "merging.onnx --no-verify",
    "settled.onnx",
    "frozen.onnx --no-verify",
    # folding
    "digits.onnx -o fused.onnx",
    "digits.onnx -o fused.onnx -q",
    "m.onnx -o fused.json",
    "strange.onnx -o fused.onnx",
    "m.onnx --power",
    "m.onnx --provider cuda",
    "m.onnx --inputs nan.npz",
    # comparing
    "verify m.onnx right.onnx",
    "verify m.onnx right.onnx -v",
    "verify m.onnx wrong.onnx",
    "verify m.onnx other.onnx",
    "verify m.onnx right.onnx --prove",
    "verify m.onnx wrong.onnx --prove",
    "verify m.onnx strange.onnx --prove",
    # checking
    "digits.onnx --check",
    "frozen.onnx --check --freeze-initializers",
    "settled.onnx m.onnx bad.onnx --check",
    "settled.onnx --check -q",
    # other forms
    "m.onnx -o fused.onnx --output-format markdown",
    "m.onnx --check --output-format markdown",
    "verify m.onnx wrong.onnx --output-format markdown",
    "verify m.onnx wrong.onnx --prove --output-format markdown",
    "m.onnx --check --output-format github",
    "verify m.onnx wrong.onnx --output-format github",
    "settled.onnx m.onnx --check --output-format junit",
    # reasons
    "explain",
    "explain zero-padding",
    # errors
    "none.onnx",
    "bad.onnx",
    "notes.txt",
    "m.onnx -o none/fused.onnx",
    "m.onnx -o m.onnx",
    "m.onnx -o -",
    "m.onnx -o a.onnx --in-place",
    "m.onnx settled.onnx",
    "m.onnx --nothing",
    "m.onnx --seed one",
    "m.onnx --draw loud",
    "m.onnx --dim batch",
    "m.onnx --threads 9999",
    "m.onnx --provider abacus",
    "m.onnx --memory 3x",
    "m.onnx --trust",
    "m.onnx -v -q",
    "m.onnx --check -o fused.onnx",
    "m.onnx --inputs notes.txt",
    "verify m.onnx",
    "verfy m.onnx m.onnx",
    "explain zero-pading",
)

_FIGURE = re.compile(r"\b\d\.\d\de[+-]\d\d\b")
_SET = re.compile(r" on (?:signed|unsigned|structured) inputs: ")
_TIME = re.compile(r"\d+(?:\.\d+)? ms before, .*?\)$", re.MULTILINE)
_SECONDS = re.compile(r'(?<=time=")\d+\.\d+(?=")')
_SIZE = re.compile(r"\d+(?:\.\d+)? [kM]B")


@dataclass
class Said:
    """A run: how it was called, how it ended, what it printed, and the lines for people of that."""

    call: str
    code: int
    text: str
    lines: list[str] = field(default_factory=list)


def folder(at: Path) -> None:
    """Write the files that the runs read, the same ones each time."""
    reseed(0)
    (at / "digits.onnx").write_bytes((CHECKOUT / "examples" / "digits.onnx").read_bytes())
    for name in ("settled", "strange"):
        examples.save(getattr(examples, name)(), at / f"{name}.onnx")
    examples.save(examples.foldable(), at / "m.onnx")
    examples.save(examples.crossing(), at / "other.onnx")
    examples.save(_several(), at / "several.onnx")
    examples.save(_merging(), at / "merging.onnx")
    frozen = examples.foldable()
    for tensor in frozen.graph.initializer[:5]:
        frozen.graph.input.add(name=tensor.name).type.tensor_type.elem_type = tensor.data_type
    examples.save(frozen, at / "frozen.onnx")
    bnfold("m.onnx", "-o", "right.onnx", "--no-verify", cwd=at)
    bnfold("m.onnx", "-o", "wrong.onnx", "--no-verify", cwd=at, factor=TOO_LARGE)
    (at / "bad.onnx").write_bytes(b"PK\x03\x04")
    (at / "notes.txt").write_text("not a model\n")
    np.savez(at / "nan.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))


def _several() -> Any:
    """Operators that stay for several reasons, names that are long, and a bias."""
    return model(
        const("Sub", "x", "a", rand(3, 1, 1), name="/normalize/mean/Sub"),
        conv("/stem/Conv", "a", "b", (8, 3, 3, 3), pads=[1] * 4),
        op("Sigmoid", "b", "c", name="/stem/act/Sigmoid"),
        bn("/backbone/stage1/block0/a/rather/long/path/to/a/norm/BatchNormalization", "c", "d", 8),
        op("Tanh", "d", "e", name="/backbone/stage1/block0/act/Tanh"),
        const("Mul", "e", "f", rand(1, 8, 8, 8), name="mask"),
        op("Tanh", "f", "g", name="模型/层"),
        const("Mul", "g", "h", rand(8, 1, 1), name="hostile\x1b[31m::error::\u202e"),
        op("Sigmoid", "h", "i", name="end"),
        op("MatMul", "i w", "j", name="linear"),
        const("Add", "j", "k", rand(8), name="linear.bias"),
        op("Relu", "k", "y"),
        weights={"w": rand(8, 8)},
    )


def _merging() -> Any:
    return model(
        conv("a", "x", "a0", (3, 3, 3, 3), pads=[1] * 4),
        conv("b", "x", "b0", (3, 3, 1, 1)),
        op("Add", "a0 b0", "c"),
        op("Relu", "c", "r"),
        conv("g", "r", "g0", (3, 1, 3, 3), group=3, pads=[1] * 4),
        conv("h", "r", "h0", (3, 3, 1, 1)),
        op("Add", "g0 h0", "y"),
    )


@contextmanager
def _recorded(lines: list[str]) -> Iterator[None]:
    """Keep the lines for people that a run prints, as they are before a terminal lays them out."""
    whole, laid_out = terminal.show, terminal._laid_out

    def kept(line: str, stream: Any) -> str:
        lines.append(line)
        return laid_out(line, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "_laid_out", kept)
        patch.setattr(terminal, "show", lambda given: terminal._print(given, kept))
        patch.setattr(stopwatch, "SECONDS", 0.2)
        yield
    assert terminal.show is whole


def said(calls: Iterable[str] = RUNS) -> list[Said]:
    """Run everything, in a folder of its own."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        at = Path(place)
        folder(at)
        for call in calls:
            lines: list[str] = []
            with _recorded(lines):
                run = bnfold(*call.split(), cwd=at)
            found.append(Said(call, run.code, run.out + run.err, lines))
    return found


def document(runs: Sequence[Said]) -> str:
    """The file: each call, what it printed, and its exit code if that is not 0."""
    parts = []
    for run in runs:
        text = _FIGURE.sub("…", _SET.sub(" on … inputs: ", run.text.rstrip("\n")))
        text = _SIZE.sub("… MB", _SECONDS.sub("…", _TIME.sub("… ms", text)))
        ended = f"\n[exit code {run.code}]" if run.code else ""
        parts.append(f"$ bnfold {run.call}\n{text}{ended}".rstrip("\n"))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.cli.outputs --write")
    FILE.write_text(document(said()), encoding="utf-8")
