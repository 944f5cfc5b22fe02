"""Measures what a comparison would notice: plants errors in the original, and sees if they show.

Every check should notice an error of 1 % in one channel of a layer (10 % in float16). There are two
ways to plant it. One plants it in all layers of a part of the graph at once, one part after the
other. Early layers and late layers are in different parts, for an error in an early layer may hide
behind a saturated late layer. This way says only that one layer of the part shows. The other way
plants it in every layer by itself. It is exact, and takes one run of the model for each layer.

A channel may be dead on an input. So where an error does not show, half of the channels of each
layer are wrong in a second run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnfold._judge.sensitivity import Sensitivity
from bnfold._judge.tolerance import Tolerance, ratios_to_allowed
from bnfold._judge.verdict import Planted
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array, mistake_in
from bnfold._run.perturbable_model import Layer

Sets: TypeAlias = Mapping[int, tuple[InputSet, Sequence[Any]]]
"""Input sets by number, each with the outputs of the original on it."""
_At: TypeAlias = tuple[int, int]
"""The numbers of an input set and of an output."""
PARTS = 3
"""The largest number of parts of the graph that errors are planted in."""
TRIES = 3
"""How many channels of a layer an error is planted in, one by one, before it counts as hidden.

A channel may be dead on an input."""
MARGIN = 2.0
"""How many times the tolerance an error has to move an output to be noticed.

