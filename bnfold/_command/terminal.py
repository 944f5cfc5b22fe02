"""What a run says, and with which exit code it ends.

Lines are for people: on any terminal, in any encoding, also into a closed pipe.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TextIO

from bnfold._errors import UsageError
from bnfold._report.escapes import said, visible
from bnfold._report.lines import Line, Style, style_of, wrapped
from bnfold._system import paths

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
_COLOURS: dict[Style, str] = {
    "head": "1",
    "good": "32",
    "bad": "31",
    "open": "33",
    "faint": "2",
    "type": "36",
}
"""The codes of a terminal for what a line stands for."""
_chosen = "auto"


def choose_colour(when: str) -> None:
    """Say when there are colours from now on: "auto", "always" or "never"."""
    global _chosen
    _chosen = when


def show(lines: Iterable[str]) -> None:
    """Print lines for people on standard output. A reader that closes the pipe is no error.

    Raises `UsageError` where standard output cannot be written, for instance on a full disk.
    """
    _print(lines, _laid_out)


def _print(lines: Iterable[str], made: Callable[[str, TextIO], str]) -> None:
    stream = sys.stdout
    if stream is None:
        return
    try:
        for line in lines:
            stream.write(made(line, stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        _give_up(stream)
    except OSError as error:
        _give_up(stream)
        raise UsageError(f"cannot write to standard output: {paths.why(error)}") from error


def show_whole(text: str) -> None:
    """Print a text made for programs, line by line."""
    _print(text.rstrip("\n").split("\n"), printable)


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
    styles: dict[str, Style] = {"error": "bad", "note": "faint"}
    line = Line(line, styles.get(line.partition(":")[0], "plain"))
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(_laid_out(line, stream) + "\n")
        stream.flush()
    except OSError:
        _give_up(stream)


def _laid_out(line: str, stream: TextIO) -> str:
    """A line for people as a stream gets it: wrapped and in colour where that is a terminal."""
    text, columns = printable(line, stream), _columns(stream)
    lines = [text]
    if columns is not None:
        lines = [printable(part, stream) for part in wrapped(line, text, columns)]
    lines = [said(part) for part in lines]
    code = _COLOURS.get(style_of(line), "")
    if code and _has_colours(stream):
        lines = [f"\x1b[{code}m{part}\x1b[0m" for part in lines]
    return "\n".join(lines)


def _columns(stream: TextIO) -> int | None:
    """How wide a stream is: what COLUMNS says, or a terminal; None for a file or a pipe."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _has_colours(stream: TextIO) -> bool:
    """Whether a stream gets colours: as chosen, else by NO_COLOR, FORCE_COLOR and what it is.

    Source: no-color.org and force-color.org, of which an empty variable says nothing.
    """
    if _chosen != "auto":
        return _chosen == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def printable(text: str, stream: TextIO) -> str:
    """The text on one line, in the stream's encoding, with control characters escaped.

    Names come from a model file and may hold anything, even escape codes.
    """
    text = visible(text)
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
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
