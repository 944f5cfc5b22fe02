"""Folds models in object storage: fetched, folded and put back by fsspec, one at a time.

::

    pip install bnfold fsspec s3fs
    python examples/storage.py s3://bucket/models s3://bucket/fused

`fold_one` is a unit of work for any engine, as `bnfold.run` is for paths: workers need no disk that
all of them see. What was put back before, its report with it, is fetched to see whether it is done.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

import bnfold
import bnfold.registry

REPORT = "report.json"


def models(source: str) -> Iterator[str]:
    """Yield the models below a URL, by their names relative to it."""
    system, root = fsspec.core.url_to_fs(source)
    for path in sorted(system.find(root)):
        name = PurePosixPath(path).relative_to(root)
        # A key of object storage may hold "..", which would lead out of a target that is a folder.
        if path.endswith((".onnx", ".pt2")) and ".." not in name.parts:
            yield str(name)


def fold_one(source: str, target: str, name: str, **options: Any) -> bnfold.Report:
    """Fold the model of a name below ``source``; what is made of it has a folder below ``target``.

    That folder is its own: storage has no locks, and data files of two models may have one name.
    """
    system, home = fsspec.core.url_to_fs(f"{target.rstrip('/')}/{name}")
    with tempfile.TemporaryDirectory() as temporary:
        given, made = Path(temporary, "in") / PurePosixPath(name).name, Path(temporary, "out")
        _fetch_model(source, name, given)
        earlier = system.find(home) if system.exists(home) else []
        for path in earlier:
            _fetch(system, path, made / PurePosixPath(path).relative_to(home))
        report = made / REPORT
        told = bnfold.run(given, made / given.name, report=report, resume=True, **options)
        if not told.resumed:
            files = [file for file in made.rglob("*") if file.is_file() and file != report]
            for file in (*files, report):  # Where the report is, all else is.
                _put(system, file, f"{home}/{file.relative_to(made).as_posix()}")
            for path in earlier:
                if not (made / PurePosixPath(path).relative_to(home)).exists():
                    system.rm_file(path)
        return replace(
            told, model=f"{source}/{name}", name=name, report=f"{target}/{name}/{REPORT}"
        )


def _fetch_model(source: str, name: str, model: Path) -> None:
    """Fetch a model, and its data as far as they are there and lie below its folder."""
    system, root = fsspec.core.url_to_fs(source)
    folder = PurePosixPath(root, name).parent
    _fetch(system, f"{root}/{name}", model)
    for location in bnfold.registry.data_files(model):
        parts = PurePosixPath(location)
        below = not parts.is_absolute() and ".." not in parts.parts
        if below and system.exists(str(folder / parts)):
            _fetch(system, str(folder / parts), model.parent / parts)


def _fetch(system: Any, path: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    system.get_file(path, str(file))


def _put(system: Any, file: Path, path: str) -> None:
    system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    system.put_file(str(file), path)


def main() -> int:
    """Fold all models below a URL, and give the worst exit code."""
    source, target = sys.argv[1:]
    reports = [fold_one(source, target, name) for name in models(source)]
    for report in reports:
        told = f"{report.name}: {report.verdict or report.status} {report.message}".rstrip()
        print("".join(c if c.isprintable() else "?" for c in told))  # Names are a stranger's.
    return max((report.code for report in reports), default=2)


if __name__ == "__main__":
    sys.exit(main())
