"""Fold a dozen architectures both ways: the module and then export it, or the exported module.

For each architecture the module is exported with its BatchNorms kept, and bnfold folds the file;
and bnfold folds the module, which is then exported the same way. Both must leave the same operators
and compute what the original computes. The table counts affine operators: BatchNormalizations, and
Mul, Add, Sub and Div by a constant::

    python benchmarks/architectures.py
    python benchmarks/architectures.py resnet unet

Needs bnfold to be installed, and torch. The architectures are complete but narrow, and their
weights are drawn from a fixed seed. As in training, every BatchNorm gets the mean and variance of
its input over a batch; its γ is random and of either sign.

Where a module's own code applies a map, as in ``x * self.gamma``, there is no submodule to replace,
and the file is folded further than the module. Such an architecture says which operators are left
and for which reason; nothing else may differ. The exit status is 1 if anything else does, or if a
fold does not verify.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold

SEED = 7
OPSET = 17
BATCH = 8
ARITHMETIC = ("Mul", "Add", "Sub", "Div")


# --- parts --------------------------------------------------------------------------------------


class Residual(nn.Module):
    """``after(body(x) + shortcut(x))``; shortcut and after are the identity unless given."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut, after

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.body(x)
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.after is None else self.after(y)


class Scale(nn.Module):
    """A factor per channel, along the last of so many axes that count from the channels."""

    def __init__(self, channels: int, trailing: int = 0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * self.gamma


class Affine(Scale):
    """A factor and a summand per channel, on the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.gamma * x + self.beta


class Permute(nn.Module):
    """Permute axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.permute(self.axes)


class Tokens(nn.Module):
    """From ``[N, C, H, W]`` to ``[N, H·W, C]``."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """The mean over some axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.mean(self.axes)


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    after: nn.Module | None = None,
) -> nn.Sequential:
    """A convolution without bias that keeps the size but for its stride, a BatchNorm, and more."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([after] if after is not None else []))


def bn_conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """BatchNorm, ReLU, convolution: the order of pre-activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


def pooled_head(channels: int, classes: int) -> nn.Sequential:
    """Global average pooling and a classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# --- architectures ------------------------------------------------------------------------------


def resnet(
    depths: tuple[int, ...] = (2, 1, 1, 1), width: int = 8, classes: int = 10
) -> nn.Sequential:
    """A ResNet of bottlenecks; depths (3, 4, 6, 3), width 64 and 1000 classes is ResNet-50."""
    stages: list[nn.Module] = []
    channels = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                *conv_bn(channels, inner, 1, after=nn.ReLU(inplace=True)),
                *conv_bn(inner, inner, 3, stride, after=nn.ReLU(inplace=True)),
                *conv_bn(inner, 4 * inner, 1),
            )
            other = conv_bn(channels, 4 * inner, 1, stride) if not block else None
            stages.append(Residual(body, other, nn.ReLU(inplace=True)))
            channels = 4 * inner
    stem = conv_bn(3, width, 7, 2, after=nn.ReLU(inplace=True))
    return nn.Sequential(
        stem, nn.MaxPool2d(3, 2, 1), nn.Sequential(*stages), pooled_head(channels, classes)
    )


class PreActivation(nn.Module):
    """A pre-activation block whose first BatchNorm and ReLU feed the shortcut too."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = bn_conv(outputs, outputs)
        other = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = other if (inputs, stride) != (outputs, 1) else None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.norm(x)
        other: Tensor = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(self.conv1(y))
        return y + other


def preact_resnet() -> nn.Module:
    """A pre-activation ResNet."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        PreActivation(8, 8, 1),
        PreActivation(8, 16, 2),
        PreActivation(16, 32, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        pooled_head(32, 10),
    )


class Dense(nn.Module):
    """Appends what its body makes of the input to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*bn_conv(channels, 2 * growth, 1), *bn_conv(2 * growth, growth))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    """A DenseNet of three blocks."""
    growth, channels = 6, 12
    parts: list[nn.Module] = [*conv_bn(3, channels, 7, 2, after=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for block in range(3):
        if block:
            parts += [*bn_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(3):
            parts.append(Dense(channels, growth))
            channels += growth
    parts += [nn.BatchNorm2d(channels), nn.ReLU(), pooled_head(channels, 10)]
    return nn.Sequential(*parts)


def mobilenet_v2() -> nn.Module:
    """A MobileNetV2."""
    parts: list[nn.Module] = [conv_bn(3, 8, 3, 2, after=nn.ReLU6())]
    channels = 8
    for expansion, outputs, stride in ((1, 8, 1), (6, 12, 2), (6, 12, 1), (6, 16, 2), (6, 16, 1)):
        inner = channels * expansion
        body = nn.Sequential(
            *([conv_bn(channels, inner, 1, after=nn.ReLU6())] if expansion > 1 else []),
            conv_bn(inner, inner, 3, stride, inner, after=nn.ReLU6()),
            *conv_bn(inner, outputs, 1),
        )
        parts.append(Residual(body) if (channels, stride) == (outputs, 1) else body)
        channels = outputs
    parts.append(conv_bn(channels, 64, 1, after=nn.ReLU6()))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)]
    return nn.Sequential(*parts, *head)


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


def tcn() -> nn.Module:
    """A temporal convolutional network: dilated, causal, in one dimension."""
    parts: list[nn.Module] = []
    channels = 4
    for level in range(3):
        body: list[nn.Module] = []
        for inputs in (channels, 12):
            pad = nn.ConstantPad1d((2 * 2**level, 0), 0.0)
            conv = nn.Conv1d(inputs, 12, 3, dilation=2**level)
            body += [pad, conv, nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1)]
        other = nn.Conv1d(channels, 12, 1) if channels != 12 else None
        parts.append(Residual(nn.Sequential(*body), other, nn.ReLU()))
        channels = 12
    return nn.Sequential(*parts, Mean(2), nn.Linear(12, 5))


