"""Networks without norms: scales and shifts on their own, in a ResMLP and an NFNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks._parts import Affine, Mean, Permute, Residual, Scale, Tokens, pooled_head


def resmlp() -> nn.Module:
    """A ResMLP: Affine in the place of LayerNorm, linear layers across patches, LayerScale."""
    channels, tokens = 16, 16
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 8, 8), Tokens()]
    for _ in range(2):
        across = [Permute(0, 2, 1), nn.Linear(tokens, tokens), Permute(0, 2, 1)]
        mlp = [nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)]
        parts += [
            Residual(nn.Sequential(Affine(channels), *body, Scale(channels)))
            for body in (across, mlp)
        ]
    return nn.Sequential(*parts, Affine(channels), Mean(1), nn.Linear(channels, 10))


class StandardizedConv(nn.Conv2d):
    """A convolution that standardizes its weight at each call and scales it by a gain."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        centred = self.weight - mean
        variance = (centred * centred).mean((1, 2, 3), keepdim=True)
        fan_in = self.weight[0].numel()
        weight = centred * torch.rsqrt(variance * fan_in + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


class NFBlock(nn.Module):
    """A block of an NFNet; α, β, the activation's gain and SkipInit's are in its own code."""

    def __init__(self, channels: int, beta: float, alpha: float = 0.2) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.conv1 = StandardizedConv(channels, channels // 2, 1)
        self.conv2 = StandardizedConv(channels // 2, channels // 2, 3)
        self.conv3 = StandardizedConv(channels // 2, channels, 1)
        self.skip_gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        def active(z: Tensor) -> Tensor:
            return F.relu(z) * 1.7139588594436646

        y: Tensor = self.conv1(active(x) * self.beta)
        y = self.conv3(active(self.conv2(active(y))))
        return x + y * self.skip_gain * self.alpha


def nfnet() -> nn.Module:
    """A stem and two blocks of an NFNet."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), NFBlock(16, 0.95), NFBlock(16, 0.88), pooled_head(16, 10)
    )
