"""Operators that absorb affine maps of their output or of their input, each with its law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from bnfold._core import channels
from bnfold._core.parameters import Entrance, Reading, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, InputSide
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.context import NOTHING, Context, Read, blocked
from bnfold._torch.read.nodes import shape_of
from bnfold._torch.tensors import DTYPES


def conv(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``A∘Conv``: ``W[o]·s_o``, ``s·b + t``; channels on axis 1, or 0 without a batch.

    Exact for every rank, stride, dilation, padding and group (torch.nn.functional.conv2d).
    ``Conv∘A``: ``W[o, i]·s_i``, ``b + Σ W[o, i, k]·t_i``, the shift only without padding.
    """
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return blocked(weight)
    shape, groups = weight.shape, args["groups"]
    padded = _is_padded(args["padding"], shape[2:])
    return _linear_operator(
        context,
        node,
        args,
        weight,
        (shape[0], shape[1] * groups),
        (channels.along_axis(shape, 0), channels.conv_inputs(shape, groups)),
        len(shape) - 1,
        "zero padding would see the shift" if padded else "",
    )


def conv_transpose(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``A∘ConvTranspose`` on a weight ``[Cin, Cout/groups, k…]``; see `channels.conv_transpose`.

    Each output sums the inputs that its kernel places hit. A shift ahead is exact only where all
    outputs sum the whole kernel: kernel 1 and stride 1, nothing cut or added.
    """
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return blocked(weight)
    shape, groups = weight.shape, args["groups"]
    single = all(n == 1 for n in (*shape[2:], *_listed(args["stride"])))
    whole = single and not any((*_listed(args["padding"]), *_listed(args["output_padding"])))
    problem = "its outputs sum different parts of the kernel, zero padding would see the shift"
    return _linear_operator(
        context,
        node,
        args,
        weight,
        (shape[1] * groups, shape[0]),
        (channels.conv_transpose(shape, groups), channels.along_axis(shape, 0)),
        len(shape) - 1,
        "" if whole else problem,
    )


def linear(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``A∘Linear``: rows of the weight ``[out, in]``, and the bias; ``Linear∘A``: its columns.

    Channels are on the last axis of the input and of the output (torch.nn.functional.linear).
    """
    weight = context.parameter(args["weight"])
    if not isinstance(weight, Constant):
        return blocked(weight)
    shape = weight.shape
    if len(shape) != 2:
        return NOTHING
    layouts = channels.along_axis(shape, 0), channels.along_axis(shape, 1)
    return _linear_operator(context, node, args, weight, (shape[0], shape[1]), layouts, 1, "")


def _linear_operator(
    context: Context,
    node: Node,
    args: dict[str, Any],
    weight: Constant,
    sizes: tuple[int, int],
    layouts: tuple[channels.ChannelLayout, channels.ChannelLayout],
    from_end: int,
    padding: str,
) -> Read:
    """An operator with a weight and a bias vector, its channels counted from the last axis.

    ``sizes`` and ``layouts`` are those of its output channels and of its input channels;
    ``padding`` says why a shift ahead of it is not exact, if so.
    """
    shape, data = shape_of(node), args["input"]
    assert shape is not None
    axis = len(shape) - from_end
    bias = context.parameter(args["bias"])
    if not weight.is_float or (isinstance(bias, Constant) and bias.shape != sizes[:1]):
        return NOTHING
    where = context.label(node)
    problem = bias if isinstance(bias, Reason) else None
    site = Site(
        where,
        1,
        2,
        {axis: sizes[0]},
        lambda _: layouts[0],
        lambda _: sizes[:1],
        weight,
        bias if isinstance(bias, Constant) else None,
        sizes[:1],
        dtype=DTYPES[weight.torch_dtype],
        entrance=Entrance(layouts[1]),
    )
    zeros = Reason("zero-padding", where, f"{where}: {padding}") if padding else None
    ahead = InputSide(0, {axis: sizes[1]}, None, zeros or problem)
    role = Absorber({axis: sizes[0]}, problem, problem, True, ahead)
    return Read(Reading(role, site, shape), (data,))


def _is_padded(padding: object, kernel: Sequence[int]) -> bool:
    """Whether some output of a convolution sees zeros; with "same", all but those of kernel 1."""
    if isinstance(padding, str):
        return padding != "valid" and any(k > 1 for k in kernel)
    return any(_listed(padding))


def _listed(value: object) -> list[int]:
    """An argument that is one number for all axes, or one for each."""
    return [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]


def layer_norm(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``A∘LayerNorm``: ``γ·s``, ``β·s + t`` along the axes that γ spans, the last ones."""
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    shape = shape_of(node)
    if weight is None or shape is None:
        return NOTHING
    if not isinstance(weight, Constant):
        return blocked(weight)
    gamma = weight.shape
    offset = len(shape) - len(gamma)
    channel_sizes = {offset + j: n for j, n in enumerate(gamma)}
    site = Site(
        context.label(node),
        2,
        3,
        channel_sizes,
        lambda axis: channels.along_axis(gamma, max(axis - offset, 0)),
        lambda axis: channels.along_axis(gamma, axis - offset).along,
        weight,
        bias if isinstance(bias, Constant) else None,
        gamma,
        dtype=DTYPES[weight.torch_dtype],
    )
    problem = bias if isinstance(bias, Reason) else None
    return Read(Reading(Absorber(channel_sizes, problem, problem), site, shape))


def group_norm(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """``A∘GroupNorm``: ``γ·s``, ``β·s + t`` on axis 1, one number per channel."""
    return gamma_beta(context, node, args)


def gamma_beta(context: Context, node: Node, args: dict[str, Any]) -> Read:
    """A normalization with a γ for each place along axis 1, and perhaps a β."""
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    if weight is None:
        return NOTHING
    if not isinstance(weight, Constant):
        return blocked(weight)
    if len(weight.shape) != 1:
        return NOTHING
    site = norm_site(context, node, weight, bias if isinstance(bias, Constant) else None)
    problem = bias if isinstance(bias, Reason) else None
    role = Absorber({1: weight.shape[0]}, problem, problem)
    return Read(Reading(role, site, shape_of(node)))


def norm_site(context: Context, node: Node, weight: Constant, bias: Constant | None) -> Site:
    """The γ and β of a normalization along axis 1."""
    fixed = weight.shape
    return Site(
        context.label(node),
        1,
        2,
        {1: fixed[0]},
        lambda _: channels.along_axis(fixed, 0),
        lambda _: fixed,
        weight,
        bias,
        fixed,
        dtype=DTYPES[weight.torch_dtype],
    )
