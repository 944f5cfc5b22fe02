"""The memory of this process: sets a bound, and tells whether it has run out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from bnfold._errors import UsageError

_SIGNS = (
    *("alloc failed", "allocate memory", "bad_alloc", "bad allocation", "memory exhausted"),
    "Failed to serialize proto",  # Other reasons are ruled out before: sizes, text.
)
_MARGIN = 1 << 16
_M_MMAP_THRESHOLD = -3  # glibc, malloc.h
_LARGE = 1 << 20
# So large that all threads of the library take part.
_SQUARE = 512


def bound(size: int) -> None:
    """Let the process hold no more than ``size`` bytes of data. Asking for more is an error then.

    A tighter bound of the process stays. Raises `UsageError` where the system cannot do that, or
    where the process holds more already.
    """
    try:
        import resource
    except ImportError as error:  # not on Windows
        raise UsageError("this system cannot bound a process's memory; leave out --memory") from (
            error
        )
    _warm_up()
    own = held()
    if own >= size:
        raise UsageError(f"bnfold itself takes {own / 1e6:.0f} MB; give --memory more than that")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        size = min(size, soft)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    except (ValueError, OSError, OverflowError) as error:
        raise UsageError(f"memory cannot be bounded to {size} bytes: {error}") from error


def is_bounded() -> bool:
    """Whether the memory of the process has a bound."""
    try:
        import resource
    except ImportError:  # on Windows
        return False
    return bool(resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY)


def _warm_up() -> None:
    """Let NumPy's library for matrix products take its working memory now; it keeps that.

    If it got none later, it would end the process. The libraries of onnx and onnxruntime are
    loaded, for they cannot be once more where memory has run out on the first try.
    """
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    square = np.ones((_SQUARE, _SQUARE))
    square @ square


def held() -> int:
    """How many bytes of data the process holds; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return _held(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _held(resident: int) -> int:
    """How many bytes of data the process holds, if possible as the bound counts them.

    Linux counts all bytes that were asked for, in memory or not.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
        return int(fields["VmData"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return resident * (1 if sys.platform == "darwin" else 1024)


def give_back(of_process: bool) -> None:
    """Give free memory back to the system, where its allocator (glibc) can be told to.

    It keeps what large blocks have left, for blocks to come. With ``of_process`` it keeps none from
    now on: what follows takes less memory, and more time for each block. That stays so for the
    whole process.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):  # There are other allocators.
        library = ctypes.CDLL(None)
        if of_process:
            library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.malloc_trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no cycles of objects meanwhile: each look goes through all that are held.

    For work that makes millions of objects, which last, and no cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ran_out(error: BaseException) -> bool:
    """Whether the error of a library means that memory has run out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def claim(size: int) -> None:
    """Raise ``MemoryError`` unless ``size`` more bytes are available.

    Some libraries end the process if they get no memory, for instance protobuf when a field is set.
    The bytes are not touched, so the call is cheap.
    """
    bytes(size + _MARGIN)
