"""What a comparison would have noticed: errors are planted in the original, to see if they show.

An error of 1 % in one channel of a layer (10 % in float16) is what every check should see. It is
planted in several layers at once, a part of the graph at a time from its beginning to its end, for
an error in an early layer may hide behind a late one that is saturated, while one in the late layer
shows; or in every layer by itself, which is exact and takes one run of the model a layer. Of a part
it is known only that one of its layers shows. Where it does not, since a channel may be dead on an
input, half of the channels of each layer are wrong in a second run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnfold._judge.sensitivity import Sensitivity
from bnfold._judge.tolerance import Tolerance, over
from bnfold._judge.verdict import Planted
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array
from bnfold._run.perturbable_model import Layer

Sets: TypeAlias = Mapping[int, tuple[InputSet, Sequence[Any]]]
"""Input sets by number, each with what the original makes of it."""
_At: TypeAlias = tuple[int, int]
"""The numbers of an input set and of an output."""
PARTS = 3
"""In how many parts of the graph, at most, errors are planted unless every layer has its own."""
TRIES = 3
"""In how many channels of a layer by itself an error is planted before it counts as one that does
not show: a channel may be dead on an input."""
MARGIN = 2.0
"""How many times the tolerance an error has to move an output to be noticed: doubt about it would
have brought further draws, and they can widen the tolerance."""


class RestingFold(NamedTuple):
    """A fold that rests on the comparison alone: what it is called, and its layers by label."""

    into: str
    layers: Collection[str]


@dataclass
class _Found:
    """Layers that errors are planted in, the outputs that those reach, and how far they moved each
    at most.
    """

    layers: Sequence[Layer]
    reach: Collection[int] = ()
    steps: dict[_At, Array] = field(default_factory=dict)


class Power:
    """What planted errors showed.

    Attributes:
        least: per input set and output, the smallest movement by any part that reaches the output,
            in each piece of it that is judged apart; 0 where none does. An output that an earlier
            set has shown need not be in it.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        tolerance: Tolerance,
        touched: Collection[str],
        stand_ins: Mapping[int, int],
    ) -> None:
        """Divide the touched layers, all if none is, into parts, those of one node in the same, for
        of two branches data may take only one. ``stand_ins`` names for an output another in which
        its errors may show as well.
        """
        self._layers = sensitivity.model.layers(touched)
        nodes = [list(group) for _, group in groupby(self._layers, key=lambda layer: layer.label)]
        count = min(PARTS, len(nodes))
        cuts = [part * len(nodes) // count for part in range(count + 1)]
        self._parts = [list(chain(*nodes[start:end])) for start, end in pairwise(cuts)]
        self._sensitivity = sensitivity
        self._tolerance = tolerance
        self._stand_ins = stand_ins
        self._sets: Sets = {}
        self._found: list[_Found] = []
        self._resting: list[list[_Found]] = []
        self._said: list[bool] = []
        self._shown: set[int] = set()
        self.least: dict[_At, Array] = {}

    def plant(self, sets: Sets) -> None:
        """Plant errors, on one input set after the other, until every output has been seen to move.
        A set on which those left cannot show every part any more is left at once.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        self._sets, self.least = sets, {}
        self._found = [_Found(part, self._reach(part)) for part in self._parts]
        blind = {output for found in self._found for output in found.reach}
        order = list(range(len(self._found)))
        for index in sets:
            hidden = self._plant_on(index, order, blind)
            hiding = set(hidden.values())
            order.sort(key=lambda part: part not in hiding)  # as it may be on the next set
            blind &= hidden.keys()
            if not self._left(blind, ()):
                break
        self._shown = {output for found in self._found for output in found.reach} - blind
        for found in self._found:
            if not found.steps:  # every set was left before it
                self._moved(found, next(iter(sets)))
        self._said = self._noticed()

    def plant_each(self, sets: Sets) -> None:
        """Plant an error in every layer by itself, on one input set after the other until it shows.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        self._sets = sets
        self._found = [_Found([layer]) for layer in self._layers]
        self._each(self._found, sets)
        self._said = self._noticed()

    def plant_resting(self, sets: Sets, resting: Sequence[Collection[str]]) -> None:
        """Plant an error by itself in every layer of folds that rest on the comparison, given by
        their labels, fold by fold. Any weight counts here, be it of a folded layer or not.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        layers = self._sensitivity.model.layers(()) if resting else []
        for labels in resting:
            self._resting.append([_Found([each]) for each in layers if each.label in labels])
            self._each(self._resting[-1], sets)

    def unnoticed(self) -> list[int]:
        """The numbers of the folds that rest on the comparison, and of which an error would not be
        noticed in some layer, or have no layer that an error can be planted in.
        """
        return [
            number
            for number, layers in enumerate(self._resting)
            if not layers or not all(self._ratio(found) > MARGIN for found in layers)
        ]

    def _each(self, layers: Iterable[_Found], sets: Sets) -> None:
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
        """Whether the errors of every part that reaches an output show in it: on this input set or,
        where not all were planted on it, on another.
        """
        return self._shows(at, self.least[at]) if at in self.least else at[1] in self._shown

    def told(self) -> tuple[Planted, ...]:
        """Part by part, how far its error moved some output, in units of the tolerance."""
        return tuple(
            Planted(tuple(layer.label for layer in found.layers), ratio, ratio > MARGIN)
            for found in self._found
            for ratio in [self._ratio(found)]
        )

    def _plant_on(self, index: int, order: Iterable[int], blind: Collection[int]) -> dict[int, int]:
        """Plant errors in the parts on one input set; return the outputs that do not show one of
        them, with the number of that part.
        """
        outputs, hidden, seen = range(len(self._sets[index][1])), dict[int, int](), set[int]()
        self.least.update({(index, output): np.zeros(1) for output in outputs})
        for part in order:
            if not self._left(blind, hidden):
                for output in hidden.keys() ^ outputs:
                    del self.least[index, output]
                break
            found = self._found[part]
            moved = self._moved(found, index)
            for output in found.reach:
                at, step = (index, output), moved[output]
                if output not in seen or self._over(at, step) < self._over(at, self.least[at]):
                    self.least[at] = step
                seen.add(output)
                if not self._shows(at, step):
                    hidden[output] = part
        return hidden

    def _left(self, blind: Collection[int], hidden: Collection[int]) -> bool:
        """Whether some output that is blind so far, its stand-in too, may still show on a set on
        which some are hidden.
        """
        own = set(blind).difference(self._stand_ins.values())
        pairs = [{n, self._stand_ins.get(n, n)} for n in own]
        return any(pair.issubset(blind) and not pair.issubset(hidden) for pair in pairs)

    def _moved(self, found: _Found, index: int) -> Sequence[Array]:
        """How far errors in some layers move each output of a set at most: in one channel of each,
        and in half of them if not all outputs in reach, or their stand-ins, show that.
        """
        moved = self._run(found, index)
        showing = {n for n in found.reach if self._shows((index, n), moved[n])}
        if all(not showing.isdisjoint((n, self._stand_ins.get(n, n))) for n in found.reach):
            return moved
        return list(map(np.maximum, moved, self._run(found, index, half=True)))

    def _run(self, found: _Found, index: int, half: bool = False) -> list[Array]:
        """How far errors in some layers move each output of a set, which is kept too."""
        moved = self._sensitivity.plant(found.layers, index, *self._sets[index], half=half)
        for output, step in enumerate(moved):
            at = index, output
            found.steps[at] = np.maximum(step, found.steps.get(at, 0.0))
        return moved

    def _noticed(self) -> list[bool]:
        whole = [self.noticed(at) for at in self.least]
        return whole + [self._ratio(found) > MARGIN for found in self._found]

    def _ratio(self, found: _Found) -> float:
        return max((self._over(at, step) for at, step in found.steps.items()), default=0.0)

    def _shows(self, at: _At, step: Array) -> bool:
        return self._over(at, step) > MARGIN

    def _over(self, at: _At, step: Array) -> float:
        """A movement of an output in units of the tolerance."""
        index, output = at
        left = self._sets[index][1][output]
        if not isinstance(left, np.ndarray):
            return 0.0
        return float(over(step, self._tolerance.allowances(at, left)).max())
