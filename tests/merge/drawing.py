"""Graphs of branches that are added up and of linear operators in series, drawn at random.

Most are ones that merge; a part is one step outside a law: another output size, an activation, a
reader from outside, an average that leaves padding out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from onnx import ModelProto, shape_inference

from ..graphs import Piece, bn, const, conv, feeds, model, op, rand, reseed

Drawn = tuple[ModelProto, dict[str, Any]]


class Drawing:
    """A graph in the making."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.pieces: list[Piece] = []
        self.outputs: list[str] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.count = 0
        reseed(draw(st.integers(0, 2**16)))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def add(self, piece: Piece) -> str:
        self.pieces.append(piece)
        node = piece[0] if isinstance(piece, tuple) else piece
        (output,) = node.output
        return output

    def unary(self, kind: str, x: str) -> str:
        return self.add(op(kind, x, self.name(kind.lower())))

    def tree(self, terms: list[str]) -> str:
        """Terms added up in any association, some of them subtracted."""
        while len(terms) > 1:
            count = 2 if self.chance(2) else self.draw(st.integers(2, min(4, len(terms))))
            taken = [terms.pop(self.draw(st.integers(0, len(terms) - 1))) for _ in range(count)]
            kind = self.one_of("Add", "Add", "Sub", "Sum") if count == 2 else "Sum"
            made = self.add(op(kind, " ".join(taken), self.name(kind.lower())))
            terms.insert(self.draw(st.integers(0, len(terms))), made)
        return terms[0]

    def tap(self, tensor: str) -> None:
        """Now and then somebody else reads a tensor."""
        if self.chance(12):
            self.outputs.append(tensor)
        if self.chance(16):
            self.outputs.append(self.unary("Sigmoid", tensor))

    def finished(self, last: str, x: tuple[int, ...], free: bool) -> Drawn:
        outputs = list(dict.fromkeys([last, *self.outputs]))
        self.pieces.append(op("Identity", outputs[0], "y"))
        outputs[0] = "y"
        declared: list[Any] = list(x)
        if free:
            declared[0] = "N"
            declared[2:] = [f"d{k}" for k in range(len(x) - 2)]
        shapes = {"x": declared, **self.inputs}
        made = model(*self.pieces, x=shapes, y=" ".join(outputs))
        fixed = model(*self.pieces, x={"x": x, **self.inputs}, y=" ".join(outputs))
        graph = shape_inference.infer_shapes(fixed, strict_mode=True).graph
        sizes = [v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.output)]
        assume(all(d.dim_value > 0 for dims in sizes for d in dims))
        data = feeds(made)
        data["x"] = np.random.default_rng(1).normal(size=x).astype(np.float32)
        return made, data


