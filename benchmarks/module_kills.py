"""Which wrong folds of modules and programs of PyTorch `bnfold.verify` notices, in four types.

The bugs of bugs.py are planted in the state of small networks: a module is changed as the bug
would have it, then folded rightly. What comes out is, up to rounding, what a tool with that bug
would have made of the module as it was::

    python benchmarks/module_kills.py
    python benchmarks/module_kills.py plain --types float32 bfloat16

A cell says of how many comparisons a bug was noticed in, of those in which it changes the function
by more than `BEYOND`; "inconclusive" counts as noticed and stands in brackets. The last row is of
right folds: how many are taken for wrong. The exit status is 1 if a bug that changes the function
passes, or a right fold fails.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bnfold

BEYOND = 1e-3
"""Relative to the largest output. Rounding moves one by less, but in bfloat16."""
TYPES = ("float16", "bfloat16", "float32", "float64")
RIGHT = "right folds"
LINEAR = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Plant = Callable[[nn.Module], bool]
"""Puts a bug into a module in float64; False where it has no place."""


class Norm(NamedTuple):
    """A norm in float64, ``scale·x + shift``, and its neighbours in their ``nn.Sequential``."""

    norm: nn.BatchNorm1d | nn.BatchNorm2d
    ahead: Any
    behind: Any
    parent: nn.Sequential
    place: int

    @property
    def scale(self) -> Tensor:
        """γ/√(var + ε)."""
        assert self.norm.running_var is not None
        return self.norm.weight.detach() / (self.norm.running_var + self.norm.eps).sqrt()

    @property
    def shift(self) -> Tensor:
        """β − mean·scale."""
        assert self.norm.running_mean is not None
        return self.norm.bias.detach() - self.norm.running_mean * self.scale

    @property
    def bias(self) -> Tensor:
        """The bias ahead of the norm."""
        own = getattr(self.ahead, "bias", None)
        return torch.zeros_like(self.shift) if own is None else own.detach()

    def become(self, scale: Tensor, shift: Tensor) -> None:
        """Another map."""
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        self.norm.weight.copy_(scale * (self.norm.running_var + self.norm.eps).sqrt())
        self.norm.bias.copy_(shift)
        self.norm.running_mean.zero_()


def norms(module: nn.Module) -> list[Norm]:
    """The norms of a module's sequences."""
    found = []
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            row = [None, *part, None]
            for index, norm in enumerate(part):
                if isinstance(norm, NORMS):
                    found.append(Norm(norm, row[index], row[index + 2], part, index))
    return found


def _each(change: Callable[[Norm], None], once: bool = False) -> Plant:
    """Change all norms, or the middle one alone."""

    def plant(module: nn.Module) -> bool:
        every = norms(module)
        for norm in every[len(every) // 2 :][:1] if once else every:
            change(norm)
        return bool(every)

    return plant


def _where(change: Callable[[Norm], bool]) -> Plant:
    """Change the norms that have a place for the bug."""

    def plant(module: nn.Module) -> bool:
        changed = [change(norm) for norm in norms(module)]
        return any(changed)

    return plant


def _set_epsilon(norm: Norm, value: float) -> None:
    norm.norm.eps = value


def _one_channel(norm: Norm) -> None:
    norm.norm.weight[norm.norm.weight.abs().argmax()] *= 1.01


def _no_bias(norm: Norm) -> None:
    norm.norm.bias.zero_()


def _no_mean(norm: Norm) -> None:
    assert norm.norm.running_mean is not None
    norm.norm.running_mean.zero_()


def _unscaled_bias(norm: Norm) -> bool:
    norm.become(norm.scale, norm.shift + norm.bias * (1 - norm.scale))
    return bool(norm.bias.any())


def _wrong_axis(norm: Norm) -> bool:
    layer = norm.ahead
    if not isinstance(layer, nn.ConvTranspose2d) or layer.in_channels != layer.out_channels:
        return False
    shift = norm.scale * norm.bias + norm.shift - norm.bias
    layer.weight *= norm.scale.reshape(-1, 1, 1, 1)
    norm.become(torch.ones_like(shift), shift)
    return True


def _group_order(norm: Norm) -> bool:
    layer = norm.ahead
    if not isinstance(layer, nn.ConvTranspose2d) or layer.groups == 1:
        return False
    wrong = norm.scale.reshape(layer.groups, -1).T.reshape(-1)
    norm.become(wrong, norm.shift + norm.bias * (norm.scale - wrong))
    return True


def _shift_across_padding(norm: Norm) -> bool:
    layer = norm.behind
    if not isinstance(layer, nn.Conv2d) or not any(layer.padding) or layer.groups > 1:
        return False
    moved = torch.einsum("oikl,i->o", layer.weight, norm.shift)
    layer.bias = nn.Parameter(moved if layer.bias is None else layer.bias + moved)
    norm.become(norm.scale, torch.zeros_like(norm.shift))
    return True


def _through_pool(norm: Norm) -> bool:
    if not isinstance(norm.behind, nn.MaxPool2d) or bool((norm.scale > 0).all()):
        return False
    norm.parent[norm.place], norm.parent[norm.place + 1] = norm.behind, norm.norm
    return True


PLANTS: dict[str, Plant] = {
    "epsilon left out": _each(lambda norm: _set_epsilon(norm, 0.0)),
    "epsilon left out once": _each(lambda norm: _set_epsilon(norm, 0.0), once=True),
    "epsilon 1e-5 for 1e-3": _each(lambda norm: _set_epsilon(norm, 1e-5)),
    "momentum for epsilon": _each(lambda norm: _set_epsilon(norm, norm.norm.momentum or 0.1)),
    "one channel x 1.01": _each(_one_channel, once=True),
    "scale rolled": _each(lambda norm: norm.become(norm.scale.roll(1), norm.shift)),
    "bias left out": _each(_no_bias),
    "mean left out": _each(_no_mean),
    "bias unscaled": _where(_unscaled_bias),
    "ConvTranspose axis 0": _where(_wrong_axis),
    "group order": _where(_group_order),
    "shift across padding": _where(_shift_across_padding),
    "negative through pool": _where(_through_pool),
}


def plain() -> nn.Module:
    """Convolutions and norms in a row."""
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8, eps=1e-3), nn.SiLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6, eps=1e-3)]
    return nn.Sequential(*layers)


