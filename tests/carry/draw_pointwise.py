"""Activations, pools and other operators that keep axes apart, drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .sketch import Sketch


class Pointwise(Sketch):
    """What maps cross along their own axis."""

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
