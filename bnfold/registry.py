"""A registry of models: what is to be done for each of many, for any engine that runs functions.

::

    registry = bnfold.registry.find(["models/"], "fused/")
    reports = [report for task in registry.tasks for report in task.run(resume=True)]
    registry.write_index(reports)

``bnfold models/ --output-dir fused/`` does that, with processes of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold._errors import UsageError
from bnfold._registry import finding, index
from bnfold._registry.fingerprint import Option, data_files
from bnfold._registry.places import Item, clashes, groups
from bnfold._registry.report import ENDING, Report
from bnfold._registry.unit import as_options, ask
from bnfold._system import paths

__all__ = ["Registry", "Task", "data_files", "find"]


@dataclass(frozen=True)
class Task:
    """What one process does at a time: a model, or several whose data files have one name.

    These are folded one after the other, so that none writes over the data of another. It is plain
    data, and can be sent to another machine that sees the same paths.
    """

    items: tuple[Item, ...]

    def run(self, *, resume: bool = False, **options: Any) -> tuple[Report, ...]:
        """Fold, as `bnfold.run` does; ``options`` are as there. One report for each model."""
        return self.run_with(as_options(options), resume)

    def run_with(self, options: Sequence[Option], resume: bool) -> tuple[Report, ...]:
        """Fold with options of the command."""
        return tuple(
            ask(item.model, item.output, item.report, item.name, options, resume)
            for item in self.items
        )

    def lost(self, why: str) -> tuple[Report, ...]:
        """The reports where an engine gave the task up: its workers died. Nothing is written."""
        return tuple(
            Report(item.model, item.name, "killed", code=3, message=why) for item in self.items
        )


@dataclass(frozen=True)
class Registry:
    """Models, and where their folds are to lie.

    Attributes:
        output: the folder that mirrors the tree of the models.
        tasks: what is to be done; the order does not matter.
        refused: what cannot be done, with why.
        passed_over: how many of what else was found.
    """

    output: Path
    tasks: tuple[Task, ...]
    refused: tuple[Report, ...]
    passed_over: Mapping[str, int]

    def write_index(self, reports: Iterable[Report], *, complete: bool = True) -> Path:
        """Write ``index.json`` and ``index.html`` of some reports, and of what was refused.

        ``complete``: nothing is left to do. Gives the path of the page. Raises `UsageError` where
        a file cannot be written.
        """
        reports = sorted([*self.refused, *reports], key=lambda report: report.name)
        return index.write(self.output, reports, self.passed_over, complete)


def find(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
) -> Registry:
    """The models of files, folders, patterns and lists (``@list.txt``), and where they are to go.

    The output folder mirrors the tree below each folder, the fixed part of each pattern, and the
    folder that all files have in common. It is made. Where two models would write one file, both
    are refused, and nothing of them is written. Raises `UsageError` where there is no model at
    all, or nothing can be written.
    """
    given = [models] if isinstance(models, str | os.PathLike) else list(models)
    output = Path(os.path.abspath(output_dir))
    finding.refuse_same(given, output)
    found = finding.find(given, output)
    if not found.models:
        why = list(found.troubles.values())
        raise UsageError(why[0] if why else "no model was given")
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(f"cannot write {output}: it is not a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise paths.unwritable(output, error) from error
    for name in (index.PAGE, index.DATA):
        paths.check_writable(output / name)
    items = [
        Item(str(model), place.as_posix(), str(output / place), f"{output / place}{ENDING}")
        for model, place in found.models.items()
    ]
    clashing = clashes(items, output)
    refused = [
        Report(name, name, "error", code=2, message=why) for name, why in found.troubles.items()
    ]
    refused += [
        Report(item.model, item.name, "error", code=2, message=clashing[item.model])
        for item in items
        if item.model in clashing
    ]
    left = [item for item in items if item.model not in clashing]
    tasks = tuple(Task(group) for group in groups(left))
    return Registry(output, tasks, tuple(refused), dict(sorted(found.passed_over.items())))