class PointNet(nn.Module):
    """A PointNet with its input transform; points are ``[N, 3, P]``."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.ModuleList([self.shared(3, 16, 32), self.dense(32, 16, 9)])
        self.first = self.shared(3, 16)
        self.second = self.shared(16, 32, 64)
        self.head = self.dense(64, 32, 10)

    @staticmethod
    def shared(*widths: int) -> nn.Sequential:
        """The same layers for every point."""
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            parts += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
        return nn.Sequential(*parts)

    @staticmethod
    def dense(inputs: int, inner: int, outputs: int) -> nn.Sequential:
        """Layers on one vector per cloud."""
        first = [nn.Linear(inputs, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Dropout(0.3)]
        return nn.Sequential(*first, nn.Linear(inner, outputs))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        points, vector = self.transform
        matrix: Tensor = vector(points(x).amax(2))
        x = torch.bmm(matrix.view(-1, 3, 3), x)
        x = self.second(self.first(x)).amax(2)
        return F.log_softmax(self.head(x), 1)


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


def crepe() -> nn.Module:
    """A CREPE: the BatchNorm comes behind the ReLU, and pooling behind it."""
    parts: list[nn.Module] = []
    channels = 1
    for outputs, kernel, stride in ((16, 32, 4), (8, 16, 1), (8, 16, 1)):
        left = (kernel - stride) // 2
        parts += [
            nn.ConstantPad1d((left, kernel - stride - left), 0.0),
            nn.Conv1d(channels, outputs, kernel, stride),
            nn.ReLU(),
            nn.BatchNorm1d(outputs),
            nn.MaxPool1d(2),
            nn.Dropout(0.25),
        ]
        channels = outputs
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * 8, 36), nn.Sigmoid())


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
        nn.Conv2d(3, 16, 3, 2, 1), NFBlock(16, 1.0), NFBlock(16, 0.98), pooled_head(16, 10)
    )


@dataclass(frozen=True)
class Architecture:
    """A builder, the shape of one input, and what replacing submodules cannot fold.

    ``left`` counts operators of the export that stay although the file's own fold removes them;
    ``code`` is the reason that the plan for the module gives.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    left: Mapping[str, int] = field(default_factory=dict)
    code: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "resnet": Architecture(resnet, (3, 32, 32)),
    "preact-resnet": Architecture(preact_resnet, (3, 16, 16)),
    "densenet": Architecture(densenet, (3, 32, 32)),
    "mobilenet-v2": Architecture(mobilenet_v2, (3, 32, 32)),
    "dcgan": Architecture(dcgan, (16, 1, 1)),
    "unet": Architecture(UNet, (3, 16, 16)),
    "tcn": Architecture(tcn, (4, 32)),
    "pointnet": Architecture(PointNet, (3, 48)),
    "convnext": Architecture(convnext_with_modules, (3, 32, 32)),
    "convnext-inline": Architecture(
        lambda: convnext(ConvNeXtBlock), (3, 32, 32), {"Mul": 3}, "not-a-module"
    ),
    "vit": Architecture(ViT, (3, 32, 32)),
    "levit": Architecture(levit, (3, 32, 32)),
    "crepe": Architecture(crepe, (1, 256)),
    "resmlp": Architecture(resmlp, (3, 32, 32)),
    "nfnet": Architecture(nfnet, (3, 16, 16), {"Mul": 6}, "not-a-module"),
}


# --- weights and inputs -------------------------------------------------------------------------


