"""Folds a registry of models on Dask, on this machine or on a cluster that sees the same paths.

::

    pip install bnfold "dask[distributed]"
    python examples/registry_dask.py models/ fused/                            # a local cluster
    python examples/registry_dask.py models/ fused/ --address tcp://host:8786  # one that is there

Dask runs a task again whose worker died; ``resume=True`` lets it skip the models that were done. A
model that crashes, or runs out of the memory that it is given, ends its own process and no worker.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from distributed import Client, as_completed

import bnfold
import bnfold.registry


def work(task: bnfold.registry.Task, options: dict[str, Any]) -> tuple[bnfold.Report, ...]:
    """What runs on a worker."""
    return task.run(resume=True, **options)


def fold_all(
    client: Client, models: Sequence[str], output_dir: str, **options: Any
) -> list[bnfold.Report]:
    """Fold all models on a cluster, and write the index."""
    registry = bnfold.registry.find(models, output_dir)
    tasks = {client.submit(work, task, options, pure=False): task for task in registry.tasks}
    reports: list[bnfold.Report] = []
    for future in as_completed(tasks):
        error = future.exception()
        if error is None:
            reports += future.result()
        else:  # distributed.KilledWorker, once its workers have died too often
            reports += tasks[future].lost(str(error).strip().partition("\n")[0])
    registry.write_index(reports)
    return [*registry.refused, *reports]


def main() -> int:
    """Fold, and give the worst exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("output_dir")
    parser.add_argument("--address", help="of a scheduler; without it a local one is started")
    parser.add_argument("--memory", default="8GB", help="of each model")
    given = parser.parse_args()
    with Client(given.address) as client:
        reports = fold_all(client, given.models, given.output_dir, memory=given.memory, threads=1)
    return max(report.code for report in reports)


if __name__ == "__main__":
    sys.exit(main())
