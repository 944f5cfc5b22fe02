"""Moves positive scales between linear operators, so that the ranges of their channels are alike.

One scale for a whole weight (int8 "per tensor") serves a channel badly whose numbers are far
smaller than the largest. A network of linear operators and of operators ``f`` with
``f(s·x) = s·f(x)`` for ``s > 0`` computes the same if channel c of a tensor is multiplied by s_c
where it is written, and its readers divide by s_c: cross-layer equalization, after Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1. Which
channels share a scale: `scale_classes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.parameters import Reading
from bnfold._core.view import View
from bnfold._plan.planner import Moves, Sides
from bnfold._plan.relation import Relation
from bnfold._plan.scale_classes import FIXED, Classes, Ids, Layer, classified
from bnfold._system.records import record

_SWEEPS = 40
_STILL = 1e-3
# What a group has to gain, in bits, for its scales to be worth while.
_GAIN = 0.05
# No scale is larger than this, nor smaller than one over it.
_MOST = 2.0**12
# An operator beside some classes, with all that it writes and reads; None at a side without them.
Around = tuple[Layer, Ids | None, Ids | None]


@record(frozen=True)
class Equalized:
    """New scales for the tensors of a graph.

    ``moves`` has what each operator takes in. ``lost`` has, by the label of each linear operator
    that changes, how many bits of a common scale its channels lose on average, before and after:
    ``log2`` of the largest weight over the largest one of the channel, at most 8.
    """

    moves: Moves
    lost: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def equalize(
    view: View,
    readings: Sequence[Reading],
    unwilling: Collection[int] = (),
    strength: float = 1.0,
) -> Equalized:
    """The scales of a graph; ``unwilling`` are the operators whose weights have to stay.

    With a ``strength`` below 1 each scale is raised to it: ranges become less uneven, not equal.
    Exact up to one rounding of each weight: every scale is positive and finite, each law was asked
    about it, and each operator takes in ``W[o, i]·s_o/s_i`` and ``s_o·b_o``.
    """
    classes = classified(view, readings, frozenset(unwilling))
    scales = _Scales(classes)
    scales.settle()
    scales.of = scales.of**strength
    before = {index: layer.lost(classes.ones) for index, layer in classes.layers.items()}
    sides, relations = dict[int, Sides](), dict[int, Relation]()
    for index, layer in classes.layers.items():
        behind, ahead = layer.map(layer.outside, scales.of), layer.map(layer.inside, scales.of, -1)
        if not (behind.is_identity and ahead.is_identity):
            sides[index] = Sides(behind, ahead)
    for value, (axis, ids) in classes.along.items():
        map_ = AffineMap.of(scales.of[classes.roots(ids)], 0.0, axis)
        if not map_.is_identity:
            relations[value] = Relation((), (map_,))
    lost = {
        view.nodes[index].label: (before[index], classes.layers[index].lost(scales.of))
        for index in sides
    }
    return Equalized(Moves((), {}, sides, relations), lost)


class _Scales:
    """Finds a scale for each class: what is written and what is read of a channel get equal ranges.

    With ``r₁`` the largest magnitude of the weights that write a channel, over that of the whole
    weight, and ``r₂`` the same of those that read it, the scale becomes ``s·√(r₂/r₁)``; so both are
    ``√(r₁·r₂)`` (Nagel et al. 2019, equation 11). Channels that nothing writes or reads stay.
    """

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self.of = classes.ones
        self._groups = [(ids, list(_around(classes, ids))) for ids in _grouped(classes)]

    def settle(self) -> None:
        """Go over all groups until nothing moves, and give up those that gain nothing."""
        kept = list(self._groups)
        while kept:
            self._sweep(kept)
            worth = [self._gain(*one) >= _GAIN and not self._refused(one[1]) for one in kept]
            for (ids, _), good in zip(kept, worth, strict=True):
                if not good:
                    self.of[ids] = 1.0
            if all(worth):
                return
            kept = [one for one, good in zip(kept, worth, strict=True) if good]

    def _sweep(self, groups: Sequence[tuple[Ids, Sequence[Around]]]) -> None:
        for _ in range(_SWEEPS):
            moved = max(self._balance(*one) for one in groups)
            if moved < _STILL:
                break

    def _balance(self, ids: Ids, around: Sequence[Around]) -> float:
        """New scales for one group; how far they moved, in bits."""
        size = len(self.of)
        written, read = np.zeros(size), np.zeros(size)
        for layer, outside, inside in around:
            rows, columns = layer.magnitudes(self.of)
            most = float(rows.max(initial=0.0))
            if most > 0 and np.isfinite(most):
                if outside is not None:
                    np.maximum.at(written, outside, rows / most)
                if inside is not None:
                    np.maximum.at(read, inside, columns / most)
        own = ids[(written[ids] > 0) & (read[ids] > 0)]
        if not own.size:
            return 0.0
        new = np.clip(self.of[own] * np.sqrt(read[own] / written[own]), 1 / _MOST, _MOST)
        moved = float(np.abs(np.log2(new / self.of[own])).max())
        self.of[own] = new
        return moved

    def _gain(self, ids: Ids, around: Sequence[Around]) -> float:
        """How many bits the operators around a group lose less with its scales than without."""
        without = self.of.copy()
        without[ids] = 1.0
        return sum(layer.lost(without) - layer.lost(self.of) for layer, *_ in around)

    def _refused(self, around: Sequence[Around]) -> bool:
        """Whether a weight or a bias would not fit its type."""
        for layer, *_ in around:
            behind, ahead = layer.map(layer.outside, self.of), layer.map(layer.inside, self.of, -1)
            if layer.site.refuses(behind, ahead, layer.site.peaks) is not None:
                return True
        return False


def _around(classes: Classes, ids: Ids) -> Iterator[Around]:
    """The operators that write or read some classes."""
    for layer in classes.layers.values():
        sides = [
            side[1] if side is not None and bool(np.isin(side[1], ids).any()) else None
            for side in (layer.outside, layer.inside)
        ]
        if any(side is not None for side in sides):
            yield layer, sides[0], sides[1]


def _grouped(classes: Classes) -> Iterator[Ids]:
    """The classes that stand side by side in one tensor, group by group, in data order."""
    groups = Classes(list(range(len(classes.parents))))
    sides = [s for layer in classes.layers.values() for s in (layer.outside, layer.inside)]
    for side in sides:
        if side is not None:
            own = side[1][side[1] != FIXED]
            groups.join(own[:-1], own[1:])
    found: dict[int, set[int]] = {}
    for side in sides:
        if side is not None:
            for one in side[1][side[1] != FIXED].tolist():
                found.setdefault(groups.root(one), set()).add(one)
    for members in found.values():
        yield np.array(sorted(members), np.int64)
