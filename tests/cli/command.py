"""Runs the command, in this process or in one of its own, and looks at what it left on disk.

``bnfold`` is for what the command says and writes: options, tables, texts. ``process`` is for what
a process of its own decides: signals, limits, streams, encodings, exit codes, start-up.
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bnfold._command.cli import main
from bnfold._core import channels

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("bnfold")
FROM_CHECKOUT = (sys.executable, str(CHECKOUT / "cli.py"))
COMMAND = (str(SCRIPT),) if SCRIPT.exists() else FROM_CHECKOUT
PATIENCE_S = 60

PLANT = """
import sys
import bnfold._core.channels
right = bnfold._core.channels.scaled
def wrong(weight, scale, layout, dtype):
    return right(weight, scale, layout, dtype) * dtype.type(1.01)
bnfold._core.channels.scaled = wrong
from bnfold._command.cli import main
main(sys.argv[1:], "bnfold")
"""
IMPATIENT = """
import sys
from bnfold._command.terminal import Progress
Progress._PATIENCE_S = 0.01
from bnfold._command.cli import main
main(sys.argv[1:], "bnfold")
"""
EAGER = (sys.executable, "-c", IMPATIENT)
"""The command that tells a terminal at once what goes on."""
PLANTED = (sys.executable, "-c", PLANT)
"""The command with a fold that makes every weight 1 % too large."""
TOO_LARGE = 1.01
"""The same as ``factor`` of ``bnfold``."""


@dataclass(frozen=True)
class Run:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def environment(**changes: str) -> dict[str, str]:
    """The environment with nothing in it that changes what is printed."""
    own = {"BNFOLD_TRACEBACK", "COLUMNS", "FORCE_COLOR", "GITHUB_STEP_SUMMARY", "LINES", "NO_COLOR"}
    own |= {"PYTHONIOENCODING", "PYTHONWARNINGS"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm", **changes}


def bnfold(
    *args: Any,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    factor: float = 1.0,
) -> Run:
    """Run to the end in this process; whatever happens, nobody is shown a traceback.

    With ``factor``, by a fold that makes every weight so many times too large.
    """
    bounds = resource.getrlimit(resource.RLIMIT_DATA)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            for name in os.environ.keys() - environment(**(env or {})).keys():
                patch.delenv(name)
            for name, value in environment(**(env or {})).items():
                patch.setenv(name, value)
            patch.setattr(tempfile, "tempdir", None)  # else what TMPDIR said first
            if cwd is not None:
                patch.chdir(cwd)
            if factor != 1.0:
                patch.setattr(channels, "scaled", _wrong(factor))
            with _streams(out.fileno(), err.fileno()), pytest.raises(SystemExit) as end:
                main.main([str(arg) for arg in args], "bnfold")
        out.seek(0)
        err.seek(0)
        run = Run(end.value.code or 0, out.read().decode(), err.read().decode())
    assert resource.getrlimit(resource.RLIMIT_DATA) == bounds, "this takes a process of its own"
    assert "Traceback" not in run.err + run.out
    return run


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a disk that is full. Nothing else may write."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def _wrong(factor: float) -> Callable[..., Any]:
    right = channels.scaled

    def wrong(weight: Any, scale: Any, layout: Any, dtype: Any) -> Any:
        return right(weight, scale, layout, dtype) * dtype.type(factor)

    return wrong


@contextmanager
def _streams(out: int, err: int) -> Iterator[None]:
    """Send what Python and compiled libraries print to two files, as a process of its own would."""
    kept = {1: os.dup(1), 2: os.dup(2)}
    os.dup2(out, 1)
    os.dup2(err, 2)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False) as stdout,
            open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stderr,
        ):
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def process(
    *args: Any,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Run:
    """Run to the end in a process of its own; whatever happens, nobody is shown a traceback."""
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=before,
        timeout=PATIENCE_S,
        check=False,
    )
    run = Run(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in run.err + run.out
    return run


def start(*args: Any, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the command, as a shell does: open to an interrupt."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(
    *args: Any,
    command: Sequence[str] = COMMAND,
    columns: int = 80,
    env: Mapping[str, str] | None = None,
) -> Run:
    """Run on a pseudo-terminal of the given width, which gets all output and errors."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*command, *map(str, args)],
        env=environment(**(env or {})),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the last writer has closed its end.
            break
        if not part:
            break
        seen += part
    os.close(ours)
    text = seen.decode()
    assert "Traceback" not in text
    return Run(process.wait(PATIENCE_S), text, "")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content; folders end in a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[f"{name}/"] = b""
        else:
            found[name] = path.read_bytes()
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until something becomes true, for as long as a slow machine may need."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def refused(run: Run, *words: str) -> None:
    """Exit code 2, nothing on standard output, and one line that says what and where."""
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1 and run.err.endswith("\n")
    for word in words:
        assert word in run.err
