"""The modules, programs and exports of PyTorch among the models."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..torch import test_ahead, test_carry, test_merge, test_norms
from ..torch.carrying import ahead, behind, normed
from ..torch.folding import rand, ready
from .drawing import draw, seeded
from .outcome import Given

Build = Callable[[], Given]
Make = Callable[[], tuple[nn.Module, Tensor]]
ROOT = Path(__file__).parents[2]
MODULES, NETWORKS = 40, 48


def models() -> Iterator[tuple[str, Build]]:
    """Every model of PyTorch by name."""
    for name, make in _networks():
        yield f"module/{name}", partial(_module, make)
        yield f"program/{name}", partial(_program, make)
        yield f"export/{name}", partial(_file, make)
    for name, make in _tables():
        yield f"{name}/module", partial(_module, make)
        yield f"{name}/program", partial(_program, make)
    for name, make in _states():
        yield f"states/{name}", partial(_module, make)
        yield f"states/{name}/clone", partial(_module, make, clone=True)
        yield f"states/{name}/eval", partial(_module, make, as_eval=True)
    conv = partial(_with, rand(2, 4, 5, 5), _variance, 1.0)
    yield "states/kept", partial(_module, conv, keep=("0",))
    yield "states/autocast", partial(_module, partial(_with, rand(2, 4, 5, 5), _ready, Autocast))
    sizes = ({0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16, max=64)},)
    for name, make in _networks():
        if name in ("resnet", "repvgg"):
            yield f"module/{name}/sizes", partial(_module, make, dynamic_shapes=sizes)
            yield f"module/{name}/traced", partial(_traced, make)
    for seed in range(MODULES):
        yield f"drawn-module/{seed}", partial(_module, partial(_drawn_module, seed))
        yield f"drawn-program/{seed}", partial(_program, partial(_drawn_module, seed))
    for seed in range(NETWORKS):
        yield f"drawn-network/{seed}", partial(_drawn_network, seed)


def _module(make: Make, **options: Any) -> Given:
    module, x = make()
    return Given(module, (x,), options)


def _traced(make: Make) -> Given:
    """Without example inputs."""
    return Given(make()[0])


def _program(make: Make) -> Given:
    module, x = make()
    with torch.no_grad():
        return Given(torch.export.export(module, (x.clone(),), strict=False))


def _file(make: Make) -> Given:
    return Given(_architectures().exported(*make()))


# --- networks ----------------------------------------------------------------------------------


def _networks() -> Iterator[tuple[str, Make]]:
    for name in _architectures().ARCHITECTURES:
        yield name, partial(_architecture, name)
    for name in _reparameterized().NETWORKS:
        yield name, partial(_branched, name)


def _architecture(name: str) -> tuple[nn.Module, Tensor]:
    architecture = _architectures().ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = architecture.build()
    return ready(module, torch.float32), rand(2, *architecture.shape, dtype=torch.float32)


def _branched(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        module = _reparameterized().built(name)
    return ready(module, torch.float32), rand(2, 3, 24, 24, dtype=torch.float32)


@cache
def _architectures() -> ModuleType:
    """The package of the benchmarks' networks, which is not installed."""
    return _loaded("networks", ROOT / "benchmarks" / "networks" / "__init__.py")


@cache
def _reparameterized() -> ModuleType:
    return _loaded("examples_reparameterized", ROOT / "examples" / "reparameterized.py")


