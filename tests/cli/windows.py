"""Makes a process on Linux as poor as one on Windows.

What Python has only on POSIX is gone: fork, signals, locks, bounds of memory. A file that this
process holds open or has mapped cannot be replaced, renamed or removed, as without
FILE_SHARE_DELETE; trying is told on standard error, even where the error is caught. `SITE` does it
to a process and to those that it starts, if it is in their path as sitecustomize.py.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SIGNALS = (
    "SIGALRM SIGKILL SIGHUP SIGQUIT SIGTSTP SIGCONT SIGSTOP SIGUSR1 SIGUSR2 SIGCHLD SIGTTOU "
    "setitimer getitimer ITIMER_REAL pthread_sigmask sigwait SIG_BLOCK SIG_UNBLOCK SIG_SETMASK"
)
_OS = (
    "fork forkpty getuid geteuid getgid setpgid killpg mkfifo O_NOFOLLOW WIFEXITED "
    "WIFSIGNALED WEXITSTATUS WTERMSIG register_at_fork fchmod chown sched_getaffinity"
)
_OF_THE_LIBRARY = (asyncio, multiprocessing, subprocess)
"""Modules that have other code for Windows, and take what is there now when they are imported."""
SITE = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[2])!r})
from tests.cli.windows import become
become()
"""
LOCKED = "in use by this process"


def _held(path: Any) -> bool:
    """Whether this process has a file open or mapped."""
    try:
        real = os.path.realpath(path)
        if not os.path.isfile(real):
            return False
        links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        opened = {os.path.realpath(link) for link in links if os.path.lexists(link)}
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        return real in opened or f" {real}\n" in mapped
    except OSError:
        return False


def _refusing(act: Callable[..., Any], paths: int) -> Callable[..., Any]:
    def acted(*args: Any, **options: Any) -> Any:
        for path in args[:paths]:
            if _held(path):
                sys.stderr.write(f"{LOCKED}: {act.__name__} {path}\n")
                raise PermissionError(13, "Permission denied", str(path))
        return act(*args, **options)

    return acted


def become() -> None:
    """Take away what Windows lacks."""
    for name in _SIGNALS.split():
        if hasattr(signal, name):
            delattr(signal, name)
    for name in _OS.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty"):
        sys.modules[name] = None  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.unlink = os.remove = _refusing(os.unlink, 1)
    os.replace, os.rename = _refusing(os.replace, 2), _refusing(os.rename, 2)
