"""ONNX operators that absorb an affine map of their output, each with its law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, helper

from bnfold._core import channels
from bnfold._core.affine import AffineMap
from bnfold._core.broadcast import Shape
from bnfold._core.channels import ChannelLayout
from bnfold._core.parameters import Entrance, Quantized, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, InputSide
from bnfold._onnx.read import attributes, paddings
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.quantized import Dequantized
from bnfold._onnx.read.scopes import label
from bnfold._onnx.tensors import FLOATS


@dataclass(frozen=True)
class _Inside:
    """How a linear operator with a constant weight takes in maps of its input."""

    entrance: Entrance
    ahead: InputSide


@dataclass(frozen=True)
class Found:
    """An absorber's role, its site, and the output shape that follows from its weight."""

    role: Absorber
    site: Site | None
    shape: Shape | None


def conv(context: Context, node: NodeProto) -> Found | None:
    """``A∘Conv``: ``W[o]·s_o``, ``s·b + t``; output channels on axis 1.

    Exact for every rank, stride, dilation, padding and group: each output element of channel o is
    linear in W[o] and adds b[o] once (ONNX Conv).
    """
    if len(node.input) < 2:
        return None
    weight = context.weight(node, 1)
    shape = _shape_of(context, node.input[1], weight)
    if shape is None or len(shape) < 3 or shape[0] is None:
        return _blocked(weight)
    cout, group = shape[0], attributes.integer(node, "group", 1)
    if group < 1 or cout % group:
        return None
    inside = None
    if isinstance(weight, Constant):
        cin = weight.shape[1] * group
        padding = paddings.conv(context, node, weight.shape)
        entrance = Entrance(channels.conv_inputs(weight.shape, group))
        inside = _Inside(entrance, InputSide(0, {1: cin}, None, padding))
    return _channel_first(
        context,
        node,
        weight,
        cout,
        lambda axis: channels.along_axis(_fixed(shape), 0),
        shape,
        inside,
    )


def conv_transpose(context: Context, node: NodeProto) -> Found | None:
    """``A∘ConvTranspose`` on a weight ``[Cin, Cout/group, k…]``; see `channels.conv_transpose`.

    Exact for every stride, dilation, padding and output padding: each output element of channel
    o sums terms linear in the weights of o and adds b[o] once (ONNX ConvTranspose).
    """
    if len(node.input) < 2:
        return None
    weight = context.weight(node, 1)
    shape = _shape_of(context, node.input[1], weight)
    group = attributes.integer(node, "group", 1)
    if shape is None or len(shape) < 3 or shape[0] is None or shape[1] is None:
        return _blocked(weight)
    if group < 1 or shape[0] % group:
        return None
    fixed, cout = _fixed(shape), shape[1] * group
    inside = None
    if isinstance(weight, Constant):
        padding = paddings.conv_transpose(node, weight.shape)
        entrance = Entrance(channels.along_axis(weight.shape, 0))
        inside = _Inside(entrance, InputSide(0, {1: weight.shape[0]}, None, padding))
    return _channel_first(
        context,
        node,
        weight,
        cout,
        lambda axis: channels.conv_transpose(fixed, group),
        shape,
        inside,
    )


def instance_norm(context: Context, node: NodeProto) -> Found | None:
    """``A∘InstanceNormalization``: ``γ·s``, ``β·s + t`` on axis 1, always exact."""
    return _gamma_on_axis_one(context, node)


def group_norm(context: Context, node: NodeProto) -> Found | None:
    """``A∘GroupNormalization``: ``γ·s``, ``β·s + t``.

    From opset 21 γ and β are per channel and any map along axis 1 is exact. In opset 18 to 20
    they are per group, which only a uniform map leaves so.
    """
    found = _gamma_on_axis_one(context, node)
    if found is None or context.opset >= 21:
        return found
    role = Absorber({}, found.role.scale_blocked, found.role.shift_blocked)
    return Found(role, found.site, found.shape)


