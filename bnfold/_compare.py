"""Compare two model files from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bnfold._onnx import _files
from bnfold._verify._end_to_end import compare
from bnfold._verify._hoist import hoist
from bnfold._verify._inputs import InputSet
from bnfold._verify._settings import Settings
from bnfold._verify._source import Parsed, Source
from bnfold._verify._verdict import EndToEnd
from bnfold._verify._weights import find, telling


def files(
    original: Path,
    folded: Path,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    progress: Callable[[str], None] | None = None,
) -> EndToEnd:
    """Judge whether two files are the same function, on given inputs or drawn ones.

    Raises `UsageError` for models or inputs that cannot be read.
    """
    other = _files.load(folded, lean=True)
    theirs, right_parsed = _files.external_files(other), Parsed(other)
    model = _files.load(original, lean=True)
    ours, left_parsed = _files.external_files(model), Parsed(model)
    with _files.understood(model, original):
        hoisted = hoist(model)
        weights = find(model, original.parent)
        touched = telling(model, weights)
    del model, other
    with _files.runnable(original, ours) as left, _files.runnable(folded, theirs) as right:
        return compare(
            Source(left, parsed=left_parsed, hoisted=hoisted),
            Source(right, parsed=right_parsed),
            parameters=weights.values,
            touched=touched,
            inputs=inputs,
            settings=settings,
            progress=progress,
        )
