"""ConvNeXt, its LayerScale as a module and in the code of its block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from networks._parts import Mean, Permute, Residual, Scale


def convnext_body(channels: int) -> list[nn.Module]:
    """What a ConvNeXt block does ahead of its LayerScale, and then back to ``[N, C, H, W]``."""
    return [
        nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(channels),
        nn.Linear(channels, 4 * channels),
        nn.GELU(),
        nn.Linear(4 * channels, channels),
    ]


class ConvNeXtBlock(nn.Module):
    """A block of ConvNeXt as it was published, with the LayerScale in its own code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convnext_body(channels))
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.gamma * self.body(x)
        return x + y.permute(0, 3, 1, 2)


def convnext(block: Callable[[int], nn.Module]) -> nn.Module:
    """A ConvNeXt of two stages."""

    def norm(channels: int) -> list[nn.Module]:
        return [Permute(0, 2, 3, 1), nn.LayerNorm(channels), Permute(0, 3, 1, 2)]

    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        *norm(8),
        block(8),
        block(8),
        *norm(8),
        nn.Conv2d(8, 16, 2, 2),
        block(16),
        Mean(2, 3),
        nn.LayerNorm(16),
        nn.Linear(16, 10),
    )


def convnext_with_modules() -> nn.Module:
    """A ConvNeXt whose LayerScale is a module."""
    return convnext(
        lambda n: Residual(nn.Sequential(*convnext_body(n), Scale(n), Permute(0, 3, 1, 2)))
    )
