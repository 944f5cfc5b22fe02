"""What a model computes in float64, node by node, and how large the numbers on the way become.

Written from the operators' definitions where ONNX's reference is slow or does not follow them
(convolutions, pools), by that reference elsewhere. Tensors are tiny, so loops are plain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ..oracle import conv, conv_transpose, reference

Array = Any


def run(model: ModelProto, feeds: Mapping[str, Array]) -> tuple[list[Array], float]:
    """The outputs, and the largest magnitude of any tensor."""
    opset = model.opset_import[0].version
    known: dict[str, Array] = {"": None}
    for name, value in feeds.items():
        known[name] = _double(value)
    for tensor in model.graph.initializer:
        known.setdefault(tensor.name, _double(numpy_helper.to_array(tensor)))
    peak = 1.0
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            found = _node(node, [known[name] for name in node.input], opset)
            for name, value in zip(node.output, found):
                known[name] = value
                if name and value.dtype.kind == "f" and value.size:
                    peak = max(peak, float(np.abs(value).max()))
    return [known[out.name] for out in model.graph.output], peak


def _double(value: Array) -> Array:
    value = np.asarray(value)
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _node(node: NodeProto, x: list[Array], opset: int) -> list[Array]:
    a = {attr.name: helper.get_attribute_value(attr) for attr in node.attribute}
    kind = node.op_type
    if kind in _PLAIN:
        return [_PLAIN[kind](*x)]
    if kind in ("Conv", "ConvTranspose"):
        y = (conv if kind == "Conv" else conv_transpose)(x[0], x[1], a)
        if len(x) > 2 and x[2] is not None:
            y = y + _channels(x[2], y.ndim)
        return [y]
    if kind == "Gemm":
        left = x[0].T if a.get("transA") else x[0]
        right = x[1].T if a.get("transB") else x[1]
        y = a.get("alpha", 1.0) * (left @ right)
        return [y + a.get("beta", 1.0) * x[2] if len(x) > 2 and x[2] is not None else y]
    if kind == "BatchNormalization":
        scale, bias, mean, var = (_channels(v, x[0].ndim) for v in x[1:5])
        epsilon = a.get("epsilon", 1e-5)
        return [(x[0] - mean) / np.sqrt(var + epsilon) * scale + bias]
    if kind in ("MaxPool", "AveragePool"):
        return [_pool(kind, x[0], a)]
    if kind.startswith("Global"):
        axes = tuple(range(2, x[0].ndim))
        return [(np.max if kind == "GlobalMaxPool" else np.mean)(x[0], axis=axes, keepdims=True)]
    if kind == "Dropout":
        return [x[0], np.ones(x[0].shape, bool)][: len(node.output)]
    if kind == "Clip" and opset < 11:
        return [np.clip(x[0], a.get("min"), a.get("max"))]
    if kind in ("Slice", "Split", "Upsample", "Resize", "Pad"):
        return _moved(node, kind, x, a, opset)
    alone = NodeProto()
    alone.CopyFrom(node)
    alone.name = ""
    for number, name in enumerate(node.output):
        alone.output[number] = f"out{number}" if name else ""
    return [_double(value) for value in reference(alone, x, opset)]


def _moved(
    node: NodeProto, kind: str, x: list[Array], a: dict[str, Any], opset: int
) -> list[Array]:
    """Slice, Split, Pad and Resize, of any opset, by NumPy or the newest reference."""
    if kind == "Slice":
        given = [*x[1:], None, None, None, None][:4]
        if opset < 10:
            given = [a["starts"], a["ends"], a.get("axes"), None]
        starts, ends, axes, steps = (None if g is None else [int(v) for v in g] for g in given)
        cut = [slice(None)] * x[0].ndim
        for k, start in enumerate(starts or []):
            axis, step = (axes[k] if axes else k), (steps[k] if steps else 1)
            cut[axis] = _slice(start, (ends or [])[k], step, x[0].shape[axis])
        return [x[0][tuple(cut)]]
    if kind == "Split":
        axis = a.get("axis", 0)
        sizes = x[1] if len(x) > 1 and x[1] is not None else a.get("split")
        count = len(node.output)
        if sizes is None:
            part = -(-x[0].shape[axis] // count)
            return np.split(x[0], [part * k for k in range(1, count)], axis)
        return np.split(x[0], np.cumsum(sizes)[:-1], axis)
    if kind == "Pad":
        return [_pad(x, a, opset)]
    scales = a.get("scales") if kind == "Upsample" and opset < 9 else x[1] if opset < 11 else None
    if scales is not None or kind == "Upsample":
        x = [x[0], None, np.asarray(scales, np.float32)]
        a = {
            "mode": a.get("mode", b"nearest"),
            "coordinate_transformation_mode": b"asymmetric",
            "nearest_mode": b"floor",
        }
    plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in a.items()}
    names = [f"in{k}" if v is not None else "" for k, v in enumerate(x)]
    newest = helper.make_node("Resize", names, ["out"], **plain)
    return [_double(v) for v in reference(newest, x, max(opset, 13))]


def _slice(start: int, end: int, step: int, size: int) -> slice:
    stop: int | None = end
    if step < 0 and end < -size:
        stop = None
    return slice(start, stop, step)


def _pad(x: list[Array], a: dict[str, Any], opset: int) -> Array:
    data = x[0]
    pads = [int(p) for p in (a["pads"] if opset < 11 else x[1])]
    value = a.get("value", 0.0) if opset < 11 else 0.0
    if opset >= 11 and len(x) > 2 and x[2] is not None:
        value = float(np.asarray(x[2]).reshape(-1)[0])
    axes = [int(k) % data.ndim for k in x[3]] if len(x) > 3 and x[3] is not None else None
    axes = list(range(data.ndim)) if axes is None else axes
    width = [(0, 0)] * data.ndim
    for k, axis in enumerate(axes):
        before, after = pads[k], pads[k + len(axes)]
        cut = slice(max(-before, 0), data.shape[axis] - max(-after, 0))
        data = data[(slice(None),) * axis + (cut,)]
        width[axis] = (max(before, 0), max(after, 0))
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return np.pad(data, width, constant_values=value)
    return np.pad(data, width, mode=mode)


def _pool(kind: str, x: Array, a: dict[str, Any]) -> Array:
    kernel: Sequence[int] = a["kernel_shape"]
    rank = len(kernel)
    strides = a.get("strides") or [1] * rank
    dilations = a.get("dilations") or [1] * rank
    pads = list(a.get("pads") or [0] * 2 * rank)
    mode = a.get("auto_pad", b"NOTSET").decode()
    ceil, counted = a.get("ceil_mode", 0), a.get("count_include_pad", 0)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    outs = []
    for i in range(rank):
        size = x.shape[2 + i]
        if mode.startswith("SAME"):
            out = -(-size // strides[i])
            total = max((out - 1) * strides[i] + extents[i] - size, 0)
            half = total // 2
            first = half if mode == "SAME_UPPER" else total - half
            pads[i], pads[i + rank] = first, total - first
        elif mode == "VALID":
            pads[i] = pads[i + rank] = 0
        room = size + pads[i] + pads[i + rank] - extents[i]
        out = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        if ceil and (out - 1) * strides[i] >= size + pads[i]:
            out -= 1
        outs.append(out)
    y = np.zeros((*x.shape[:2], *outs))
    for place in np.ndindex(*outs):
        taps = []
        padded = 0
        for k in itertools.product(*map(range, kernel)):
            at = [place[i] * strides[i] - pads[i] + k[i] * dilations[i] for i in range(rank)]
            if all(0 <= p < x.shape[2 + i] for i, p in enumerate(at)):
                taps.append(x[(slice(None), slice(None), *at)])
            elif all(p < x.shape[2 + i] + pads[i + rank] for i, p in enumerate(at)):
                padded += 1
        at_place = (slice(None), slice(None), *place)
        if kind == "MaxPool":
            y[at_place] = np.max(taps, axis=0)
        else:
            y[at_place] = np.sum(taps, axis=0) / (len(taps) + (padded if counted else 0))
    return y


def _channels(values: Array, rank: int) -> Array:
    return values.reshape((1, -1, *(1,) * (rank - 2)))


def _clip(x: Array, low: Array = None, high: Array = None) -> Array:
    y = x if low is None else np.maximum(x, low)
    return y if high is None else np.minimum(y, high)


def _prelu(x: Array, slope: Array) -> Array:
    return np.where(x < 0, slope * x, x)


def _sum(*x: Array) -> Array:
    return sum(x[1:], x[0])


_PLAIN = {
    "Abs": np.abs,
    "Add": np.add,
    "Div": np.divide,
    "Identity": lambda x: x,
    "MatMul": np.matmul,
    "Mul": np.multiply,
    "Neg": np.negative,
    "PRelu": _prelu,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sub": np.subtract,
    "Sum": _sum,
    "Tanh": np.tanh,
}


def close(one: Array, other: Array, peak: float, relative: float) -> float:
    """How many tolerances two outputs are apart, in units of the largest number on the way."""
    assert one.shape == other.shape, f"shape {other.shape}, not {one.shape}"
    if not one.size:
        return 0.0
    apart = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    bad = ~np.isfinite(apart) & ~((one == other) | (np.isnan(one) & np.isnan(other)))
    if bad.any():
        return math.inf
    return float(np.nan_to_num(apart, nan=0.0, posinf=0.0).max() / (relative * peak))
