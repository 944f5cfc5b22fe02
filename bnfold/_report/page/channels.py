"""The numbers of a layer that took maps in: what came, and its weights and bias before and after.

They are for people to look at. What proves a fold is its certificate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._core.affine import AffineMap
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.scopes import Scope

Array = NDArray[Any]
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True)
class Channels:
    """Output channels of a layer: all of them, or the first few.

    ``weights`` has for each of them the weights that make it, ``biases`` its bias, 0 where the
    layer has none; None where it is not known. ``count`` is how many channels there are.
    """

    weights: Sequence[Array]
    biases: Array | None
    count: int

    @property
    def nbytes(self) -> int:
        """How much memory the weights take."""
        return sum(row.nbytes for row in self.weights)


def channels_of(
    constants: Constants, scope: Scope, node: NodeProto, room: int, few: int
) -> Channels | None:
    """The channels of a layer; None for an operator that is not known here.

    If their weights take more than ``room`` bytes, the first ``few``.
    """
    if node.op_type not in (*_LINEAR, *_NORMS):
        return None
    given = [_values(constants, scope, name) for name in node.input]
    given += [None] * (3 - len(given))
    if node.op_type == "MatMul":
        given = [given[0] if given[1] is None else None, given[1], None]
    weight = given[1] if given[1] is not None else given[0]
    if weight is None or weight.ndim == 0 or (node.op_type in _NORMS and weight.ndim > 1):
        return None
    rows = _rows(node, weight, is_first=given[1] is None)
    biases: Array | None = np.zeros(len(rows), weight.dtype)
    if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
        known = given[2] is not None and given[2].size == len(rows)
        biases = given[2].reshape(-1) if known and given[2] is not None else None
    if any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute):
        biases = None
    seen = len(rows) if weight.nbytes <= room else few
    return Channels(
        [np.array(row) for row in rows[:seen]],
        np.array(biases[:seen]) if biases is not None else None,
        len(rows),
    )


def _rows(node: NodeProto, weight: Array, is_first: bool) -> Sequence[Array]:
    """By output channel the weights that make it."""
    numbers = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose":
        groups = max(numbers.get("group", 1), 1)
        blocks = np.split(weight, groups) if weight.shape[0] % groups == 0 else [weight]
        return [block[:, k] for block in blocks for k in range(block.shape[1])]
    if node.op_type == "Gemm" and not numbers.get("transB", 0):
        return list(np.moveaxis(weight, -1, 0))
    if node.op_type == "MatMul":
        return list(np.moveaxis(weight, -2 if is_first and weight.ndim > 1 else -1, 0))
    return list(weight)


def _values(constants: Constants, scope: Scope, name: str) -> Array | None:
    found = constants.find(scope, name) if name else None
    return constants.mapped(found) if isinstance(found, Constant) and found.is_float else None


def table(
    before: Channels | None,
    after: Channels | None,
    behind: AffineMap,
    ahead: AffineMap,
    fits: bool,
    most: int,
) -> Mapping[str, Any] | None:
    """What the page shows of a layer, as plain values; None where nothing is known.

    ``rows`` has ``most`` channels, each with its number first: those that are farthest from what
    the formula gives or, where no distance is told, whose weights grew or shrank most. ``spread``
    has the least, middle and largest number of each column, over the ``seen`` channels.

    ``behind`` and ``ahead`` are the maps that the layer takes in on its two sides; ``fits`` says
    that the one behind has a number for each of these channels, or one for all. The distance is
    that of the stored weights from ``W[o]·s_o`` and of the bias from ``s·b + t``, in units in the
    last place. It is told where only a map behind goes in, for there this is the whole formula.
    """
    if before is None or after is None or before.count != after.count:
        return None
    seen = min(len(before.weights), len(after.weights))
    alone = ahead.is_identity
    fits = fits and not behind.is_identity and behind.scale.size in (1, before.count)
    scale, shift = (
        np.broadcast_to(v, (before.count,)) if fits else None for v in (behind.scale, behind.shift)
    )
    rows = []
    for k in range(seen):
        distance = _distance(before, after, k, scale, shift) if alone else None
        rows.append(
            [
                k,
                number(scale[k]) if scale is not None else None,
                number(shift[k]) if shift is not None else None,
                _peak(before.weights, k),
                _peak(after.weights, k),
                number(before.biases[k]) if before.biases is not None else None,
                number(after.biases[k]) if after.biases is not None else None,
                number(distance, 2),
            ]
        )
    worst = sorted(rows, key=_rank)[:most]
    spread = [_spread([row[column] for row in rows]) for column in range(1, 8)]
    return {"count": before.count, "seen": seen, "rows": worst, "spread": spread}


def _rank(row: Sequence[Any]) -> tuple[float, float]:
    """The channels to show come first: the farthest, then those whose weights changed most."""
    _, _, _, old, new, _, _, distance = row
    grown = abs(math.log(new / old)) if old and new else 0.0
    return -(distance or 0.0), -grown


def _spread(values: Sequence[float | None]) -> Sequence[float | None] | None:
    """The least, middle and largest of some numbers; None where one is not known."""
    if not values or any(value is None for value in values):
        return None
    ends = np.quantile(np.array(values, np.float64), (0, 0.5, 1))
    return [number(end) for end in ends]


def _distance(
    before: Channels, after: Channels, k: int, scale: Array | None, shift: Array | None
) -> float | None:
    if scale is None or shift is None or before.biases is None or after.biases is None:
        return None
    old, new = before.weights[k], after.weights[k]
    if old.shape != new.shape:
        return None
    apart = [
        _units(old.astype(np.float64) * scale[k], new),
        _units(np.array(scale[k] * float(before.biases[k]) + shift[k]), after.biases[k : k + 1]),
    ]
    found = [each for each in apart if each is not None]
    return max(found) if len(found) == len(apart) else None


def _units(wanted: Array, stored: Array) -> float | None:
    """How far stored numbers are from wanted ones, in units in the last place."""
    if stored.dtype not in (np.float16, np.float32, np.float64) or not stored.size:
        return None
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(wanted).astype(stored.dtype)).astype(np.float64)
        return float(np.max(np.abs(wanted - stored.astype(np.float64)) / unit))


def _peak(weights: Sequence[Array], k: int) -> float | None:
    return number(np.max(np.abs(weights[k].astype(np.float64)), initial=0))


def span(found: AffineMap) -> Sequence[float | None]:
    """The least and largest scale, the least and largest shift, and the number of channels."""
    ends = (found.scale.min(), found.scale.max(), found.shift.min(), found.shift.max())
    return [*map(number, ends), found.scale.size if found.axis is not None else 1]


def number(value: Any, digits: int = 4) -> float | None:
    """A few digits of a number; None where there is none, or none that JSON can write."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.{digits}g}")
