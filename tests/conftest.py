"""Fixed parameters for every test; the long searches run only when asked for."""

from __future__ import annotations

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
