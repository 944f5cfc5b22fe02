"""What a comparison would have noticed: errors are planted in the original, to see if they show.

An error of 1 % in one channel of a layer (10 % in float16) is what every check should see. It is
planted in several layers at once, a part of the graph at a time from its beginning to its end, for
an error in an early layer may hide behind a late one that is saturated, while one in the late layer
shows; or in every layer by itself, which is exact and takes one run of the model a layer. Of a part
it is known only that one of its layers shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnfold._verify._inputs import InputSet
from bnfold._verify._noise import Array
from bnfold._verify._sensitivity import Layer, Sensitivity
from bnfold._verify._tolerance import Tolerance
from bnfold._verify._verdict import Planted

Sets: TypeAlias = Mapping[int, tuple[InputSet, Sequence[Any]]]
"""Input sets by number, each with what the original makes of it."""
PARTS = 3
"""In how many parts of the graph, at most, errors are planted unless every layer has its own."""
TRIES = 3
"""How often an error is planted anew before it counts as one that does not show: a channel may be
dead on an input. In a part of the graph the last try is half of the channels of each layer."""
MARGIN = 2.0
"""How many times the tolerance an error has to move an output to be noticed: doubt about it would
have brought further draws, and they can widen the tolerance."""


class Power:
    """What planted errors showed.

    Attributes:
        least: per input set and output, the smallest movement by any part that reaches the output;
            0 where none does.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        tolerance: Tolerance,
        touched: Collection[str],
        stand_ins: Mapping[int, int],
    ) -> None:
        """Divide the touched layers, all if none is, into parts. ``stand_ins`` names for an output
        another in which its errors may show as well.
        """
        self._layers = sensitivity.layers(touched)
        count = min(PARTS, len(self._layers))
        self._parts = [
            self._layers[
                part * len(self._layers) // count : (part + 1) * len(self._layers) // count
            ]
            for part in range(count)
        ]
        self._sensitivity = sensitivity
        self._tolerance = tolerance
        self._stand_ins = stand_ins
        self._told: list[Planted] = []
        self.least: dict[tuple[int, int], float] = {}

    def plant(self, sets: Sets) -> None:
        """Plant errors, on one input set after the other, until every output has been seen to move.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        reach = [self._sensitivity.reach(part) for part in self._parts]
        ratios = [0.0] * len(self._parts)
        blind = {output for reached in reach for output, is_so in enumerate(reached) if is_so}
        for index, (inputs, expected) in sets.items():
            self.least.update({(index, output): 0.0 for output in range(len(expected))})
            seen: set[int] = set()
            for part, layers in enumerate(self._parts):
                wanted = [output for output, is_so in enumerate(reach[part]) if is_so]
                moved = self._moved(layers, index, inputs, expected, wanted)
                for output in wanted:
                    at, step = (index, output), moved[output]
                    self.least[at] = min(step, self.least[at]) if output in seen else step
                    seen.add(output)
                    ratios[part] = max(ratios[part], self._ratio(at, expected, step))
            blind = {
                output
                for output in blind
                if not self._shows((index, output), expected, self.least[index, output])
            }
            own = blind.difference(self._stand_ins.values())
            if not any(self._stand_ins.get(output, output) in blind for output in own):
                break
        self._told = [_planted(*pair) for pair in zip(self._parts, ratios, strict=True)]

    def plant_each(self, sets: Sets) -> None:
        """Plant an error in every layer by itself, on one input set after the other until it shows.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        self._told = []
        for layer in self._layers:
            ratio = 0.0
            for index, (inputs, expected) in sets.items():
                for _ in range(TRIES):
                    moved = self._sensitivity.plant([layer], inputs, expected)
                    found = (self._ratio((index, n), expected, m) for n, m in enumerate(moved))
                    ratio = max(ratio, *found)
                    if ratio > MARGIN:
                        break
                if ratio > MARGIN:
                    break
            self._told.append(_planted([layer], ratio))

    def noticed(self, at: tuple[int, int], expected: Array) -> bool:
        """Whether the errors of every part that reaches an output show in it."""
        return self.least[at] > MARGIN * self._tolerance.allowed(at, expected)

    def _moved(
        self,
        layers: Collection[Layer],
        index: int,
        inputs: InputSet,
        expected: Sequence[Any],
        wanted: Collection[int],
    ) -> list[float]:
        """How far errors in some layers move each output, at most, with other channels in each try
        until all that are wanted show it.
        """
        most = [0.0] * len(expected)
        for number in range(TRIES):
            half = number == TRIES - 1
            moved = self._sensitivity.plant(layers, inputs, expected, half=half)
            most = [max(pair) for pair in zip(most, moved, strict=True)]
            showing = {n for n in wanted if self._shows((index, n), expected, most[n])}
            if all(not showing.isdisjoint((n, self._stand_ins.get(n, n))) for n in wanted):
                break
        return most

    def _shows(self, at: tuple[int, int], expected: Sequence[Any], step: float) -> bool:
        return self._ratio(at, expected, step) > MARGIN

    def told(self) -> tuple[Planted, ...]:
        """Part by part, how far its error moved some output, in units of the tolerance."""
        return tuple(self._told)

    def _ratio(self, at: tuple[int, int], expected: Sequence[Any], step: float) -> float:
        left = expected[at[1]]
        if not isinstance(left, np.ndarray):
            return 0.0
        allowed = self._tolerance.allowed(at, left)
        return step / allowed if allowed else (np.inf if step else 0.0)


def _planted(layers: Collection[Layer], ratio: float) -> Planted:
    return Planted(tuple(layer.label for layer in layers), float(ratio), ratio > MARGIN)
