"""All tests of PyTorch export networks."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cheap(cheap_exports: None) -> None:
    pass
