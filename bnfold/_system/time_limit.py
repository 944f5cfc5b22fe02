"""The time of this process: sets a bound on it, also where nobody looks at a clock.

Reading, planning and writing do not look at one, and a library may hang. So an alarm of the system
ends them. Where another process waits for this one (`tell`), the alarm ends the process, and the
other one removes what it leaves and says why. Elsewhere it raises `TimeUp`, which comes through
once Python code runs again. A comparison does look at the clock, and ends with a verdict: it gets
some time more before the alarm (`hand_over`).

A system without such alarms (Windows) bounds comparisons alone.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time

from bnfold._system.records import record

_KIND, _END = b"t", b"\0"
_MOST_S = 1e8
"""More than three years: some systems take no longer alarm."""
_GRACE_S = 10.0


class TimeUp(BaseException):
    """The time of the process is up; the text says it. No handler for errors catches it."""


@record
class _Limit:
    seconds: float
    deadline: float
    at: str = ""

    def told(self) -> str:
        at = f" at {self.at}" if self.at else ""
        return f"time is up after {self.seconds:g} s (--timeout){at}; nothing was written"


_limits: list[_Limit] = []
_reports: list[int] = []


def bound(seconds: float) -> None:
    """Let the process end so many seconds from now, unless it is `lifted <lift>` before."""
    if seconds > _MOST_S:
        return
    _limits[:] = [_Limit(seconds, time.monotonic() + seconds)]
    _report()
    if not hasattr(signal, "setitimer"):
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL if _reports else _raise)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)


def at(what: str) -> None:
    """What the process looks at from now on, to be told if its time is up."""
    for limit in _limits:
        limit.at = what
    _report()


def deadline() -> float:
    """When the time of the process is up, by the monotonic clock; infinite if it is not bounded."""
    return _limits[0].deadline if _limits else math.inf


def hand_over() -> None:
    """A comparison begins, which looks at the clock: the alarm waits for as long again and more."""
    _move(deadline() + _GRACE_S + (_limits[0].seconds if _limits else 0.0))


def lift() -> None:
    """Let the process take any time from now on."""
    if _limits:
        _limits.clear()
        _move(0.0)


def _move(when: float) -> None:
    if not hasattr(signal, "setitimer"):
        return
    if math.isfinite(when) and threading.current_thread() is threading.main_thread():
        left = max(when - time.monotonic(), 1e-6) if when else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)


def _raise(*_: object) -> None:
    raise TimeUp(_limits[0].told() if _limits else "time is up")


def tell(report: int) -> None:
    """Write to a file from now on what `told` reads: another process waits, and is to say it."""
    _reports.append(report)


def _report() -> None:
    for limit in _limits:
        for report in _reports:
            os.write(report, _KIND + limit.told().encode(errors="surrogateescape") + _END)


def told(report: bytes) -> str:
    """What a process has reported that its alarm has ended."""
    entries = [entry for entry in report.split(_END) if entry.startswith(_KIND)]
    return entries[-1][1:].decode(errors="replace") if entries else "time is up"
