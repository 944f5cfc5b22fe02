"""What a run says, and with which exit code it ends.

Lines are for people: on any terminal, in any encoding, also into a closed pipe.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from bnfold._errors import UsageError
from bnfold._report.escapes import visible
from bnfold._system import paths

if TYPE_CHECKING:
    from bnfold._core.result import Plan
    from bnfold._report.findings import Finding

PASSED, FAILED, UNUSABLE, UNDECIDED = range(4)
SIGNALLED = 128
EXIT_CODES = {
    "pass": PASSED,
    "unchanged": PASSED,
    "skipped": PASSED,
    "fail": FAILED,
    "inconclusive": UNDECIDED,
}
_PLAIN = str.maketrans({"→": "->", "←": "<-", "…": "...", "×": "x", "−": "-"})


def show(lines: Iterable[str]) -> None:
    """Print lines on standard output. A reader that closes the pipe is no error.

    Raises `UsageError` where standard output cannot be written, for instance on a full disk.
    """
    stream = sys.stdout
    if stream is None:
        return
    try:
        for line in lines:
            stream.write(printable(line, stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        _give_up(stream)
    except OSError as error:
        _give_up(stream)
        raise UsageError(f"cannot write to standard output: {paths.why(error)}") from error


def show_whole(text: str) -> None:
    """Print a text made for programs, line by line."""
    show(text.rstrip("\n").split("\n"))


def show_findings(
    form: str,
    model: str,
    status: str,
    plan: Plan | None,
    findings: Sequence[Finding],
    seconds: float,
) -> None:
    """Print findings for a CI server."""
    if form == "junit":
        from bnfold._report.ci import junit

        show_whole(junit(model, findings, seconds))
        return
    from bnfold._report.ci import summarize_step, workflow_commands

    show(workflow_commands(model, findings))
    summarize_step(model, status, plan, findings)


def in_one_line(error: Exception) -> str:
    """What went wrong, in words for the user."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{paths.why(error)}"
    from bnfold._system import memory  # imported late: NumPy comes along

    if memory.ran_out(error):
        return "out of memory"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"bnfold broke down ({text}). This is a defect of bnfold: please report it, with the "
        "output under BNFOLD_TRACEBACK=1"
    )


def code_of(error: Exception) -> int:
    """The exit code of a run that an error ended: memory that ran out says nothing of a model."""
    if isinstance(error, UsageError):
        return UNUSABLE
    from bnfold._system import memory  # imported late: NumPy comes along

    return UNDECIDED if memory.ran_out(error) else UNUSABLE


def complain(line: str) -> None:
    """Print a line on standard error, if that is possible."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(printable(line, stream) + "\n")
        stream.flush()
    except OSError:
        _give_up(stream)


def printable(text: str, stream: TextIO) -> str:
    """The text on one line, in the stream's encoding, with control characters escaped.

    Names come from a model file and may hold anything, even escape codes.
    """
    text = visible(text)
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def _give_up(stream: TextIO) -> None:
    """Discard the rest of the output, so that the interpreter's last flush does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Progress:
    """One line on a terminal that names the current step, if a run takes longer than a moment.

    A timer shows the line, because a long step cannot do it. Nothing is written if standard error
    is no terminal, or a terminal without cursor control.
    """

    _PATIENCE_S = 1.0

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._lock = threading.Lock()
        self._timer = threading.Timer(self._PATIENCE_S, self._begin)
        self._timer.daemon = True
        self._step = ""
        self._visible = False

    def __enter__(self) -> Progress:
        terminal = self._stream is not None and self._stream.isatty()
        if terminal and os.environ.get("TERM") != "dumb":
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._visible:
                self._write("")
            self._visible = False

    def __call__(self, step: str) -> None:
        with self._lock:
            self._step = step
            if self._visible:
                self._draw()

    def _begin(self) -> None:
        with self._lock:
            if not self._timer.finished.is_set():
                self._visible = True
                self._draw()

    def _draw(self) -> None:
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            width = 80
        self._write(printable(f"{self._step} …", self._stream)[: width - 1])

    def _write(self, text: str) -> None:
        """Replace the line: back to its start, clear it, write."""
        try:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
        except OSError:
            self._visible = False
