"""Networks of attention: a vision transformer with LayerScale, and a LeViT."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from networks._parts import Mean, Residual, Scale, Tokens, conv_bn


class Attention(nn.Module):
    """Self-attention over ``[N, tokens, C]``."""

    def __init__(self, channels: int, heads: int, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(channels, 3 * channels)
        self.project = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch, tokens, channels = x.shape
        size = channels // self.heads
        parts: Tensor = self.qkv(x)
        q, k, v = parts.view(batch, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind()
        weights = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1)
        y: Tensor = self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, channels))
        return y


class ViT(nn.Module):
    """A vision transformer with a class token and LayerScale."""

    def __init__(self, channels: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, channels, 8, 8), Tokens())
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, channels))
        self.position = nn.Parameter(0.1 * torch.randn(1, 17, channels))
        self.blocks = nn.Sequential(*[self.block(channels) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    @staticmethod
    def block(channels: int) -> nn.Sequential:
        """Attention and two linear layers, each with a LayerNorm, a LayerScale and a shortcut."""
        attention = [nn.LayerNorm(channels), Attention(channels, 3, nn.Linear), Scale(channels)]
        mlp = [nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)]
        return nn.Sequential(
            Residual(nn.Sequential(*attention)),
            Residual(nn.Sequential(nn.LayerNorm(channels), *mlp, nn.Dropout(0.1), Scale(channels))),
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.patches(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y: Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return y


class LinearNorm(nn.Module):
    """LeViT's linear layer: its BatchNorm sees all tokens of the batch as one axis."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.linear(x)
        y = self.norm(y.flatten(0, 1)).view(y.shape)
        return y


class NormLinear(nn.Sequential):
    """LeViT's classifier: a BatchNorm on vectors, and a linear layer behind it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs))


def levit() -> nn.Module:
    """A LeViT without its shrinking stages."""
    channels = 24
    stem = [conv_bn(3, 12, 3, 2, after=nn.Hardswish()), conv_bn(12, channels, 3, 2)]
    parts: list[nn.Module] = [*stem, nn.MaxPool2d(2), Tokens()]
    for _ in range(2):
        first = LinearNorm(channels, 2 * channels)
        mlp = nn.Sequential(first, nn.Hardswish(), LinearNorm(2 * channels, channels))
        parts += [Residual(Attention(channels, 3, LinearNorm)), Residual(mlp)]
    return nn.Sequential(*parts, Mean(1), NormLinear(channels, 10))
