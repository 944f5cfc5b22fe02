"""What an export makes that nobody reads here, and that takes a quarter of its time.

PyTorch notes for each operator the lines of code that call it, and writes Python code for each
graph that its passes go through, to be run. A program that is only read needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock

import torch.fx.config as fx_config

_NO_TRACES = "do_not_emit_stack_traces"


def _when_called() -> Callable[[bool], AbstractContextManager[None]] | None:
    """PyTorch's own way to write the code of graphs when they are called; None where it has none.

    torch.compile goes it always.
    """
    try:
        from torch.fx._lazy_graph_module import _use_lazy_graph_module
    except ImportError:
        return None
    return _use_lazy_graph_module


class Spared:
    """Leaves out what nobody reads.

    PyTorch has one setting of each for all threads. They may have it left out at the same time:
    the last of them puts back what was set before the first.
    """

    def __init__(self) -> None:
        self._lock, self._open = Lock(), 0
        self._set = ExitStack()

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Leave it out while the context is open. Versions of PyTorch without a setting do not."""
        with self._lock:
            if not self._open:
                self._begin()
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._set.close()

    def _begin(self) -> None:
        if hasattr(fx_config, _NO_TRACES):
            self._set.callback(setattr, fx_config, _NO_TRACES, getattr(fx_config, _NO_TRACES))
            setattr(fx_config, _NO_TRACES, True)
        when_called = _when_called()
        if when_called is not None:
            self._set.enter_context(when_called(True))


SPARED = Spared()
