"""A process that has imported what folding takes, and makes a copy of itself for each model.

Most of the time that a small model takes is that of imports. They are done once here; then each
model has a process of its own all the same, forked from this one, which has run nothing yet. So
nothing that a model does (memory, threads, crashes, a bound of the system) is left for the next.

Requests come on standard input, a line each; the answer to one is a line on standard output. Once
that input ends, whoever asks is gone: what runs is asked to end, and killed if it does not.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from typing import BinaryIO, NoReturn

from bnfold._command.guard import die_with, unwilling
from bnfold._command.terminal import SIGNALLED, UNUSABLE
from bnfold._errors import UsageError
from bnfold._registry.report import Report, Status
from bnfold._registry.work import Request, ended, failed, work

_GRACE_S = 5.0
_ENDINGS: dict[int, Status] = {
    0: "out of memory",
    getattr(signal, "SIGKILL", -1): "killed",  # Windows has neither, and forks nothing.
    getattr(signal, "SIGALRM", -2): "timeout",
}
"""How the work on a model ended, for the signal that did it: 0 for a library that left."""


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # Libraries print; this is for requests and answers alone.
        os.dup2(nowhere, stream)
    os.environ.pop("COLUMNS", None)  # What is wrong is told in one line.
    forks = hasattr(os, "fork")
    if forks and sys.platform == "linux":  # On macOS frameworks do not outlive a fork.
        _prepare()
    pending = b""
    while True:
        line, found, pending = pending.partition(b"\n")
        if not found:
            part = os.read(requests, 1 << 16)
            if not part:
                return
            pending = line + part
            continue
        request = Request.of_json(line)
        report = _forked(request, requests) if forks else _worked(request)
        if report is None:
            return
        os.write(answers, json.dumps(asdict(report)).encode() + b"\n")
        if not forks:
            return


def _prepare() -> None:
    """Import what a fold and its verification take. Nothing is run, so no thread is started."""
    import onnxruntime  # noqa: F401

    import bnfold._command.cli
    import bnfold._judge.end_to_end
    import bnfold._pipeline.models
    import bnfold._proof.certificate
    import bnfold._report.findings  # noqa: F401

    gc.freeze()


def _worked(request: Request) -> Report:
    """Do the work in this process."""
    try:
        return work(request, _command)
    except Exception as error:
        return failed(request, error)


def _command(arguments: list[str], words: list[str]) -> tuple[int, BaseException | None]:
    from bnfold._command.cli import main

    try:
        main.main(["fold", *arguments], "bnfold", obj=words)
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else UNUSABLE), end.__cause__
    except Exception as error:  # BNFOLD_TRACEBACK asks for it.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return UNUSABLE, error
    return UNUSABLE, None


def _forked(request: Request, requests: int) -> Report | None:
    """Do the work in a child, and wait for its end; None if whoever asked is gone."""
    from bnfold._system import scratch

    begun = time.monotonic()
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as answer:
        read, write = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(read)
            os.close(requests)
            _child(request, parent, told, answer)
        os.close(write)
        gone = not _ends(read, requests, child)
        os.close(read)
        _, status = os.waitpid(child, 0)
        told.seek(0)
        answer.seek(0)
        reported, answered = told.read(), answer.read()
    scratch.clear(reported)
    if answered.endswith(b"\n"):
        return Report(**json.loads(answered))
    if gone:
        return None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    kind: Status = _ENDINGS.get(number, "crashed")
    code, why = unwilling(number, reported)
    if number in (signal.SIGTERM, signal.SIGINT):
        kind, code, why = "interrupted", SIGNALLED + number, "interrupted"
    try:
        return ended(request, kind, code, why, time.monotonic() - begun)
    except Exception as error:
        return failed(request, error)


def _child(request: Request, parent: int, told: BinaryIO, answer: BinaryIO) -> NoReturn:
    """The process of one model."""
    from bnfold._system import scratch, time_limit

    os.setpgid(0, 0)
    die_with(parent)
    scratch.tell(told.fileno())
    time_limit.tell(told.fileno())
    try:
        _bound(request)
        report = _worked(request)
        answer.write(json.dumps(asdict(report)).encode() + b"\n")
        answer.flush()
    finally:
        os._exit(0)  # Nothing is left to do, and libraries may crash where they are taken apart.


def _bound(request: Request) -> None:
    """Bound memory and time from the start: what a result depends on is read ahead of the command.

    The command does that again, and says what is wrong with a bound.
    """
    from bnfold._command.options import amount
    from bnfold._system import memory, time_limit

    for name, value in request.options:
        with suppress(UsageError, ValueError):
            if name == "--timeout" and value is not None and float(value) > 0:
                time_limit.bound(float(value))
            elif name == "--memory" and value is not None:
                memory.bound(amount(value))


def _ends(child_open: int, requests: int, child: int) -> bool:
    """Wait until a child has ended; False if whoever asked is gone first, and so is the child.

    The child holds the other end of ``child_open`` for as long as it lives.
    """
    ready, _, _ = select.select([child_open, requests], [], [])
    if child_open in ready:
        return True
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(child, number)
        if select.select([child_open], [], [], _GRACE_S)[0]:
            break
    return False
