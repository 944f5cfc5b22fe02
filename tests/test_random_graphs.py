"""Whole graphs drawn at random, in sizes that agree by accident more often than not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import bnfold

from .graphs import (
    assert_same,
    bn,
    const,
    conv,
    conv_transpose,
    feeds,
    fold,
    model,
    op,
    overridable,
)
from .searches import ANEW, ONCE

SIZES = st.sampled_from([1, 2, 3, 4])
KINDS = (
    "conv conv conv conv_transpose dense dense bn bn bn constant constant constant constant neg "
    "identity dropout relu sigmoid add mul concat pool flatten norm squeeze transpose"
).split()


class Drawing:
    """A graph in the making: nodes, weights, and the shape of every value."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.count = 0

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def values(self, shape: tuple[int, ...], scale: float = 1.0) -> Any:
        sign = self.rng.choice([-1.0, 1.0], shape)
        return (scale * self.rng.uniform(0.5, 1.5, shape) * sign).astype(np.float32)

    def weight(self, shape: tuple[int, ...], scale: float = 1.0, positive: bool = False) -> str:
        """The name of a constant: a new one, one already in use, or one behind a node."""
        real = [k for k, v in self.weights.items() if v.dtype == np.float32]
        same = [k for k in real if self.weights[k].shape == shape]
        same = [k for k in same if not positive or (self.weights[k] > 0).all()]
        if same and self.chance(4):
            return self.draw(st.sampled_from(same))
        name = self.name("w")
        value = self.values(shape, scale)
        self.weights[name] = np.abs(value) if positive else value
        how = self.draw(st.integers(0, 9))
        if how == 8:
            self.nodes.append(op("Identity", name, f"{name}_id"))
            return f"{name}_id"
        if how == 9:
            self.weights[f"{name}_shape"] = np.array(shape, np.int64)
            self.weights[name] = self.weights[name].reshape(-1)
            self.nodes.append(op("Reshape", f"{name} {name}_shape", f"{name}_re"))
            return f"{name}_re"
        return name

    def add(self, node: Any, shape: tuple[int, ...]) -> None:
        self.nodes.append(node)
        self.shapes[node.output[0]] = shape

    def pick(self, *ranks: int) -> str | None:
        """A value of one of the ranks, mostly the newest."""
        fitting = [k for k, s in self.shapes.items() if not ranks or len(s) in ranks]
        if not fitting:
            return None
        return fitting[-1] if not self.chance(4) else self.draw(st.sampled_from(fitting))

    # --- one method per kind of node; each does nothing where it does not apply ---

    def conv(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        n, c, *space = self.shapes[x]
        group = self.draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
        out = group * self.draw(SIZES)
        kernel = [self.draw(st.integers(1, min(3, s))) for s in space]
        pad = self.draw(st.integers(0, 1))
        w = self.weight((out, c // group, *kernel), 1 / np.sqrt(c // group * np.prod(kernel)))
        bias = self.draw(st.sampled_from(["", " _", "b"]))
        inputs = f"{x} {w}" + (f" {self.weight((out,))}" if bias == "b" else bias)
        new = [s + 2 * pad - k + 1 for s, k in zip(space, kernel)]
        y = self.name("conv")
        self.add(op("Conv", inputs, y, group=group, pads=[pad] * 2 * len(space)), (n, out, *new))

    def conv_transpose(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        n, c, *space = self.shapes[x]
        if max(space) > 6:
            return
        group = self.draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
        out = self.draw(SIZES)
        kernel = [self.draw(st.integers(1, 2)) for _ in space]
        stride = self.draw(st.integers(1, 2))
        w = self.weight((c, out, *kernel), 1 / np.sqrt(c // group))
        inputs = f"{x} {w}" + (f" {self.weight((out * group,))}" if self.chance(2) else "")
        new = [(s - 1) * stride + k for s, k in zip(space, kernel)]
        y = self.name("up")
        node = op("ConvTranspose", inputs, y, group=group, strides=[stride] * len(space))
        self.add(node, (n, out * group, *new))

    def dense(self) -> None:
        if (x := self.pick()) is None:
            return
        shape = self.shapes[x]
        out = self.draw(SIZES)
        if len(shape) == 2 and self.chance(2):
            rows, k = shape
            trans = self.draw(st.integers(0, 1))
            w = self.weight((out, k) if trans else (k, out), 1 / np.sqrt(k))
            c = self.draw(
                st.sampled_from([None, (), (1,), (out,), (1, out), (rows, 1), (rows, out)])
            )
            inputs = f"{x} {w}" + ("" if c is None else f" {self.weight(c)}")
            alpha, beta = (self.draw(st.sampled_from(v)) for v in ([1.0, 0.5], [1.0, -2.0, 0.0]))
            y = self.name("gemm")
            self.add(op("Gemm", inputs, y, transB=trans, alpha=alpha, beta=beta), (rows, out))
        elif self.chance(3) and len(shape) > 1:
            k = shape[-2]
            y = self.name("left")
            w = self.weight((out, k), 1 / np.sqrt(k))
            self.add(op("MatMul", f"{w} {x}", y), (*shape[:-2], out, shape[-1]))
        else:
            k = shape[-1]
            y = self.name("right")
            batch = shape[:-2] if self.chance(4) else ()
            w = self.weight((*batch, k, out), 1 / np.sqrt(k))
            self.add(op("MatMul", f"{x} {w}", y), (*shape[:-1], out))

    def bn(self) -> None:
        if (x := self.pick(2, 3, 4)) is None:
            return
        c = self.shapes[x][1]
        params = " ".join([*(self.weight((c,)) for _ in range(3)), self.weight((c,), 1, True)])
        eps = self.draw(st.sampled_from([1e-5, 0.1]))
        y = self.name("bn")
        self.add(op("BatchNormalization", f"{x} {params}", y, epsilon=eps), self.shapes[x])

    def constant(self) -> None:
        x = self.pick()
        assert x is not None
        shape = self.shapes[x]
        style = self.draw(st.integers(0, 5))
        if style == 0:
            k = (1,) * self.draw(st.integers(0, len(shape)))
        elif style <= 3 and len(shape) > 1:
            k = (shape[1],) + (1,) * (len(shape) - 2)
            k = (1, *k) if self.chance(2) else k
        else:
            k = shape[self.draw(st.integers(0, len(shape))) :]
            k = tuple(s if self.chance(2) else 1 for s in k)
            if k and self.chance(6):
                k = (self.draw(SIZES), *k[1:])
        try:
            result = np.broadcast_shapes(shape, k)
        except ValueError:
            return
        kind = self.draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
        w = self.weight(k)
        left = kind != "Div" and self.chance(2)
        y = self.name(kind.lower())
        self.add(op(kind, f"{w} {x}" if left else f"{x} {w}", y), result)

    def unary(self, kind: str) -> None:
        x = self.pick()
        assert x is not None
        self.add(op(kind, x, self.name(kind.lower())), self.shapes[x])

    def neg(self) -> None:
        self.unary("Neg")

    def identity(self) -> None:
        self.unary("Identity")

    def dropout(self) -> None:
        self.unary("Dropout")

    def relu(self) -> None:
        self.unary("Relu")

    def sigmoid(self) -> None:
        self.unary("Sigmoid")

    def pair(self) -> tuple[str, str] | None:
        a = self.pick()
        assert a is not None
        same = [k for k, s in self.shapes.items() if s == self.shapes[a]]
        return a, self.draw(st.sampled_from(same))

    def add_(self, kind: str) -> None:
        a, b = self.pair() or ("", "")
        self.add(op(kind, f"{a} {b}", self.name(kind.lower())), self.shapes[a])

    def concat(self) -> None:
        a, b = self.pair() or ("", "")
        shape = list(self.shapes[a])
        axis = self.draw(st.integers(0, len(shape) - 1))
        if shape[axis] > 3:
            return
        shape[axis] *= 2
        self.add(op("Concat", f"{a} {b}", self.name("concat"), axis=axis), tuple(shape))

    def pool(self) -> None:
        if (x := self.pick(4)) is None:
            return
        kind = self.draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool"]))
        self.add(op(kind, x, self.name("pool")), (*self.shapes[x][:2], 1, 1))

    def flatten(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        n, *rest = self.shapes[x]
        self.add(op("Flatten", x, self.name("flat")), (n, int(np.prod(rest))))

    def norm(self) -> None:
        if (x := self.pick(3, 4)) is None:
            return
        shape = self.shapes[x]
        if self.chance(2):
            c = shape[1]
            if np.prod(shape[2:]) < 2:
                return
            inputs = f"{x} {self.weight((c,))} {self.weight((c,))}"
            self.add(op("InstanceNormalization", inputs, self.name("inorm"), epsilon=0.1), shape)
        elif shape[-1] > 1:
            last = shape[-1:]
            inputs = f"{x} {self.weight(last)} {self.weight(last)}"
            self.add(op("LayerNormalization", inputs, self.name("lnorm"), epsilon=0.1), shape)

    def squeeze(self) -> None:
        if (x := self.pick(4)) is None or self.shapes[x][-1] != 1:
            return
        self.weights.setdefault("last", np.array([-1]))
        self.add(op("Squeeze", f"{x} last", self.name("squeeze")), self.shapes[x][:-1])

    def transpose(self) -> None:
        x = self.pick()
        assert x is not None
        perm = self.draw(st.permutations(range(len(self.shapes[x]))))
        shape = tuple(self.shapes[x][p] for p in perm)
        self.add(op("Transpose", x, self.name("perm"), perm=perm), shape)

    def step(self) -> None:
        kind = self.draw(st.sampled_from(KINDS))
        if kind in ("add", "mul"):
            self.add_(kind.title())
        else:
            getattr(self, kind)()


@st.composite
def drawn_models(draw: Any) -> Any:
    d = Drawing(draw)
    rank = draw(st.sampled_from([4, 4, 4, 3, 2]))
    d.shapes["x"] = tuple(draw(SIZES) for _ in range(rank))
    for _ in range(draw(st.integers(2, 25))):
        d.step()
    read = {name for node in d.nodes for name in node.input}
    outputs = [k for k in d.shapes if k not in read and k != "x"]
    inner = [k for k in d.shapes if k in read and k != "x"]
    if inner and d.chance(4):
        outputs.append(draw(st.sampled_from(inner)))
    if not outputs:
        d.add(op("Relu", "x", "y"), d.shapes["x"])
        outputs = ["y"]
    free = draw(st.integers(0, 3))
    declared = [f"d{i}" if i < free - 1 and i != 1 else s for i, s in enumerate(d.shapes["x"])]
    m = model(*d.nodes, x={"x": declared}, y=" ".join(outputs), weights=d.weights)
    replaceable = [k for k, v in d.weights.items() if v.dtype == np.float32]
    if replaceable and d.chance(3):
        overridable(m, draw(st.sampled_from(replaceable)))
    data = {"x": d.rng.normal(size=d.shapes["x"]).astype(np.float32)}
    return m, data


def holds(case: Any) -> None:
    m, data = case
    folded = fold(m, data)
    event(f"nodes gone: {len(m.graph.node) - len(folded.graph.node)}")
    given_too = {i.name: i for i in m.graph.input[1:]}
    if given_too:
        stored = {t.name: t for t in m.graph.initializer}
        again = dict(data)
        for name in given_too:
            again[name] = np.full(list(stored[name].dims), 0.75, np.float32)
        assert_same(m, folded, again)


def test_drawn_graphs():
    """And a search whose graphs never fold would prove nothing."""
    seen = []

    @settings(ONCE, max_examples=40)
    @given(drawn_models())
    def look(case):
        holds(case)
        seen.append(len(bnfold.plan(case[0]).folds))

    look()
    assert sum(1 for n in seen if n) >= len(seen) // 4


@pytest.mark.slow
@settings(ANEW, max_examples=4000)
@given(drawn_models())
def test_many_drawn_graphs(case):
    holds(case)


# --- chains: the part of the search where most folds happen ------------------------------------


@st.composite
def drawn_chains(draw: Any) -> Any:
    """One linear operator and a run of affine nodes behind it, all sizes equal."""
    size = draw(st.sampled_from([2, 3, 4]))
    seed = draw(st.integers(0, 2**16))
    from . import graphs

    graphs.reseed(seed)
    first = draw(st.sampled_from(["conv", "depthwise", "transpose", "bn", "none"]))
    w = (size, 1 if first == "depthwise" else size, 1, 1)
    pieces = {
        "conv": [conv("lin", "x", "v0", w, draw(st.booleans()))],
        "depthwise": [conv("lin", "x", "v0", w, draw(st.booleans()), group=size)],
        "transpose": [conv_transpose("lin", "x", "v0", w, draw(st.booleans()))],
        "bn": [bn("lin", "x", "v0", size)],
        "none": [op("Relu", "x", "v0")],
    }[first]
    for i in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["bn", "Mul", "Add", "Sub", "Div", "Neg", "Identity"]))
        here, there = f"v{i}", f"v{i + 1}"
        if kind == "bn":
            pieces.append(bn(f"bn{i}", here, there, size))
        elif kind in ("Neg", "Identity"):
            pieces.append(op(kind, here, there))
        else:
            style = draw(st.integers(0, 5))
            shape = [(), (1,), (size, 1, 1), (1, size, 1, 1), (size,), (size, 1)][style]
            left = kind != "Div" and draw(st.booleans())
            pieces.append(const(kind, here, there, graphs.rand(*shape), left=left))
    last = f"v{len(pieces) - 1}"
    outputs = last
    if len(pieces) > 2 and draw(st.integers(0, 3)) == 0:
        outputs += f" v{draw(st.integers(0, len(pieces) - 2))}"
    m = model(*pieces, x=(size,) * 4, y=outputs)
    return m, feeds(m, seed)


@settings(ONCE, max_examples=50)
@given(drawn_chains())
def test_drawn_chains(case):
    holds(case)


@pytest.mark.slow
@settings(ANEW, max_examples=4000)
@given(drawn_chains())
def test_many_drawn_chains(case):
    holds(case)
