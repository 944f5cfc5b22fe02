"""Operators that move elements about, drawn."""

from __future__ import annotations

import math

import numpy as np

from ..graphs import op
from .sketch import Sketch


class Shaping(Sketch):
    """What changes the axes of maps."""

    def transpose(self, x: str | None = None) -> None:
        x = x or self.pick()
        assert x is not None
        order = list(range(len(self.shapes[x])))
        self.source.shuffle(order)
        self.add("Transpose", x, tuple(self.shapes[x][k] for k in order), perm=order)

    def squeeze(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        ones = [k for k, s in enumerate(shape) if s == 1]
        if len(shape) < 3 or not ones:
            return
        gone = self.source.sample(ones, self.source.randrange(1, len(ones) + 1))[: len(shape) - 2]
        new = tuple(s for k, s in enumerate(shape) if k not in gone)
        self.listed("Squeeze", x, new, [self.signed(k, len(shape)) for k in sorted(gone)])

    def unsqueeze(self) -> None:
        x = self.pick(1, 2, 3, 4)
        if x is None:
            return
        shape = list(self.shapes[x])
        axis = self.source.randrange(len(shape) + 1)
        shape.insert(axis, 1)
        self.listed("Unsqueeze", x, tuple(shape), [self.signed(axis, len(shape))])

    def flatten(self) -> None:
        if (x := self.pick(2, 3, 4, 5)) is None:
            return
        shape = self.shapes[x]
        axis = self.among(1, 1, 1, self.source.randrange(len(shape) + 1))
        self.add("Flatten", x, (math.prod(shape[:axis]), math.prod(shape[axis:])), axis=axis)

    def reshape(self) -> None:
        x = self.pick()
        assert x is not None
        shape = list(self.shapes[x])
        if len(shape) > 1 and self.chance(2):
            at = self.source.randrange(len(shape) - 1)
            new = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        elif shape:
            at = self.source.randrange(len(shape))
            parts = [d for d in (1, 2, 3, 4) if shape[at] % d == 0]
            part = self.source.choice(parts)
            new = [*shape[:at], part, shape[at] // part, *shape[at + 1 :]]
        else:
            return
        if self.chance(6):
            new = list(self.source.sample(shape, len(shape)))
        asked = list(new)
        for k, s in enumerate(new):
            if k < len(shape) and shape[k] == s and self.chance(3):
                asked[k] = 0
        if self.chance(2):
            asked[self.source.randrange(len(asked))] = -1
        target = self.computed(asked, new) if self.opset >= 13 and self.chance(3) else None
        self.add("Reshape", f"{x} {target or self.integers(*asked)}", tuple(new))

    def computed(self, asked: list[int], new: list[int]) -> str:
        """A target put together at run time, sizes of any tensor that fit by accident among it."""
        parts = []
        for entry, size in zip(asked, new):
            at = [(k, axis) for k, s in self.shapes.items() for axis in range(len(s))]
            fitting = [(k, axis) for k, axis in at if self.shapes[k][axis] == size]
            if entry <= 0 or not fitting or self.chance(2):
                parts.append(self.integers(entry))
                continue
            tensor, axis = self.source.choice(fitting)
            shape, one, part = self.name("shape"), self.name("size"), self.name("part")
            where = self.stored(np.array(axis, np.int64))
            self.nodes.append(op("Shape", tensor, shape))
            self.nodes.append(op("Gather", f"{shape} {where}", one))
            self.nodes.append(op("Unsqueeze", f"{one} {self.integers(0)}", part))
            parts.append(part)
        target = self.name("target")
        self.nodes.append(op("Concat", " ".join(parts), target, axis=0))
        return target

    def expand(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        new = tuple(self.size() if s == 1 else s for s in shape)
        if len(new) < 5 and self.chance(3):
            new = (self.size(), *new)
        self.add("Expand", f"{x} {self.integers(*new)}", new)

    def shuffle(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        n, c, *space = self.shapes[x]
        group = self.source.choice([g for g in (2, 3, 4) if c % g == 0] or [1])
        apart = (n, group, c // group, *space)
        turned = (n, c // group, group, *space)
        order = [0, 2, 1, *range(3, len(apart))]
        first = -1 if self.chance(2) else n
        y = self.add("Reshape", f"{x} {self.integers(first, *apart[1:])}", apart)
        if y is None or (z := self.add("Transpose", y, turned, perm=order)) is None:
            return
        self.add("Reshape", f"{z} {self.integers(first, c, *space)}", (n, c, *space))

    def depth_to_space(self) -> None:
        if (x := self.pick(4)) is None or self.shapes[x][1] % 4:
            return
        n, c, h, w = self.shapes[x]
        attrs = {"mode": self.among("DCR", "CRD")} if self.opset >= 11 else {}
        self.add("DepthToSpace", x, (n, c // 4, 2 * h, 2 * w), blocksize=2, **attrs)

    def space_to_depth(self) -> None:
        if (x := self.pick(4)) is None:
            return
        n, c, h, w = self.shapes[x]
        if h % 2 == 0 and w % 2 == 0:
            self.add("SpaceToDepth", x, (n, 4 * c, h // 2, w // 2), blocksize=2)
