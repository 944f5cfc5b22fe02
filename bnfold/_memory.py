"""Bounds the memory of this process."""

from __future__ import annotations

import sys

from bnfold._errors import UsageError


def bound(size: int) -> None:
    """Let the process hold no more than ``size`` bytes of data; what asks for more gets an error.

    Raises `UsageError` where the system cannot do that, or the process holds more already.
    """
    try:
        import resource
    except ImportError as error:  # not on Windows
        raise UsageError("this system cannot bound a process's memory; leave out --memory") from (
            error
        )
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    if held > size:
        raise UsageError(f"bnfold itself takes {held / 1e6:.0f} MB; give --memory more than that")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    except (ValueError, OSError) as error:
        raise UsageError(f"memory cannot be bounded to {size} bytes: {error}") from error