def signal(generator: torch.Generator, count: int, shape: tuple[int, ...]) -> Tensor:
    """Seeded inputs of about unit variance: a value per sample and channel, and noise."""
    tint = torch.randn(count, shape[0], *[1] * (len(shape) - 1), generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    return (tint + 2 * noise) / math.sqrt(5)


def calibrate(module: nn.Module, generator: torch.Generator, inputs: Tensor) -> None:
    """Draw all γ, β and LayerScales, and measure all running statistics on the inputs.

    A γ is between 0.5 and 1.5 in size and negative for three channels in ten.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for part in module.modules():
            for name, values in part.named_parameters(recurse=False):
                if name == "gamma" or (_is_norm(part) and name == "weight"):
                    size = 0.5 + torch.rand(values.shape, generator=generator)
                    sign = torch.where(torch.rand(values.shape, generator=generator) < 0.3, -1, 1)
                    values.copy_(size * sign)
                elif name in ("beta", "bias"):
                    values.copy_(0.3 * torch.randn(values.shape, generator=generator))
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average, which for one batch is that batch's
        module.train()
        module(inputs)
    for norm in norms:
        norm.momentum = 0.1
    module.eval()


def _is_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)


def make(name: str) -> tuple[nn.Module, Tensor]:
    """An architecture with its weights, in eval mode, and a batch of two inputs."""
    architecture = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = architecture.build()
        calibrate(module, generator, signal(generator, BATCH, architecture.shape))
    return module, signal(generator, 2, architecture.shape)


# --- comparison ---------------------------------------------------------------------------------


def exported(module: nn.Module, inputs: Tensor) -> onnx.ModelProto:
    """The module in ONNX, with every BatchNorm that it has."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder, warnings.catch_warnings():
        path = f"{folder}/model.onnx"
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (inputs,),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=OPSET,
        )
        return onnx.load(path)


def executed(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, set[str]]]:
    """The nodes that depend on an input of the model, each with those of its inputs that do."""
    varying = {value.name for value in model.graph.input}
    varying -= {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:
        depends = varying & set(node.input)
        if depends:
            varying |= set(node.output)
            yield node, depends


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many operators of each type run at every call."""
    return Counter(node.op_type for node, _ in executed(model))


def affine_operators(model: onnx.ModelProto) -> int:
    """How many of them are a BatchNormalization or an operation with one constant."""
    return sum(
        node.op_type == "BatchNormalization"
        or (node.op_type in ARITHMETIC and len(set(node.input) - depends) == 1)
        for node, depends in executed(model)
    )


@dataclass(frozen=True)
class Outcome:
    """One architecture folded both ways; ``reasons`` are the codes in the plan for the module,
    where some are expected.
    """

    name: str
    original: onnx.ModelProto
    by_file: onnx.ModelProto
    by_module: onnx.ModelProto
    reasons: tuple[str, ...]
    verdicts: Mapping[str, str]
    seconds: float

    @property
    def left(self) -> dict[str, int]:
        """Operators that the module's fold leaves and the file's does not; less than 0 for the
        opposite.
        """
        file, module = operators(self.by_file), operators(self.by_module)
        return {op: module[op] - file[op] for op in file | module if module[op] != file[op]}

    @property
    def complaints(self) -> list[str]:
        """What is not as it must be."""
        architecture = ARCHITECTURES[self.name]
        found = [
            f"{self.name}: folding the {way} does not verify: {status}"
            for way, status in self.verdicts.items()
            if status != "pass"
        ]
        expected = dict(architecture.left)
        if self.left != expected:
            found.append(f"{self.name}: the module's fold leaves {self.left}, not {expected}")
        if self.reasons.count(architecture.code) < sum(expected.values()):
            found.append(f"{self.name}: the plan does not say {architecture.code} for all of them")
        return found


def both_ways(name: str) -> Outcome:
    """Fold one architecture both ways, and verify both."""
    start = time.perf_counter()
    module, inputs = make(name)
    original = exported(module, inputs)
    by_file = bnfold.fold(original)
    folded = bnfold.fold(module, (inputs,))
    verdicts = {
        "file": bnfold.verify(original, by_file).status,
        "module": bnfold.verify(module, folded, (inputs,)).status,
    }
    by_module = exported(folded, inputs)
    reasons: tuple[str, ...] = ()
    if ARCHITECTURES[name].code:
        reasons = tuple(kept.code for kept in bnfold.plan(module, (inputs,)).kept)
    seconds = time.perf_counter() - start
    return Outcome(name, original, by_file, by_module, reasons, verdicts, seconds)


def row(outcome: Outcome) -> str:
    """One line of the table."""
    counts = [
        affine_operators(model) for model in (outcome.original, outcome.by_file, outcome.by_module)
    ]
    equal = "yes" if not outcome.left else ARCHITECTURES[outcome.name].code or "NO"
    numbers = "".join(f"{count:>10}" for count in counts)
    verdicts = f"{outcome.verdicts['file']:>14}{outcome.verdicts['module']:>14}"
    return f"{outcome.name:<18}{numbers}{equal:>15}{verdicts}{outcome.seconds:>7.1f} s"


def main() -> None:
    """Print the table; exit with 1 if a pair differs or does not verify."""
    parser = argparse.ArgumentParser(description="Fold modules and their exports, and compare.")
    known = list(ARCHITECTURES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}")
    names: list[str] = parser.parse_args().names
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    torch.set_num_threads(1)  # These are too small for more, and threads wait for each other.
    print(
        f"{'affine operators':<18}{'original':>10}{'file':>10}{'module':>10}"
        f"{'same operators':>15}{'file verifies':>14}{'module':>14}"
    )
    complaints = []
    for name in names or known:
        outcome = both_ways(name)
        print(row(outcome), flush=True)
        complaints += outcome.complaints
    if complaints:
        sys.exit("\n".join(["", *complaints]))


if __name__ == "__main__":
    main()
