"""The threads, the time and the libraries of operators that a comparison may use."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnfold._system import time_limit
from bnfold._system.records import record


class Exhausted(Exception):
    """The comparison has no more time or no more memory; the text says which."""


@record(frozen=True)
class Bounds:
    """The threads, the time and the libraries of operators that a comparison may use.

    Attributes:
        threads: how many threads a session uses; 0 for one per core.
        deadline: when to stop, by the monotonic clock; None for never.
        seconds: the time in all, for messages.
        libraries: the libraries of custom operators that each session registers.
    """

    threads: int = 0
    deadline: float | None = None
    seconds: float | None = None
    libraries: tuple[Path, ...] = ()

    @classmethod
    def beginning(
        cls, threads: int, seconds: float | None, libraries: tuple[Path, ...] = ()
    ) -> Bounds:
        """Bounds whose time begins now, or began when that of the process did."""
        time_limit.hand_over()
        limit = math.inf if seconds is None else float(seconds)
        if limit > threading.TIMEOUT_MAX:
            return cls(threads, libraries=libraries)
        end = min(time.monotonic() + limit, time_limit.deadline())
        return cls(threads, end, limit, libraries)

    def check(self) -> None:
        """Raise `Exhausted` once time is up."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Exhausted(f"time is up after {self.seconds:g} s (--timeout)")

    @contextmanager
    def ending(self, run: Any) -> Iterator[None]:
        """End a run of onnxruntime when time is up. ``run`` is the ``RunOptions`` of the run.

        Raises:
            Exhausted: time is up.
        """
        self.check()
        if self.deadline is None:
            yield
            return

        def end() -> None:
            run.terminate = True

        timer = threading.Timer(self.deadline - time.monotonic(), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:
            self.check()
            raise
        finally:
            timer.cancel()


UNBOUNDED = Bounds()
