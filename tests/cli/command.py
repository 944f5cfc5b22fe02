"""Runs the real command in its own process, and looks at what it left on disk."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
PLANTED = (sys.executable, "-c", PLANT)
"""The command with a fold that makes every weight 1 % too large."""


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
    own = {"BNFOLD_TRACEBACK", "COLUMNS", "GITHUB_STEP_SUMMARY", "LINES", "NO_COLOR"}
    own |= {"PYTHONIOENCODING", "PYTHONWARNINGS"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm", **changes}


def bnfold(
    *args: Any,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Run:
    """Run to the end; whatever happens, nobody is shown a traceback."""
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


def on_terminal(*args: Any, columns: int = 80, env: Mapping[str, str] | None = None) -> Run:
    """Run on a pseudo-terminal of the given width, which gets all output and errors."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)],
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