class Space(Drawing):
    """Convolutions, poolings, norms on channels × space."""

    def __init__(self, draw: Any) -> None:
        super().__init__(draw)
        self.rank = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def along(self, count: int) -> Any:
        return rand(count, *(1,) * self.rank)

    def affine(self, x: str, channels: int) -> str:
        kind = self.one_of("bn", "bn", "Mul", "Add", "Sub", "Neg", "Identity")
        y = self.name("m")
        if kind == "bn":
            return self.add(bn(self.name("bn"), x, y, channels))
        if kind in ("Neg", "Identity"):
            return self.add(op(kind, x, y))
        value = self.along(channels) if self.chance(2) else rand(1)[0]
        left = self.chance(3)
        return self.add(const(kind, x, y, value, left=left, name=self.name("k")))

    def window(self, stride: int, room: int) -> dict[str, Any]:
        """Attributes of a kernel with a stride, and with outputs of the size that room gives."""
        taps, steps, starts, ends = [], [], [], []
        for _ in range(self.rank):
            k = self.one_of(1, 1, 2, 3, 3, 4)
            d = self.one_of(1, 1, 1, 2, 3) if k > 1 else 1
            extent = (k - 1) * d + 1
            if extent + room < 0:
                k, d, extent = -room, 1, -room
            total = extent + room
            start = total // 2 if self.chance(2) else self.draw(st.integers(0, total))
            taps.append(k)
            steps.append(d)
            starts.append(start)
            ends.append(total - start)
        return {
            "kernel_shape": taps,
            "dilations": steps,
            "strides": [stride] * self.rank,
            "pads": [*starts, *ends],
        }

    def conv(self, x: str, inputs: int, outputs: int, window: dict[str, Any]) -> str:
        groups = [g for g in (1, 2, 3, inputs) if inputs % g == 0 and outputs % g == 0]
        group = self.draw(st.sampled_from(groups))
        shape = (outputs, inputs // group, *window["kernel_shape"])
        name = self.name("c")
        y = self.add(conv(name, x, f"{name}y", shape, self.chance(2), group=group, **window))
        self.tap(y)
        return y

    def branch(self, x: str, inputs: int, outputs: int, stride: int, room: int) -> str:
        """One summand: linear in x, or nearly so."""
        same = inputs == outputs and stride == 1 and room == -1
        kinds = ["conv", "conv", "conv", "row", "pool"] + (["plain"] * 2 if same else [])
        kind = self.draw(st.sampled_from(kinds))
        if kind == "plain":
            return self.affine(x, inputs) if self.chance(2) else x
        window = self.window(stride, room)
        if kind == "row":
            middle = self.one_of(1, 2, inputs, outputs)
            point = self.window(1, -1) if self.chance(3) else None
            pointwise = {"kernel_shape": [1] * self.rank}
            y = self.conv(x, inputs, middle, point or pointwise)
            if self.chance(3):
                y = self.affine(y, middle)
            y = self.conv(y, middle, outputs, window)
        elif kind == "pool" and inputs == outputs:
            del window["dilations"]
            window = self.window(stride, room)
            while max(window.pop("dilations")) > 1:
                window = self.window(stride, room)
            ends = zip(window["pads"], window["kernel_shape"] * 2)
            if any(pad >= k for pad, k in ends):
                return self.conv(x, inputs, outputs, window)
            counted = 0 if self.chance(4) else 1
            y = self.add(
                op("AveragePool", x, self.name("pool"), count_include_pad=counted, **window)
            )
        else:
            if self.chance(5):
                x = self.affine(x, inputs)
            y = self.conv(x, inputs, outputs, window)
        for _ in range(self.one_of(0, 1, 1, 2)):
            y = self.affine(y, outputs)
            self.tap(y)
        return self.unary(self.one_of("Relu", "Sigmoid"), y) if self.chance(10) else y

    def block(self, x: str, inputs: int) -> tuple[str, int]:
        outputs = inputs if self.chance(2) else self.one_of(1, 2, 3, 4)
        stride = self.one_of(1, 1, 1, 2)
        room = self.one_of(-1, -1, -1, -2, -3, 0)
        terms = [
            self.branch(x, inputs, outputs, stride, room) for _ in range(self.one_of(1, 2, 3, 4, 5))
        ]
        if self.chance(6):
            narrow = self.conv(x, inputs, 1, self.window(stride, room))
            terms.append(narrow)
        if self.chance(5):
            free = self.name("z")
            self.inputs[free] = (1, self.one_of(1, outputs), *(1,) * self.rank)
            terms.append(free)
        y = self.tree(terms)
        self.tap(y)
        for _ in range(self.one_of(0, 0, 1)):
            y = self.affine(y, outputs)
        return (y if self.chance(3) else self.unary("Relu", y)), outputs


class Rows(Drawing):
    """Matrix products on the last axis, low-rank updates among them."""

    def __init__(self, draw: Any) -> None:
        super().__init__(draw)
        self.rank = draw(st.sampled_from([2, 2, 3]))

    def affine(self, x: str, width: int) -> str:
        kind, y = self.one_of("Mul", "Add", "Sub", "Neg"), self.name("m")
        if kind == "Neg":
            return self.add(op(kind, x, y))
        value = rand(width) if self.chance(2) else rand(1)[0]
        return self.add(const(kind, x, y, value, left=self.chance(3), name=self.name("k")))

    def product(self, x: str, inputs: int, outputs: int) -> str:
        name = self.name("w")
        if self.rank > 2 or self.chance(2):
            weights = {name: rand(inputs, outputs) / np.float32(np.sqrt(inputs))}
            y = self.add((op("MatMul", f"{x} {name}", f"{name}y", name=f"{name}n"), weights))
        else:
            turned = int(self.chance(2))
            shape = (outputs, inputs) if turned else (inputs, outputs)
            weights = {name: rand(*shape), f"{name}c": rand(*self.one_of((outputs,), (1,), ()))}
            attributes = {"alpha": 0.5, "beta": -2.0} if self.chance(3) else {}
            more = f" {name}c" if self.chance(2) else ""
            node = op(
                "Gemm",
                f"{x} {name}{more}",
                f"{name}y",
                name=f"{name}n",
                transB=turned,
                **attributes,
            )
            y = self.add((node, weights))
        self.tap(y)
        return y

    def branch(self, x: str, inputs: int, outputs: int) -> str:
        if inputs == outputs and self.chance(3):
            return self.affine(x, inputs) if self.chance(2) else x
        if self.chance(3):
            middle = self.one_of(1, 2, 5)
            y = self.product(x, inputs, middle)
            if self.chance(3):
                y = self.affine(y, middle)
            y = self.product(y, middle, outputs)
        else:
            y = self.product(x, inputs, outputs)
        for _ in range(self.one_of(0, 1, 2)):
            y = self.affine(y, outputs)
            self.tap(y)
        return self.unary("Tanh", y) if self.chance(10) else y

    def block(self, x: str, inputs: int) -> tuple[str, int]:
        outputs = inputs if self.chance(2) else self.one_of(1, 2, 3, 4)
        terms = [self.branch(x, inputs, outputs) for _ in range(self.one_of(1, 2, 3, 4))]
        if self.chance(6):
            terms.append(self.product(x, inputs, 1))
        if self.chance(5):
            free = self.name("z")
            self.inputs[free] = (1,) * (self.rank - 1) + (self.one_of(1, outputs),)
            terms.append(free)
        y = self.tree(terms)
        self.tap(y)
        return (y if self.chance(3) else self.unary("Relu", y)), outputs


@st.composite
def convolutions(draw: Any) -> Drawn:
    d = Space(draw)
    channels = draw(st.sampled_from([1, 2, 3, 4, 6]))
    sizes = tuple(draw(st.integers(5, 9)) for _ in range(d.rank))
    x = (draw(st.sampled_from([1, 2, channels])), channels, *sizes)
    y, width = ("x", channels) if d.chance(2) else (d.unary("Relu", "x"), channels)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        y, width = d.block(y, width)
    return d.finished(y, x, d.chance(2))


@st.composite
def products(draw: Any) -> Drawn:
    d = Rows(draw)
    width = draw(st.sampled_from([1, 2, 3, 4]))
    x = (*(draw(st.integers(1, 4)) for _ in range(d.rank - 1)), width)
    y = "x" if d.chance(2) else d.unary("Relu", "x")
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        y, width = d.block(y, width)
    return d.finished(y, x, False)
