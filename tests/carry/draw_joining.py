"""Operators with several inputs or outputs, drawn."""

from __future__ import annotations

import math

import numpy as np

from ..graphs import op
from .sketch import Shape, Sketch


class Joining(Sketch):
    """What joins branches or parts them, and a norm that is written out."""

    def concat(self) -> None:
        a = self.pick()
        assert a is not None
        shape = self.shapes[a]
        if not shape:
            return
        axis = self.among(1, 1, 0, len(shape) - 1)
        if axis >= len(shape):
            return

        def rest(s: Shape) -> Shape:
            return (*s[:axis], *s[axis + 1 :])

        fitting = [
            k for k, s in self.shapes.items() if len(s) == len(shape) and rest(s) == rest(shape)
        ]
        parts = [a, *(self.source.choice(fitting[-4:]) for _ in range(self.among(1, 1, 2)))]
        self.source.shuffle(parts)
        total = sum(self.shapes[k][axis] for k in parts)
        new = (*shape[:axis], total, *shape[axis + 1 :])
        self.add("Concat", " ".join(parts), new, axis=self.signed(axis, len(shape)))

    def split(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        axis = self.among(1, 1, 0, len(shape) - 1)
        if axis >= len(shape) or axis < 0 or shape[axis] < 2:
            return
        first = self.source.randrange(1, shape[axis])
        sizes = [first, shape[axis] - first]
        names = [self.name("split"), self.name("split")]
        if self.opset < 13:
            self.nodes.append(op("Split", x, " ".join(names), axis=axis, split=sizes))
        else:
            inputs = f"{x} {self.integers(*sizes)}"
            self.nodes.append(op("Split", inputs, " ".join(names), axis=axis))
        for name, size in zip(names, sizes):
            self.shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])

    def slice(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        axis = self.among(1, 1, 0, len(shape) - 1)
        if axis >= len(shape) or axis < 0:
            return
        size = shape[axis]
        if self.opset >= 10 and self.chance(3):
            start, end, step = self.among((-1, -size - 1, -1), (size, -100, -2), (0, 99, 2))
        else:
            start, end, step = self.source.randrange(size), self.among(size, 1 << 40, size - 1), 1
            start = self.among(start, start - size)
        count = len(range(size)[slice(start, None if end < -size else end, step)])
        new = (*shape[:axis], count, *shape[axis + 1 :])
        if not count:
            return
        if self.opset < 10:
            self.add("Slice", x, new, starts=[start], ends=[end], axes=[axis])
            return
        lists = [self.integers(v) for v in (start, end, self.signed(axis, len(shape)), step)]
        self.add("Slice", " ".join([x, *lists]), new)

    def gather(self) -> None:
        x = self.pick(2, 3, 4)
        if x is None:
            return
        shape = self.shapes[x]
        axis = self.among(1, 1, 0, len(shape) - 1)
        size = shape[axis]
        style = self.source.randrange(4)
        if style == 0 and len(shape) > 2:
            index = self.stored(np.array(self.source.randrange(size), np.int64))
            new = (*shape[:axis], *shape[axis + 1 :])
        else:
            places = list(range(size))
            self.source.shuffle(places)
            if style == 1:
                places = [self.source.randrange(size) for _ in range(self.size())]
            if self.chance(3):
                places = [p - size if self.chance(2) and self.opset >= 11 else p for p in places]
            index = self.integers(*places)
            new = (*shape[:axis], len(places), *shape[axis + 1 :])
        self.add("Gather", f"{x} {index}", new, axis=self.signed(axis, len(shape)))

    def two(self) -> tuple[str, str, Shape] | None:
        """Two tensors that broadcast together."""
        a = self.pick()
        assert a is not None
        found = []
        for name, shape in self.shapes.items():
            try:
                found.append((name, np.broadcast_shapes(shape, self.shapes[a])))
            except ValueError:
                continue
        same = [f for f in found if self.shapes[f[0]] == self.shapes[a]]
        b, shape = self.source.choice((found if self.chance(4) else same)[-5:])
        return (a, b, shape) if self.chance(2) else (b, a, shape)

    def add_(self) -> None:
        a, b, shape = self.two() or ("", "", ())
        self.add(self.among("Add", "Sub"), f"{a} {b}", shape)

    def sum(self) -> None:
        a, b, shape = self.two() or ("", "", ())
        same = [k for k, s in self.shapes.items() if s == shape]
        parts = [a, b, *([self.source.choice(same)] if same and self.chance(2) else [])]
        self.add("Sum", " ".join(parts), shape)

    def mul(self) -> None:
        a, b, shape = self.two() or ("", "", ())
        if self.chance(2) and (gate := self.add("Sigmoid", a, self.shapes[a])) is not None:
            a = gate
        self.add("Mul", f"{a} {b}", shape)

    def div(self) -> None:
        a, b, shape = self.two() or ("", "", ())
        below = self.add("Abs", b, self.shapes[b])
        if below is None:
            return
        half = self.stored(np.array(0.5, np.float32))
        safe = self.add("Add", f"{below} {half}", self.shapes[b])
        self.add("Div", f"{a} {safe}", shape)

    def product(self) -> None:
        """MatMul of two activations."""
        a = self.pick(2, 3, 4)
        if a is None:
            return
        shape = self.shapes[a]
        fitting = [
            k for k, s in self.shapes.items() if len(s) == len(shape) and s[:-2] == shape[:-2]
        ]
        b = self.source.choice(fitting[-4:])
        other = self.shapes[b]
        if shape[-1] != other[-2]:
            if shape[-1] != other[-1]:
                return
            order = [*range(len(other) - 2), len(other) - 1, len(other) - 2]
            turned = tuple(other[k] for k in order)
            made = self.add("Transpose", b, turned, perm=order)
            if made is None:
                return
            b, other = made, turned
        self.add("MatMul", f"{a} {b}", (*shape[:-1], other[-1]))

    def norm(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        c = self.shapes[x][1]
        if math.prod(self.shapes[x][2:]) < 2:
            return
        inputs = f"{x} {self.stored(self.scales((c,)))} {self.stored(self.shifts((c,)))}"
        self.add("InstanceNormalization", inputs, self.shapes[x], epsilon=0.1)
