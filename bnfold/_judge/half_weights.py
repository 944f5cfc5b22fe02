"""A look at the weights of two files of half precision, once both are folded.

There the rounding of right weights moves outputs by as much as an error of 1 % in a channel does.
Weights say more. Each file is folded, in float64 and rounded once. Where both then have the same
operators, the numbers of one are those of the other but for a few units in the last place: whoever
folded a file in half or single precision was off by no more. Numbers that are farther apart are
wrong, or somebody has moved a scale elsewhere: that is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from bnfold._errors import UsageError
from bnfold._judge.conclusion import HALF, USUAL
from bnfold._judge.verdict import EndToEnd
from bnfold._onnx.files.external import size_on_disk
from bnfold._onnx.files.load import load_model
from bnfold._onnx.read.scopes import label
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.endings import operator_form, stored_functions
from bnfold._run.nodes import own_inputs, subgraphs
from bnfold._run.source import Edit

if TYPE_CHECKING:
    from bnfold._proof.checked_model import CheckedModel

UNITS = 8.0
"""So many units in the last place of float16 may lie between two right folds."""
_DIGITS, _LEAST = 10, 2.0**-14
"""The digits of float16 behind its first one, and its smallest normal number."""
_LARGEST = 1 << 29
"""Bytes of the largest model that is folded for this, with its external data."""


class Apart(NamedTuple):
    """A constant of two models.

    Attributes:
        units: how far two of its numbers are apart at most, in units in the last place of float16.
        reader: the label of the operator that reads it.
    """

    units: float
    reader: str


def seen_in_weights(
    result: EndToEnd,
    paths: tuple[Path, Path],
    edits: tuple[Sequence[Edit], Sequence[Edit]],
    bounds: Bounds,
) -> EndToEnd:
    """A verdict on two files, after a look at their weights if it passes in half precision.

    It stays where the two cannot be compared so, for whatever reason: it says what it rests on.
    """
    if result.status != "pass" or all(part.size <= USUAL for part in result.power):
        return result
    try:
        left, right = (_folded(path, own, bounds) for path, own in zip(paths, edits, strict=True))
        found = apart(left, right)
    except (Exhausted, MemoryError, OSError, UsageError):
        return result
    if found is None:
        return result
    notes = [note for note in result.notes if note != HALF]
    if found.units <= UNITS:
        told = "the same" if not found.units else f"within {found.units:.1f} units of float16"
        return replace(result, notes=(*notes, f"once both are folded, their weights are {told}"))
    told = (
        f"once both are folded, weights of {found.reader} are {found.units:.0f} units in the last "
        f"place of float16 apart, and rounding explains {UNITS:.0f}: in half precision outputs do "
        "not show whether that is an error"
    )
    return replace(result, status="inconclusive", notes=(*notes, told))


def apart(left: tuple[onnx.ModelProto, Path], right: tuple[onnx.ModelProto, Path]) -> Apart | None:
    """How far the constants of two models are apart; None where they do not have the same
    operators, from their outputs back.
    """
    (one, ours), (other, theirs) = (_Side.of(*each) for each in (left, right))
    if len(one.outputs) != len(other.outputs) or ours.functions or theirs.functions:
        return None
    worst = Apart(0.0, "")
    waiting = [(pair, "an output") for pair in zip(one.outputs, other.outputs, strict=True)]
    seen = {pair for pair, _ in waiting}
    while waiting:
        pair, reader = waiting.pop()
        first, second = one.found(pair[0]), other.found(pair[1])
        if first.values is not None or second.values is not None:
            units = _units(first.values, second.values)
            if units is None:
                return None
            worst = max(worst, Apart(units, reader))
            continue
        if first.form is None or first.form != second.form:
            return None
        names = zip(first.node.input, second.node.input, strict=True)
        new = [each for each in names if each[0] and each not in seen]
        waiting += [(each, label(first.node)) for each in new]
        seen.update(new)
    return worst


class _Found(NamedTuple):
    """A tensor: its values if it is constant, and else what writes it, and that operator's form.

    An input of the graph has its number as its form.
    """

    values: NDArray[Any] | None
    node: onnx.NodeProto
    form: Any


class _Side:
    """One of two models, followed from its outputs back."""

    def __init__(self, model: onnx.ModelProto, checked: CheckedModel) -> None:
        self._checked = checked
        self._scope = checked.scopes[""]
        self._functions = stored_functions(model)
        self._places = {value.name: k for k, value in enumerate(own_inputs(model.graph))}
        self.outputs: Sequence[str] = self._scope.outputs

    @classmethod
    def of(cls, model: onnx.ModelProto, folder: Path) -> tuple[_Side, onnx.ModelProto]:
        """A side, and its model."""
        from bnfold._proof.checked_model import CheckedModel  # few verdicts need it

        return cls(model, CheckedModel.of(model, folder)), model

    def found(self, name: str) -> _Found:
        """What a tensor is, behind operators that hand it on."""
        _, name = self._scope.origin(name)
        node = self._scope.writer(name)
        values = self._checked.fixed(self._scope, name)
        if values is not None or not node.op_type:
            return _Found(values, node, self._places.get(name))
        if any(True for _ in subgraphs(node)):  # what bodies read is not followed
            return _Found(None, node, None)
        form = (*operator_form(node, self._functions), list(node.output).index(name))
        return _Found(None, node, form)


def _folded(path: Path, edits: Sequence[Edit], bounds: Bounds) -> tuple[onnx.ModelProto, Path]:
    """A model after a fold, and its folder. Raises `Exhausted` for one that is too large."""
    from bnfold._onnx.fold import prepare  # imported late: few comparisons fold anything

    bounds.check()
    model = load_model(path, follow_links=True)
    if size_on_disk(path, model) > _LARGEST:
        raise Exhausted("the model is too large")
    for edit in edits:
        edit(model)
    prepare(model, path.parent).apply()
    return model, path.parent


def _units(one: NDArray[Any] | None, other: NDArray[Any] | None) -> float | None:
    """How far two constants are apart; None where they are not of one shape or kind.

    A number of a vector has the units of its largest: what was added up to it is not known.
    """
    if one is None or other is None or one.shape != other.shape:
        return None
    if one.dtype.kind in "biuO" or other.dtype.kind in "biuO":
        return 0.0 if np.array_equal(one, other) else None
    wanted, made = one.astype(np.float64), other.astype(np.float64)
    same = (wanted == made) | (np.isnan(wanted) & np.isnan(made))
    if not bool((np.isfinite(wanted) & np.isfinite(made) | same).all()):
        return float("inf")
    sizes = np.abs(np.where(np.isfinite(wanted), wanted, 0.0))
    top = sizes if sizes.ndim > 1 else np.full(sizes.shape, sizes.max(initial=0.0))
    unit = np.exp2(np.floor(np.log2(np.maximum(top, _LEAST))) - _DIGITS)
    gaps = np.abs(np.where(same, 0.0, wanted) - np.where(same, 0.0, made))
    return float((gaps / unit).max(initial=0.0))
