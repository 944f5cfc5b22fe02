"""Draws the files and options of a run of the command: models in files, with something wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto, serialization

from .mutation import mutated_bytes

LOCATIONS = (
    *("w.bin", "w.bin", "w.bin", "w.bin", "sub/w.bin", "./w.bin", "W.bin", "a b.bin", "%77.bin"),
    *("../w.bin", "/etc/passwd", "", ".", "sub", "m.onnx", "o.onnx", "o.onnx.data", "w.bin\0"),
    *("outer", "hard", "inner", "pipe", "zero", "nowhere", "w.bin/", "x" * 300, "\u202ew.bin"),
)
_NUMBERS = ("0", "1", "-1", "4096", "9" * 30, "0x10", "1e3", "", " 4", "٣", str(1 << 62))
_WAYS: tuple[tuple[str, ...], ...] = (
    ("-o", "o.onnx"),
    ("-o", "o.onnx"),
    ("-o", "o.onnx"),
    ("-o", "o.onnx", "-v"),
    ("-o", "o.onnx", "--no-verify"),
    ("-o", "o.onnx", "--no-verify"),
    ("-o", "o.onnx", "--no-prove"),
    ("-o", "o.onnx", "--follow-links"),
    ("-o", "o.onnx", "--html", "page.html", "--report", "report.json"),
    ("-o", "o.onnx", "--equalize"),
    ("-o", "o.onnx", "--no-batchnorm", "--tidy"),
    ("-o", "o.onnx", "--freeze-initializers", "--assume-equal-dims"),
    ("-o", "o.onnx", "--input-mean", "1", "--input-std", "2"),
    ("-o", "o.json"),
    ("-o", "sub/o.onnx"),
    ("-o", "o.onnx", "--output-format", "json"),
    ("-o", "o.onnx", "--output-format", "github"),
    ("-o", "o.onnx", "--output-format", "markdown"),
    ("--check", "--output-format", "junit"),
    ("--check", "--output-format", "github"),
    ("--in-place",),
    ("--in-place", "--no-verify"),
    (),
    ("-v",),
)


@dataclass(frozen=True)
class Case:
    """A run: files by name, links by name, and the arguments of the command.

    What a link leads to: a path, ``=`` and a path for a hard link, ``|`` for a pipe.
    """

    files: dict[str, bytes]
    links: dict[str, str]
    arguments: tuple[str, ...]

    @classmethod
    def drawn(cls, bases: Sequence[bytes], number: int) -> Case:
        """The case of a number."""
        rng = random.Random(f"command {number}")
        made = mutated_bytes(bases, number)
        files: dict[str, bytes] = {"elsewhere/w.bin": b"\0" * 4096}
        links: dict[str, str] = {}
        if isinstance(made, ModelProto) and rng.random() < 0.3:
            _externalize(made, files, links, rng)
        files["m.onnx"] = _stored(made, rng)
        way = rng.choice(_WAYS)
        if rng.random() < 0.05:
            files["base.onnx"] = rng.choice(bases)
            return cls(files, links, ("verify", "m.onnx", "base.onnx"))
        if rng.random() < 0.05 and "-o" in way:
            links["o.onnx"] = rng.choice(("m.onnx", "elsewhere/w.bin", "nowhere", "|", "=m.onnx"))
        return cls(files, links, ("fold", "m.onnx", *way))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    @property
    def runs(self) -> bool:
        """Whether models are run."""
        return not {"--no-verify", "--check"} & set(self.arguments)

    @property
    def output(self) -> str | None:
        """Where a model is to be written."""
        if "-o" in self.arguments:
            return self.arguments[self.arguments.index("-o") + 1]
        return "m.onnx" if "--in-place" in self.arguments else None

    def put(self, folder: Path) -> None:
        """Make the files of the case in a folder."""
        (folder / "sub").mkdir()
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            if target == "|":
                os.mkfifo(folder / name)
            elif target.startswith("="):
                os.link(folder / target[1:], folder / name)
            else:
                (folder / name).symlink_to(target)


def _stored(made: ModelProto | bytes, rng: random.Random) -> bytes:
    """A model as a file: mostly in binary form, cut off at times, at times as text."""
    if isinstance(made, bytes):
        return made
    data: bytes = made.SerializeToString()
    if rng.random() < 0.1:
        try:
            data = serialization.registry.get(
                rng.choice(("json", "textproto", "onnxtxt"))
            ).serialize_proto(made)
        except Exception:  # No text says this.
            return data
        if rng.random() < 0.5 and data:
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice((b"", b"{", b"\0", b"9" * 50)) + data[at + 1 :]
    elif rng.random() < 0.03:
        data = data[: rng.randrange(len(data) + 1)]
    return data


def _externalize(
    made: ModelProto, files: dict[str, bytes], links: dict[str, str], rng: random.Random
) -> None:
    """Put some weights of a model into data files, with something wrong about them at times."""
    location = rng.choice(LOCATIONS)
    data = b""
    for tensor in made.graph.initializer:
        if not tensor.raw_data or rng.random() < 0.3:
            continue
        values = {
            "location": location,
            "offset": str(len(data)),
            "length": str(len(tensor.raw_data)),
        }
        data += tensor.raw_data
        if rng.random() < 0.2:
            values[rng.choice(("offset", "length", "checksum", "own", ""))] = rng.choice(_NUMBERS)
        if rng.random() < 0.1:
            values["location"] = rng.choice(LOCATIONS)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in values.items():
            if rng.random() > 0.03:
                tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    files.update({"w.bin": data, "sub/w.bin": data, "elsewhere/w.bin": data})
    links.update({"inner": "w.bin", "outer": "../secret", "hard": "=elsewhere/w.bin"})
    links.update({"pipe": "|", "zero": "/dev/zero"})