def layer_norm(context: Context, node: NodeProto) -> Found | None:
    """``A∘LayerNormalization``: ``γ·s``, ``β·s + t`` along the axes that γ spans.

    γ is aligned with the input from the right (ONNX LayerNormalization), so its axis j is output
    axis ``rank − len(γ) + j``. A missing β is made with γ's shape.
    """
    weight = context.parameter(node, 1)
    if not isinstance(weight, Constant):
        return _blocked(weight)
    shape = context.shape(node.input[0])
    gamma = weight.shape
    offset = len(shape) - len(gamma) if shape is not None else 0
    if offset < 0:
        return None
    channel_sizes = {offset + j: n for j, n in enumerate(gamma)} if shape is not None else {}
    bias = _shaped(context.parameter(node, 2), gamma)
    site = Site(
        label(node),
        1,
        2,
        channel_sizes,
        lambda axis: channels.along_axis(gamma, max(axis - offset, 0)),
        lambda axis: channels.along_axis(gamma, axis - offset).along,
        weight,
        bias if isinstance(bias, Constant) else None,
        gamma,
        dtype=weight.dtype,
    )
    blocked = bias if isinstance(bias, Reason) else None
    return Found(Absorber(channel_sizes, blocked, blocked), site, shape)


def gemm(context: Context, node: NodeProto) -> Found | None:
    """``A∘Gemm`` for ``Y = α·A'·B' + β·C``: the constant factor's columns (B) or rows (A).

    With B constant a map along axis 1 scales B' by columns; with A constant one along axis 0
    scales A' by rows. α multiplies the product either way. ``C ← s·(β·C) + t`` with β set to 1,
    C of any shape that broadcasts to the output; C is absent, constant, or ignored (β = 0).
    Exact always.
    """
    if context.opset < 7:
        return None
    left, right = context.weight(node, 0), context.weight(node, 1)
    position = 1 if not isinstance(left, Constant) else 0
    weight, axis = (right, 1) if position == 1 else (left, 0)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return None
    beta = attributes.number(node, "beta", 1.0)
    bias = context.weight(node, 2) if beta != 0.0 else None
    if not isinstance(weight, Constant) or len(weight.shape) != 2:
        return _blocked(weight)
    transposed = bool(attributes.integer(node, "transB" if position == 1 else "transA", 0))
    stored_axis = (1 - axis) if transposed else axis
    fixed = weight.shape
    size = fixed[stored_axis]
    if isinstance(bias, Constant) and not _broadcasts(bias.shape, axis, size):
        bias = _unusual(bias)
    site = Site(
        label(node),
        position,
        2,
        {axis: size},
        lambda _: channels.along_axis(fixed, stored_axis),
        lambda out: (size,) if out == 1 else (size, 1),
        weight,
        bias if isinstance(bias, Constant) else None,
        None,
        beta,
        weight.dtype,
        Entrance(
            channels.along_axis(fixed, 1 - stored_axis), attributes.number(node, "alpha", 1.0)
        ),
        _quantized(context, node, position),
    )
    blocked = bias if isinstance(bias, Reason) else None
    # Of the data [M, K] (of [K, N] where A is constant) K is summed over, wherever it is stored.
    turned = bool(attributes.integer(node, "transA" if position == 1 else "transB", 0))
    summed = (1 if position == 1 else 0) ^ turned
    ahead = InputSide(1 - position, {summed: fixed[1 - stored_axis]}, None, blocked)
    role = Absorber({axis: size}, blocked, blocked, True, ahead)
    return Found(role, site, (None, size) if axis == 1 else (size, None))


