"""What a comparison may use: threads, and time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Exhausted(Exception):
    """The time or memory that a comparison may take has run out; the text says which."""


@dataclass(frozen=True)
class Bounds:
    """``threads`` is how many a session computes with, 0 for as many as there are cores;
    ``deadline`` when to stop, by the monotonic clock.
    """

    threads: int = 0
    deadline: float | None = None
    seconds: float | None = None

    @classmethod
    def beginning(cls, threads: int, seconds: float | None) -> Bounds:
        """Bounds whose time begins now."""
        limit = math.inf if seconds is None else float(seconds)
        if limit > threading.TIMEOUT_MAX:
            return cls(threads)
        return cls(threads, time.monotonic() + limit, limit)

    def check(self) -> None:
        """Raise `Exhausted` once time is up."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Exhausted(f"time is up after {self.seconds:g} s (--timeout)")

    @contextmanager
    def ending(self, run: Any) -> Iterator[None]:
        """End a run of onnxruntime, by its ``RunOptions``, when time is up, and say so.

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
