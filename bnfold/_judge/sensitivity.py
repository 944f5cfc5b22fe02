"""Measures how far a model's outputs move when its weights do.

The tolerance of a comparison and its power both come from here; nothing is guessed from the
outputs' magnitude.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from bnfold._judge.difference import gaps, is_float, mismatch, step
from bnfold._judge.size_groups import SizeGroups
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array, Noise, can_move
from bnfold._run.perturbable_model import Layer, PerturbableModel
from bnfold._run.session import EngineError


class Sensitivity:
    """How far the outputs of the original move when its weights do.

    Attributes:
        groups: for each input set and output, its size groups.
        model: the original.
        rounding: for each input set and output, the largest movement of each size group when every
            weight moves by at most one unit in the last place.
        jumps: for each input set and output, whether rounding alone changes its shape, its NaN or
            its integers.
    """

    def __init__(self, original: PerturbableModel, seed: int) -> None:
        """Take the model, loaded or not.

        Raises:
            EngineError: none of its weights can be moved.
        """
        if not original.weights:
            raise EngineError("no weight of the main graph can be varied")
        self.model = original
        self._noise = Noise(original.weights, np.random.default_rng([seed, 2]))
        self.groups: dict[tuple[int, int], SizeGroups] = {}
        self.rounding: dict[tuple[int, int], Array] = {}
        self.jumps: dict[tuple[int, int], bool] = {}

    def release(self) -> None:
        """Give back the memory of moved weights; it is taken again for the next draw."""
        self._noise.release()

    def draw_rounding(
        self, sets: Mapping[int, tuple[InputSet, Sequence[Any]]], still: bool = False
    ) -> None:
        """Run once with noisy weights on each input set. ``sets`` holds the usual outputs too.

        With ``still``, the weights stay, and what else is rounded is rounded.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        if not still:
            self.model.set_aside()
        weights = {} if still else self._noise.rounding()
        for index, (inputs, expected) in sets.items():
            moved = self.model.run(inputs.feeds, weights)
            for output, (left, right) in enumerate(zip(expected, moved, strict=True)):
                at = index, output
                moved_by = self._movement(at, left, right)
                if moved_by is None:
                    self.jumps[at] = True
                    continue
                self.rounding[at] = np.maximum(moved_by, self.rounding.get(at, 0.0))
                if not is_float(left) and moved_by.any():
                    self.jumps[at] = True

    def plant(
        self,
        layers: Collection[Layer],
        index: int,
        inputs: InputSet,
        expected: Sequence[Any],
        half: bool = False,
    ) -> list[Array]:
        """How far each size group of each output moves when some layers are wrong.

        One channel of each layer is wrong by 1 % (10 % in float16), or half of its channels are.
        The movement is infinite where outputs cannot be subtracted.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        wrong = self._noise.mistake({layer.weight: layer.axis for layer in layers}, half)
        moved = self.model.run(inputs.feeds, wrong)
        pairs = enumerate(zip(expected, moved, strict=True))
        found = (self._movement((index, n), left, right) for n, (left, right) in pairs)
        return [np.full(1, np.inf) if moved_by is None else moved_by for moved_by in found]

    def _movement(self, at: tuple[int, int], left: Any, right: Any) -> Array | None:
        """The largest difference in each size group of an output, None for a mismatch."""
        groups = self.groups.get(at)
        if groups is None and isinstance(left, np.ndarray):
            groups = self.groups[at] = SizeGroups.of(left)
        if groups is None or groups.of_slices is None:
            whole = step(left, right)
            return None if whole is None else np.array([whole])
        return None if mismatch(left, right) else groups.peaks(gaps(left, right))


class InputSensitivity:
    """How far the outputs of the original move when its inputs do, where its weights cannot.

    Attributes:
        moved: for each input set and output, the largest movement when every number of the inputs
            moves by at most one unit in the last place.
        jumps: see `Sensitivity`.
    """

    def __init__(self, original: PerturbableModel, seed: int) -> None:
        self._model = original
        self._seed = seed
        self._noises: dict[int, Noise] = {}
        self.moved: dict[tuple[int, int], float] = {}
        self.jumps: dict[tuple[int, int], bool] = {}

    def draw(self, sets: Mapping[int, tuple[InputSet, Sequence[Any]]]) -> None:
        """Run once with noisy inputs on each input set. ``sets`` holds the usual outputs too.

        Raises:
            EngineError: the model does not run on them.
        """
        for index, (inputs, expected) in sets.items():
            floats = {name: array for name, array in inputs.feeds.items() if can_move(array)}
            if index not in self._noises:
                rng = np.random.default_rng([self._seed, 3, index])
                self._noises[index] = Noise(floats, rng)
            found = self._model.run({**inputs.feeds, **self._noises[index].rounding()})
            for output, (left, right) in enumerate(zip(expected, found, strict=True)):
                at = index, output
                moved_by = step(left, right)
                if moved_by is None or (moved_by and not is_float(left)):
                    self.jumps[at] = True
                else:
                    self.moved[at] = max(moved_by, self.moved.get(at, 0.0))
