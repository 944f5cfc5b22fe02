"""Modules that stand in a folded network where no module of PyTorch can."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Remainder", "ScaleShift"]


class Remainder(nn.Sequential):
    """What a module still does when its norm is gone: its activation, its dropout, one by one.

    `bnfold.fold` puts it where one module was both, as timm's ``BatchNormAct2d`` is. With
    ``merge=True`` it also stands where branches were added up: the convolution that they have
    become, and what followed the sum. It takes and gives one tensor. Submodules keep their names,
    and plain attributes (``num_features``) stay. It can be pickled, copied, exported and scripted.
    """


class ScaleShift(nn.Module):
    """``y = weight·x + bias`` with one number of each for every channel, along axis 1.

    `bnfold.fold` with ``depthwise=True`` puts it in the place of a norm that nothing takes in, and
    where no convolution can stand: x is ``[N, C]``, or has more than five axes. It takes and gives
    ``[N, C, …]`` of any rank. At first weight is 1 and bias 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift each channel."""
        shape = [1, -1] + [1] * (input.dim() - 2)
        return input * self.weight.reshape(shape) + self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.weight.numel())