def _loaded(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- one law each ------------------------------------------------------------------------------


def _tables() -> Iterator[tuple[str, Make]]:
    """The tables of the tests of carrying and of merging."""
    for name, (op, kind, _, *rest) in test_carry.BEHIND.items():
        yield f"behind/{name}", partial(_with, test_carry.X, behind, op, kind, *rest)
    for name, (linear, op, kind, _) in test_ahead.AHEAD.items():
        yield f"ahead/{name}", partial(_with, test_ahead.X, _ahead, op, kind, linear)
    for name, (op, kind, _, options) in test_carry.BRANCHES.items():
        yield f"branches/{name}", partial(_with, test_carry.X, _branches, op, kind, options)
    for name, (op, _) in test_carry.NUMBERS.items():
        yield f"numbers/{name}", partial(_with, test_carry.X, _ready, test_carry.Scaled, op)
    for name, (pair, _, _) in test_merge.PAIRS.items():
        yield f"pairs/{name}", partial(_with, test_merge.X, _pair, pair, torch.add)
    for name, join in test_merge.JOINS.items():
        pair = test_merge.PAIRS["3x3-and-1x1"][0]
        yield f"pairs/{name}", partial(_with, test_merge.X, _pair, pair, join)
    for name, norm in test_norms.NORMS.items():
        yield f"norms/{name}", partial(_with, rand(4, 4, 4, 4), _normed, norm)


def _with(x: Tensor, make: Callable[..., nn.Module], *args: Any) -> tuple[nn.Module, Tensor]:
    """Made of copies, for a module in a table would keep what one model leaves in it."""
    return make(*copy.deepcopy(args)), x


def _ahead(op: Any, kind: str, linear: Callable[[], nn.Module]) -> nn.Module:
    return ahead(op, kind, linear())


def _branches(op: Any, kind: str, options: dict[str, Any]) -> nn.Module:
    module = ready(test_carry.Branches(op, **options))
    normed(module.norm, kind)
    return module


def _ready(kind: Callable[..., nn.Module], *args: Any) -> nn.Module:
    return ready(kind(*args))


def _pair(pair: Callable[[], tuple[nn.Module, nn.Module]], join: Any) -> nn.Module:
    return ready(test_merge.two(*pair(), join))


def _normed(norm: Callable[[], nn.Module]) -> nn.Module:
    return ready(nn.Sequential(nn.Conv2d(4, 4, 3), norm(), nn.ReLU()))


class Twice(nn.Module):
    """A convolution that is called twice, with a norm behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


def _tied() -> nn.Module:
    """Two convolutions of one weight, a norm behind one of them."""
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    module[3].weight = module[0].weight
    return ready(module)


class Autocast(nn.Module):
    """A part that runs with autocast, which a program calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y: Tensor = self.norm(self.conv(x))
        return y


def _states() -> Iterator[tuple[str, Make]]:
    """Norms in training or without statistics, statistics that are no numbers, shared weights."""
    x = rand(2, 4, 5, 5)
    for tracked in (True, False):
        for training in (True, False):
            name = ("tracked" if tracked else "untracked") + ("-training" if training else "")
            yield name, partial(_with, x, _in_training, tracked, training)
    for name, value in (("nan", float("nan")), ("negative", -1.0), ("huge", 1e-320)):
        yield f"variance-{name}", partial(_with, x, _variance, value)
    yield "twice", partial(_with, x, _ready, Twice)
    yield "tied", partial(_with, x, _tied)
    yield "standardized", partial(_with, x, _ready, test_norms.Standardized, 1, 1)


def _in_training(tracked: bool, training: bool) -> nn.Module:
    norm = nn.BatchNorm2d(4, track_running_stats=tracked)
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), norm))
    module[1].train(training)
    return module


def _variance(value: float) -> nn.Module:
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=0.0)))
    with torch.no_grad():
        module[1].running_var[1] = value
        module[1].weight[1] = 1e300
    return module


# --- drawn -------------------------------------------------------------------------------------


def _drawn_module(seed: int) -> tuple[nn.Module, Tensor]:
    """The first module of a seed and its followers that PyTorch exports."""
    drawing = seeded("torch.test_random_modules")
    while True:
        module, rank = draw(drawing.modules(), seed)
        x = rand(*[drawing.N] * rank)
        if drawing.exported(module, x) is not None:
            return module, x
        seed += 1000


def _drawn_network(seed: int) -> Given:
    drawing = seeded("torch.test_merge_drawn")
    while True:
        program = drawing.program_of(draw(drawing.networks(), seed))
        if program is not None:
            return Given(program)
        seed += 1000
