"""How long two models take next to each other, in onnxruntime as in use.

Both sessions live in one process and take turns, the order alternating, so that a slow minute of
the machine hits both alike. Threads do not spin while they wait, and all optimizations are on. Two
sessions of one model may differ by where its data happen to lie, so that several pairs of sessions
are made. Each sample is as many runs as take some milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from bnfold._run.bounds import Bounds
from bnfold._run.noise import Array
from bnfold._run.session import engine_error, register
from bnfold._run.source import Source

ROUNDS = 4
"""How many pairs of sessions are made."""
SECONDS = 8.0
"""How long all runs together may take."""
_SAMPLE_S = 0.004
"""Least time of a sample."""
_LONG_S = 0.3
"""Runs that take this long need no second one to warm up."""
_WARM, _LEAST, _MOST = 3, 3, 200
"""Runs ahead of the first sample; samples of a pair of sessions."""


@dataclass(frozen=True)
class Sample:
    """Seconds that one run of each model took, by a clock and of the processor."""

    before: float
    after: float
    cpu_before: float
    cpu_after: float


def interleaved(
    original: Source, folded: Source, feeds: Mapping[str, Array], threads: int, bounds: Bounds
) -> list[list[Sample]]:
    """Samples of both models on the same inputs, apart for each pair of sessions.

    Raises:
        EngineError: a model does not load or run with all optimizations.
        Exhausted: time is up, or memory has run out.
    """
    return [list(_round(original, folded, feeds, threads, bounds, k)) for k in range(ROUNDS)]


def _round(
    original: Source,
    folded: Source,
    feeds: Mapping[str, Array],
    threads: int,
    bounds: Bounds,
    number: int,
) -> Iterator[Sample]:
    """Yield samples of one pair of sessions; which of them is made first alternates, too."""
    sources = (original, folded) if number % 2 == 0 else (folded, original)
    made = [_Session(source, threads, bounds) for source in sources]
    one, other = made if number % 2 == 0 else reversed(made)
    for _ in range(_WARM):
        first, _ = one.timed(feeds, 1)
        second, _ = other.timed(feeds, 1)
        if first + second > _LONG_S:
            break
    runs = max(1, min(1000, round(_SAMPLE_S / max(first, second, 1e-7))))
    end = time.perf_counter() + SECONDS / ROUNDS
    for count in range(_MOST):
        if count >= _LEAST and time.perf_counter() >= end:
            return
        bounds.check()
        if count % 2:
            second, cpu_second = other.timed(feeds, runs)
            first, cpu_first = one.timed(feeds, runs)
        else:
            first, cpu_first = one.timed(feeds, runs)
            second, cpu_second = other.timed(feeds, runs)
        yield Sample(first, second, cpu_first, cpu_second)


class _Session:
    """A session as users have it, with the number of threads that is asked for."""

    def __init__(self, source: Source, threads: int, bounds: Bounds) -> None:
        bounds.check()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = source.content()
        if isinstance(content, bytes):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(source.folder)
            )
        register(bounds.libraries, options)
        self._bounds = bounds
        try:
            self._session: Any = ort.InferenceSession(
                content if isinstance(content, bytes) else str(content),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as error:
            raise engine_error(error) from error

    def timed(self, feeds: Mapping[str, Array], runs: int) -> tuple[float, float]:
        """Seconds of a run, the mean of so many: by the clock and of the processor."""
        quiet = ort.RunOptions()
        quiet.log_severity_level = 4
        inputs = dict(feeds)
        with self._bounds.ending(quiet):
            try:
                cpu, start = time.process_time(), time.perf_counter()
                for _ in range(runs):
                    self._session.run(None, inputs, quiet)
                spent, burnt = time.perf_counter() - start, time.process_time() - cpu
            except Exception as error:
                raise engine_error(error) from error
        return spent / runs, burnt / runs
