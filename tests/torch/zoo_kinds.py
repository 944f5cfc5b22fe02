"""Small networks of the kinds of which norms stay somewhere, or merge, in the zoos of PyTorch.

Written anew, a block or two of each: ``benchmarks/zoo.md`` names the architectures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class Plus(nn.Module):
    """``x + body(x)``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mixer() -> nn.Module:
    """ConvMixer: the norm comes behind the activation, and what reads it pads by zeros."""

    def behind(conv: nn.Module) -> list[nn.Module]:
        return [conv, nn.GELU(), nn.BatchNorm2d(6)]

    blocks = [
        layer
        for _ in range(2)
        for layer in (
            Plus(*behind(nn.Conv2d(6, 6, 3, padding=1, groups=6))),
            *behind(nn.Conv2d(6, 6, 1)),
        )
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    return nn.Sequential(*behind(nn.Conv2d(3, 6, 2, 2)), *blocks, *head)


class Appended(nn.Module):
    """DenseNet: what was made of all features so far is put behind them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(norm_relu(channels), nn.Conv2d(channels, 8, 1, bias=False))
        self.made = nn.Sequential(norm_relu(8), nn.Conv2d(8, 4, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.made(self.narrow(x))], 1)


def dense() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, bias=False), norm_relu(4)]
    return nn.Sequential(*stem, Appended(4), Appended(8), norm_relu(12), nn.Conv2d(12, 4, 1))


class TwoPaths(nn.Module):
    """Dual path network: part of what is made is added, the rest put behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y = self.conv(self.bn(torch.cat(x, 1)).relu())
        y = self.conv2(self.bn2(y).relu())
        return x[0] + y[:, :4], torch.cat([x[1], y[:, 4:]], 1)


class DualPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)
        self.a, self.b = TwoPaths(7), TwoPaths(9)
        self.head = nn.Sequential(norm_relu(11), nn.Conv2d(11, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x)).relu()
        return self.head(torch.cat(self.b(self.a((y[:, :4], y[:, 4:]))), 1))


class Attention(nn.Module):
    """BoTNet: attention in the place of a 3×3 convolution, and a norm behind it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 24, 1, bias=False)
        self.places = nn.Parameter(torch.zeros(size * size, size * size))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, 2, 4)).unbind(1)
        near = (q.transpose(-1, -2) @ k * 0.5 + self.places).softmax(-1)
        y = (v @ near.transpose(-1, -2)).reshape(x.shape)
        return self.norm(y).relu()


def attention() -> nn.Module:
    ahead = [nn.Conv2d(3, 8, 1, bias=False), norm_relu(8)]
    behind = [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)]
    return nn.Sequential(*ahead, Plus(Attention(6), *behind), nn.ReLU())


class Lambdas(nn.Module):
    """LambdaNetworks: queries and values have norms, and values are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 16, 1, bias=False)
        self.norm_q, self.norm_v = nn.BatchNorm2d(8), nn.BatchNorm2d(4)
        self.near = nn.Conv3d(1, 4, (3, 3, 1), padding=(1, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.qkv(x).split((8, 4, 4), 1)
        q = self.norm_q(q).reshape(n, 2, 4, h * w).transpose(-1, -2)
        v = self.norm_v(v).reshape(n, 4, h * w).transpose(-1, -2)
        k = k.reshape(n, 4, h * w).softmax(-1)
        content = q @ (k @ v).unsqueeze(1)
        places = self.near(v.reshape(n, 1, h, w, 4)).reshape(n, 1, 4, h * w, 4)
        position = q.unsqueeze(-2) @ places.transpose(2, 3)
        return (content + position.squeeze(-2)).transpose(-1, -2).reshape(n, 8, h, w)


def lambdas() -> nn.Module:
    ahead = [nn.Conv2d(3, 8, 1, bias=False), norm_relu(8)]
    return nn.Sequential(*ahead, Lambdas(), norm_relu(8), nn.Conv2d(8, 4, 1))


class Branches(nn.Module):
    """MobileOne and FastViT: convolutions of two sizes with their norms, and a norm alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def branch(size: int) -> nn.Sequential:
            conv = nn.Conv2d(channels, channels, size, 1, size // 2, groups=channels, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels))

        self.wide, self.narrow, self.skip = branch(3), branch(1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x) + self.skip(x)


class Mixed(nn.Module):
    """FastViT's token mixer: ``x + γ·(branches(x) − norm(x))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer, self.norm = Branches(channels), nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


def one() -> nn.Module:
    body = [layer for _ in range(2) for layer in (Branches(6), nn.ReLU(), nn.Conv2d(6, 6, 1))]
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), *body)


def tokens() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GELU(), Mixed(6), nn.Conv2d(6, 4, 1))


class Ghost(nn.Module):
    """GhostNetV3: sums of branches in code that does more: it puts a part behind another one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.wide = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.bn, self.skip = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x).relu()
        other = self.bn(self.wide(one)) + self.skip(one)
        return torch.cat([one, other.relu()], 1)


def ghost() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Ghost(4), Ghost(8), nn.Conv2d(8, 4, 1))


class Standardized(nn.Conv2d):
    """Norm-free networks: a batch norm of the weights, each output channel on its own."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def norm_free() -> nn.Module:
    blocks = [Plus(nn.SiLU(), Standardized(6, 6, 3, padding=1)) for _ in range(2)]
    return nn.Sequential(Standardized(3, 6, 3), *blocks, nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))


class Ahead(nn.Module):
    """ResNet with norms ahead: the first one and its activation feed the shortcut, too."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = norm_relu(channels)
        self.shortcut = nn.Conv2d(channels, outputs, 1) if outputs != channels else None
        first = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.body = nn.Sequential(first, norm_relu(outputs), nn.Conv2d(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return (x if self.shortcut is None else self.shortcut(y)) + self.body(y)


def ahead() -> nn.Module:
    stem = nn.Conv2d(3, 4, 3, bias=False)
    return nn.Sequential(stem, Ahead(4, 4), Ahead(4, 8), norm_relu(8), nn.Conv2d(8, 4, 1))


def separable() -> nn.Module:
    """Xception with activations ahead: norms between a depthwise and a pointwise convolution, and
    behind that.
    """

    def layers() -> list[nn.Module]:
        wide = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        narrow = nn.Conv2d(6, 6, 1, bias=False)
        return [nn.ReLU(), wide, nn.BatchNorm2d(6), narrow, nn.BatchNorm2d(6)]

    stem = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)]
    return nn.Sequential(*stem, Plus(*layers(), *layers()), Plus(*layers()), norm_relu(6))


def local() -> nn.Module:
    """XCiT's local patch interaction: a norm between activation and a padded convolution."""

    def wide() -> nn.Module:
        return nn.Conv2d(6, 6, 3, padding=1, groups=6)

    block = [nn.BatchNorm2d(6), wide(), nn.GELU(), nn.BatchNorm2d(6), wide()]
    stem = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.GELU()]
    return nn.Sequential(*stem, Plus(*block), nn.Conv2d(6, 4, 1))


NETWORKS = {
    "mixer": mixer,
    "dense": dense,
    "dual path": DualPath,
    "attention": attention,
    "lambdas": lambdas,
    "one": one,
    "tokens": tokens,
    "ghost": ghost,
    "norm-free": norm_free,
    "norms ahead": ahead,
    "separable": separable,
    "local": local,
}
