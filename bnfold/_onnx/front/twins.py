"""The file of a model behind its preprocessing, while somebody needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from bnfold._core.preprocessing import Pairs
from bnfold._errors import UsageError
from bnfold._onnx.files.external import external_files, free_name, link
from bnfold._onnx.files.load import in_binary, load_model
from bnfold._onnx.front.prepending import prepend
from bnfold._system import scratch


@contextmanager
def behind(path: Path, wanted: Pairs, follow_links: bool) -> Iterator[Path]:
    """The file of a model in binary form, with preprocessing in front of it as it is defined.

    Without any it is the file itself. Raises `UsageError` as `load_model` and `prepend` do.
    """
    if not wanted:
        with in_binary(path, follow_links) as binary:
            yield binary
        return
    model = load_model(path, follow_links=follow_links)
    try:
        prepend(model, dict(wanted))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    with twin_of(model, path.parent) as twin:
        del model
        yield twin


@contextmanager
def twin_of(model: ModelProto, folder: Path) -> Iterator[Path]:
    """A temporary file of a model, with its external data, from a folder, beside it."""
    locations = external_files(model)
    with scratch.beside(None) as temporary:
        twin = temporary / free_name(locations)
        twin.write_bytes(model.SerializeToString())
        for name in locations:
            link(folder / name, temporary / name)
        yield twin
