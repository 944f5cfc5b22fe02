"""Networks of summed branches at the widths, depths and input of their papers' small ones.

Their blocks are those of ``examples/reparameterized.py``, which collapse by hand. What surrounds
the blocks is kept plain: no squeeze-and-excitation, attention only where a paper's network of that
size has it nowhere else.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

SIDE = 224
CLASSES = 1000


def _blocks() -> ModuleType:
    """The blocks, from the file that shows them."""
    path = Path(__file__).resolve().parents[2] / "examples" / "reparameterized.py"
    spec = importlib.util.spec_from_file_location("reparameterized", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blocks = _blocks()


class Residual(nn.Module):
    """``x + γ·f(x)``; γ is a scale of each channel, or 1."""

    def __init__(self, inner: nn.Module, channels: int, scaled: bool) -> None:
        super().__init__()
        self.inner = inner
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Add what the inner part makes of the input."""
        y: Tensor = self.inner(x)
        return x + (y if self.gamma is None else self.gamma * y)


def mobileone_s0() -> nn.Module:
    """MobileOne-S0 (Vasu et al. 2022, table 2): four branches of each kind in every block."""
    layers: list[nn.Module] = [blocks.MobileOne(3, 48, 3, 2), nn.ReLU()]
    width = 48
    for wide, count in ((48, 2), (128, 8), (256, 10), (1024, 1)):
        for number in range(count):
            stride = 1 if number else 2
            layers += [blocks.MobileOne(width, width, 3, stride, groups=width), nn.ReLU()]
            layers += [blocks.MobileOne(width, wide, 1), nn.ReLU()]
            width = wide
    return _classifier(layers, width)


def repvgg_a0() -> nn.Module:
    """RepVGG-A0 (Ding et al. 2021, table 2)."""
    layers: list[nn.Module] = [blocks.RepVGG(3, 48, 2), nn.ReLU()]
    width = 48
    for wide, count in ((48, 2), (96, 4), (192, 14), (1280, 1)):
        for number in range(count):
            layers += [blocks.RepVGG(width, wide, 1 if number else 2), nn.ReLU()]
            width = wide
    return _classifier(layers, width)


def repvit() -> nn.Module:
    """The widths and depths of RepViT-M0.9 (Wang et al. 2023), its blocks without excitation."""
    layers: list[nn.Module] = [blocks.Normed(3, 24, 3, 2), nn.GELU(), blocks.Normed(24, 48, 3, 2)]
    width = 48
    for wide, count in ((48, 2), (96, 2), (192, 14), (384, 2)):
        if wide != width:
            layers.append(blocks.Normed(width, width, 3, 2, groups=width))
            layers += [blocks.Normed(width, wide, 1), _mixed(wide, 2)]
        for _ in range(count):
            layers += [blocks.RepViTMixer(wide), _mixed(wide, 2)]
        width = wide
    return _classifier(layers, width)


def fastvit() -> nn.Module:
    """The widths and depths of FastViT-T8 (Vasu et al. 2023, table 2): a token mixer, then a 7×7
    depthwise convolution and two layers.
    """
    layers: list[nn.Module] = [blocks.MobileOne(3, 48, 3, 2, branches=1), nn.GELU()]
    layers += [blocks.MobileOne(48, 48, 3, 2, groups=48, branches=1), nn.GELU()]
    layers += [blocks.MobileOne(48, 48, 1, branches=1), nn.GELU()]
    width = 48
    for wide, count in ((48, 2), (96, 2), (192, 4), (384, 2)):
        if wide != width:
            layers.append(blocks.Normed(width, width, 7, 2, groups=width))
            layers += [blocks.MobileOne(width, wide, 1, branches=1), nn.GELU()]
        for _ in range(count):
            spread = blocks.Normed(wide, wide, 7, groups=wide)
            layers += [blocks.FastViTMixer(wide), _mixed(wide, 3, spread)]
        width = wide
    return _classifier(layers, width)


def _mixed(width: int, times: int, *ahead: nn.Module) -> Residual:
    """Two 1×1 convolutions over the channels, the input added; where a convolution stands ahead of
    them, what is added is scaled.
    """
    inner = nn.Sequential(
        *ahead,
        blocks.Normed(width, times * width, 1),
        nn.GELU(),
        blocks.Normed(times * width, width, 1),
    )
    return Residual(inner, width, scaled=bool(ahead))


def _classifier(layers: list[nn.Module], width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


BRANCHED: dict[str, Callable[[], nn.Module]] = {
    "mobileone-s0": mobileone_s0,
    "repvgg-a0": repvgg_a0,
    "repvit": repvit,
    "fastvit": fastvit,
}


def collapsed(network: nn.Module) -> nn.Module:
    """A copy in which each block is the one convolution that it is, collapsed by hand."""
    made = copy.deepcopy(network)

    def visit(module: nn.Module) -> None:
        for name, child in module.named_children():
            if hasattr(child, "collapsed"):
                setattr(module, name, child.collapsed())  # type: ignore[operator]
            elif isinstance(child, blocks.Normed):
                conv = child[0]
                setattr(module, name, blocks.plain(child.linear(), conv.stride[0], conv.groups))
            else:
                visit(child)

    visit(made)
    return made
