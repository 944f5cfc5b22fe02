"""Folds a registry of models on Ray, on this machine or on a cluster that sees the same paths.

::

    pip install bnfold ray
    python examples/registry_ray.py models/ fused/                       # a local cluster
    python examples/registry_ray.py models/ fused/ --address auto        # one that is there

Ray runs a task again whose worker died; ``resume=True`` lets it skip the models that were done. A
model that crashes, or runs out of the memory that it is given, ends its own process and no worker.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import ray

import bnfold
import bnfold.registry

RETRIES = 3


def work(task: bnfold.registry.Task, options: dict[str, Any]) -> tuple[bnfold.Report, ...]:
    """What runs on a worker."""
    return task.run(resume=True, **options)


def fold_all(models: Sequence[str], output_dir: str, **options: Any) -> list[bnfold.Report]:
    """Fold all models on the cluster that Ray is connected to, and write the index."""
    registry = bnfold.registry.find(models, output_dir)
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
    running = {remote.remote(task, options): task for task in registry.tasks}
    reports: list[bnfold.Report] = []
    while running:
        done, _ = ray.wait(list(running))
        for future in done:
            task = running.pop(future)
            try:
                reports += ray.get(future)
            except ray.exceptions.RayError as error:
                reports += task.lost(str(error).strip().partition("\n")[0])
    registry.write_index(reports)
    return [*registry.refused, *reports]


def main() -> int:
    """Fold, and give the worst exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("output_dir")
    parser.add_argument("--address", help="of a cluster; without it a local one is started")
    parser.add_argument("--memory", default="8GB", help="of each model")
    given = parser.parse_args()
    ray.init(address=given.address)
    reports = fold_all(given.models, given.output_dir, memory=given.memory, threads=1)
    return max(report.code for report in reports)


if __name__ == "__main__":
    sys.exit(main())
