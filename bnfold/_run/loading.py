"""Sessions that load in the background while there is other work, where memory is plenty."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from bnfold._run.bounds import Bounds
from bnfold._run.noise import Array
from bnfold._system import memory

_LARGEST = 1 << 28
"""Bytes of a model, from which on one session is held at a time."""
_Loaded = TypeVar("_Loaded")


class BackgroundLoad(Generic[_Loaded]):
    """Something that loads already, if there is an executor for it."""

    def __init__(self, load: Callable[[], _Loaded], executor: Executor | None) -> None:
        self._load = load
        self._future: Future[_Loaded] | None = executor.submit(load) if executor else None

    def get(self) -> _Loaded:
        """What was loaded, once; whoever asks again has it loaded anew. Raises what that raises."""
        future, self._future = self._future, None
        return self._load() if future is None else future.result()


@contextmanager
def background(
    paths: Collection[Path], weights: Collection[Array | None], bounds: Bounds
) -> Iterator[Executor | None]:
    """An executor of one thread, or None where models are large, memory is bounded, or a single
    thread was asked for.
    """
    if bounds.threads == 1 or memory.is_bounded() or _size(paths, weights) > _LARGEST:
        yield None
        return
    with ThreadPoolExecutor(1, "bnfold") as executor:
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


def _size(paths: Collection[Path], weights: Collection[Array | None]) -> int:
    """Bytes of the largest file, or of all weights; what is not there will be said elsewhere."""
    sizes = [sum(array.nbytes for array in weights if array is not None)]
    with suppress(OSError):
        sizes += [path.stat().st_size for path in paths]
    return max(sizes)
