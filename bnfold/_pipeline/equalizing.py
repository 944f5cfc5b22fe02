"""Equalizes a folded file that is not in place yet, and judges the result; see `_onnx/equalize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._judge.settings import Settings
from bnfold._onnx.equalize import equalize_model
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import PendingFile, pending_file
from bnfold._pipeline.measuring import measured
from bnfold._pipeline.outcome import Equalization, Progress

if TYPE_CHECKING:
    from bnfold._run.input_sets import InputSet


@contextmanager
def equalized(
    draft: PendingFile,
    original: Path,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
) -> Iterator[tuple[PendingFile, Equalization]]:
    """The draft of a folded file with equalized channels; or the draft itself, where int8 is not
    nearer to the float model so, or where both are not seen to be the same function.

    Both are the same function if that is proved; or else, with ``verify``, if the comparison
    passes. ``original`` is the file that was folded. Raises `UsageError` as `pending_file` does.
    """
    progress("equalizing")
    model = load_model(draft.path, follow_links=True)
    with understood(model, original):
        how = measured(model, draft.path.parent, inputs, settings)
        done = equalize_model(model, draft.path.parent, how.strength) if how.strength else None
    if done is None:
        yield draft, Equalization(refused=how.why, errors=how.errors)
        return
    with pending_file(
        model,
        done.rewritten,
        base_dir=draft.path.parent,
        destination=draft.destination,
        original=original,
    ) as new:
        del model
        from bnfold._pipeline.proving import objection  # imported late: few ask for it

        progress("proving that equalizing changes nothing")
        refused, proof = objection(draft.path, new.path, verify, inputs, settings, progress)
        yield draft if refused else new, Equalization(done.lost, refused, proof, how.errors)
