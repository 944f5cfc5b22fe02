"""Whole graphs drawn at random: every operator that maps cross or that takes them in.

Sizes agree by accident in half of the graphs; scales are positive, mixed, uniform or partly zero,
shifts are there or not; batch and spatial sizes may be symbols.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from onnx import ModelProto

from ..graphs import model, op

Array = Any
Shape = tuple[int, ...]

OPSETS = (9, 10, 12, 13, 17, 18, 21)
LARGEST = 512
LINEAR = "conv conv conv conv_transpose gemm gemm matmul matmul".split()
AFFINE = "bn bn bn constant constant constant constant neg".split()
CROSSED = (
    "identity dropout transpose transpose squeeze unsqueeze flatten reshape reshape expand shuffle "
    "depth_to_space space_to_depth relu relu leaky prelu abs clip clip max_pool max_pool "
    "average_pool average_pool global_pool reduce reduce resize resize pad pad concat concat split "
    "slice gather add add sum mul div product"
).split()
OTHER = "sigmoid tanh norm".split()


class Drawing:
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

    # --- linear operators ---

    def conv(self) -> None:
        if (x := self.pick(3, 4, 5)) is None:
            return
        n, c, *space = self.shapes[x]
        group = self.source.choice([g for g in (1, 1, 2, c) if c % g == 0])
        out = group * self.size()
        kernel = [min(self.among(1, 1, 2, 3), s) for s in space]
        strides = [self.among(1, 1, 2) for _ in space]
        auto = self.among("NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
        attrs: dict[str, Any] = {"group": group, "strides": strides}
        if self.chance(2):
            attrs["kernel_shape"] = kernel
        if auto == "NOTSET":
            pads = [self.among(0, 0, 1) for _ in (*space, *space)]
            if self.chance(2):
                pads = [0] * len(pads)
            attrs["pads"] = pads
            new = [
                (s + pads[i] + pads[i + len(space)] - kernel[i]) // strides[i] + 1
                for i, s in enumerate(space)
            ]
        else:
            attrs["auto_pad"] = auto
            same = auto != "VALID"
            new = [
                -(-s // t) if same else (s - k) // t + 1 for s, k, t in zip(space, kernel, strides)
            ]
        w = self.weight((out, c // group, *kernel), c // group * math.prod(kernel))
        bias = self.among("", " _", f" {self.stored(self.shifts((out,)))}")
        self.add("Conv", f"{x} {w}{bias}", (n, out, *new), **attrs)

    def conv_transpose(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        n, c, *space = self.shapes[x]
        group = self.source.choice([g for g in (1, 2, c) if c % g == 0])
        out = self.size()
        single = self.chance(2)
        kernel = [1 if single else self.among(1, 2) for _ in space]
        stride = 1 if single else self.among(1, 2)
        w = self.weight((c, out, *kernel), c // group)
        bias = f" {self.stored(self.shifts((out * group,)))}" if self.chance(2) else ""
        new = [(s - 1) * stride + k for s, k in zip(space, kernel)]
        strides = [stride] * len(space)
        shape = (n, out * group, *new)
        self.add("ConvTranspose", f"{x} {w}{bias}", shape, group=group, strides=strides)

    def gemm(self) -> None:
        if (x := self.pick(2)) is None:
            return
        left = self.chance(4)
        turned, other = self.source.randrange(2), self.source.randrange(2)
        data = self.shapes[x][::-1] if turned else self.shapes[x]
        out = self.size()
        k = data[0] if left else data[1]
        own = (out, k) if left else (k, out)
        w = self.weight(own[::-1] if other else own, k)
        shape = (out, data[1]) if left else (data[0], out)
        c = self.among(None, None, (), (1,), (shape[1],), (1, shape[1]), (shape[0], 1), shape)
        inputs = (f"{w} {x}" if left else f"{x} {w}") + (
            "" if c is None else f" {self.stored(self.shifts(c))}"
        )
        trans = {"transA": other if left else turned, "transB": turned if left else other}
        alpha, beta = self.among(1.0, 1.0, 0.5, -2.0), self.among(1.0, 1.0, -2.0, 0.0)
        if self.opset < 11 and c is None:
            inputs += f" {self.stored(np.zeros((), np.float32))}"
        self.add("Gemm", inputs, shape, alpha=alpha, beta=beta, **trans)

    def matmul(self) -> None:
        if (x := self.pick()) is None:
            return
        shape, out = self.shapes[x], self.size()
        if not shape:
            return
        if self.chance(3) and len(shape) > 1:
            k = shape[-2]
            batch, out = self.batch(shape, out)
            w = self.weight((*batch, out, k), k)
            self.add("MatMul", f"{w} {x}", (*shape[:-2], out, shape[-1]))
        elif self.chance(8) and len(shape) > 1:
            w = self.weight((shape[-1],), shape[-1])
            self.add("MatMul", f"{x} {w}", shape[:-1])
        else:
            batch, out = self.batch(shape, out)
            w = self.weight((*batch, shape[-1], out), shape[-1])
            self.add("MatMul", f"{x} {w}", (*shape[:-1], out))

    def batch(self, shape: Shape, out: int) -> tuple[Shape, int]:
        """Batch axes of a weight, and its outputs: not both, for maps along two axes that a weight
        has would take two folds.
        """
        if len(shape) < 3 or not self.chance(5):
            return (), out
        own = self.source.randrange(len(shape) - 2)
        return tuple(s if k == own else 1 for k, s in enumerate(shape[:-2])), 1

    # --- affine operators ---

    def bn(self) -> None:
        if (x := self.pick(2, 3, 4, 5)) is None:
            return
        c = self.shapes[x][1]
        shift = self.shifts((c,))
        mean = np.zeros_like(shift) if not shift.any() else self.shifts((c,))
        var = self.rng.uniform(0.5, 2.0, (c,)).astype(np.float32)
        if self.chance(5):
            var[:] = var[0]
        params = " ".join(self.stored(v) for v in (self.scales((c,)), shift, mean, var))
        self.add("BatchNormalization", f"{x} {params}", self.shapes[x], epsilon=0.01)

    def constant(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        axis = self.among(None, 1, 1, 1, 0, len(shape) - 1)
        k: Shape = (1,) * self.among(0, 0, len(shape))
        if axis is not None and 0 <= axis < len(shape):
            k = (shape[axis], *(1,) * (len(shape) - 1 - axis))
            k = (1,) * (len(shape) - len(k)) + k if self.chance(2) else k
        kind = self.among("Mul", "Mul", "Add", "Sub", "Div")
        value = self.scales(k) if kind in ("Mul", "Div") else self.shifts(k)
        if kind == "Div":
            value = np.where(value == 0, np.float32(1), value)
        left = kind != "Div" and self.chance(2)
        w = self.stored(value)
        self.add(kind, f"{w} {x}" if left else f"{x} {w}", shape)

    # --- element by element ---

    def unary(self, kind: str, **attrs: Any) -> None:
        x = self.pick()
        assert x is not None
        self.add(kind, x, self.shapes[x], **attrs)

    def neg(self) -> None:
        self.unary("Neg")

    def identity(self) -> None:
        self.unary("Identity")

    def dropout(self) -> None:
        self.unary("Dropout")

    def relu(self) -> None:
        self.unary("Relu")

    def leaky(self) -> None:
        self.unary("LeakyRelu", alpha=self.among(0.1, 0.3, -0.5))

    def abs(self) -> None:
        self.unary("Abs")

    def sigmoid(self) -> None:
        self.unary("Sigmoid")

    def tanh(self) -> None:
        self.unary("Tanh")

    def prelu(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        slopes = [(1,) * self.among(1, max(len(shape), 1))]
        if len(shape) > 1:
            slopes.append((shape[1], *(1,) * (len(shape) - 2)))
        slope = self.stored(self.rng.uniform(-0.5, 0.9, self.among(*slopes)).astype(np.float32))
        if len(self.weights[slope].shape) <= len(shape):
            self.add("PRelu", f"{x} {slope}", shape)

    def clip(self) -> None:
        x = self.pick()
        assert x is not None
        low, high = self.among(0.0, -1.0, None, -0.3), self.among(6.0, 1.0, None, 0.7)
        if self.opset < 11:
            bounds = {"min": low, "max": high}
            attrs = {k: v for k, v in bounds.items() if v is not None}
            self.add("Clip", x, self.shapes[x], **attrs)
            return
        names = ["_" if v is None else self.stored(np.array(v, np.float32)) for v in (low, high)]
        self.add("Clip", " ".join([x, *names]), self.shapes[x])

    # --- windows and reductions ---

    def pool(self, kind: str) -> None:
        if (x := self.pick(3, 4, 5)) is None:
            return
        n, c, *space = self.shapes[x]
        rank = len(space)
        kernel = [min(self.among(1, 2, 2, 3), s) for s in space]
        strides = [min(self.among(1, 2, 2), k) for k in kernel]
        attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
        auto = self.among("NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
        ceil = self.opset >= 10 and auto == "NOTSET" and self.chance(3)
        pads = [0] * 2 * rank
        if auto == "NOTSET":
            if self.chance(2):
                pads = [self.source.randrange(k) if k > 1 else 0 for k in (*kernel, *kernel)]
                attrs["pads"] = pads
        else:
            attrs["auto_pad"] = auto
        if kind == "AveragePool":
            attrs["count_include_pad"] = self.source.randrange(2)
        if ceil:
            attrs["ceil_mode"] = 1
        new = []
        for i, s in enumerate(space):
            room = s + pads[i] + pads[i + rank] - kernel[i]
            out = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
            if auto.startswith("SAME"):
                out = -(-s // strides[i])
            if ceil and (out - 1) * strides[i] >= s + pads[i]:
                return
            new.append(out)
        self.add(kind, x, (n, c, *new), **attrs)

    def max_pool(self) -> None:
        self.pool("MaxPool")

    def average_pool(self) -> None:
        self.pool("AveragePool")

    def global_pool(self) -> None:
        if (x := self.pick(3, 4, 5)) is not None:
            n, c, *space = self.shapes[x]
            kind = self.among("GlobalAveragePool", "GlobalMaxPool")
            self.add(kind, x, (n, c, *(1 for _ in space)))

    def reduce(self) -> None:
        x = self.pick(2, 3, 4, 5)
        if x is None:
            return
        shape = self.shapes[x]
        kind = self.among("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")
        keep = self.source.randrange(2)
        axes = sorted(self.source.sample(range(len(shape)), self.among(1, 1, 2)))
        if self.chance(2):
            axes = list(range(2, len(shape))) or axes
        new = [1 if k in axes else s for k, s in enumerate(shape) if keep or k not in axes]
        if len(new) < 2:
            return
        named = [self.signed(k, len(shape)) for k in axes]
        self.listed(kind, x, tuple(new), named, keepdims=keep)

    def resize(self) -> None:
        if (x := self.pick(4)) is None:
            return
        n, c, h, w = self.shapes[x]
        scales = [1.0, 1.0, self.among(1.0, 2.0, 1.04), self.among(1.0, 2.0, 1.5, 1.04)]
        new = (n, c, math.floor(h * scales[2]), math.floor(w * scales[3]))
        if new == self.shapes[x] and max(scales) > 1:
            return  # onnxruntime copies where no size changes, whatever the scales
        factors = self.stored(np.array(scales, np.float32))
        if self.opset < 11:
            kind = "Upsample" if self.opset < 10 else "Resize"
            self.add(kind, f"{x} {factors}", new, mode=self.among("nearest", "linear"))
            return
        mode = self.among("nearest", "linear", "linear", "cubic")
        place = self.among("half_pixel", "asymmetric", "pytorch_half_pixel")
        attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place}
        if mode == "nearest":
            attrs |= {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        roi = self.stored(np.zeros(0, np.float32))
        if self.chance(3) and self.opset >= 13:
            self.add("Resize", f"{x} {roi} _ {self.integers(*new)}", new, **attrs)
        else:
            self.add("Resize", f"{x} {roi} {factors}", new, **attrs)

    def pad(self) -> None:
        x = self.pick(2, 3, 4, 5)
        if x is None:
            return
        shape = self.shapes[x]
        rank = len(shape)
        mode = self.among("constant", "constant", "reflect", "edge")
        pads = [0] * 2 * rank
        for axis in self.source.sample(range(rank), self.among(1, 2)):
            if mode == "reflect" and shape[axis] < 2:
                continue
            if axis < 2 and self.chance(2):
                continue
            pads[axis], pads[axis + rank] = self.among((1, 1), (0, 1), (1, 0))
        new = tuple(s + pads[k] + pads[k + rank] for k, s in enumerate(shape))
        value = self.among(0.0, 0.0, 0.5)
        if self.opset < 11:
            self.add("Pad", x, new, pads=pads, mode=mode, value=value)
            return
        inputs = f"{x} {self.integers(*pads)}"
        if mode == "constant" and self.chance(2):
            inputs += f" {self.stored(np.array(value, np.float32))}"
        self.add("Pad", inputs, new, mode=mode)

    # --- where elements lie ---

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

    # --- parts and branches ---

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

    # --- the whole ---

    def step(self) -> None:
        kinds = self.source.choices((LINEAR, AFFINE, CROSSED, OTHER), (22, 30, 45, 3))[0]
        kind = self.source.choice(kinds)
        getattr(self, {"add": "add_"}.get(kind, kind))()


def drawn(source: random.Random, least: int = 2, most: int = 16) -> tuple[ModelProto, Any]:
    """A model of about so many operators, and data for it."""
    d = Drawing(source)
    given: dict[str, Shape] = {}
    rank = d.among(4, 4, 4, 4, 3, 3, 2, 5)
    given["x"] = d.shape(rank)
    if d.chance(4):
        given["z"] = given["x"] if d.chance(2) else d.shape(rank)
    d.shapes |= given
    wanted = source.randint(least, most)
    for _ in range(3 * wanted):
        if len(d.nodes) >= wanted:
            break
        d.step()
    read = {name for node in d.nodes for name in node.input}
    outputs = [k for k in d.shapes if k not in read and k not in given]
    inner = [k for k in d.shapes if k in read and k not in given]
    if inner and d.chance(8):
        outputs.append(source.choice(inner))
    if not outputs:
        last = d.add("Relu", "x", given["x"])
        assert last is not None
        outputs = [last]
    free = d.among((), (), (0,), (2, 3, 4), (0, 2, 3, 4), (1,), (0, 1, 2, 3, 4))
    if d.opset == 10 and any(node.op_type == "Slice" for node in d.nodes):
        free = ()  # its inference says that a part of a symbol is as long, and runtimes believe it
    declared = {
        k: [f"{k}{axis}" if axis in free else s for axis, s in enumerate(shape)]
        for k, shape in given.items()
    }
    made = model(*d.nodes, x=declared, y=" ".join(outputs), weights=d.weights, opset=d.opset)
    del made.graph.initializer[:]
    for name, value in d.weights.items():
        if name in read:
            made.graph.initializer.append(_tensor(name, value))
    if free:  # What ONNX infers of a Slice or a Resize is not always so.
        for out in made.graph.output:
            for dim in out.type.tensor_type.shape.dim:
                dim.Clear()
    data = {k: d.rng.normal(size=shape).astype(np.float32) for k, shape in given.items()}
    return made, data


def _tensor(name: str, value: Array) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)
