"""Makes the module that stands for a norm which nothing takes in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bnfold._core.parameters import Reading
from bnfold._core.view import View
from bnfold._plan.fit import standing_constants, standing_dtype
from bnfold._plan.planner import Move
from bnfold._torch.tensors import from_numpy
from bnfold.nn import ScaleShift

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def per_channel(view: View, readings: Sequence[Reading], move: Move, norm: nn.Module) -> nn.Module:
    """A depthwise convolution with the kernel 1, or a `ScaleShift`, for a move that ``rewrites``.

    It is on the device of ``norm``, whose place it takes, and learns if that does.
    """
    (standing,) = move.stands
    dtype = standing_dtype(view, readings, move)
    weight, bias = (
        from_numpy(vector.astype(dtype)) for vector in standing_constants(readings, move, standing)
    )
    channels = standing.channels
    made: nn.Module = ScaleShift(channels)
    if standing.op == "Conv":
        spatial = len(view.values[view.nodes[move.into].outputs[0]].shape or ()) - 2
        weight = weight.reshape(-1, 1, *(1,) * spatial)
        made = _CONVOLUTIONS[spatial - 1](channels, channels, 1, groups=channels, device="meta")
    own = [*norm.parameters(), *norm.buffers()]
    learns = all(tensor.requires_grad for tensor in norm.parameters())
    for name, values in (("weight", weight), ("bias", bias)):
        values = values.to(own[0].device) if own else values
        made.register_parameter(name, nn.Parameter(values.clone(), requires_grad=learns))
    return made.eval()