def upsampling() -> nn.Module:
    """Transposed convolutions, with groups and without."""
    layers = [nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8, eps=1e-3), nn.LeakyReLU(0.1)]
    layers += [nn.ConvTranspose2d(8, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()]
    layers += [nn.ConvTranspose2d(8, 12, 2, groups=2), nn.BatchNorm2d(12, eps=1e-3)]
    return nn.Sequential(*layers)


def ahead() -> nn.Module:
    """Norms ahead of padded convolutions, and of pools."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8, eps=1e-3)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


NETWORKS = {made.__name__: made for made in (plain, upsampling, ahead)}
IMAGE = (2, 3, 12, 12)


def drawn(name: str, seed: int = 0) -> nn.Module:
    """A network in float64 with drawn weights and statistics, some variances near ε."""
    generator = torch.Generator().manual_seed(seed)
    module = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if key.endswith("running_var"):
                    tensor.pow_(2).mul_(0.2).add_(1e-3)
                elif tensor.dim() > 1:
                    tensor.div_(tensor[0].numel() ** 0.5)
    return module


class Case(NamedTuple):
    """A bug, or `RIGHT`; whether it changes the function, and what `verify` says."""

    bug: str
    door: str
    changes: bool
    status: str


def cases(name: str, dtype: torch.dtype, bugs: list[str]) -> Iterator[Case]:
    """What is said of each bug in a network of a type, as a module and as a program."""
    original = drawn(name).to(dtype).double()
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = (image.to(dtype),)
    module = copy.deepcopy(original).to(dtype)
    program = torch.export.export(module, given)
    for bug in (*bugs, RIGHT):
        wrong = copy.deepcopy(original)
        with torch.no_grad():
            if bug != RIGHT and not PLANTS[bug](wrong):
                continue
            wanted = original(image)
            moved = float((wrong(image) - wanted).abs().max() / wanted.abs().max())
        made = bnfold.fold(wrong, (image,)).to(dtype)
        changes = bug != RIGHT and not moved <= BEYOND
        yield Case(bug, "module", changes, bnfold.verify(module, made, given).status)
        folded = torch.export.export(made, given)
        yield Case(bug, "program", changes, bnfold.verify(program, folded).status)


def main() -> int:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=[], help=", ".join(NETWORKS))
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--bugs", nargs="+", default=list(PLANTS), choices=list(PLANTS))
    options = parser.parse_args()
    found: dict[tuple[str, str], list[Case]] = {}
    for kind in options.types:
        for name in options.networks or NETWORKS:
            for case in cases(name, getattr(torch, kind), options.bugs):
                found.setdefault((case.bug, kind), []).append(case)
    print(f"{'':24}" + "".join(f"{kind:>16}" for kind in options.types))
    bad = False
    for bug in (*options.bugs, RIGHT):
        cells = []
        for kind in options.types:
            seen = found.get((bug, kind), [])
            seen = [case for case in seen if case.changes or bug == RIGHT]
            noticed = sum(case.status != "pass" for case in seen)
            open_ones = sum(case.status == "inconclusive" for case in seen)
            cells.append(f"{noticed}/{len(seen)}" + (f" ({open_ones})" if open_ones else ""))
            right = bug == RIGHT
            bad |= any(c.status == ("fail" if right else "pass") for c in seen)
        print(f"{bug:24}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
