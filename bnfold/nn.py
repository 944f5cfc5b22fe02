"""Modules that stand in a folded network where no module of PyTorch can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Preprocessed", "Remainder", "ScaleShift"]


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


class Preprocessed(nn.Module):
    """A network behind the preprocessing of its input: type, axes, channels, normalization.

    `bnfold.fold` makes it of a module with ``preprocessing``. The network is ``network``, and
    ``normalization`` a BatchNorm whose statistics are the mean and the deviation, or an Identity
    once it is in weights. It takes one tensor.
    """

    order: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        normalization: nn.Module,
        dtype: torch.dtype | None = None,
        perm: tuple[int, ...] | None = None,
        order: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalization = normalization
        self.dtype = dtype
        self.perm = perm
        stored = None if order is None else torch.tensor(order)
        self.register_buffer("order", stored, persistent=False)

    def forward(self, input: Tensor) -> Any:
        """What the network makes of a picture."""
        if self.dtype is not None:
            input = input.to(self.dtype)
        if self.perm is not None:
            input = input.permute(self.perm)
        if self.order is not None:
            input = input.index_select(1, self.order)
        return self.network(self.normalization(input))

    def extra_repr(self) -> str:
        """What is done with type, axes and channels."""
        order = None if self.order is None else self.order.tolist()
        return f"dtype={self.dtype}, perm={self.perm}, order={order}"