def matmul(context: Context, node: NodeProto) -> Found | None:
    """``A∘MatMul`` with one constant operand: scale along the axis that reaches the output axis.

    NumPy's rules place the constant's last axis (on the right) on the output's last, its
    second-last (on the left) on the output's second-last, and its batch axes, aligned from the
    right, on the output's; each scales exactly. An axis the constant lacks, or holds with size 1
    against a larger output, has no parameters of its own. MatMul has no bias: a shift needs an Add.
    """
    left, right = context.weight(node, 0), context.weight(node, 1)
    if isinstance(left, Constant) == isinstance(right, Constant):
        if isinstance(left, Constant):
            return None
        blocked = next(
            (x for x in (right, left) if isinstance(x, Reason) and x.code != "dynamic-weight"),
            None,
        )
        return _blocked(blocked) if blocked is not None else None
    position = 1 if isinstance(right, Constant) else 0
    weight = right if isinstance(right, Constant) else left
    assert isinstance(weight, Constant)
    other = context.shape(node.input[1 - position])
    where = _output_axes(weight.shape, position, other)
    fixed = weight.shape
    channel_sizes = {out: fixed[own] for out, own in where.items()}
    site = Site(
        label(node),
        position,
        None,
        channel_sizes,
        lambda out: channels.along_axis(fixed, where.get(out, 0)),
        lambda out: (),
        weight,
        dtype=weight.dtype,
        entrance=Entrance(channels.along_axis(fixed, _summed_axis(fixed, position))),
        quantized=_quantized(context, node, position),
    )
    old = Reason("unsupported-opset", label(node), "an Add would need opset 7 or later")
    ahead = _ahead_of_matmul(label(node), site, fixed, position, other)
    role = Absorber(channel_sizes, None, None if context.opset >= 7 else old, False, ahead)
    return Found(role, site, _output_shape(weight.shape, other, channel_sizes))


def _output_axes(fixed: Shape, position: int, other: Shape | None) -> dict[int, int]:
    """Output axes of a MatMul that have parameters of their own, with the constant's axis."""
    if other is None or len(fixed) < 2:
        return {}
    batch = len(fixed) - 2
    kept = len(fixed) - 1 if position == 1 else len(fixed) - 2
    if len(other) == 1:
        axes = {batch: kept}
        out_batch = batch
    else:
        rank = max(len(fixed), len(other))
        axes = {rank - 1 if position == 1 else rank - 2: kept}
        out_batch = rank - 2
    axes.update({out_batch - batch + k: k for k in range(batch) if fixed[k] != 1})
    return axes


def _quantized(context: Context, node: NodeProto, position: int) -> Quantized | None:
    found = context.dequantized(node, position)
    return found.quantized if isinstance(found, Dequantized) else None


def _summed_axis(fixed: tuple[int, ...], position: int) -> int:
    """The axis of a MatMul's constant that is summed over."""
    return max(len(fixed) - 2, 0) if position == 1 else len(fixed) - 1


def _ahead_of_matmul(
    where: str, site: Site, fixed: tuple[int, ...], position: int, other: Shape | None
) -> InputSide:
    """``(s·X + t)·W = X·(s·W) + t·W``: s along the axis that is summed over, or uniform.

    The image of the shift, ``Σ_k t_k·W[k, n]``, is a map along the output's axis of n where W is a
    matrix; with batch axes of its own it would vary along several.
    """
    size = fixed[_summed_axis(fixed, position)]
    channel_sizes = {}
    if other is not None:
        axis = len(other) - 1 if position == 1 else max(len(other) - 2, 0)
        channel_sizes = {axis: size}
    blocked = None
    if len(fixed) != 2 or other is None:
        message = f"the shift would vary along several axes of what {where} puts out"
        blocked = Reason("axis-mismatch", where, message)

    def image(map_: AffineMap) -> AffineMap:
        return AffineMap.of(1.0, site.image(map_.shift), next(iter(site.channels)))

    return InputSide(1 - position, channel_sizes, None, blocked, image)


