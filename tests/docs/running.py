"""Runs the blocks of a page in a folder of its own, in order, and says what they printed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bnfold._command.cli import main

from .pages import NOT_RUN, ROOT, Block

COMMAND = "$ "
CODE = "; echo $?"
"""What a command line ends with where its exit code is shown, as a last line; else it is 0."""
_VARIES = (
    (re.compile(r"\d(\.\d+)?e[-+]\d+"), "1e-6"),  # the rounding of a processor
    (re.compile(r"\b\d+(\.\d+)? (s|ms|µs|seconds|milliseconds)\b"), "1 s"),
    (re.compile(r"\b\d+\.\d+×"), "1×"),
)


@dataclass(frozen=True)
class Printed:
    """What a block printed, next to what the page has, both as lines of the block."""

    block: Block
    expected: str
    got: str

    @property
    def agrees(self) -> bool:
        """Whether they are the same but for what differs from machine to machine."""
        return _settled(self.expected) == _settled(self.got)


def _settled(text: str) -> str:
    for pattern, stands_for in _VARIES:
        text = pattern.sub(stands_for, text)
    return re.sub(r"[ ]+", " ", text)


class Page:
    """The folder of a page and the names that its Python blocks share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "page"}
        self._said = ""
        for source in (ROOT / "examples").iterdir():
            if source.suffix in (".onnx", ".npz", ".py"):
                (folder / "examples").mkdir(exist_ok=True)
                shutil.copy(source, folder / "examples" / source.name)

    def run(self, block: Block) -> Printed | None:
        """Run a block; what it printed where the page says what that is.

        Raises what the block raises; skips where a package is missing.
        """
        if block.comment.startswith("not run:"):
            assert block.comment.removeprefix("not run:").strip() in NOT_RUN, block.comment
            return None
        if block.comment.startswith("needs:"):
            for name in block.comment.removeprefix("needs:").split():
                _need(name)
        if block.language in ("python", "setup"):
            self._said = self._execute(block)
        elif block.language == "console":
            return self._console(block)
        elif block.language == "sh":
            assert block.comment in ("main-command", "test-command"), (
                f"line {block.line}: write commands as console, with '$ ' in front"
            )
        elif block.comment == "output":
            return Printed(block, block.text, self._said)
        else:
            _parse(block)
        return None

    def _execute(self, block: Block) -> str:
        """Run Python; what it printed."""
        code = compile("\n" * block.line + block.text, "the page", "exec")
        out = io.StringIO()
        with self._inside(), contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, self.names)
        return out.getvalue()

    def _console(self, block: Block) -> Printed:
        lines = []
        for line in block.text.splitlines():
            if line.startswith(COMMAND):
                lines += [line, *self._command(line.removeprefix(COMMAND), block).splitlines()]
        return Printed(block, block.text, "\n".join(lines) + "\n")

    def _command(self, line: str, block: Block) -> str:
        """Run ``bnfold …``, in this process, possibly with ``| head -n N``: what it prints."""
        asked = line.removesuffix(CODE)
        asked, _, head = asked.partition(" | head -n ")
        program, *arguments = shlex.split(asked, comments=True)
        assert program == "bnfold", f"line {block.line}: only bnfold is run, not {program}"
        out = io.StringIO()
        with self._inside(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", out)
            with pytest.raises(SystemExit) as end:
                main.main(arguments, "bnfold")
        printed = out.getvalue()
        if head:
            printed = "\n".join(printed.splitlines()[: int(head)]) + "\n"
        if line.endswith(CODE):
            return printed + f"{end.value.code}\n"
        assert not end.value.code, f"line {block.line}: exit code {end.value.code}\n{printed}"
        return printed

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """In the page's folder, on a terminal of a fixed width without colours."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("COLUMNS", "88")
            patch.setenv("NO_COLOR", "1")
            patch.delenv("GITHUB_STEP_SUMMARY", raising=False)
            yield


def _need(name: str) -> None:
    """Skip where a package is missing, or does not fit the others that are installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    try:
        importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def _parse(block: Block) -> None:
    """A block of data is well-formed."""
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        pytest.importorskip("tomli", reason="tomli is not installed").loads(block.text)
    elif block.language == "yaml":
        pytest.importorskip("yaml", reason="PyYAML is not installed").safe_load(block.text)
    else:
        assert block.language in ("text", "bibtex"), (
            f"line {block.line}: a block in {block.language!r} neither runs nor says why not"
        )
