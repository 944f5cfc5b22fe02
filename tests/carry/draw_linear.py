"""Linear operators, norms and constants, drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .sketch import Shape, Sketch


class Linear(Sketch):
    """What takes maps in, and the maps."""

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