def _output_shape(fixed: Shape, other: Shape | None, channel_sizes: dict[int, int]) -> Shape | None:
    """What is known of a MatMul's output shape: its rank and the sizes the constant gives it."""
    if other is None or len(fixed) < 2:
        return None
    rank = max(len(fixed), len(other)) - (len(other) == 1)
    return tuple(channel_sizes.get(axis) for axis in range(rank))


def _channel_first(
    context: Context,
    node: NodeProto,
    weight: Constant | Reason | None,
    cout: int,
    layout: Callable[[int], ChannelLayout],
    shape: Shape,
    inside: _Inside | None,
) -> Found:
    """The site of a convolution: bias ``[Cout]``, output channels on axis 1."""
    bias = _shaped(context.weight(node, 2), (cout,))
    bias_reason = bias if isinstance(bias, Reason) else None
    weight_reason = weight if isinstance(weight, Reason) else None
    known = next((x for x in (weight, bias) if isinstance(x, Constant)), None)
    element = known.data_type if known else context.type(node.input[1])
    site = Site(
        label(node),
        1,
        2,
        {1: cout},
        layout,
        lambda axis: (cout,),
        weight if isinstance(weight, Constant) else None,
        bias if isinstance(bias, Constant) else None,
        (cout,),
        dtype=np.dtype(helper.tensor_dtype_to_np_dtype(element or 1)),
        entrance=inside.entrance if inside else None,
        quantized=_quantized(context, node, 1),
    )
    unknown = None if element in FLOATS else weight_reason
    ahead = None
    if inside is not None:
        ahead = replace(
            inside.ahead, shift_blocked=inside.ahead.shift_blocked or bias_reason or unknown
        )
    role = Absorber({1: cout}, weight_reason or bias_reason, bias_reason or unknown, True, ahead)
    return Found(role, site, (None, cout, *(None for _ in shape[2:])))


def _gamma_on_axis_one(context: Context, node: NodeProto) -> Found | None:
    weight = context.parameter(node, 1)
    if not isinstance(weight, Constant) or len(weight.shape) != 1:
        return _blocked(weight)
    size = math.prod(weight.shape)
    fixed = weight.shape
    bias = _shaped(context.parameter(node, 2), fixed)
    site = Site(
        label(node),
        1,
        2,
        {1: size},
        lambda axis: channels.along_axis(fixed, 0),
        lambda axis: fixed,
        weight,
        bias if isinstance(bias, Constant) else None,
        fixed,
        dtype=weight.dtype,
    )
    blocked = bias if isinstance(bias, Reason) else None
    return Found(Absorber({1: size}, blocked, blocked), site, context.shape(node.input[0]))


def _blocked(weight: Constant | Reason | None) -> Found | None:
    """An operator that would absorb, but for its weight; without a weight it is none."""
    if weight is None:
        return None
    if isinstance(weight, Constant):
        weight = _unusual(weight)
    return Found(Absorber({}, weight, weight), None, None)


def _shaped(bias: Constant | Reason | None, shape: tuple[int, ...]) -> Constant | Reason | None:
    """A bias of the one shape that its operator allows, or a reason."""
    return _unusual(bias) if isinstance(bias, Constant) and bias.shape != shape else bias


def _broadcasts(shape: tuple[int, ...], axis: int, size: int) -> bool:
    """Whether Gemm's C fits an output of the given size along an axis."""
    return len(shape) <= 2 and ((1, 1, *shape)[-2:])[axis] in (1, size)


def _unusual(constant: Constant) -> Reason:
    what = f"{constant.name} has a shape that its operator does not allow: {constant.shape}"
    return Reason("not-per-channel", constant.name, what)


def _shape_of(context: Context, name: str, weight: Constant | Reason | None) -> Shape | None:
    return weight.shape if isinstance(weight, Constant) else context.shape(name)


def _fixed(shape: Shape) -> tuple[int, ...]:
    """A shape whose unknown sizes do not matter: they belong to a weight that is not constant."""
    return tuple(size if size is not None else 1 for size in shape)
