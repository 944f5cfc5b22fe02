"""Convolutional classifiers: ResNet, DenseNet, MobileNetV2, EfficientNet-B0 and others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks._parts import Residual, bn_conv, conv_bn, pooled_head


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


class Gate(nn.Module):
    """Squeeze and excitation: a factor for each channel, computed from the means of all."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        narrow, wide = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.factors = nn.Sequential(nn.AdaptiveAvgPool2d(1), narrow, nn.SiLU(), wide, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        factors: Tensor = self.factors(x)
        return x * factors


def efficientnet_b0(classes: int = 1000) -> nn.Module:
    """EfficientNet-B0: expansion, outputs, blocks, stride of the first and kernel of each stage."""
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    parts: list[nn.Module] = [conv_bn(3, 32, 3, 2, after=nn.SiLU())]
    channels = 32
    for expansion, outputs, blocks, first, kernel in stages:
        for block in range(blocks):
            inner, stride = channels * expansion, 1 if block else first
            body = nn.Sequential(
                *([conv_bn(channels, inner, 1, after=nn.SiLU())] if expansion > 1 else []),
                conv_bn(inner, inner, kernel, stride, inner, after=nn.SiLU()),
                Gate(inner, channels // 4),
                *conv_bn(inner, outputs, 1),
            )
            parts.append(Residual(body) if (channels, stride) == (outputs, 1) else body)
            channels = outputs
    return nn.Sequential(
        *parts, conv_bn(channels, 1280, 1, after=nn.SiLU()), pooled_head(1280, classes)
    )


def pool_first() -> nn.Sequential:
    """A classifier that pools ahead of its first BatchNorm, whose second feeds a padded convolution
    with no activation in between, as in separable convolutions.
    """
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        pooled_head(16, 10),
    )
