"""How a relation of what an operator reads becomes one of what it puts out.

Written from the operators' definitions in ONNX. ``f(s·x + t) = s'·f(x) + t'``: each law says for
which s and t this holds for every x, and gives s' and t'. An operator without a law, and one whose
law does not hold, asks for the same data on both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope
from bnfold._relation.expressions import ONE, ZERO, Double
from bnfold._relation.side import Side, attributes
from bnfold._relation.solving import Related

Pair = tuple[Double, Double]


@dataclass(frozen=True, eq=False)
class Call:
    """An operator, and how each of its inputs is related; None for constants and left-out ones.

    ``kind`` is the type of what of it is not affine. ``numbers`` and ``others`` are those of its parameters that a map moves, on both sides.
    """

    side: Side
    scope: Scope
    node: NodeProto
    inputs: Sequence[Related | None]
    kind: str
    numbers: Sequence[float] = ()
    others: Sequence[float] = ()

    @property
    def given(self) -> dict[str, Any]:
        """Its attributes."""
        return attributes(self.node)

    @property
    def first(self) -> Related:
        """The relation of its first input."""
        found = self.inputs[0]
        return Related() if found is None else found

    def rank(self, position: int = 0) -> int | None:
        """The number of axes of an input."""
        return self.side.rank(self.scope, self.node.input[position])

    def sizes(self, name: str) -> tuple[Any, ...] | None:
        """The sizes of a tensor, with a symbol for each that is not known."""
        return self.side.shapes.sizes(self.scope, name)

    def integers(self, position: int, attribute: str = "") -> list[int] | None:
        """Numbers that are an input in some opsets and an attribute in others; None if unknown."""
        if attribute and attribute in self.given:
            value = self.given[attribute]
            return [value] if isinstance(value, int) else [int(each) for each in value]
        if position >= len(self.node.input) or not self.node.input[position]:
            return []
        found = self.side.constant(self.scope, self.node.input[position])
        return None if found is None else [int(each) for each in found.load().reshape(-1)]

    def others_agree(self) -> bool:
        """Whether all inputs but the first are the same on both sides."""
        return all(each is None or each.is_identity for each in self.inputs[1:])


def passed(call: Call) -> list[Pair] | None:
    """For each output its scale and shift, or None where the data would have to be the same."""
    known = [each for each in call.inputs if each is not None]
    law = LAWS.get(call.kind)
    if all(each.is_identity for each in known) and tuple(call.numbers) == tuple(call.others):
        return [(ONE, ZERO)] * len(call.node.output)
    found = law(call) if law is not None else None
    if found is None:
        return None
    return found if isinstance(found, list) else [found] * len(call.node.output)


def _is_off(values: Double, rank: int, axes: Sequence[int]) -> bool:
    """Whether numbers are the same along some axes of a tensor."""
    full = (1,) * (rank - values.ndim) + values.shape
    return all(full[axis] == 1 for axis in axes)


def _full(values: Double, rank: int) -> Double:
    return values.reshape((1,) * (rank - values.ndim) + values.shape)


def _homogeneous(call: Call) -> Pair | None:
    """Relu, LeakyRelu, PRelu: ``f(s·x) = s·f(x)`` for s > 0."""
    one = call.first
    if call.others_agree() and np.all(one.scale > 0) and not one.shift.any():
        return one.scale, ZERO
    return None


def _abs(call: Call) -> Pair | None:
    """``|s·x| = |s|·|x|``."""
    one = call.first
    return (np.abs(one.scale), ZERO) if not one.shift.any() else None


def _odd(call: Call) -> Pair | None:
    """Tanh, Erf, Sin …: ``f(−x) = −f(x)``."""
    one = call.first
    signs = np.all(np.abs(one.scale) == 1) and not one.shift.any()
    return (one.scale, ZERO) if signs else None


def _spatial(call: Call) -> list[int] | None:
    rank = call.rank()
    return None if rank is None or rank < 3 else list(range(2, rank))


def _largest_of_window(call: Call) -> list[Pair] | None:
    """MaxPool: ``max(s·x + t) = s·max(x) + t`` for s > 0, both the same in a window.

    The padding is −∞, and never the largest. The second output, where it was, stays the same.
    """
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None or not np.all(one.scale > 0):
        return None
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    return [(one.scale, one.shift), (ONE, ZERO)][: len(call.node.output)]


def _mean_of_window(call: Call) -> Pair | None:
    """AveragePool: linear; a shift passes where no zeros of the padding count."""
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None:
        return None
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    given = call.given
    plain = not any(given.get("pads", ())) and given.get("auto_pad", b"NOTSET") != b"SAME"
    plain = plain and not given.get("auto_pad", b"").startswith(b"SAME")
    if one.shift.any() and given.get("count_include_pad", 0) and not plain:
        return None
    if one.shift.any() and given.get("ceil_mode", 0):
        return None
    return one.scale, one.shift


def _reduced(call: Call) -> tuple[Related, list[int], int] | None:
    """The relation of what is reduced, the axes that go, and the rank; None if it varies there."""
    rank = call.rank()
    axes = call.integers(1, "axes")
    if rank is None or axes is None:
        return None
    if not axes:
        if call.given.get("noop_with_empty_axes", 0):
            return None
        axes = list(range(rank))
    axes = [axis % rank for axis in axes]
    one = call.first
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    return one, axes, rank


def _kept(call: Call, values: Double, axes: Sequence[int], rank: int) -> Double:
    """Numbers of a tensor without the axes that a reduction takes away."""
    if values.ndim == 0 or call.given.get("keepdims", 1):
        return values
    return np.squeeze(_full(values, rank), axis=tuple(axes))


def _mean(call: Call) -> Pair | None:
    """ReduceMean, GlobalAveragePool: linear, and a mean of t is t."""
    found = _reduced(call)
    if found is None:
        return None
    one, axes, rank = found
    return _kept(call, one.scale, axes, rank), _kept(call, one.shift, axes, rank)


def _sum(call: Call) -> Pair | None:
    """ReduceSum: ``Σ s·x = s·Σ x``."""
    found = _reduced(call)
    if found is None or found[0].shift.any():
        return None
    one, axes, rank = found
    return _kept(call, one.scale, axes, rank), ZERO


def _largest(call: Call) -> Pair | None:
    """ReduceMax, ReduceMin: as `_largest_of_window`."""
    return _mean(call) if np.all(call.first.scale > 0) else None


def _of_positions(call: Call) -> Pair | None:
    """GlobalMaxPool, GlobalAveragePool: all positions of a channel are one window."""
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None:
        return None
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    is_linear = call.node.op_type == "GlobalAveragePool"
    return (one.scale, one.shift) if is_linear or np.all(one.scale > 0) else None


def _place_of_largest(call: Call) -> Pair | None:
    """ArgMax, ArgMin: the place stays for s > 0, s and t the same along the axis."""
    one, rank = call.first, call.rank()
    if rank is None or not np.all(one.scale > 0):
        return None
    axes = [call.given.get("axis", 0) % rank]
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    return ONE, ZERO


def _softmax(call: Call) -> Pair | None:
    """Softmax, LogSoftmax: a shift that is the same along the axis goes away."""
    one, rank = call.first, call.rank()
    if rank is None or call.scope.opset < 13 or not np.all(one.scale == 1):
        return None
    axis = call.given.get("axis", -1) % rank
    return (ONE, ZERO) if _is_off(one.shift, rank, [axis]) else None


def _centred(call: Call) -> Pair | None:
    """InstanceNormalization: the mean over the positions takes each channel's shift away."""
    axes, one, rank = _spatial(call), call.first, call.rank()
    if axes is None or rank is None or not np.all(one.scale == 1) or not call.others_agree():
        return None
    return (ONE, ZERO) if _is_off(one.shift, rank, axes) else None


