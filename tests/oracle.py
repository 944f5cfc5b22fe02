"""What an ONNX model computes in exact arithmetic, and how far rounding may move it.

``run(model, feeds)`` evaluates a model in float64, whatever its stored types are, and carries three
bounds with every value, so that a comparison needs no tolerance pulled out of the air:

- ``back``   magnitude of the terms a value is summed from, from the last linear operator on
- ``fwd``    the same, counted from the last linear operator's output
- ``w``      how far the value may move when every weight is rounded once more (exact arithmetic)
- ``e``      how far it may be from exact when every operation rounds as well

``u`` is the unit roundoff of the model's narrowest floating-point type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)
from onnx.reference import ReferenceEvaluator

Array = Any

ROUNDOFF = {
    TensorProto.FLOAT: 2.0**-24,
    TensorProto.DOUBLE: 2.0**-53,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
}


@dataclass(frozen=True)
class Value:
    """A tensor: exact values ``v``; magnitudes and error bounds when it is floating-point."""

    v: Array
    back: Array = None
    fwd: Array = None
    w: Array = None
    e: Array = None
    n: int = 0

    @property
    def real(self) -> bool:
        return self.back is not None


def leaf(v: Array) -> Value:
    """A value known without error: an input, a stored constant, an integer result."""
    v = np.asarray(v)
    if v.dtype.kind == "f" or v.dtype.name in ("bfloat16", "float16"):
        v = v.astype(np.float64)
        zero = np.zeros_like(v)
        return Value(v, np.abs(v), np.abs(v), zero, zero)
    return Value(v)


def fresh(v: Array, w: Array, e: Array, n: int = 4) -> Value:
    """The result of an operator through which no affine map composes."""
    mag = np.abs(v)
    return Value(v, mag, mag, np.broadcast_to(w, v.shape), np.broadcast_to(e, v.shape), n)


# --- linear operators --------------------------------------------------------------------------


def _windows(size: int, kernel: int, stride: int, dilation: int) -> int:
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def conv(x: Array, w: Array, a: dict[str, Any]) -> Array:
    kernel = w.shape[2:]
    nd, group = len(kernel), a.get("group", 1)
    strides = a.get("strides", [1] * nd)
    dil = a.get("dilations", [1] * nd)
    pads = list(a.get("pads", [0] * 2 * nd))
    auto = a.get("auto_pad", b"NOTSET").decode()
    for i in range(nd):
        if auto.startswith("SAME"):
            out = -(-x.shape[2 + i] // strides[i])
            total = max((out - 1) * strides[i] + dil[i] * (kernel[i] - 1) + 1 - x.shape[2 + i], 0)
            small, large = total // 2, total - total // 2
            pads[i], pads[i + nd] = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            pads[i] = pads[i + nd] = 0
    x = np.pad(x, [(0, 0), (0, 0)] + [(pads[i], pads[i + nd]) for i in range(nd)])
    out_shape = [_windows(x.shape[2 + i], kernel[i], strides[i], dil[i]) for i in range(nd)]
    xg = x.reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])
    wg = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], group, wg.shape[1], *out_shape))
    for k in np.ndindex(*kernel):
        window = tuple(
            slice(k[i] * dil[i], k[i] * dil[i] + (out_shape[i] - 1) * strides[i] + 1, strides[i])
            for i in range(nd)
        )
        tap = wg[(slice(None),) * 3 + k]
        y += np.einsum("ngc...,gmc->ngm...", xg[(slice(None),) * 3 + window], tap)
    return y.reshape(x.shape[0], len(w), *out_shape)


def conv_transpose(x: Array, w: Array, a: dict[str, Any]) -> Array:
    kernel = w.shape[2:]
    nd, group = len(kernel), a.get("group", 1)
    strides = a.get("strides", [1] * nd)
    dil = a.get("dilations", [1] * nd)
    extra = a.get("output_padding", [0] * nd)
    pads = list(a.get("pads", [0] * 2 * nd))
    auto = a.get("auto_pad", b"NOTSET").decode()
    span = [dil[i] * (kernel[i] - 1) + 1 for i in range(nd)]
    want = a.get("output_shape")
    for i in range(nd):
        if auto == "VALID":
            pads[i] = pads[i + nd] = 0
        elif want or auto.startswith("SAME"):
            size = want[i] if want else x.shape[2 + i] * strides[i]
            total = strides[i] * (x.shape[2 + i] - 1) + extra[i] + span[i] - size
            small, large = total // 2, total - total // 2
            pads[i], pads[i + nd] = (small, large) if auto == "SAME_UPPER" else (large, small)
    full = [(x.shape[2 + i] - 1) * strides[i] + span[i] + extra[i] for i in range(nd)]
    xg = x.reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])
    wg = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], group, wg.shape[2], *full))
    for k in np.ndindex(*kernel):
        window = tuple(
            slice(
                k[i] * dil[i],
                k[i] * dil[i] + (x.shape[2 + i] - 1) * strides[i] + 1,
                strides[i],
            )
            for i in range(nd)
        )
        tap = wg[(slice(None),) * 3 + k]
        y[(slice(None),) * 3 + window] += np.einsum("ngc...,gcm->ngm...", xg, tap)
    crop = tuple(slice(pads[i], full[i] - pads[i + nd]) for i in range(nd))
    y = y.reshape(x.shape[0], group * w.shape[1], *full)
    return y[(slice(None),) * 2 + crop]


def bilinear(
    f: Callable[[Array, Array], Array],
    x: Value,
    w: Value,
    terms: int,
    u: float,
    extra: Sequence[tuple[float, Value]] = (),
    scale: float = 1.0,
) -> Value:
    """``scale·f(x, w) + Σ k·c`` with its bounds."""
    v, back = scale * f(x.v, w.v), abs(scale) * f(x.fwd, w.fwd)
    bounds = []
    for field in ("w", "e"):
        ex, ew = getattr(x, field), getattr(w, field)
        bounds.append(abs(scale) * (f(ex, np.abs(w.v)) + f(np.abs(x.v), ew) + f(ex, ew)))
    for k, c in extra:
        v, back = v + k * c.v, back + abs(k) * c.fwd
        bounds = [bounds[0] + abs(k) * c.w, bounds[1] + abs(k) * c.e]
    n = terms + 4
    return Value(v, back, np.abs(v), bounds[0] + 2 * u * back, bounds[1] + n * u * back, n)


# --- elementwise and affine --------------------------------------------------------------------


def _grow(v: Array, back: Array, fwd: Array, w: Array, e: Array, n: int, u: float) -> Value:
    back, fwd, w, e = (np.broadcast_to(part, v.shape) for part in (back, fwd, w, e))
    return Value(v, back, fwd, w + 2 * u * back, e + (n + 4) * u * back, n + 4)


def add(a: Value, b: Value, sign: int, u: float) -> Value:
    n = max(a.n, b.n)
    v = a.v + sign * b.v
    return _grow(v, a.back + b.back, a.fwd + b.fwd, a.w + b.w, a.e + b.e, n, u)


def mul(a: Value, b: Value, u: float) -> Value:
    def err(x: Array, y: Array) -> Array:
        return x * np.abs(b.v) + np.abs(a.v) * y + x * y

    n = max(a.n, b.n)
    v, back, fwd = a.v * b.v, a.back * b.back, a.fwd * b.fwd
    return _grow(v, back, fwd, err(a.w, b.w), err(a.e, b.e), n, u)


def div(a: Value, b: Value, u: float) -> Value:
    size = np.abs(b.v)

    def err(x: Array, y: Array) -> Array:
        return x / size + np.abs(a.v) * y / (size * np.maximum(size - y, size / 2))

    n = max(a.n, b.n)
    v, back, fwd = a.v / b.v, a.back / size, a.fwd / size
    return _grow(v, back, fwd, err(a.w, b.w), err(a.e, b.e), n, u)


def batchnorm(node: NodeProto, x: list[Value], a: dict[str, Any], opset: int, u: float) -> Value:
    gamma, beta, mean, var = x[1:5]
    training = (opset < 7 and not a.get("is_test", 0)) or a.get("training_mode", 0)
    per_element = opset < 9 and not a.get("spatial", 1)
    if training:
        over = tuple(i for i in range(x[0].v.ndim) if i != 1)
        mean, var = leaf(x[0].v.mean(over)), leaf(x[0].v.var(over))
    shape = (1, *gamma.v.shape) if per_element else (1, -1) + (1,) * (x[0].v.ndim - 2)
    gamma, beta, mean, var = (
        Value(*(part.reshape(shape) for part in (p.v, p.back, p.fwd, p.w, p.e)))
        for p in (gamma, beta, mean, var)
    )
    root = np.sqrt(var.v + a.get("epsilon", 1e-5))
    s = gamma.v / root
    size = np.abs(s)

    def err(ex: Array, field: str) -> Array:
        eg, eb, em, ev = (getattr(p, field) for p in (gamma, beta, mean, var))
        es = eg / root + size * ev / root**2
        return size * (ex + em) + es * np.abs(x[0].v - mean.v) + eb

    mags = [size * (m + np.abs(mean.v)) + np.abs(beta.v) for m in (x[0].back, x[0].fwd)]
    v = s * (x[0].v - mean.v) + beta.v
    return _grow(v, *mags, err(x[0].w, "w"), err(x[0].e, "e"), x[0].n + 4, u)


def normalize(x: Value, axes: tuple[int, ...], eps: float, g: Value, b: Value, u: float) -> Value:
    """γ·(x − mean)/std + β over ``axes``; g and b already broadcast. First-order error, doubled."""
    mean = x.v.mean(axes, keepdims=True)
    root = np.sqrt(x.v.var(axes, keepdims=True) + eps)
    hat = (x.v - mean) / root

    def err(e: Array) -> Array:
        spread = e.mean(axes, keepdims=True) + np.abs(hat) * np.sqrt(
            (e**2).mean(axes, keepdims=True)
        )
        return 2 * np.abs(g.v) * (e + spread) / root

    n = int(np.prod([x.v.shape[i] for i in axes])) + 8
    back = np.abs(g.v) * (np.abs(x.v) + np.abs(mean)) / root + np.abs(b.v)
    v = g.v * hat + b.v
    w = err(x.w) + g.w * np.abs(hat) + b.w + 2 * u * back
    e = err(x.e) + g.e * np.abs(hat) + b.e + n * u * back
    return Value(v, back, np.abs(v), w, e, n)


# --- everything else: the reference implementation, one node at a time -------------------------

MOVERS = (
    "Reshape Unsqueeze Squeeze Transpose Flatten Expand Concat Slice Gather Split Tile Identity "
    "MaxPool GlobalMaxPool ReduceMax Pad ConstantOfShape DepthToSpace Where"
).split()
AVERAGES = "AveragePool GlobalAveragePool ReduceMean ReduceSum".split()
LIPSCHITZ = {"Relu": 1.0, "Abs": 1.0, "Tanh": 1.0, "Sigmoid": 0.25, "Clip": 1.0, "LeakyRelu": 1.0}


@functools.lru_cache(4096)
def _single(node: bytes, opset: int, count: int) -> ReferenceEvaluator:
    proto = NodeProto.FromString(node)
    names = [f"in{i}" if name else "" for i, name in enumerate(proto.input)]
    del proto.input[:]
    proto.input.extend(names)
    graph = helper.make_graph(
        [proto],
        "one",
        [helper.make_empty_tensor_value_info(n) for n in names if n],
        [helper.make_empty_tensor_value_info(n) for n in proto.output if n],
    )
    return ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    )


def reference(node: NodeProto, inputs: list[Array], opset: int) -> list[Array]:
    session = _single(node.SerializeToString(), opset, len(inputs))
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if node.input[i]}
    return [np.asarray(y) for y in session.run(None, feeds)]


def moved(node: NodeProto, x: list[Value | None], opset: int) -> list[Value]:
    """Apply a data-moving operator to the values and to every bound alike."""
    n = max((p.n for p in x if p), default=0)

    def apply(field: str) -> list[Array]:
        def pick(p: Value | None) -> Array:
            return None if p is None else getattr(p, field) if p.real else p.v

        return reference(node, [pick(p) for p in x], opset)

    values = apply("v")
    if not any(p is not None and p.real for p in x):
        return [leaf(v) for v in values]
    bounds = [apply(field) for field in ("back", "fwd", "w", "e")]
    return [Value(v, *(b[i] for b in bounds), n) for i, v in enumerate(values)]


def _attributes(node: NodeProto, bound: dict[str, AttributeProto]) -> dict[str, Any]:
    out = {}
    for attr in node.attribute:
        if attr.ref_attr_name:
            if attr.ref_attr_name not in bound:
                continue
            attr_value = helper.get_attribute_value(bound[attr.ref_attr_name])
        else:
            attr_value = helper.get_attribute_value(attr)
        out[attr.name] = attr_value
    return out


def _legacy_broadcast(a: dict[str, Any], x: list[Value], opset: int) -> list[Value]:
    """Below opset 7 the second operand is aligned at ``axis`` when ``broadcast`` is set."""
    if opset >= 7 or not a.get("broadcast") or "axis" not in a:
        return x
    left, right = x
    shape = right.v.shape + (1,) * (left.v.ndim - a["axis"] - right.v.ndim)
    fields = (right.v, right.back, right.fwd, right.w, right.e)
    return [left, Value(*(f.reshape(shape) for f in fields))]


def _cast(x: Value, to: int, u: float) -> Value:
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if to in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return x if x.real else leaf(x.v.astype(np.float64))
    if to in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        v = x.v.astype(dtype).astype(np.float64)
        if not x.real:
            return leaf(v)
        slack = np.where(x.w > 0, 2 * u * np.abs(v), 0)
        return fresh(v, x.w + slack, x.e + slack)
    return leaf(x.v.astype(dtype))


class _Run:
    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        kinds = {t.data_type for t in _tensors(model)} | {
            i.type.tensor_type.elem_type for i in model.graph.input
        }
        self.u = max((ROUNDOFF[k] for k in kinds if k in ROUNDOFF), default=2.0**-24)

    def graph(self, graph: GraphProto, env: dict[str, Value], opset: int) -> list[Value]:
        env = dict(env)
        for t in graph.initializer:
            env.setdefault(t.name, leaf(numpy_helper.to_array(t)))
        for s in graph.sparse_initializer:
            env[s.values.name] = leaf(_dense(s))
        for node in graph.node:
            self.step(node, env, opset, {})
        return [env[o.name] for o in graph.output]

    def body(self, graph: GraphProto, args: Iterable[Value], env: dict[str, Value], opset: int):
        shadowed = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        outer = {k: v for k, v in env.items() if k not in shadowed}
        return self.graph(graph, outer | dict(zip((i.name for i in graph.input), args)), opset)

    def step(
        self, node: NodeProto, env: dict[str, Value], opset: int, bound: dict[str, AttributeProto]
    ) -> None:
        x = [env[name] if name else None for name in node.input]
        key = (node.domain, node.op_type, node.overload)
        if key in self.functions:
            results = self.call(self.functions[key], node, x, bound)
        else:
            results = self.op(node, x, env, opset, _attributes(node, bound))
        for name, value in zip(node.output, results):
            if name:
                env[name] = value

    def call(self, function, node, x, bound) -> list[Value]:
        attrs = {p.name: p for p in function.attribute_proto}
        for attr in node.attribute:
            source = bound.get(attr.ref_attr_name) if attr.ref_attr_name else attr
            if source is not None:
                attrs[attr.name] = source
        env = dict(zip(function.input, x))
        opset = next((o.version for o in function.opset_import if o.domain == ""), 0)
        for inner in function.node:
            self.step(inner, env, opset, attrs)
        return [env[name] for name in function.output]

    def op(self, node, x, env, opset, a) -> list[Value]:
        u, kind = self.u, node.op_type
        if kind in ("Conv", "ConvTranspose"):
            f = conv if kind == "Conv" else conv_transpose
            w = x[1]
            terms = w.v.size // w.v.shape[0] if kind == "Conv" else w.v.size // w.v.shape[1]
            bias = []
            if len(x) > 2 and x[2] is not None:
                shape = (1, -1) + (1,) * (w.v.ndim - 2)
                b = x[2]
                fields = (b.v, b.back, b.fwd, b.w, b.e)
                bias = [(1.0, Value(*(part.reshape(shape) for part in fields)))]
            return [bilinear(lambda p, q: f(p, q, a), x[0], w, terms, u, bias)]
        if kind == "Gemm":
            ta, tb = a.get("transA", 0), a.get("transB", 0)

            def product(p: Array, q: Array) -> Array:
                return (p.T if ta else p) @ (q.T if tb else q)

            c = [(a.get("beta", 1.0), x[2])] if len(x) > 2 and x[2] is not None else []
            return [bilinear(product, x[0], x[1], max(x[1].v.shape), u, c, a.get("alpha", 1.0))]
        if kind == "MatMul" and x[0].real:
            return [bilinear(np.matmul, x[0], x[1], x[0].v.shape[-1], u)]
        if kind == "BatchNormalization":
            return [batchnorm(node, x, a, opset, u)]
        if kind == "InstanceNormalization":
            shape = (1, -1) + (1,) * (x[0].v.ndim - 2)
            g, b = (self.shaped(p, shape) for p in x[1:3])
            axes = tuple(range(2, x[0].v.ndim))
            return [normalize(x[0], axes, a.get("epsilon", 1e-5), g, b, u)]
        if kind == "LayerNormalization":
            start = a.get("axis", -1) % x[0].v.ndim
            b = x[2] if len(x) > 2 and x[2] is not None else leaf(np.zeros(()))
            axes = tuple(range(start, x[0].v.ndim))
            return [normalize(x[0], axes, a.get("epsilon", 1e-5), x[1], b, u)]
        if kind == "GroupNormalization":
            return [self.group_norm(x, a, opset)]
        if kind in ("Add", "Sub", "Mul", "Div") and x[0].real:
            p, q = _legacy_broadcast(a, x, opset)
            if kind in ("Add", "Sub"):
                return [add(p, q, 1 if kind == "Add" else -1, u)]
            return [mul(p, q, u) if kind == "Mul" else div(p, q, u)]
        if kind == "Neg" and x[0].real:
            p = x[0]
            return [Value(-p.v, p.back, p.fwd, p.w, p.e, p.n)]
        if kind == "Dropout":
            return [x[0], leaf(np.ones(x[0].v.shape, bool))][: len(node.output)]
        if kind == "Identity":
            return [x[0]]
        if kind == "Cast":
            return [_cast(x[0], a["to"], u)]
        if kind == "CastLike":
            return [_cast(x[0], TensorProto.FLOAT, u) if x[1].real else x[0]]
        if kind == "Shape":
            shape = x[0].v.shape[a.get("start", 0) : a.get("end", None)]
            return [leaf(np.array(shape, np.int64))]
        if kind == "Constant":
            return [leaf(_constant(a))]
        if kind == "If":
            branch = a["then_branch"] if bool(np.all(x[0].v)) else a["else_branch"]
            return self.body(branch, [], env, opset)
        if kind == "Loop":
            return self.loop(node, x, a, env, opset)
        if kind == "Scan":
            return self.scan(x, a, env, opset)
        if kind == "QuantizeLinear":  # what lies at a border depends on division in float32
            assert not x[0].e.any(), "only of constants"
            given = [p.v.astype(np.float32) if p.v.dtype.kind == "f" else p.v for p in x]
            return [leaf(v) for v in reference(node, given, max(opset, 19))]
        if kind == "DequantizeLinear":
            given = [p.v if p else None for p in x]
            return [leaf(v) for v in reference(node, given, max(opset, 19))]
        if kind in LIPSCHITZ and x[0].real:
            (v,) = reference(node, [p.v if p else None for p in x], opset)
            k = LIPSCHITZ[kind]
            own = 16 * u if kind in ("Tanh", "Sigmoid") else 8 * u * np.abs(v)  # approximations
            return [fresh(v, k * x[0].w, k * x[0].e + own, 4)]
        if kind in AVERAGES:
            parts = [
                reference(node, [getattr(x[0], f)] + [p.v for p in x[1:]], opset)[0]
                for f in ("v", "back", "w", "e")
            ]
            v, mag, w, e = parts
            n = x[0].v.size // max(v.size, 1) + 8
            return [Value(v, mag, np.abs(v), w + 2 * u * mag, e + n * u * mag, n)]
        if kind in ("Sum", "Max", "Min"):
            out = x[0]
            for other in x[1:]:
                out = add(out, other, 1, u)
            if kind != "Sum":
                pick = np.maximum if kind == "Max" else np.minimum
                out = fresh(functools.reduce(pick, [p.v for p in x]), out.w, out.e)
            return [out]
        if kind in ("Sqrt", "Reciprocal", "Exp", "Pow"):
            (v,) = reference(node, [p.v for p in x], opset)
            assert all(not p.e.any() for p in x), "only on constants"
            return [fresh(v, 2 * u * np.abs(v), 8 * u * np.abs(v))]
        if kind in MOVERS or not any(p is not None and p.real for p in x):
            return moved(node, x, opset)
        raise NotImplementedError(kind)

    @staticmethod
    def shaped(p: Value, shape: tuple[int, ...]) -> Value:
        return Value(*(part.reshape(shape) for part in (p.v, p.back, p.fwd, p.w, p.e)))

    def group_norm(self, x: list[Value], a: dict[str, Any], opset: int) -> Value:
        data, groups = x[0], a["num_groups"]
        split = (data.v.shape[0], groups, -1, *data.v.shape[2:])
        fields = (data.v, data.back, data.fwd, data.w, data.e)
        inner = Value(*(part.reshape(split) for part in fields), data.n)
        per = (1, groups, -1) + (1,) * (data.v.ndim - 2)
        g, b = (self.shaped(p, per) for p in x[1:3])
        axes = tuple(range(2, inner.v.ndim))
        y = normalize(inner, axes, a.get("epsilon", 1e-5), g, b, self.u)
        return Value(*(p.reshape(data.v.shape) for p in (y.v, y.back, y.fwd, y.w, y.e)), y.n)

    def loop(self, node, x, a, env, opset) -> list[Value]:
        trips = int(x[0].v) if x[0] is not None else 10**6
        go = bool(x[1].v) if x[1] is not None else True
        state, collected = list(x[2:]), []
        for i in range(trips):
            if not go:
                break
            args = [leaf(np.array(i, np.int64)), leaf(np.array(go)), *state]
            out = self.body(a["body"], args, env, opset)
            go, state = bool(out[0].v), out[1 : 1 + len(state)]
            collected.append(out[1 + len(state) :])
        return state + [_stack(list(column)) for column in zip(*collected)]

    def scan(self, x, a, env, opset) -> list[Value]:
        count = a["num_scan_inputs"]
        state, scanned = list(x[: len(x) - count]), x[len(x) - count :]
        collected = []
        for i in range(scanned[0].v.shape[0]):
            rows = [
                Value(*(part[i] for part in (s.v, s.back, s.fwd, s.w, s.e)), s.n) for s in scanned
            ]
            out = self.body(a["body"], state + rows, env, opset)
            state = out[: len(state)]
            collected.append(out[len(state) :])
        return state + [_stack(list(column)) for column in zip(*collected)]


def _stack(parts: list[Value]) -> Value:
    if not parts[0].real:
        return leaf(np.stack([p.v for p in parts]))
    fields = ("v", "back", "fwd", "w", "e")
    return Value(
        *(np.stack([getattr(p, f) for p in parts]) for f in fields), max(p.n for p in parts)
    )


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values = numpy_helper.to_array(sparse.values)
    index = numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if index.ndim == 1:
        out.reshape(-1)[index] = values
    else:
        out[tuple(index.T)] = values
    return out


def _constant(a: dict[str, Any]) -> Array:
    ((name, value),) = a.items()
    if name == "sparse_value":
        return _dense(value)
    if name == "value":
        return numpy_helper.to_array(value)
    return np.array(value, np.float32 if "float" in name else np.int64)


def _tensors(model: ModelProto) -> Iterable[TensorProto]:
    def walk(nodes: Iterable[NodeProto]) -> Iterable[TensorProto]:
        for node in nodes:
            for attr in node.attribute:
                if attr.type == AttributeProto.TENSOR:
                    yield attr.t
                elif attr.type == AttributeProto.GRAPH:
                    yield from attr.g.initializer
                    yield from walk(attr.g.node)

    yield from model.graph.initializer
    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def run(model: ModelProto, feeds: dict[str, Array]) -> list[Value]:
    """The model's outputs, exact, with their bounds. Feeds override overridable initializers."""
    runner = _Run(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    with np.errstate(all="ignore"):
        return runner.graph(model.graph, {k: leaf(v) for k, v in feeds.items()}, opset)
