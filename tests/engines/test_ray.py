"""`examples/registry_ray.py` on a local cluster."""

from __future__ import annotations

import os

import pytest

from ..cli.command import CHECKOUT
from . import registry

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join((str(CHECKOUT),))}},
    )
    yield
    ray.shutdown()


def test_as_the_command_does(cluster, tmp_path):
    """Also where a worker is killed at work and a model runs out of memory."""
    registry.check(tmp_path, registry.example("registry_ray").fold_all)
