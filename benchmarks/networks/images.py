"""Networks that put out images: the generator of a DCGAN and a U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks._parts import conv_bn


def dcgan() -> nn.Module:
    """The generator of a DCGAN."""
    parts: list[nn.Module] = []
    for inputs, outputs, stride, padding in ((16, 32, 1, 0), (32, 16, 2, 1), (16, 8, 2, 1)):
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        parts += [conv, nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*parts, nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh())


class UNet(nn.Module):
    """A U-Net whose way up has transposed convolutions, one of them grouped."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.twice(3, width), self.twice(width, 2 * width)])
        self.bottom = self.twice(2 * width, 4 * width)
        self.up = nn.ModuleList([self.larger(4 * width, 4), self.larger(2 * width, 1)])
        self.join = nn.ModuleList([self.twice(4 * width, 2 * width), self.twice(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def twice(inputs: int, outputs: int) -> nn.Sequential:
        """Two convolutions."""
        return nn.Sequential(
            *conv_bn(inputs, outputs, after=nn.ReLU(True)),
            *conv_bn(outputs, outputs, after=nn.ReLU(True)),
        )

    @staticmethod
    def larger(inputs: int, groups: int) -> nn.Sequential:
        """A transposed convolution to twice the size and half the channels."""
        conv = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2, groups=groups)
        return nn.Sequential(conv, nn.BatchNorm2d(inputs // 2))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        skips = []
        for part in self.down:
            x = part(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        y: Tensor = self.head(x)
        return y
