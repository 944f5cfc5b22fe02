"""The processes that do the work: each serves one model after another, and is used again.

They are started by name, not by import: what they import stands above this room.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from bnfold._registry.report import Report
from bnfold._registry.work import Request, ended, failed

_SERVE = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from bnfold._command.warm import serve; serve()"
)
_HOME = Path(__file__).resolve().parents[2]
_GRACE_S = 15.0
_INTERRUPTED = 130


class Worker:
    """A process that answers one request at a time. Its end is the end of all that it started."""

    def __init__(self) -> None:
        places = [str(_HOME), *(path for path in sys.path if path and path != str(_HOME))]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, "\n".join(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # A terminal's interrupt is for whoever asked.
        )
        self._dismissed = False

    @property
    def alive(self) -> bool:
        """Whether it takes another request."""
        return self._process.poll() is None

    def ask(self, request: Request) -> Report:
        """The report on a model. A process that dies gives one, too."""
        begun = time.monotonic()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = b""
        with suppress(OSError, ValueError):
            self._process.stdin.write(request.to_json().encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if answer.endswith(b"\n"):
            fields = json.loads(answer)
            for name in ("operators", "bytes"):
                fields[name] = tuple(fields[name]) if fields[name] is not None else None
            return Report(**fields)
        asked = self._dismissed
        self.close()
        if asked:
            return ended(request, "interrupted", _INTERRUPTED, "interrupted", 0.0)
        why = "the system killed the process; memory may have run out (--memory sets a bound)"
        try:
            return ended(request, "killed", 3, why, time.monotonic() - begun)
        except Exception as error:
            return failed(request, error)

    def dismiss(self) -> None:
        """Let it end itself, and what it runs; it cleans up behind that. Does not wait."""
        assert self._process.stdin is not None
        self._dismissed = True
        with suppress(OSError):
            self._process.stdin.close()

    def close(self) -> None:
        """Let it end itself, wait for that, and kill it if it does not."""
        self.dismiss()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


_idle: list[Worker] = []
_busy: set[Worker] = set()
_lock = threading.Lock()
_owner = os.getpid()


def take() -> Worker:
    """A process that is idle, or a new one."""
    global _owner
    with _lock:
        if _owner != os.getpid():  # A fork of this process: its parent's are not its own.
            _idle.clear()
            _busy.clear()
            _owner = os.getpid()
        worker = next((each for each in _idle if each.alive), None)
        if worker is not None:
            _idle.remove(worker)
        else:
            worker = Worker()
        _busy.add(worker)
    return worker


def give_back(worker: Worker) -> None:
    """Keep a process for the next request, if it takes one."""
    with _lock:
        _busy.discard(worker)
        if worker.alive and _owner == os.getpid():
            _idle.append(worker)


def stop_all() -> None:
    """End what is at work, and all processes. Each request is answered with what was reached."""
    with _lock:
        if _owner == os.getpid():
            for worker in (*_idle, *_busy):
                worker.dismiss()


@atexit.register
def _close_all() -> None:
    """End the processes that wait for a request."""
    stop_all()
    with _lock:
        idle = [*_idle] if _owner == os.getpid() else []
        _idle.clear()
    for worker in idle:
        worker.close()
