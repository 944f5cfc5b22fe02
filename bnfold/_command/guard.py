"""The command in a process of its own, so that no library takes it down without a word.

onnx, onnxruntime and OpenBLAS may end a process: with a signal where a file trips them, or where a
mapped file gets shorter, and with ``exit`` where memory runs out. Nothing inside of it can catch
that. So the command forks before it has imported anything. The child does all the work. The parent
hands on signals, and tells in one line how the child ended if that was not of its own will.

Where a process cannot be forked, the command runs as it is.

What this module imports by itself is little: until `main` runs, an interrupt has a traceback.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

TYPE_CHECKING = False  # As in bnfold itself.
if TYPE_CHECKING:
    from typing import Any

_DONE = b"\0\0"
"""The end of what the child reports, if it ends of its own will."""
_PR_SET_PDEATHSIG = 1
_OBJECTS = 50_000
"""So many new objects bring the next look for garbage in cycles; Python has 700."""
_ASKING = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGCONT", "SIGUSR1", "SIGUSR2")


def main(**extra: Any) -> None:
    """Run the command and exit."""
    if not hasattr(os, "fork") or "BNFOLD_TRACEBACK" in os.environ:
        _command(extra)
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    import tempfile

    try:
        report = tempfile.TemporaryFile()  # noqa: SIM115  # A pipe would fill up.
    except OSError:  # There is no folder for one: nothing can be told.
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _command(extra)
        return
    with report:
        status, asked = _in_child(report.fileno(), extra)
        report.seek(0)
        told = report.read()
    sys.exit(_ending(status, asked, told))


def _leave(*_: object) -> None:
    """End at once, as an interrupt does: nothing has been begun."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + signal.SIGINT)


def _in_child(report: int, extra: dict[str, Any]) -> tuple[int, int]:
    """Run the command in a child, and wait for its end. Gives what `_wait` does."""
    forwarded = {getattr(signal, name) for name in _FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*forwarded, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # A terminal's interrupt comes once: from the parent.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is _leave:
            # Until the command has its own handler it says nothing: the parent does.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _work(report, extra)
    return _wait(child, forwarded)


def _command(extra: dict[str, Any]) -> None:
    # Imports make many objects that stay; to look through them again and again takes a tenth of
    # the time of a small model.
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
    from bnfold._command.cli import main as command

    command(**extra)


def _work(report: int, extra: dict[str, Any]) -> None:
    """The child: run the command, and report that it ended of its own will."""
    from bnfold._command.terminal import UNDECIDED
    from bnfold._system import scratch, time_limit

    scratch.tell(report)
    time_limit.tell(report)
    try:
        _command(extra)
    except SystemExit as end:
        os.write(report, _DONE)
        _end_at_once(end.code)
        raise
    except Exception:  # Not even an error could be told: there is no memory to import what does it.
        os._exit(UNDECIDED)
    except BaseException:
        os.write(report, _DONE)
        raise


def _end_at_once(code: object) -> None:
    """End at once, as the interpreter would: it takes a fifth of a small run to clear up memory
    that the system takes back anyway.

    What has to be done at the end is done. What cannot be written is the interpreter's to tell.
    """
    import atexit
    import threading

    if type(code) is not int or threading.active_count() > 1:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # None, or closed, or full.
        return
    atexit._run_exitfuncs()
    os._exit(code)


def die_with(parent: int) -> None:
    """End with the parent, where the system can see to that."""
    if sys.platform != "linux":
        return
    import ctypes
    from contextlib import suppress

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        from bnfold._command.terminal import SIGNALLED

        os._exit(SIGNALLED + signal.SIGKILL)


def _wait(child: int, forwarded: set[signal.Signals]) -> tuple[int, int]:
    """Hand on signals to the child until it ends.

    Gives its status, and the last signal that asked it to end, 0 if there was none.
    """
    from contextlib import suppress

    asked = 0
    while True:
        number = signal.sigwait({*forwarded, signal.SIGCHLD})
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended == child:
                return status, asked
            continue
        asked = number if number in _ASKING else asked
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGSTOP if number == signal.SIGTSTP else number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)


def _ending(status: int, asked: int, told: bytes) -> int:
    """The exit code for how the child ended; a crash is told, and what it left is removed.

    ``told`` is what the child has reported. An import that an interrupt breaks off may crash: a
    child that was ``asked`` to end is interrupted, however it ended.
    """
    from bnfold._command.terminal import SIGNALLED, UNDECIDED, complain
    from bnfold._system import scratch

    scratch.clear(told)  # A second interrupt ends the cleaning, too.
    if told.endswith(_DONE) and os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if asked or number in _ASKING:
        print("interrupted", file=sys.stderr)
        return SIGNALLED + (asked or number)
    if told.endswith(_DONE):
        who = "the system killed the process" if number == signal.SIGKILL else "a library crashed"
        complain(f"error: {who} when the run was over; what it has written is whole")
        return UNDECIDED
    code, why = unwilling(number, told)
    complain(f"error: {why}")
    return code


def unwilling(number: int, told: bytes) -> tuple[int, str]:
    """The exit code for a child that a signal ended, 0 for a library's exit, and why that was."""
    from bnfold._command.terminal import UNDECIDED, UNUSABLE
    from bnfold._system import time_limit

    why = time_limit.told(told) if number == signal.SIGALRM else _why(number)
    return UNDECIDED if number in (0, signal.SIGKILL, signal.SIGALRM) else UNUSABLE, why


def _why(number: int) -> str:
    if number == 0:
        return "a library ended the process; memory may have run out"
    if number == signal.SIGKILL:
        return "the system killed the process; memory may have run out (--memory sets a bound)"
    name = signal.Signals(number).name
    if number == signal.SIGBUS:
        return f"a file became shorter while it was read ({name}); run it again when it is whole"
    return (
        f"a library crashed on this file ({name} in onnx, onnxruntime or NumPy); the file is "
        "damaged, or this is a defect of that library"
    )
