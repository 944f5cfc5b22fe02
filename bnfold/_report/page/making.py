"""Makes the page of a fold, and of a comparison of two files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from bnfold._onnx.files.external import refuse_own_data, size_on_disk
from bnfold._onnx.files.load import load_model
from bnfold._onnx.fold import prepare
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope, read_scopes
from bnfold._onnx.read.shapes import Shapes
from bnfold._report.page.document import Run, of_fold, of_verify
from bnfold._report.page.drawing import Drawing
from bnfold._report.page.pairing import Picture, paired
from bnfold._report.page.witness import Place, Witness
from bnfold._report.page.writing import write

if TYPE_CHECKING:
    from bnfold._core.result import Plan
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._relation.proof import Proof

_COMPARED = 1 << 29
"""So many bytes of weights are compared to say which operators of two files have others."""


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
    changed = _changed(picture, drawings, models, [original.parent, folded.parent])
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


class _Weights:
    """The weights of the operators of a file."""

    def __init__(self, model: ModelProto, folder: Path, drawing: Drawing) -> None:
        self._scopes: dict[str, Scope] = {scope.path: scope for scope in read_scopes(model)}
        self._constants = Constants(folder, Shapes())
        self._places: dict[int, Place] = {k: place for place, k in drawing.places.items()}
        self.read = 0

    def of(self, number: int) -> list[np.ndarray | None] | None:
        """The weights of an operator, by input; None for what stands for a port."""
        place = self._places.get(number)
        if place is None:
            return None
        scope = self._scopes[place[0]]
        found = []
        for name in scope.nodes[place[1]].input:
            constant = self._constants.find(scope, name) if name else None
            values = None
            if isinstance(constant, Constant) and constant.source is not None:
                values = self._constants.mapped(constant)
                self.read += values.nbytes
            found.append(values)
        return found


def _changed(
    picture: Picture,
    drawings: Sequence[Drawing],
    models: Sequence[ModelProto],
    folders: Sequence[Path],
) -> list[int]:
    """The operators of both files that have other weights in the second one."""
    one, other = (_Weights(*each) for each in zip(models, folders, drawings, strict=True))
    there = {number: k for k, number in enumerate(picture.second)}
    found = []
    for k, number in enumerate(picture.first):
        if number not in there or one.read + other.read > _COMPARED:
            continue
        before, after = one.of(k), other.of(there[number])
        if before is not None and after is not None and not _is_same(before, after):
            found.append(number)
    return found


def _is_same(ones: Sequence[np.ndarray | None], others: Sequence[np.ndarray | None]) -> bool:
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if (one is None) != (other is None):
            return False
        if one is None or other is None:
            continue
        if one.shape != other.shape or one.tobytes() != other.tobytes():
            return False
    return True