def _transposed(call: Call) -> Pair | None:
    rank = call.rank()
    if rank is None:
        return None
    order = call.given.get("perm", list(range(rank))[::-1])
    one = call.first
    return (_turned(one.scale, rank, order), _turned(one.shift, rank, order))


def _turned(values: Double, rank: int, order: Sequence[int]) -> Double:
    return values if values.ndim == 0 else np.transpose(_full(values, rank), order)


def _rearranged(call: Call) -> Pair | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Expand of equal sizes: row-major order stays."""
    before, after = (call.sizes(n) for n in (call.node.input[0], call.node.output[0]))
    made = [_reshaped(each, before, after) for each in (call.first.scale, call.first.shift)]
    return None if made[0] is None or made[1] is None else (made[0], made[1])


def _reshaped(
    values: Double, before: tuple[Any, ...] | None, after: tuple[Any, ...] | None
) -> Double | None:
    """Numbers of a tensor where its axes are put together or taken apart, in row-major order.

    The order of the last axes is their own, whatever stands ahead of them: runs of last axes with
    one product hold the same numbers. Leading axes of equal sizes are one axis each. The numbers
    must not vary along what is left between the two.
    """
    if values.size == 1:
        return values.reshape(())
    if before is None or after is None:
        return None
    full = _full(values, len(before))
    begin = _equal(before, after)
    old, new = list(before[begin:]), list(after[begin:])
    own = list(full.shape[begin:])
    wide: list[int] = []
    made: list[int] = []
    while run := _last_run(old, new):
        some = own[-run[0] :] if run[0] else []
        sizes, targets = old[len(old) - run[0] :], new[len(new) - run[1] :]
        varies = any(size > 1 for size in some)
        wide = [*(sizes if varies else some), *wide]
        made = [*(targets if varies else [1] * run[1]), *made]
        del old[len(old) - run[0] :], own[len(own) - run[0] :], new[len(new) - run[1] :]
    if any(size > 1 for size in own):
        return None
    head = full.shape[:begin]
    full = np.broadcast_to(full, (*head, *own, *wide))
    return full.reshape(*head, *(1,) * len(new), *made)


def _equal(before: Sequence[Any], after: Sequence[Any]) -> int:
    """How many sizes at the beginning are known to be equal."""
    pairs = zip(before, after, strict=False)
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1] and pair[0] is not None, pairs)
    return sum(1 for _ in equal)


def _last_run(old: Sequence[Any], new: Sequence[Any]) -> tuple[int, int] | None:
    """How many last axes on both sides have one product; None if none are known to."""
    if old and new and old[-1] == new[-1] and old[-1] is not None:
        return 1, 1
    counts, products = [0, 0], [1, 1]
    for side in (0, 1):
        axes = (old, new)[side]
        if axes and isinstance(axes[-1], int):
            counts[side], products[side] = 1, axes[-1]
    while products[0] != products[1]:
        side = 0 if products[0] < products[1] else 1
        axes = (old, new)[side]
        if counts[side] == len(axes) or not isinstance(axes[-1 - counts[side]], int):
            return None
        products[side] *= axes[-1 - counts[side]]
        counts[side] += 1
    return (counts[0], counts[1]) if any(counts) else None


def _joined(call: Call) -> Pair | None:
    """Concat: each part keeps its own numbers."""
    rank = call.rank()
    if rank is None:
        return None
    axis = call.given.get("axis", 1) % rank
    scales: list[Double] = []
    shifts: list[Double] = []
    for name, one in zip(call.node.input, call.inputs, strict=True):
        sizes = call.sizes(name)
        size = None if sizes is None else sizes[axis]
        if not isinstance(size, int):
            return None
        related = Related() if one is None else one
        for values, kept in ((related.scale, scales), (related.shift, shifts)):
            full = _full(values, rank)
            kept.append(np.repeat(full, size, axis) if full.shape[axis] == 1 else full)
    return _put_together(scales, axis), _put_together(shifts, axis)


def _put_together(parts: Sequence[Double], axis: int) -> Double:
    rank = parts[0].ndim
    shape = [max(part.shape[k] for part in parts) for k in range(rank)]
    wide = [np.broadcast_to(p, (*shape[:axis], p.shape[axis], *shape[axis + 1 :])) for p in parts]
    return np.concatenate(wide, axis)


def _split(call: Call) -> list[Pair] | None:
    """Split: each part has the numbers of its range."""
    rank, one = call.rank(), call.first
    if rank is None:
        return None
    axis = call.given.get("axis", 0) % rank
    found: list[Pair] = []
    start = 0
    for name in call.node.output:
        sizes = call.sizes(name) if name else None
        size = None if sizes is None else sizes[axis]
        if not isinstance(size, int):
            return None
        part = slice(start, start + size)
        found.append((_part(one.scale, rank, axis, part), _part(one.shift, rank, axis, part)))
        start += size
    return found


def _part(values: Double, rank: int, axis: int, part: Any) -> Double:
    full = _full(values, rank)
    if full.shape[axis] == 1:
        return values
    return full[(slice(None),) * axis + (part,)]


def _sliced(call: Call) -> Pair | None:
    """Slice: numbers that vary along a cut axis are cut alike."""
    rank, one = call.rank(), call.first
    found = [call.integers(k, name) for k, name in ((1, "starts"), (2, "ends"), (3, "axes"))]
    steps = call.integers(4)
    starts, ends, axes = found
    if rank is None or starts is None or ends is None or axes is None or steps is None:
        return None
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    scale, shift = one.scale, one.shift
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            if not (_is_off(scale, rank, [axis % rank]) and _is_off(shift, rank, [axis % rank])):
                return None
            continue
        part = slice(start, end, step)
        scale, shift = (_part(each, rank, axis % rank, part) for each in (scale, shift))
    return scale, shift


def _picked(call: Call) -> Pair | None:
    """Gather: numbers that do not vary along the axis, or those at constant indices."""
    rank, one = call.rank(), call.first
    indices = call.side.constant(call.scope, call.node.input[1])
    if rank is None or not call.others_agree():
        return None
    if one.scale.size == 1 and one.shift.size == 1:
        return one.scale.reshape(()), one.shift.reshape(())
    if indices is None or len(indices.shape) > 1:
        return None
    axis, at = call.given.get("axis", 0) % rank, indices.load()
    made = []
    for values in (one.scale, one.shift):
        full = _full(values, rank)
        chosen = np.zeros_like(at) if full.shape[axis] == 1 else at
        made.append(np.take(full, chosen, axis))
    return made[0], made[1]


def _padded(call: Call) -> Pair | None:
    """Pad: copies of the data keep s and t; zeros keep s. Neither varies along padded axes."""
    rank, one = call.rank(), call.first
    pads = call.integers(1, "pads")
    if rank is None or pads is None or len(pads) != 2 * rank:
        return None
    axes = [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    if call.numbers:
        scale, shift = (_number(each) for each in (one.scale, one.shift))
        zeros = call.numbers[0] == call.others[0] == 0 and not one.shift.any()
        if not zeros and (scale is None or shift is None or not _moves(call, scale, shift)):
            return None
    return one.scale, one.shift


def _number(values: Double) -> float | None:
    return float(values.reshape(())) if values.size == 1 else None


def _moves(call: Call, scale: float, shift: float) -> bool:
    """Whether each parameter of the second operator is ``scale`` times the first's, plus a shift.

    Rounding may have moved it as far as the relation, and by its own unit.
    """
    for one, other in zip(call.numbers, call.others, strict=True):
        meant = scale * one + shift
        slack = (call.first.error + 2.0**-23) * (abs(scale * one) + abs(shift))
        if meant != other and not abs(meant - other) <= slack:
            return False
    return True


def _clipped(call: Call) -> Pair | None:
    """Clip: ``clip(s·x + t, s·a + t, s·b + t) = s·clip(x, a, b) + t``; s < 0 swaps the bounds."""
    scale, shift = (_number(each) for each in (call.first.scale, call.first.shift))
    if scale is None or shift is None or not scale or not call.numbers[0] <= call.numbers[1]:
        return None
    if scale < 0:
        call = replace(call, numbers=call.numbers[::-1])
    return (call.first.scale, call.first.shift) if _moves(call, scale, shift) else None


def _thresholded(call: Call) -> Pair | None:
    """ThresholdedRelu: x where it is above α, else 0; ``s·x`` with ``s·α``, for s > 0."""
    scale = _number(call.first.scale)
    if scale is None or scale <= 0 or call.first.shift.any() or not _moves(call, scale, 0.0):
        return None
    return call.first.scale, ZERO


def _resized(call: Call) -> Pair | None:
    """Resize, Upsample: each number is a weighted mean of others, with weights of sum 1."""
    rank, one = call.rank(), call.first
    before, after = (call.sizes(n) for n in (call.node.input[0], call.node.output[0]))
    if rank is None or before is None or after is None or len(before) != len(after):
        return None
    same = [a == b and a is not None for a, b in zip(before, after, strict=True)]
    axes = [axis for axis in range(rank) if not same[axis]]
    if not (_is_off(one.scale, rank, axes) and _is_off(one.shift, rank, axes)):
        return None
    extrapolates = call.given.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    return None if extrapolates and one.shift.any() else (one.scale, one.shift)


def _uniform(call: Call) -> Pair | None:
    """DepthToSpace, SpaceToDepth, Tile, Expand …: the same numbers everywhere stay."""
    one = call.first
    if call.others_agree() and one.scale.size == 1 and one.shift.size == 1:
        return one.scale.reshape(()), one.shift.reshape(())
    return None


def _multiplied(call: Call) -> Pair | None:
    """Mul, Div: scales multiply and divide; a shift does not pass."""
    scales = []
    for one in call.inputs:
        if one is not None and one.shift.any():
            return None
        scales.append(ONE if one is None else one.scale)
    first, second = scales
    return (first * second if call.node.op_type == "Mul" else first / second), ZERO


def _product(call: Call) -> Pair | None:
    """MatMul of data: one scale for each operand passes."""
    scale = ONE
    for one in call.inputs:
        if one is not None:
            if one.shift.any() or one.scale.size > 1:
                return None
            scale = scale * one.scale.reshape(())
    return scale, ZERO


def _chosen(call: Call) -> Pair | None:
    """Max, Min of data: one s > 0 and one t for all."""
    found = [each for each in call.inputs if each is not None]
    one = found[0]
    if len(found) < len(call.inputs) or not np.all(one.scale > 0):
        return None
    same = all(
        np.array_equal(each.scale, one.scale) and np.array_equal(each.shift, one.shift)
        for each in found
    )
    return (one.scale, one.shift) if same else None


def _untouched(call: Call) -> Pair:
    """Shape, Size: what they put out depends on no number."""
    return ONE, ZERO


LAWS: dict[str, Callable[[Call], Pair | list[Pair] | None]] = {
    "Abs": _abs,
    "ArgMax": _place_of_largest,
    "ArgMin": _place_of_largest,
    "AveragePool": _mean_of_window,
    "Clip": _clipped,
    "Concat": _joined,
    "DepthToSpace": _uniform,
    "Div": _multiplied,
    "Erf": _odd,
    "Expand": _uniform,
    "Flatten": _rearranged,
    "Gather": _picked,
    "GlobalAveragePool": _of_positions,
    "GlobalMaxPool": _of_positions,
    "InstanceNormalization": _centred,
    "LeakyRelu": _homogeneous,
    "LogSoftmax": _softmax,
    "MatMul": _product,
    "Max": _chosen,
    "MaxPool": _largest_of_window,
    "Min": _chosen,
    "Mul": _multiplied,
    "PRelu": _homogeneous,
    "Pad": _padded,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _largest,
    "ReduceSum": _sum,
    "Relu": _homogeneous,
    "Reshape": _rearranged,
    "Resize": _resized,
    "Shape": _untouched,
    "Sin": _odd,
    "Size": _untouched,
    "Slice": _sliced,
    "Softmax": _softmax,
    "SpaceToDepth": _uniform,
    "Split": _split,
    "Squeeze": _rearranged,
    "Tanh": _odd,
    "ThresholdedRelu": _thresholded,
    "Tile": _uniform,
    "Transpose": _transposed,
    "Unsqueeze": _rearranged,
    "Upsample": _resized,
}
"""By the type of the operator."""
