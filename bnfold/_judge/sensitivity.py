"""Measures how far a model's outputs move when its weights do.

The tolerance of a comparison and its power both come from here; nothing is guessed from the
outputs' magnitude.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from bnfold._judge.difference import gaps, is_float, mismatch, step
from bnfold._judge.magnitudes import Grain
from bnfold._onnx.read.scopes import label
from bnfold._run.inputs import InputSet
from bnfold._run.nodes import Flow, subgraphs
from bnfold._run.noise import Array, Noise
from bnfold._run.session import EngineError
from bnfold._run.varied import Varied


class Layer(NamedTuple):
    """An operator with weights: what it is called, that of its weights which matters most, and the
    axis of its output channels.
    """

    label: str
    weight: str
    axis: int


class Sensitivity:
    """What was seen when the weights of the original were moved.

    Attributes:
        grains: per input set and output, the parts of it that are judged apart.
        rounding: the largest movement in each of those when every weight moves by at most one unit
            in the last place.
        jumps: whether rounding alone changes the output's shape, its NaN or its integers.
    """

    def __init__(self, original: Varied, seed: int) -> None:
        """Take the model, loaded or not.

        Raises:
            EngineError: none of its weights can be moved.
        """
        if not original.weights:
            raise EngineError("no weight of the main graph can be varied")
        self._original = original
        self._flow = Flow(original.graph)
        self._noise = Noise(original.weights, np.random.default_rng([seed, 2]))
        self.grains: dict[tuple[int, int], Grain] = {}
        self.rounding: dict[tuple[int, int], Array] = {}
        self.jumps: dict[tuple[int, int], bool] = {}

    def draw_rounding(self, sets: Mapping[int, tuple[InputSet, Sequence[Any]]]) -> None:
        """Run once with noisy weights on each input set, given with its original outputs.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        weights = self._noise.rounding()
        for index, (inputs, expected) in sets.items():
            moved = self._original.run(inputs.feeds, weights)
            for output, (left, right) in enumerate(zip(expected, moved, strict=True)):
                at = index, output
                moved_by = self._movement(at, left, right)
                if moved_by is None:
                    self.jumps[at] = True
                    continue
                self.rounding[at] = np.maximum(moved_by, self.rounding.get(at, 0.0))
                if not is_float(left) and moved_by.any():
                    self.jumps[at] = True

    def layers(self, touched: Collection[str]) -> list[Layer]:
        """The operators whose weights are among those named, all if none is, in the order of the
        graph. Of several weights of one operator that of the highest rank counts; a call of a local
        function and a node with bodies are as many operators as they read weights of two axes.
        """
        left = {name for name in touched if name in self._original.weights} or set(
            self._original.weights
        )
        found = []
        for node, names, _ in self._flow.rows:
            taken = [name for name in names if name in left]
            if taken:
                varied = [name for name in taken if self._original.weights[name].any()] or taken
                ranks = {name: self._original.weights[name].ndim for name in varied}
                chosen = [max(varied, key=lambda name: ranks[name])]
                if node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
                    chosen = [name for name in dict.fromkeys(varied) if ranks[name] > 1] or chosen
                for weight in chosen:
                    axis = _channel_axis(node, weight, self._original.weights[weight].shape)
                    found.append(Layer(label(node), weight, axis))
                    left.discard(weight)
        return found

    def reach(self, layers: Collection[Layer]) -> set[int]:
        """The numbers of the outputs that depend on the weights of any of some layers."""
        changed = self._flow.reached({layer.weight for layer in layers})
        outputs = self._original.graph.output
        return {number for number, value in enumerate(outputs) if value.name in changed}

    def plant(
        self,
        layers: Collection[Layer],
        index: int,
        inputs: InputSet,
        expected: Sequence[Any],
        half: bool = False,
    ) -> list[Array]:
        """How far each part of each output moves on an input set when one channel, or half of them,
        of each of some layers is wrong by 1 % (10 % in float16); infinite where outputs cannot be
        subtracted.

        Raises:
            EngineError: the model does not run with its weights fed.
        """
        wrong = self._noise.mistake({layer.weight: layer.axis for layer in layers}, half)
        moved = self._original.run(inputs.feeds, wrong)
        pairs = enumerate(zip(expected, moved, strict=True))
        found = (self._movement((index, n), left, right) for n, (left, right) in pairs)
        return [np.full(1, np.inf) if moved_by is None else moved_by for moved_by in found]

    def _movement(self, at: tuple[int, int], left: Any, right: Any) -> Array | None:
        """The largest difference in each part of an output, None where there is a mismatch."""
        grain = self.grains.get(at)
        if grain is None and isinstance(left, np.ndarray):
            grain = self.grains[at] = Grain.of(left)
        if grain is None or grain.groups is None:
            whole = step(left, right)
            return None if whole is None else np.array([whole])
        return None if mismatch(left, right) else grain.peaks(gaps(left, right))


def _channel_axis(node: onnx.NodeProto, weight: str, shape: tuple[int, ...]) -> int:
    """The axis of a weight that counts the channels of what an operator puts out; the longest one
    where that is not known.
    """
    given = {attribute.name: attribute.i for attribute in node.attribute}
    known = {
        "Conv": 0,
        "ConvTranspose": 1,
        "Gemm": 0 if given.get("transB") else 1,
        "MatMul": len(shape) - 1,
    }
    if len(shape) > 1 and node.op_type in known and list(node.input).index(weight) == 1:
        return known[node.op_type]
    return int(np.argmax(shape)) if shape else 0
