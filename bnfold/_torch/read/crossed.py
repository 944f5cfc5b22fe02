"""PyTorch operators that affine maps cross, each translated into a record with the law it obeys.

What decides is read from arguments and shapes. The sizes that a module was exported with are those
of one example: of a module nothing is read that would be wrong for inputs of other sizes.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.fx import Node

from bnfold._core.bounded import Clipped, HardSigmoid, Thresholded
from bnfold._core.joins import Aligned, Summed
from bnfold._core.laws import UNCOUNTED, Form, Law, Mixed, Padded
from bnfold._core.operators.crossed import Activation, Crossed, Pooling, kept_axes
from bnfold._core.operators.record import UNKNOWN, Operator, Passing, Row
from bnfold._core.pointwise import Converted, Homogeneous
from bnfold._core.products import Gated, Multiplied
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.nodes import (
    dtype_of,
    is_tensor,
    kind_of,
    listed,
    number_of,
    parts_of,
    places,
    rank_of,
    reads_of,
    shape_of,
    windows,
)
from bnfold._torch.tensors import DTYPES

Reader = Callable[[Context, Node, dict[str, Any]], Operator]

_NOT_LINEAR = (
    "celu elu erf gelu hardshrink hardswish log_sigmoid mish rrelu selu sigmoid silu "
    "softplus softshrink tanh tanhshrink"
)
# That of PyTorch has no others: ``relu6(x + 3) / 6``.
_HARD_SIGMOID = HardSigmoid(1 / 6, 1 / 2, movable=False)
_CONVERTING = ("_to_copy", "to", "type_as")
_INTERPOLATIONS = (
    "upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa "
    "_upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d"
)


def crossed_row(read: Reader) -> TorchRow:
    """The row of an operator that maps cross where all tensors on the way have one floating-point
    type, none of them is a single number, and whoever takes a part of a list takes it by number.
    """

    def guarded(context: Context, node: Node, args: dict[str, Any]) -> Operator:
        outputs = (node,) if is_tensor(node) else parts_of(node)
        if any(shape_of(source) == () for source in node.all_input_nodes) or not outputs:
            return UNKNOWN
        if not is_tensor(node) and any(user.target is not operator.getitem for user in node.users):
            return UNKNOWN
        found = read(context, node, args)
        if not isinstance(found, Crossed | Activation | Pooling):
            return found
        sources = list(reads_of(node))
        data = [sources[number] for number in found.data]
        first, *others = {dtype_of(value) for value in (*data, *outputs)}
        dtype = DTYPES.get(first) if first is not None else None
        if others or dtype is None or context.is_constant(node):
            return found.closed()
        return replace(found, dtype=dtype)

    return Row(guarded)


def crossed_by(read: Callable[[Context, Node, dict[str, Any]], Law | None]) -> TorchRow:
    """The row of an operator that computes with one tensor and has a law, if one is known."""

    def one(context: Context, node: Node, args: dict[str, Any]) -> Operator:
        law = read(context, node, args)
        return UNKNOWN if law is None else crossed(context, node, law, data_name(args))

    return crossed_row(one)


def crossed(context: Context, node: Node, law: Law, *names: str) -> Crossed:
    """The record of an operator that numbers the tensors given as some of its arguments."""
    return Crossed(label=context.label(node), data=_data(node, *names), law=law)


def data_name(args: dict[str, Any]) -> str:
    """The argument that is the one tensor that an operator computes with."""
    return "self" if "self" in args else "input"


def _data(node: Node, *names: str) -> tuple[int, ...]:
    known = places(node)
    return tuple(number for name in names for number in known[name])


def _carrier(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """What hands its input on: same shape, same type. One to another floating-point type has the
    law of a Cast.
    """
    name = "src" if "src" in args else data_name(args)
    data = args[name]
    if shape_of(data) != shape_of(node) or not is_tensor(node) or args.get("train", False):
        return UNKNOWN
    if dtype_of(data) != dtype_of(node):
        law = None if context.is_constant(node) else _conversion(data, node)
        return UNKNOWN if law is None else crossed(context, node, law, name)
    return Passing(label=context.label(node), data=_data(node, name))


def _conversion(data: Node, node: Node) -> Law | None:
    """The law between two types; see `Converted.between`. A single number has no channels."""
    types = [DTYPES.get(dtype) for each in (data, node) if (dtype := dtype_of(each)) is not None]
    read, written = types if len(types) == 2 else (None, None)
    if read is None or written is None or not shape_of(node) or kind_of(node) not in _CONVERTING:
        return None
    ahead = data.all_input_nodes[:1] if kind_of(data) in _CONVERTING else []
    exact = [(shape_of(x), dtype_of(x)) for x in ahead] == [(shape_of(node), dtype_of(node))]
    return Converted.between(read, written, exact)


def _not_linear(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    if not is_tensor(node):
        return UNKNOWN
    return _activation(context, node, args, None)


def _activation(
    context: Context,
    node: Node,
    args: dict[str, Any],
    law: Law | None,
    numbers: dict[str, str] | None = None,
) -> Activation:
    return Activation(
        label=context.label(node),
        data=_data(node, data_name(args)),
        kind=kind_of(node),
        law=law,
        numbers=numbers or {},
    )


def _homogeneous(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """Relu, LeakyReLU and PReLU (whatever their slopes), and the even abs."""
    kind = kind_of(node)
    law = Homogeneous(kind.startswith("abs"), kind.startswith(("leaky_relu", "prelu")))
    return _activation(context, node, args, law)


def _clip(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """clamp, clamp_min, clamp_max, hardtanh and relu6, with bounds that are numbers.

    New bounds make a relu6 the hardtanh that it is. A hardsigmoid it can become only where the
    numbers come out as those that PyTorch's has.
    """
    low, high = args.get("min_val", args.get("min")), args.get("max_val", args.get("max"))
    if kind_of(node).startswith("relu6"):
        low, high = 0.0, 6.0
    if isinstance(low, Node) or isinstance(high, Node):
        return _activation(context, node, args, None)
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    named = kind_of(node).startswith(("hardtanh", "relu6"))
    numbers = {"min": "min_val", "max": "max_val"} if named else None
    form = Form(f"hardsigmoid{'_' if kind_of(node).endswith('_') else ''}", _HARD_SIGMOID)
    law = Clipped(low, high, context.whole, form)
    return _activation(context, node, args, law, numbers)


def _hard_sigmoid(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    return _activation(context, node, args, _HARD_SIGMOID)


def _threshold(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """It gives x where x > θ, else a value."""
    threshold, value = args["threshold"], args["value"]
    if isinstance(threshold, Node) or isinstance(value, Node):
        return _activation(context, node, args, None)
    law = Thresholded(float(threshold), float(value), movable=context.whole)
    return _activation(context, node, args, law)


def _max_pool(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """A window that begins inside holds an element; of one that is padded and spaced, or hangs over
    the end, that is not certain. The indices, if any, are not used.
    """
    spread = [*listed(args["dilation"]), 2 if args["ceil_mode"] else 1]
    padded = any(listed(args["padding"]))
    full = not (padded and any(step != 1 for step in spread))
    return _pool(context, node, args, mean=False, full=full)


def _average_pool(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    return _pool(context, node, args, mean=True, full=True)


def _pool(context: Context, node: Node, args: dict[str, Any], mean: bool, full: bool) -> Operator:
    if not _is_first_alone(node):
        return UNKNOWN
    name = data_name(args)
    taps, padding = args["kernel_size"], args["padding"]
    return Pooling(
        label=context.label(node),
        data=_data(node, name),
        mean=mean,
        kept=rank_of(args[name]) - _dimensions(node),
        windows=windows(taps, args["stride"] or taps, padding, args.get("dilation", 1)),
        padded=any(listed(padding)),
        counted=bool(args.get("count_include_pad", False)),
        ceils="ceil_mode=True" if args["ceil_mode"] else "",
        divides=args.get("divisor_override") is not None,
        full=full,
    )


def _adaptive_pool(context: Context, node: Node, args: dict[str, Any]) -> Law | None:
    if not _is_first_alone(node):
        return None
    kept = range(rank_of(args[data_name(args)]) - _dimensions(node))
    return Mixed({axis: axis for axis in kept}, 1.0, positive="max" in kind_of(node))


def _is_first_alone(node: Node) -> bool:
    """Whether of several outputs the first is used alone, and in one place."""
    return is_tensor(node) or [number_of(part) for part in parts_of(node)] == [0]


def _dimensions(node: Node) -> int:
    """The number of spatial axes that an operator is named after (``max_pool2d``)."""
    found = re.search(r"\dd", kind_of(node))
    assert found is not None
    return int(found[0][0])


def _reduction(context: Context, node: Node, args: dict[str, Any]) -> Law | None:
    """mean, amax, amin, max and min of an axis (weight 1), sum (the number of elements).

    Of a module the number of elements may change from call to call.
    """
    if not _is_first_alone(node) or "other" in args:
        return None
    kind, shape = kind_of(node), shape_of(args[data_name(args)])
    assert shape is not None
    axes = {axis % len(shape) for axis in listed(args.get("dim"))} or set(range(len(shape)))
    weight: float | None = 1.0
    if kind.startswith("sum"):
        sizes = [size for axis in axes if (size := shape[axis]) is not None]
        known = context.whole and len(sizes) == len(axes) and math.prod(sizes) > 0
        weight = float(math.prod(sizes)) if known else None
    extreme = kind.startswith(("amax", "amin", "max", "min"))
    kept = kept_axes(len(shape), axes, bool(args.get("keepdim")))
    return Mixed(kept, weight, positive=extreme, uneven=UNCOUNTED)


def _upsample(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """Interpolation along all axes but the first two, by weights that add up to 1."""
    return Mixed({0: 0, 1: 1}, 1.0)


def _moved_along(context: Context, node: Node, args: dict[str, Any]) -> Law:
    """Flip and roll: elements change places along some axes."""
    rank, axes = rank_of(node), listed(args["dims"])
    kept = kept_axes(rank, {axis % rank for axis in axes}, keepdims=True)
    return Mixed(kept if axes else None, 1.0)


def _pad(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """The amounts belong to pairs of axes from the last on. Of a module they may be 0 for the
    example and not for other inputs.
    """
    amounts = args["pad"] if "pad" in args else args["padding"]
    rank, name = rank_of(node), data_name(args)
    padded = {
        rank - 1 - place // 2
        for place, amount in enumerate(amounts)
        if amount != 0 or not context.whole
    }
    constant = kind_of(node) in ("pad", "constant_pad_nd")
    if args.get("mode", "constant") != "constant" or not constant:
        return crossed(context, node, Mixed(kept_axes(rank, padded, keepdims=True), 1.0), name)
    value = args["value"] if args["value"] is not None else 0.0
    if isinstance(value, Node):
        return UNKNOWN
    law = Padded(float(value), frozenset(padded), movable=context.whole)
    return crossed(context, node, law, name)


def _sum_of_two(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """``x + α·y``, ``x − α·y`` and ``y − α·x`` for α = ±1, neither of them constant."""
    alpha = args["alpha"]
    if not _are_two(context, args, "self", "other") or alpha not in (1, -1):
        return UNKNOWN
    kind, sign = kind_of(node), int(alpha)
    if kind.startswith("rsub"):
        signs = (-sign, 1)
    else:
        signs = (1, -sign if kind.startswith("sub") else sign)
    return crossed(context, node, Summed(signs, _aligned(node, args)), "self", "other")


def _product_of_factors(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """Mul and div of two tensors, neither of them constant."""
    if not _are_two(context, args, "self", "other") or args.get("rounding_mode") is not None:
        return UNKNOWN
    law = Gated(_aligned(node, args), kind_of(node).startswith("div"))
    return crossed(context, node, law, "self", "other")


def _product_of_matrices(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """matmul, mm and bmm of two tensors, neither of them constant."""
    other = "other" if "other" in args else "mat2"
    if not _are_two(context, args, "self", other):
        return UNKNOWN
    law = Multiplied((rank_of(args["self"]), rank_of(args[other])))
    return crossed(context, node, law, "self", other)


def _attention(context: Context, node: Node, args: dict[str, Any]) -> Operator:
    """``softmax(q·kᵀ)·v`` mixes the values of each channel by weights that add up to 1.

    With a mask they may add up to 0, where all is masked.
    """
    value = args["value"]
    if args["dropout_p"] != 0 or not isinstance(value, Node):
        return UNKNOWN
    weight = None if args["attn_mask"] is not None else 1.0
    law = Mixed({rank_of(value) - 1: rank_of(node) - 1}, weight)
    return crossed(context, node, law, "value")


def _are_two(context: Context, args: dict[str, Any], *names: str) -> bool:
    """Whether arguments are tensors that are computed at run time."""
    given = [args[name] for name in names]
    return all(isinstance(each, Node) and not context.is_constant(each) for each in given)


def _aligned(node: Node, args: dict[str, Any]) -> Aligned:
    return Aligned((shape_of(args["self"]), shape_of(args["other"])), shape_of(node))


def _kinds(row: TorchRow, kinds: str) -> dict[str, TorchRow]:
    """Rows of operators, those that end in ``*`` by two names: that in place has an underscore."""
    names = []
    for kind in kinds.split():
        names += [kind.rstrip("*"), *([f"{kind[:-1]}_"] if kind.endswith("*") else [])]
    return dict.fromkeys(names, row)


sum_of_two = crossed_row(_sum_of_two)
gate = crossed_row(_product_of_factors)
product_of_two = crossed_row(_product_of_matrices)

ROWS: dict[str, TorchRow] = {
    **_kinds(
        Row(_carrier),
        "_to_copy alias alias_copy alpha_dropout clone contiguous copy detach detach_copy dropout* "
        "feature_dropout lift_fresh_copy to type_as",
    ),
    **_kinds(Row(_not_linear), " ".join(f"{kind}*" for kind in _NOT_LINEAR.split())),
    **_kinds(crossed_row(_homogeneous), "abs* leaky_relu* prelu relu*"),
    **_kinds(crossed_row(_clip), "clamp* clamp_max* clamp_min* clip* hardtanh* relu6*"),
    **_kinds(crossed_row(_threshold), "threshold*"),
    **_kinds(crossed_row(_hard_sigmoid), "hardsigmoid*"),
    **{
        f"max_pool{k}d{end}": crossed_row(_max_pool)
        for k in (1, 2, 3)
        for end in ("", "_with_indices")
    },
    **{f"avg_pool{k}d": crossed_row(_average_pool) for k in (1, 2, 3)},
    **{
        f"{what}_pool{k}d": crossed_by(_adaptive_pool)
        for k in (1, 2, 3)
        for what in ("_adaptive_avg", "adaptive_avg", "adaptive_max")
    },
    **_kinds(crossed_by(_reduction), "amax amin max mean min sum"),
    **_kinds(crossed_by(_upsample), _INTERPOLATIONS),
    **_kinds(crossed_by(_moved_along), "flip roll"),
    **_kinds(
        crossed_row(_pad),
        "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d",
    ),
    "scaled_dot_product_attention": crossed_row(_attention),
}
