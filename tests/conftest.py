"""Fixed parameters for every test; the long searches run only when asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import graphs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long searches")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long; run with --slow"))


@pytest.fixture(autouse=True)
def _reseed() -> None:
    graphs.reseed()


@pytest.fixture(scope="session")
def cheap_exports() -> Iterator[None]:
    """One thread for PyTorch: these networks are too small for more, and threads that wait for each
    other take time. And no record of which line made which node, of which nothing reads a word.
    """
    torch = pytest.importorskip("torch")
    from torch.fx import config

    threads, silent = torch.get_num_threads(), config.do_not_emit_stack_traces
    torch.set_num_threads(1)
    config.do_not_emit_stack_traces = True
    yield
    torch.set_num_threads(threads)
    config.do_not_emit_stack_traces = silent