A difference brings further draws, and these may widen the tolerance."""


class RestingFold(NamedTuple):
    """A fold that rests on the comparison alone: its name, and its layers by label."""

    into: str
    layers: Collection[str]


def best_shown(seen: Sequence[Sequence[Planted]]) -> tuple[Planted, ...]:
    """The planted errors of several comparisons, each as that one saw it where it showed most.

    The first comparison says which layers errors were planted in together.
    """
    if not seen:
        return ()
    others = [planted for found in seen[1:] for planted in found]
    return tuple(
        max([mine, *(p for p in others if p.layers == mine.layers)], key=lambda p: p.ratio)
        for mine in seen[0]
    )


@dataclass
class _PlantedPart:
    """Layers that errors are planted in together, and what the errors showed.

    ``reach`` are the numbers of the outputs that depend on the layers; ``steps`` says how far the
    errors moved each output at most.
    """

    layers: Sequence[Layer]
    reach: Collection[int] = ()
    steps: dict[_At, Array] = field(default_factory=dict)


class Power:
    """What planted errors showed.

    Attributes:
        least: for each input set and output, the smallest movement by any part that reaches the
            output. It has one number for each size group of the output; 0 where no part reaches
            it. An output may be missing if an earlier input set has shown every error.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        tolerance: Tolerance,
        touched: Collection[str],
        stand_ins: Mapping[int, int],
    ) -> None:
        """Divide the touched layers into parts; if none is touched, all layers.

        The layers of one node are in one part, for data may take only one of the node's branches.
        ``stand_ins`` gives for an output the number of another, where its errors may show too.
        """
        self._layers = sensitivity.model.layers(touched)
        nodes = [list(group) for _, group in groupby(self._layers, key=lambda layer: layer.label)]
        count = min(PARTS, len(nodes))
        cuts = [part * len(nodes) // count for part in range(count + 1)] if count else []
        self._parts = [list(chain(*nodes[start:end])) for start, end in pairwise(cuts)]
        self._sensitivity = sensitivity
        self._tolerance = tolerance
        self._stand_ins = stand_ins
        self._sets: Sets = {}
        self._found: list[_PlantedPart] = []
        self._resting: list[list[_PlantedPart]] = []
        self._said: list[bool] = []
        self._shown: set[int] = set()
        self.least: dict[_At, Array] = {}

    def plant(self, sets: Sets) -> None:
        """Plant errors, on one input set after the other, until every output has shown them all.

        An input set is left as soon as no output can show every part on it.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        self._sets, self.least = sets, {}
        self._found = [_PlantedPart(part, self._reach(part)) for part in self._parts]
        blind = {output for found in self._found for output in found.reach}
        order = list(range(len(self._found)))
        for index in sets:
            hidden = self._plant_on(index, order, blind)
            hiding = set(hidden.values())
            order.sort(key=lambda part: part not in hiding)  # as it may be on the next set
            blind &= hidden.keys()
            if not self._may_still_show(blind, ()):
                break
        self._shown = {output for found in self._found for output in found.reach} - blind
        for found in self._found:
            if not found.steps:  # every set was left before it
                self._movements(found, next(iter(sets)))
        self._said = self._noticed()

    def plant_each(self, sets: Sets) -> None:
        """Plant an error in every layer by itself, on one input set after the other until it shows.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        self._sets = sets
        self._found = [_PlantedPart([layer]) for layer in self._layers]
        self._plant_alone(self._found, sets)
        self._said = self._noticed()

    def plant_resting(self, sets: Sets, resting: Sequence[Collection[str]]) -> None:
        """Plant an error in each layer of some folds by itself.

        The folds rest on the comparison. ``resting`` holds the labels of their layers, fold by
        fold. All weights of a layer count here, not only the touched ones.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        layers = self._sensitivity.model.layers(()) if resting else []
        for labels in resting:
            self._resting.append([_PlantedPart([each]) for each in layers if each.label in labels])
            self._plant_alone(self._resting[-1], sets)

    def unnoticed(self) -> list[int]:
        """The numbers of the resting folds where the comparison may miss an error.

        It may miss one in some layer, or the fold has no layer that an error can be planted in.
        """
        return [
            number
            for number, layers in enumerate(self._resting)
            if not layers or not all(self._ratio(found) > MARGIN for found in layers)
        ]

    def _plant_alone(self, layers: Iterable[_PlantedPart], sets: Sets) -> None:
        for found in layers:
            for index in (index for index in sets for _ in range(TRIES)):
                self._run(found, index)
                if self._ratio(found) > MARGIN:
                    break

    def _reach(self, layers: Iterable[Layer]) -> set[int]:
        """The numbers of the outputs that depend on the weights of any of some layers."""
        return self._sensitivity.model.reached({layer.weight for layer in layers})

    def is_stale(self) -> bool:
        """Whether the tolerance has come to hide an error that showed when it was planted."""
        return self._noticed() != self._said

    def noticed(self, at: _At) -> bool:
        """Whether an output shows the errors of every part that reaches it.

        They may show on this input set or, if not all were planted on it, on another.
        """
        return self._shows(at, self.least[at]) if at in self.least else at[1] in self._shown

    def planted_errors(self) -> tuple[Planted, ...]:
        """For each part, how far its errors moved an output at most, in units of the tolerance."""
        weights = self._sensitivity.model.weights
        return tuple(
            Planted(
                tuple(layer.label for layer in found.layers),
                ratio,
                ratio > MARGIN,
                max(mistake_in(weights[layer.weight]) for layer in found.layers),
            )
            for found in self._found
            for ratio in [self._ratio(found)]
        )

    def _plant_on(self, index: int, order: Iterable[int], blind: Collection[int]) -> dict[int, int]:
        """Plant errors in the parts on one input set.

        Returns the numbers of the outputs that do not show the errors of some part, each with the
        number of that part.
        """
        outputs, hidden, seen = range(len(self._sets[index][1])), dict[int, int](), set[int]()
        self.least.update({(index, output): np.zeros(1) for output in outputs})
        for part in order:
            if not self._may_still_show(blind, hidden):
                for output in hidden.keys() ^ outputs:
                    del self.least[index, output]
                break
            found = self._found[part]
            moved = self._movements(found, index)
            for output in found.reach:
                at, step = (index, output), moved[output]
                if output not in seen or self._in_tolerances(at, step) < self._in_tolerances(
                    at, self.least[at]
                ):
                    self.least[at] = step
                seen.add(output)
                if not self._shows(at, step):
                    hidden[output] = part
        return hidden

    def _may_still_show(self, blind: Collection[int], hidden: Collection[int]) -> bool:
        """Whether an input set is still of use, when errors are hidden in some outputs on it.

        It is, if a blind output is not among the hidden ones, or its stand-in is not.
        """
        own = set(blind).difference(self._stand_ins.values())
        pairs = [{n, self._stand_ins.get(n, n)} for n in own]
        return any(pair.issubset(blind) and not pair.issubset(hidden) for pair in pairs)

    def _movements(self, found: _PlantedPart, index: int) -> Sequence[Array]:
        """How far errors in some layers move each output on an input set at most.

        One channel of each layer is wrong. If an output in reach does not show that, nor does its
        stand-in, half of the channels are wrong in a second run.
        """
        moved = self._run(found, index)
        showing = {n for n in found.reach if self._shows((index, n), moved[n])}
        if all(not showing.isdisjoint((n, self._stand_ins.get(n, n))) for n in found.reach):
            return moved
        return list(map(np.maximum, moved, self._run(found, index, half=True)))

    def _run(self, found: _PlantedPart, index: int, half: bool = False) -> list[Array]:
        """How far errors in some layers move each output on an input set; ``found`` keeps that."""
        moved = self._sensitivity.plant(found.layers, index, *self._sets[index], half=half)
        for output, step in enumerate(moved):
            at = index, output
            found.steps[at] = np.maximum(step, found.steps.get(at, 0.0))
        return moved

    def _noticed(self) -> list[bool]:
        whole = [self.noticed(at) for at in self.least]
        return whole + [self._ratio(found) > MARGIN for found in self._found]

    def _ratio(self, found: _PlantedPart) -> float:
        return max((self._in_tolerances(at, step) for at, step in found.steps.items()), default=0.0)

    def _shows(self, at: _At, step: Array) -> bool:
        return self._in_tolerances(at, step) > MARGIN

    def _in_tolerances(self, at: _At, step: Array) -> float:
        """A movement of an output in units of the tolerance."""
        index, output = at
        left = self._sets[index][1][output]
        if not isinstance(left, np.ndarray):
            return 0.0
        return float(ratios_to_allowed(step, self._tolerance.allowances(at, left)).max())
