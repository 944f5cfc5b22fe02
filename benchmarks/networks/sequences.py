"""Networks in one dimension: a TCN, a CREPE and a PointNet."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks._parts import Mean, Residual


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
