"""Linear operators with constant weights, by their definitions in ONNX.

Conv: ``y[n, o, p] = Σ W[o, c, j] · x[n, c, s·p + d·j − pad]``, with zeros outside of x.
ConvTranspose is its transpose. Gemm: ``α·x·W + β·C``. MatMul: ``x·W``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.expressions import (
    ZERO,
    Double,
    Expression,
    Linear,
    Term,
    along,
    vector,
)
from bnfold._relation.side import Side, Weight, attributes
from bnfold._system.records import record

Array = NDArray[Any]
_SUMMED = 1 << 20
"""So many weights are added up at a time."""
_FEW = 64
"""So many channels may come in another order, at most."""
_TAPS = 1 << 16
"""Windows of more places are compared as they are."""


@record(frozen=True, eq=False)
class Applied:
    """A linear operator on a tensor: ``factor · linear(data) + bias``.

    ``rank`` is that of its
    output, ``data_rank`` that of its data; None where it is not known. ``bias`` is the name of a
    tensor, with its factor.
    """

    data: str
    linear: Linear
    rank: int | None
    data_rank: int | None
    factor: float = 1.0
    bias: str = ""
    bias_factor: float = 1.0


def read(side: Side, scope: Scope, node: NodeProto) -> Applied | None:
    """The linear operator that a node is, or None."""
    kind = type_of(node)
    if kind == "Gather":
        return _reordering(side, scope, node)
    reader = _READERS.get(kind)
    if reader is None or len(node.input) < 2 or not all(node.input[:2]):
        return None
    first, second = side.floats(scope, node.input[0]), side.floats(scope, node.input[1])
    if first is not None and second is None and reader in (_matmul, _gemm):
        return _from_left(side, scope, node, first)
    return reader(side, scope, node, second) if first is None and second is not None else None


def _conv(side: Side, scope: Scope, node: NodeProto, weight: Weight) -> Applied | None:
    given = attributes(node)
    spatial = len(weight.shape) - 2
    kernel = weight.shape[2:]
    if spatial < 1 or tuple(given.get("kernel_shape", kernel)) != kernel:
        return None
    if math.prod(kernel) > _TAPS:
        return None
    steps = tuple(given.get("strides", (1,) * spatial))
    spread = tuple(given.get("dilations", (1,) * spatial))
    auto = given.get("auto_pad", b"NOTSET").decode()
    pads = tuple(given.get("pads", ()) or (0,) * (2 * spatial))
    if auto == "VALID":
        pads = (0,) * (2 * spatial)
    if any(len(each) != spatial for each in (steps, spread)) or len(pads) != 2 * spatial:
        return None
    reach = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    before, behind = pads[:spatial], pads[spatial:]
    kind: tuple[Hashable, ...]
    if auto.startswith("SAME"):
        found = _same(side.shapes.shape(scope, node.input[0]), reach, steps, auto)
        before, behind = found or ((0,) * spatial,) * 2
        pads = (*before, *behind) if found else (1,)
    if len(pads) == 1:
        kind = ("same", auto, kernel, steps, spread)
    else:
        extents = zip(before, behind, reach, strict=True)
        kind = ("window", steps, tuple(b + e - r - 1 for b, e, r in extents))
    places = tuple(
        tuple(j * d - b for j, d, b in zip(tap, spread, before, strict=True))
        for tap in itertools.product(*map(range, kernel))
    )
    rows, columns = weight.shape[:2]
    group = given.get("group", 1)
    if group < 1 or rows % group:
        return None
    padded = any(pad > 0 for pad in pads)

    def load() -> Array:
        return weight.load().reshape(rows, columns, -1)

    def part(start: int, stop: int) -> Array:
        assert weight.part is not None
        return weight.part(0, start, stop).reshape(stop - start, columns, -1)

    read_part = part if weight.part is not None else None
    axes = 1, 1
    linear = _linear(weight, kind, axes, load, rows, columns, group, places, padded, read_part)
    linear = replace(linear, sizes=side.spatial(scope, node.input[0]))
    bias = node.input[2] if len(node.input) > 2 else ""
    return Applied(node.input[0], linear, spatial + 2, spatial + 2, bias=bias)


def _same(
    shape: Sequence[int | None] | None, reach: Sequence[int], steps: Sequence[int], auto: str
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """What SAME pads before and behind each axis; None where that depends on an unknown size.

    The output has ``⌈size / step⌉`` positions (ONNX Conv, auto_pad).
    """
    before, behind = [], []
    sizes = shape[2:] if shape is not None else (None,) * len(reach)
    for size, far, step in zip(sizes, reach, steps, strict=True):
        if step > 1 and far and size is None:
            return None
        rest = 1 if size is None else (size - 1) % step + 1
        total = max(far + 1 - rest, 0) if step > 1 and far else far
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return tuple(before), tuple(behind)


def _conv_transpose(side: Side, scope: Scope, node: NodeProto, weight: Weight) -> Applied | None:
    given = attributes(node)
    spatial = len(weight.shape) - 2
    if spatial < 1:
        return None
    kernel = weight.shape[2:]
    if math.prod(kernel) > _TAPS:
        return None
    group = given.pop("group", 1)
    wide, columns = weight.shape[1], weight.shape[0] // max(group, 1)
    if group < 1 or weight.shape[0] % group:
        return None
    ones, zeros = (1,) * spatial, (0,) * spatial
    fixed = {
        "strides": tuple(given.get("strides", ones)),
        "dilations": tuple(given.get("dilations", ones)),
        "pads": tuple(given.get("pads", (*zeros, *zeros))),
        "output_padding": tuple(given.get("output_padding", zeros)),
        "output_shape": tuple(given.get("output_shape", ())),
        "auto_pad": given.get("auto_pad", b"NOTSET"),
    }
    plain = fixed["strides"] == ones and not any(fixed["pads"]) and kernel == ones
    padded = not (plain and not any(fixed["output_padding"]) and not fixed["output_shape"])
    places = tuple(itertools.product(*map(range, kernel)))

    def load() -> Array:
        parts = weight.load().reshape(group, columns, wide, -1)
        return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(group * wide, columns, -1)

    kind = ("transposed", kernel, *sorted(fixed.items()))
    linear = _linear(weight, kind, (1, 1), load, group * wide, columns, group, places, padded)
    bias = node.input[2] if len(node.input) > 2 else ""
    linear = replace(linear, sizes=side.spatial(scope, node.input[0]))
    return Applied(node.input[0], linear, spatial + 2, spatial + 2, bias=bias)


def _gemm(side: Side, scope: Scope, node: NodeProto, weight: Weight) -> Applied | None:
    given = attributes(node)
    if len(weight.shape) != 2:
        return None
    linear = _product(weight, bool(given.get("transB", 0)), -2 if given.get("transA", 0) else -1)
    bias = node.input[2] if len(node.input) > 2 else ""
    alpha, beta = float(given.get("alpha", 1.0)), float(given.get("beta", 1.0))
    if not math.isfinite(alpha) or not math.isfinite(beta):
        return None  # All weights would be infinite, and so the same.
    return Applied(node.input[0], linear, 2, 2, alpha, bias, beta)


def _matmul(side: Side, scope: Scope, node: NodeProto, weight: Weight) -> Applied | None:
    if len(weight.shape) != 2:
        return None
    rank = side.rank(scope, node.input[0])
    return Applied(node.input[0], _product(weight, False), rank, rank)


def _from_left(side: Side, scope: Scope, node: NodeProto, weight: Weight) -> Applied | None:
    """``W·x`` and, as a Gemm, ``α·W·x + β·C``, either turned or not."""
    rank, given = side.rank(scope, node.input[1]), attributes(node)
    if len(weight.shape) != 2 or rank is None or rank < 2:
        return None
    if not all(math.isfinite(given.get(name, 1.0)) for name in ("alpha", "beta")):
        return None
    data_axis = -1 if given.get("transB", 0) else -2
    linear = _product(weight, not given.get("transA", 0), data_axis, -2)
    bias = node.input[2] if len(node.input) > 2 else ""
    alpha, beta = float(given.get("alpha", 1.0)), float(given.get("beta", 1.0))
    return Applied(node.input[1], linear, rank, rank, alpha, bias, beta)


def _product(weight: Weight, turned: bool, data_axis: int = -1, axis: int = -1) -> Linear:
    rows, columns = weight.shape if turned else weight.shape[::-1]

    def load() -> Array:
        values = weight.load()
        return (values if turned else values.T)[:, :, None]

    def part(start: int, stop: int) -> Array:
        assert weight.part is not None
        values = weight.part(0 if turned else 1, start, stop)
        return (values if turned else values.T)[:, :, None]

    kind = ("product", axis, data_axis)
    read_part = part if weight.part is not None else None
    axes = axis, data_axis
    return _linear(weight, kind, axes, load, rows, columns, 1, ((),), part=read_part)


def _linear(
    weight: Weight,
    kind: tuple[Hashable, ...],
    axes: tuple[int, int],
    load: Any,
    rows: int,
    columns: int,
    group: int,
    places: tuple[tuple[int, ...], ...],
    is_padded: bool = False,
    part: Callable[[int, int], Array] | None = None,
) -> Linear:
    return Linear(
        kind,
        *axes,
        load,
        rows,
        columns,
        group,
        places,
        error=weight.unit / 2,
        unit=weight.unit,
        is_padded=is_padded,
        part=part,
        name=weight.name,
    )


def _reordering(side: Side, scope: Scope, node: NodeProto) -> Applied | None:
    """Gather by constant indices, each place of the axis once: ``y[o] = Σ P[o, c]·x[c]``.

    P has one 1 in each row and each column. So what stands behind can be added up with it. It is
    one for channels, along axis 1 or the last, and for few of them.
    """
    shape = side.shapes.shape(scope, node.input[0])
    indices = side.constant(scope, node.input[1])
    if shape is None or indices is None or not side.is_float(scope, node.input[0]):
        return None
    rank, axis = len(shape), attributes(node).get("axis", 0)
    if not -rank <= axis < rank or axis % rank not in (1, rank - 1) or len(indices.shape) != 1:
        return None
    count = indices.shape[0]
    if shape[axis] != count or not 0 < count <= _FEW:
        return None
    order = np.asarray(indices.load())
    order = np.where(order < 0, order + count, order)
    if sorted(order.tolist()) != list(range(count)):
        return None

    def load() -> Array:
        made: Array = np.eye(count)[order][:, :, None]
        return made

    ones = (1,) * max(rank - 2, 0)
    kind: tuple[Hashable, ...] = ("window", ones, tuple(-each for each in ones))
    places, axes = ((0,) * len(ones),), (1, 1)
    if axis % rank == rank - 1:
        kind, places, axes = ("product", -1, -1), ((),), (-1, -1)
    unit = float(np.finfo(np.float64).eps)  # Ones are stored as they are.
    weight = Weight(node.input[1], (count, count), unit, load)
    linear = _linear(weight, kind, axes, load, count, count, 1, places)
    return Applied(node.input[0], linear, rank, rank)


_READERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def apply(found: Applied, data: Expression) -> Expression | None:
    """A linear operator on a map ``g·x + t`` of a base, without its bias.

    ``L(g·x + t) = (L·g)(x) + L(t)``. Of the places that never read padding L(t) is one number for
    each row. Of the others it is L's sums over the channels, on an image of ones with the same
    padding.

    None where the map lies along another axis than the channels that L adds up, and for a shift of
    what may be padded or not.
    """
    term = data.map
    if term is None:
        return None
    linear = found.linear
    if data.is_base and isinstance(term.error, float):  # As below, where no number is another.
        own = replace(linear, error=linear.error + term.error) if term.error else linear
        terms = (Term(term.base, linear=own),)
        made = Expression(terms, ZERO, ZERO, 0.0, linear.unit, data.origins)
        return made.scaled(np.asarray(found.factor), 0.0, 0.0) if found.factor != 1.0 else made
    channels = linear.group * linear.columns
    gain, shift, mass = (
        vector(each, linear.data_axis, found.data_rank, channels)
        for each in (term.scale, data.shift, data.mass)
    )
    if gain is None or shift is None or mass is None:
        return None
    if shift.any() and linear.kind[0] == "same":
        return None
    if linear.gain is not None:
        gain, shift = gain * linear.gain, shift * linear.gain
        mass = mass * np.abs(linear.gain)
    error, slack = linear.error + float(np.min(term.error)), linear.slack
    if np.size(term.error) > 1:
        more = vector(np.asarray(term.error), linear.data_axis, found.data_rank, channels)
        if more is None:
            return None
        slack = more - np.min(term.error) + (0.0 if slack is None else slack)
    own = replace(linear, gain=None if np.all(gain == 1) else gain, error=error, slack=slack)
    made = Expression((Term(term.base, linear=own),), unit=linear.unit, origins=data.origins)
    if shift.any():
        sums, sizes = _sums(linear, shift), _sums(linear, mass, True)
        # Each addend is rounded, and so is each sum: about √n of these errors add up.
        count = linear.columns * len(linear.places)
        slack = linear.error + data.error + linear.unit / 2 * (1 + np.sqrt(count))
        inside = _inside(linear)
        total, size = (
            along(each[:, :, inside].sum(axis=(1, 2)), linear.axis, found.rank)
            for each in (sums, sizes)
        )
        made = Expression(made.terms, total, size, slack, linear.unit, data.origins)
        if np.any(sums[:, :, ~inside]):
            image = Linear(
                linear.kind,
                linear.axis,
                linear.axis,
                lambda: np.where(inside, 0.0, sums),
                linear.rows,
                1,
                1,
                linear.places,
                error=slack,
                unit=linear.unit,
                of_shift=True,
                mass=lambda: np.where(inside, 0.0, sizes),
                name=linear.name,
                sizes=linear.sizes,
            )
            made = replace(made, terms=(*made.terms, Term(term.base, linear=image)))
    return made.scaled(np.asarray(found.factor), 0.0, 0.0) if found.factor != 1.0 else made


def _inside(linear: Linear) -> NDArray[np.bool_]:
    """By place whether it never reads padding, whatever the size of the data.

    Output position p reads ``s·p + place``, and the last one has ``s·p <= size + extent``.
    """
    if not linear.is_padded or linear.kind[0] != "window":
        return np.full(len(linear.places), not linear.is_padded)
    places, extents = np.asarray(linear.places), np.asarray(linear.kind[2])
    return np.asarray(((places >= 0) & (places < -extents)).all(axis=1), np.bool_)


def _sums(linear: Linear, values: Double, sizes: bool = False) -> Double:
    """``Σ_c W[o, c, j]·t[c]``, [rows, 1, places]; with ``sizes`` of the sizes of both."""
    parts = values.reshape(linear.group, linear.columns)
    made = np.empty((linear.rows, 1, len(linear.places)))
    rows = linear.rows // linear.group
    step = max(_SUMMED // max(linear.columns * len(linear.places), 1), 1)
    for start in range(0, linear.rows, step if linear.group == 1 else rows):
        stop = min(start + step, linear.rows) if linear.group == 1 else start + rows
        own = linear.rows_from(start, stop).astype(np.float64)
        addends = parts[start // rows]
        made[start:stop, 0] = np.einsum("ocj,c->oj", np.abs(own) if sizes else own, addends)
    return made
