"""Makes the page of a fold, and of a comparison of two files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._onnx.files.external import refuse_own_data, size_on_disk
from bnfold._onnx.files.load import load_model
from bnfold._onnx.fold import prepare
from bnfold._report.page.changes import changed_operators
from bnfold._report.page.document import Run, of_fold, of_verify
from bnfold._report.page.drawing import Drawing
from bnfold._report.page.pairing import paired
from bnfold._report.page.witness import Witness
from bnfold._report.page.writing import write

if TYPE_CHECKING:
    from bnfold._core.result import Plan
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._relation.proof import Proof


def page_of_fold(path: Path, outcome: Outcome, seen: Witness, run: Run) -> None:
    """Write the page of a fold. Raises `UsageError` where it cannot be written."""
    write(path, of_fold(outcome, seen, run))


def page_of_comparison(
    path: Path,
    original: Path,
    folded: Path,
    result: EndToEnd | Proof,
    run: Run,
    follow_links: bool = False,
) -> None:
    """Write the page of a comparison of two files.

    Raises `UsageError` where one cannot be read, or the page cannot be written.
    """
    models = [load_model(p, lean=True, follow_links=follow_links) for p in (original, folded)]
    for source, model in zip((original, folded), models, strict=True):
        refuse_own_data(path, model, source.parent)
    sizes = [size_on_disk(p, m) for p, m in zip((original, folded), models, strict=True)]
    drawings = [Drawing.of(model) for model in models]
    picture = paired(*drawings)
    changed = changed_operators(picture, drawings, models, [original.parent, folded.parent])
    names = [str(original), str(folded)]
    supposed = _supposed(original, folded, follow_links)
    write(path, of_verify(names, sizes, picture, changed, result, run, supposed))


def _supposed(original: Path, folded: Path, follow_links: bool) -> tuple[Plan, Witness] | None:
    """What folding a file would do, next to the weights of another one.

    None where it would inline calls of functions: then it draws another network.
    """
    planned = prepare(load_model(original, follow_links=follow_links), original.parent)
    if planned.inlined is not None:
        return None
    seen = Witness()
    seen.planned(planned)
    seen.written(folded, follow_links)
    return planned.plan, seen
