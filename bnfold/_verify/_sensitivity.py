"""Measures how far a model's outputs move when its weights do.

The tolerance of a comparison and its power both come from here; nothing is guessed from the
outputs' magnitude.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold._verify._difference import distance, is_float, mismatch
from bnfold._verify._inputs import InputSet
from bnfold._verify._nodes import reads
from bnfold._verify._noise import Array, Noise, can_move
from bnfold._verify._session import EngineError, OnnxRuntime, Reference
from bnfold._verify._skeleton import feed_weights, reached

PARTS = 4
"""In how many parts of the graph, at most, errors are planted separately."""


class Sensitivity:
    """One session of the original whose weights are fed, and what was seen with it.

    Attributes:
        rounding: per input set and output, the largest movement when every weight moves by at
            most one unit in the last place.
        power: the movement when the touched weights in one part of the graph are wrong
            by 1 % (10 % in float16); the smallest over all parts that reach the output.
        jumps: whether rounding alone changes the output's shape, its NaN or its integers.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        engine: type[OnnxRuntime] | type[Reference],
        weights: Mapping[str, Array],
        seed: int,
    ) -> None:
        """Build the session; `model` is changed on the way.

        Raises:
            EngineError: there are no weights to feed, or the model does not load with them fed.
        """
        fed = feed_weights(model, {k: array for k, array in weights.items() if can_move(array)})
        if not fed:
            raise EngineError("no weight of the main graph can be varied")
        try:
            source = model.SerializeToString()
        except Exception as error:
            raise EngineError(f"what is left without weights is too large: {error}") from error
        self._engine = engine(source, folder)
        self._graph = model.graph
        self._fed = fed
        self._noise = Noise(fed, np.random.default_rng([seed, 2]))
        self.rounding: dict[tuple[int, int], float] = {}
        self.power: dict[tuple[int, int], float] = {}
        self.jumps: dict[tuple[int, int], bool] = {}

    def draw_rounding(self, sets: Mapping[int, tuple[InputSet, Sequence[Any]]]) -> None:
        """Run once with noisy weights on each input set, given with its original outputs.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        weights = self._noise.rounding()
        for index, (inputs, expected) in sets.items():
            moved = self._engine.run({**weights, **inputs.feeds})
            for output, (left, right) in enumerate(zip(expected, moved, strict=True)):
                at = (index, output)
                if mismatch(left, right):
                    self.jumps[at] = True
                    continue
                step = distance(left, right)
                self.rounding[at] = max(step, self.rounding.get(at, 0.0))
                if step and not is_float(left):
                    self.jumps[at] = True

    def draw_mistakes(
        self, sets: Mapping[int, tuple[InputSet, Sequence[Any]]], touched: Collection[str]
    ) -> None:
        """Make the touched weights wrong, all of them if none is named.

        They go wrong a part of the graph at a time, from its beginning to its end: an error in an
        early layer may hide behind a late one that is saturated, while one in the late layer shows.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        named = {name for name in touched if name in self._fed} or self._fed.keys()
        layers = _layers(self._graph, named)
        outputs = [value.name for value in self._graph.output]
        for index, output in itertools.product(sets, range(len(outputs))):
            self.power[index, output] = 0.0
        seen: set[tuple[int, int]] = set()
        count = min(PARTS, len(layers))
        for part in range(count):
            wrong = {
                name
                for layer in layers[part * len(layers) // count : (part + 1) * len(layers) // count]
                for name in layer
            }
            weights = self._noise.mistake(wrong)
            reach = reached(self._graph, wrong)
            for index, (inputs, expected) in sets.items():
                moved = self._engine.run({**weights, **inputs.feeds})
                for output, (left, right) in enumerate(zip(expected, moved, strict=True)):
                    if outputs[output] not in reach:
                        continue
                    at = (index, output)
                    step = np.inf if mismatch(left, right) else distance(left, right)
                    self.power[at] = min(step, self.power[at]) if at in seen else step
                    seen.add(at)


def _layers(graph: onnx.GraphProto, names: Collection[str]) -> list[set[str]]:
    """Group weights by the first node that reads them, in the order of the graph."""
    left = set(names)
    layers = []
    for node in graph.node:
        taken = left.intersection(reads(node))
        if taken:
            layers.append(taken)
            left -= taken
    return layers
