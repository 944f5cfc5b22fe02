"""`examples/registry_dask.py` on a local cluster."""

from __future__ import annotations

from functools import partial

import pytest

from . import registry

distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client():
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_as_the_command_does(client, tmp_path):
    """Also where a worker is killed at work and a model runs out of memory."""
    registry.check(tmp_path, partial(registry.example("registry_dask").fold_all, client))
