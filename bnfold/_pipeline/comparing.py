"""Compare two model files from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bnfold._judge.end_to_end import compare
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd
from bnfold._onnx.files.external import external_files, runnable
from bnfold._onnx.files.load import load_model, understood
from bnfold._run.given import InputSet
from bnfold._run.hoist import hoist
from bnfold._run.perturbable import find, telling
from bnfold._run.source import Parsed, Source


def compare_files(
    original: Path,
    folded: Path,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    progress: Callable[[str], None] | None = None,
) -> EndToEnd:
    """Judge whether two files are the same function, on given inputs or drawn ones.

    Raises `UsageError` for models or inputs that cannot be read.
    """
    other = load_model(folded, lean=True)
    theirs, right_parsed = external_files(other), Parsed(other)
    model = load_model(original, lean=True)
    ours, left_parsed = external_files(model), Parsed(model)
    with understood(model, original):
        hoisted = hoist(model)
        weights = find(model, original.parent)
        touched = telling(model, weights)
    del model, other
    with runnable(original, ours) as left, runnable(folded, theirs) as right:
        return compare(
            Source(left, parsed=left_parsed, hoisted=hoisted),
            Source(right, parsed=right_parsed),
            parameters=weights.values,
            touched=touched,
            inputs=inputs,
            settings=settings,
            progress=progress,
        )
