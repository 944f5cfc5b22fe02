"""Which operators of two files have other weights: number by number, without a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope, read_scopes
from bnfold._onnx.read.shapes import Shapes
from bnfold._report.page.drawing import Drawing
from bnfold._report.page.pairing import Picture

_COMPARED = 1 << 29
"""So many bytes of weights are compared to say which operators of two files have others."""
Place = tuple[str, int]
"""The path of a graph, and a position in its nodes."""


def changed_operators(
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
