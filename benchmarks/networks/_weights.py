"""Weights and inputs from a seed, and statistics as training leaves them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def signal(generator: torch.Generator, count: int, shape: tuple[int, ...]) -> Tensor:
    """Seeded inputs of about unit variance: a value per sample and channel, and noise."""
    tint = torch.randn(count, shape[0], *[1] * (len(shape) - 1), generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    return (tint + 2 * noise) / math.sqrt(5)


def calibrate(module: nn.Module, generator: torch.Generator, inputs: Tensor) -> None:
    """Draw all γ, β, LayerScales and gains, and measure all running statistics on the inputs.

    A γ is between 0.5 and 1.5 in size and negative for three channels in ten.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for part in module.modules():
            for name, values in part.named_parameters(recurse=False):
                if name in ("gamma", "gain") or (_is_norm(part) and name == "weight"):
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
