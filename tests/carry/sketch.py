"""A graph in the making: what is drawn so far, and the choices that drawing makes."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from ..graphs import op

Array = Any
Shape = tuple[int, ...]

OPSETS = (9, 10, 12, 13, 17, 18, 21)
LARGEST = 512


class Sketch:
    """A graph in the making: nodes, weights, and the shape of every tensor."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.rng = np.random.default_rng(source.randrange(1 << 16))
        self.opset = source.choice(OPSETS)
        self.sizes = source.choice([(1, 2, 3, 4), (2, 3), (4,), (2, 4), (3,), (1, 4, 8)])
        self.tame = source.random() < 0.6  # mostly maps that many laws let pass
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}
        self.shapes: dict[str, Shape] = {}
        self.count = 0

    # --- choices ---

    def chance(self, one_in: int) -> bool:
        return self.source.randrange(one_in) == 0

    def among(self, *options: Any) -> Any:
        return self.source.choice(options)

    def size(self) -> int:
        return self.source.choice(self.sizes)

    def shape(self, rank: int) -> Shape:
        """Sizes of a tensor that is not too large to work on."""
        while True:
            found = tuple(self.size() for _ in range(rank))
            if math.prod(found) <= LARGEST // 2:
                return found
            self.sizes = (*self.sizes, 2)

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def pick(self, *ranks: int) -> str | None:
        """A tensor of one of the ranks, mostly the newest."""
        fitting = [k for k, s in self.shapes.items() if not ranks or len(s) in ranks]
        if not fitting:
            return None
        return self.source.choice(fitting[-6:]) if self.chance(5) else fitting[-1]

    # --- constants ---

    def stored(self, value: Array) -> str:
        name = self.name("w")
        self.weights[name] = value
        return name

    def integers(self, *values: int) -> str:
        return self.stored(np.array(values, np.int64))

    def weight(self, shape: Shape, fan: int) -> str:
        """A weight; now and then one that another operator has too."""
        same = [k for k, v in self.weights.items() if v.shape == shape and v.dtype == np.float32]
        if same and self.chance(12):
            return self.source.choice(same)
        sign = self.rng.choice([-1.0, 1.0], shape)
        value = self.rng.uniform(0.5, 1.5, shape) * sign / math.sqrt(max(fan, 1))
        return self.stored(value.astype(np.float32))

    def scales(self, shape: Shape) -> Array:
        value = self.rng.uniform(0.5, 1.5, shape)
        style = self.source.randrange(10)
        if style < 2:
            value = np.full(shape, self.rng.uniform(0.5, 1.5))
        elif style < (4 if self.tame else 7):
            value = value * self.rng.choice([-1.0, 1.0], shape)
        elif style == 9 and self.chance(3):
            value = value * self.rng.choice([0.0, 1.0], shape)
        return value.astype(np.float32)

    def shifts(self, shape: Shape) -> Array:
        if self.chance(2 if self.tame else 4):
            return np.zeros(shape, np.float32)
        value = self.rng.uniform(0.3, 1.0, shape) * self.rng.choice([-1.0, 1.0], shape)
        if self.chance(4):
            value = np.full(shape, self.rng.uniform(0.3, 1.0))
        return value.astype(np.float32)

    def add(self, kind: str, inputs: str, shape: Shape | None, **attrs: Any) -> str | None:
        """A node with one output; none where its output would be empty or too large."""
        if shape is None or 0 in shape or math.prod(shape) > LARGEST or len(shape) > 6:
            return None
        y = self.name(kind.lower())
        self.nodes.append(op(kind, inputs, y, **attrs))
        self.shapes[y] = shape
        return y

    def listed(self, kind: str, x: str, shape: Shape, axes: list[int], **attrs: Any) -> None:
        """An operator whose axes are an attribute or an input, by its opset."""
        since = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}.get(kind, 18)
        if self.opset < since:
            self.add(kind, x, shape, axes=axes, **attrs)
        else:
            self.add(kind, f"{x} {self.integers(*axes)}", shape, **attrs)

    def signed(self, axis: int, rank: int) -> int:
        """An axis, now and then counted from the end where the opset allows it."""
        return axis - rank if self.opset >= 13 and self.chance(3) else axis
