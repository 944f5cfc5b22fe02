"""``--output-dir``: folds many models, each in a process of its own, and writes an index."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import click

from bnfold._command import terminal
from bnfold._command.many import options_of
from bnfold._command.telling import show_lines
from bnfold._core.result import counted
from bnfold._registry import forms, index, worker
from bnfold._registry.fingerprint import Option
from bnfold._registry.report import Report
from bnfold._registry.unit import ask
from bnfold._report.ci import summarize_step
from bnfold._report.page.layout import layout_library
from bnfold._report.text import json_text
from bnfold.registry import Registry, Task, find

_INDEX_S = 30.0
"""How often the index is written while a run goes on, in seconds."""


def fold_all(
    context: click.Context,
    given: Sequence[Path],
    output_dir: Path,
    jobs: int,
    resume: bool,
    pages: bool,
    spoken: tuple[str, bool, bool],
) -> int:
    """Fold all models, and give the worst exit code: the largest, as --check does.

    ``pages``: each gets a page, too. ``spoken`` is the form of what is printed, whether all of it
    is, and whether nothing is where all is well.

    Raises:
        UsageError: there is no model, nothing can be written, or an option is not for many models.
    """
    form, verbose, quiet = spoken
    if pages:
        layout_library()
    registry = find(given, output_dir)
    with terminal.Progress() as progress:
        reports = run_all(
            registry, options_of(context), jobs=jobs, resume=resume, progress=progress
        )
    reports = sorted([*registry.refused, *reports], key=lambda report: report.name)
    if form != "text":
        _tell_programs(registry, reports, form)
    elif not quiet or any(report.code for report in reports):
        terminal.show(_lines(registry, reports, output_dir, verbose))
    return max(report.code for report in reports)


def _tell_programs(registry: Registry, reports: Sequence[Report], form: str) -> None:
    """Print what became of all models, in a form for programs and CI servers."""
    told = index.document(registry.output, reports, registry.passed_over, True)
    if form == "json":
        terminal.show_whole(json_text(told, ascii_only=True))
    elif form == "junit":
        terminal.show_whole(forms.junit(reports))
    elif form == "markdown":
        show_lines(list(forms.markdown(told)))
    else:
        summarize_step(list(forms.markdown(told)))
        show_lines(forms.annotated(reports))


def run_all(
    registry: Registry,
    options: Sequence[Option],
    *,
    jobs: int,
    resume: bool,
    progress: Callable[[str], None],
) -> list[Report]:
    """Fold all models and write the index. Nothing that happens to one of them ends the run.

    A pool of threads, each of which waits for one process at a time. An interrupt ends what runs,
    writes the index of what is done, and is raised again. With several jobs the cores are shared:
    each session has its part of them, unless ``options`` say how many, or that there is none.
    """
    named = {name for name, _ in options}
    if jobs > 1 and named.isdisjoint(("--threads", "--no-verify")):
        options = [*options, ("--threads", str(max(1, (os.cpu_count() or 1) // jobs)))]
    reports: list[Report] = []
    estimate = _Estimate(sum(len(task.items) for task in registry.tasks))
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="bnfold")
    stopped = threading.Event()
    waiting = list(reversed(registry.tasks))
    running: dict[Future[list[Report]], Task] = {}
    written = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                running[executor.submit(_worked, task, options, resume, stopped)] = task
            progress(estimate.told(reports, list(running.values())))
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.pop(future)
                reports += future.result()
            if time.monotonic() - written > _INDEX_S:
                registry.write_index(reports, complete=False)
                written = time.monotonic()
    except BaseException:
        stopped.set()
        worker.stop_all()
        executor.shutdown(cancel_futures=True)
        for future in running:
            if not future.cancelled() and future.exception() is None:
                reports += future.result()
        registry.write_index(reports, complete=False)
        raise
    executor.shutdown()
    registry.write_index(reports)
    return reports


def _worked(
    task: Task, options: Sequence[Option], resume: bool, stopped: threading.Event
) -> list[Report]:
    """The reports on the models of a task, up to where the run was stopped."""
    reports = list[Report]()
    for item in task.items:
        if stopped.is_set():
            break
        told = ask(item.model, item.output, item.report, item.name, options, resume)
        if told.status == "interrupted":
            break
        reports.append(told)
    return reports


class _Estimate:
    """How far a run is, and how long the rest may take if it goes on like that."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = time.monotonic()

    def told(self, reports: Sequence[Report], running: Sequence[Task]) -> str:
        """One line: how many are done, how many of them went wrong, the time left, what runs."""
        parts = [f"{len(reports)} of {self._total} models"]
        if bad := sum(report.code != 0 for report in reports):
            parts.append(f"{bad} not passed")
        if worked := sum(not report.resumed for report in reports):
            left = (time.monotonic() - self._begun) / worked * (self._total - len(reports))
            parts.append(f"about {_duration(left)} left")
        names = [task.items[0].name for task in running]
        return f"{', '.join(parts)}: {', '.join(names[:3])}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _lines(
    registry: Registry, reports: Sequence[Report], output_dir: Path, verbose: bool
) -> Iterator[str]:
    """Yield what became of the models that did not pass, or of all, and how many there are."""
    for report in reports:
        if verbose or report.code != 0:
            said = f": {report.message}" if report.message else ""
            yield f"{report.name}: {report.verdict or report.status}{said}"
    told = ", ".join(f"{number} {name}" for name, number in index.counts(reports).items())
    yield f"{counted(len(reports), 'model')}: {told}"
    if resumed := sum(report.resumed for report in reports):
        yield f"{resumed} of them were done before and have not changed"
    if registry.passed_over:
        yield f"passed over: {index.told_over(registry.passed_over)}"
    yield f"wrote {output_dir / index.PAGE} and {index.DATA}"
