"""Networks that train with parallel linear branches, and their plain form, collapsed by hand.

Each block holds its branches as its paper describes them, and says in ``collapsed`` which single
convolution it is once trained. bnfold finds that convolution in an exported network by itself::

    python examples/reparameterized.py --network mobileone --output mobileone.onnx
    bnfold mobileone.onnx -o plain.onnx

The blocks: RepVGG (Ding et al. 2021, arXiv:2101.03697), MobileOne with over-parameterized branches
(Vasu et al. 2022, arXiv:2206.04040), the token mixers of RepViT (Wang et al. 2023,
arXiv:2307.09283) and FastViT (Vasu et al. 2023, arXiv:2303.14189), ACNet (Ding et al. 2019,
arXiv:1908.03930) and the Diverse Branch Block (Ding et al. 2021, arXiv:2103.13425). The networks
are untrained; their norms have drawn statistics.

Needs torch and onnx.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

OPSET = 17
Linear = tuple[Tensor, Tensor]


class Normed(nn.Sequential):
    """A convolution without bias and its BatchNorm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        groups: int = 1,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        """Pad so that the size stays with stride 1, unless told how."""
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (size[0] // 2, size[1] // 2) if padding is None else padding
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, pads, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def linear(self) -> Linear:
        """The weight and bias that it amounts to."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        scale, shift = per_channel(norm)
        return conv.weight.double() * scale.reshape(-1, 1, 1, 1), shift


def per_channel(norm: nn.Module) -> Linear:
    """A BatchNorm as a scale and a shift of each channel."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def identity(channels: int, groups: int) -> Tensor:
    """The 1×1 kernel that changes nothing."""
    weight = torch.zeros(channels, channels // groups, 1, 1, dtype=torch.float64)
    for channel in range(channels):
        weight[channel, channel % (channels // groups)] = 1
    return weight


def summed(parts: Sequence[Linear], kernel: int) -> Linear:
    """Kernels laid over each other, each in the middle of a square one, and their biases."""
    weights = []
    for weight, _ in parts:
        rows, columns = ((kernel - size) // 2 for size in weight.shape[2:])
        weights.append(functional.pad(weight, (columns, columns, rows, rows)))
    return torch.stack(weights).sum(0), torch.stack([bias for _, bias in parts]).sum(0)


def plain(part: Linear, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution of a given weight and bias; its kernel is odd and padded to the middle."""
    weight, bias = part
    outputs, per_group, kernel, _ = weight.shape
    made = nn.Conv2d(per_group * groups, outputs, kernel, stride, kernel // 2, groups=groups)
    made.weight.data = weight.detach().float()
    made.bias = nn.Parameter(bias.detach().float())
    return made


class RepVGG(nn.Module):
    """A 3×3 and a 1×1 convolution and, where the shape stays, the input, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.wide = Normed(inputs, outputs, 3, stride, groups)
        self.point = Normed(inputs, outputs, 1, stride, groups)
        same = inputs == outputs and stride == 1
        self.skip = nn.BatchNorm2d(inputs) if same else None
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches up."""
        y: Tensor = self.wide(x) + self.point(x)
        return y if self.skip is None else y + self.skip(x)

    def collapsed(self) -> nn.Conv2d:
        """One 3×3 convolution."""
        parts = [self.wide.linear(), self.point.linear()]
        if self.skip is not None:
            scale, shift = per_channel(self.skip)
            weight = identity(len(scale), self.groups) * scale.reshape(-1, 1, 1, 1)
            parts.append((weight, shift))
        return plain(summed(parts, 3), self.stride, self.groups)


class MobileOne(nn.Module):
    """Several convolutions of one shape, a 1×1 one and the input, each with its norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 4,
    ) -> None:
        super().__init__()
        self.alike = nn.ModuleList(
            Normed(inputs, outputs, kernel, stride, groups) for _ in range(branches)
        )
        self.point = Normed(inputs, outputs, 1, stride, groups) if kernel > 1 else None
        same = inputs == outputs and stride == 1
        self.skip = nn.BatchNorm2d(inputs) if same else None
        self.kernel, self.stride, self.groups = kernel, stride, groups

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches up."""
        y = 0 if self.skip is None else self.skip(x)
        if self.point is not None:
            y = y + self.point(x)
        for branch in self.alike:
            y = y + branch(x)
        assert isinstance(y, Tensor)
        return y

    def linear(self) -> Linear:
        """The weight and bias that it amounts to."""
        parts = [branch.linear() for branch in self.alike if isinstance(branch, Normed)]
        if self.point is not None:
            parts.append(self.point.linear())
        if self.skip is not None:
            scale, shift = per_channel(self.skip)
            weight = identity(len(scale), self.groups) * scale.reshape(-1, 1, 1, 1)
            parts.append((weight, shift))
        return summed(parts, self.kernel)

    def collapsed(self) -> nn.Conv2d:
        """One convolution of the larger kernel."""
        return plain(self.linear(), self.stride, self.groups)


class RepViTMixer(nn.Module):
    """A depthwise 3×3 convolution with its norm, a depthwise 1×1 one and the input, and a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = Normed(channels, channels, 3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the sum of the branches."""
        y: Tensor = self.norm(self.wide(x) + self.point(x) + x)
        return y

    def collapsed(self) -> nn.Conv2d:
        """One depthwise 3×3 convolution."""
        assert self.point.bias is not None
        point = self.point.weight.double(), self.point.bias.double()
        skip = identity(self.channels, self.channels), torch.zeros(self.channels)
        weight, bias = summed([self.wide.linear(), point, skip], 3)
        scale, shift = per_channel(self.norm)
        whole = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
        return plain(whole, groups=self.channels)


class FastViTMixer(nn.Module):
    """``x + γ·(mixer(x) − norm(x))``, where the mixer is a depthwise block without activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = MobileOne(channels, channels, 3, groups=channels, branches=1)
        self.norm = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.1))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens."""
        y: Tensor = x + self.gamma * (self.mixer(x) - self.norm(x))
        return y

    def collapsed(self) -> nn.Conv2d:
        """One depthwise 3×3 convolution."""
        gamma = self.gamma.double()
        weight, bias = self.mixer.linear()
        scale, shift = per_channel(self.norm)
        skip = identity(self.channels, self.channels)
        whole = weight - summed([(skip * scale.reshape(-1, 1, 1, 1), shift)], 3)[0]
        whole = summed([(skip, shift)], 3)[0] + whole * gamma.reshape(-1, 1, 1, 1)
        return plain((whole, (bias - shift) * gamma.reshape(-1)), groups=self.channels)


class ACNet(nn.Module):
    """A 3×3, a 1×3 and a 3×1 convolution, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.square = Normed(inputs, outputs, 3, stride)
        self.row = Normed(inputs, outputs, (1, 3), stride)
        self.column = Normed(inputs, outputs, (3, 1), stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches up."""
        y: Tensor = self.square(x) + self.row(x) + self.column(x)
        return y

    def collapsed(self) -> nn.Conv2d:
        """One 3×3 convolution."""
        parts = [branch.linear() for branch in (self.square, self.row, self.column)]
        return plain(summed(parts, 3), self.stride)


class DiverseBranch(nn.Module):
    """A 3×3 and a 1×1 convolution, a 1×1 one followed by a 3×3 one and one followed by an average,
    each with its norm.

    Where a norm lies between, the 1×1 convolution ahead of it does the padding, so that what is
    padded is the norm's shift, as the block asks for.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide = Normed(inputs, outputs, 3)
        self.point = Normed(inputs, outputs, 1)
        self.first = Normed(inputs, inputs, 1, padding=1)
        self.second = Normed(inputs, outputs, 3, padding=0)
        self.ahead = Normed(inputs, outputs, 1, padding=1)
        self.average = nn.Sequential(nn.AvgPool2d(3, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches up."""
        y: Tensor = self.wide(x) + self.point(x)
        y = y + self.second(self.first(x))
        return y + self.average(self.ahead(x))

    def collapsed(self) -> nn.Conv2d:
        """One 3×3 convolution."""
        inner, inner_bias = self.first.linear()
        outer, outer_bias = self.second.linear()
        row = torch.einsum("omhw,mi->oihw", outer, inner[:, :, 0, 0])
        row_bias = outer_bias + (outer * inner_bias.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        ahead, ahead_bias = self.ahead.linear()
        scale, shift = per_channel(self.average[1])
        mean = (ahead * scale.reshape(-1, 1, 1, 1) / 9).expand(-1, -1, 3, 3)
        parts = [self.wide.linear(), self.point.linear(), (row, row_bias)]
        parts.append((mean, ahead_bias * scale + shift))
        return plain(summed(parts, 3))


def _chain(*blocks: nn.Module) -> nn.Sequential:
    """Blocks with a ReLU behind each, and a classifier."""
    layers = [layer for block in blocks for layer in (block, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        MobileOne(inputs, inputs, 3, stride, groups=inputs),
        MobileOne(inputs, outputs, 1),
    ]


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "repvgg": lambda: _chain(
        RepVGG(3, 8, 2), RepVGG(8, 8), RepVGG(8, 12, 2, 2), RepVGG(12, 12, groups=2)
    ),
    "mobileone": lambda: _chain(
        MobileOne(3, 8, 3, 2), *_separable(8, 8, 1), *_separable(8, 12, 2), *_separable(12, 12, 1)
    ),
    "repvit": lambda: _chain(
        Normed(3, 8, 3, 2), RepViTMixer(8), Normed(8, 16, 1), RepViTMixer(16), RepViTMixer(16)
    ),
    "fastvit": lambda: _chain(
        MobileOne(3, 8, 3, 2, branches=1), FastViTMixer(8), FastViTMixer(8), Normed(8, 16, 1)
    ),
    "acnet": lambda: _chain(ACNet(3, 8, 2), ACNet(8, 8), ACNet(8, 12)),
    "dbb": lambda: _chain(DiverseBranch(3, 8), DiverseBranch(8, 8), DiverseBranch(8, 12)),
}


def built(name: str, seed: int = 0) -> nn.Sequential:
    """A network by name, in eval mode, with drawn norms."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    network(torch.randn(2, 3, 24, 24))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, FastViTMixer):
            nn.init.normal_(module.gamma, std=0.5)
    return network.eval()


def collapsed(network: nn.Sequential) -> nn.Sequential:
    """A copy with one plain convolution in place of each block."""
    made = copy.deepcopy(network)
    for number, block in enumerate(made):
        if isinstance(block, Normed):
            conv = block[0]
            assert isinstance(conv, nn.Conv2d)
            made[number] = plain(block.linear(), conv.stride[0], conv.groups)
        elif hasattr(block, "collapsed"):
            made[number] = block.collapsed()
    return made


def export(network: nn.Module, path: Path, dynamo: bool = False) -> None:
    """Write a network with every branch and norm that it has."""
    kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.randn(1, 3, 24, 24),),
            path,
            input_names=["image"],
            output_names=["scores"],
            dynamo=dynamo,
            **(
                {"optimize": False, "verbose": False}
                if dynamo
                else {"opset_version": OPSET, **kept}
            ),
        )


def main() -> None:
    """Export one network, with its branches or collapsed by hand."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="mobileone")
    parser.add_argument("--output", type=Path, default=Path("network.onnx"))
    parser.add_argument("--collapsed", action="store_true", help="collapse it by hand")
    options = parser.parse_args()
    network = built(options.network)
    export(collapsed(network) if options.collapsed else network, options.output)


if __name__ == "__main__":
    main()
