"""Every network by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from networks._weights import calibrate, signal
from networks.convnext import ConvNeXtBlock, convnext, convnext_with_modules
from networks.images import UNet, dcgan
from networks.norm_free import nfnet, resmlp
from networks.residual import densenet, mobilenet_v2, pool_first, preact_resnet, resnet
from networks.sequences import PointNet, crepe, tcn
from networks.transformers import ViT, levit

SEED = 7
BATCH = 8


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
    "preact-resnet": Architecture(
        preact_resnet, (3, 16, 16), {"BatchNormalization": 1, "Mul": -1}, "shared-output"
    ),
    "densenet": Architecture(densenet, (3, 32, 32)),
    "mobilenet-v2": Architecture(mobilenet_v2, (3, 32, 32)),
    "pool-first": Architecture(
        pool_first, (3, 16, 16), {"BatchNormalization": 1, "Mul": -1}, "not-carried"
    ),
    "dcgan": Architecture(dcgan, (16, 1, 1)),
    "unet": Architecture(UNet, (3, 16, 16)),
    "tcn": Architecture(tcn, (4, 32)),
    "pointnet": Architecture(PointNet, (3, 48)),
    "convnext": Architecture(convnext_with_modules, (3, 32, 32)),
    "convnext-inline": Architecture(
        lambda: convnext(ConvNeXtBlock), (3, 32, 32), {"Mul": 3}, "not-a-module"
    ),
    "vit": Architecture(ViT, (3, 32, 32), {"Mul": 2}, "not-a-module"),
    "levit": Architecture(levit, (3, 32, 32), {"Add": 1, "Mul": 2}, "not-a-module"),
    "crepe": Architecture(crepe, (1, 256)),
    "resmlp": Architecture(resmlp, (3, 32, 32), {"Add": 2}, "shared-output"),
    "nfnet": Architecture(nfnet, (3, 16, 16), {"Mul": 12}, "not-a-module"),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """An architecture with its weights, in eval mode, and a batch of two inputs."""
    architecture = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = architecture.build()
        calibrate(module, generator, signal(generator, BATCH, architecture.shape))
    return module, signal(generator, 2, architecture.shape)
