"""Fixed parameters for every test; the long searches run only when asked for. What holds of any
view that is read, and of any graph that merges, is checked wherever one is.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import ModuleType

import numpy as np
import pytest

from bnfold._core.checks import check_view
from bnfold._core.reasons import Reason
from bnfold._core.view import View
from bnfold._judge import by_proof
from bnfold._merge.graph import MergeGraph, Written
from bnfold._onnx.merge import merging
from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.graph import Graph, read_graph
from bnfold._plan import fit
from bnfold._plan.planner import Moves
from bnfold._relation.proof import Proof

from . import graphs, runtimes, scripts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long searches")


def pytest_configure() -> None:
    """Processes that tests start keep what they compile, as a user's do: else that is a third of
    their time.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long; run with --slow"))


def pytest_collection_finish() -> None:
    """What the tests are made of stays to the end. What they make is looked through for cycles less
    often: the search takes as long as a tenth of the tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def _reseed() -> None:
    graphs.reseed()


@pytest.fixture(autouse=True, scope="session")
def _loud() -> Iterator[None]:
    """An error within a proof is one of a test, and not only a reason why nothing is proved."""
    quiet = by_proof.of_defect
    by_proof.of_defect = _raised
    yield
    by_proof.of_defect = quiet


def _raised(error: Exception) -> Proof:
    raise error


@pytest.fixture(autouse=True, scope="session")
def _merges_checked() -> Iterator[None]:
    """After each merge the graph is sound; in the end it is what reading it anew gives."""
    put, reread = MergeGraph.put, merging.reread

    def sound(self: MergeGraph, written: Written) -> None:
        put(self, written)
        self.check()

    def same(graph: Graph, patches: Sequence[Patch]) -> Graph:
        on, anew = reread(graph, patches), read_graph(graph.context)
        assert on.positions == anew.positions
        assert _told(on.view.nodes) == _told(anew.view.nodes)
        assert _told(on.view.values) == _told(anew.view.values)
        assert [r.shape for r in on.readings] == [r.shape for r in anew.readings]
        return on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MergeGraph, "put", sound)
        patch.setattr(merging, "reread", same)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _malformed
    _malformed = item.get_closest_marker("malformed") is not None


_malformed = False


@pytest.fixture(autouse=True, scope="session")
def _views_checked() -> Iterator[None]:
    """Every view that is planned keeps the rules of views, but those of malformed models."""
    plan = fit.plan

    def checked(view: View, refused: Mapping[int, Reason]) -> Moves:
        if not _malformed:
            check_view(view)
        return plan(view, refused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "plan", checked)
        yield


def _told(parts: object) -> object:
    """Nodes or values in parts that compare, whatever functions they hold."""
    if isinstance(parts, np.ndarray):
        return parts.dtype, parts.shape, parts.tobytes()
    if is_dataclass(parts) and not isinstance(parts, type):
        held = ((one.name, _told(getattr(parts, one.name))) for one in fields(parts))
        return type(parts), tuple(held)
    if isinstance(parts, tuple):
        return tuple(map(_told, parts))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(parts))


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The example of networks in training form."""
    pytest.importorskip("torch")
    return scripts.load("examples", "reparameterized")


@pytest.fixture(scope="session")
def cheap_exports() -> Iterator[None]:
    """One thread for PyTorch: these networks are too small for more, and threads that wait for each
    other take time. No record of which line made which node, of which nothing reads a word. And
    Python's code for a graph is written when it is called; most graphs are only read.
    """
    torch = pytest.importorskip("torch")
    from torch.fx import config
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    threads, silent = torch.get_num_threads(), config.do_not_emit_stack_traces
    torch.set_num_threads(1)
    config.do_not_emit_stack_traces = True
    with _use_lazy_graph_module(True):
        yield
    torch.set_num_threads(threads)
    config.do_not_emit_stack_traces = silent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test whose model an old onnxruntime cannot run; a later one has no excuse."""
    try:
        return (yield)
    except Exception as error:
        why = runtimes.why_not(error)
        if why is None:
            raise
        pytest.skip(why)
