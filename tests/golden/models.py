"""The models, by name. A name begins with its source; what is built depends on nothing but a seed.

Left out are the models of ``zoo`` with drawn statistics, for these come from a run of onnxruntime,
whose last bits depend on the processor; they fold as the same architectures of ``light`` do. For
the same reason the benchmarks' networks get drawn statistics here instead of measured ones.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import graphs, zoo
from .drawing import draw, seeded
from .outcome import Given

Build = Callable[[], Given]
ROOT = Path(__file__).parents[2]
TORCH = find_spec("torch") is not None
# How many are drawn of each kind.
CARRIED, LONG, SUMS, PRODUCTS, GRAPHS, CHAINS, MODULES, NETWORKS = 160, 60, 80, 40, 80, 40, 40, 48
SOURCES = (
    "real light silero command folds carried carried-long convolutions products drawn_models "
    "drawn_chains module program export drawn-module drawn-program drawn-network"
).split()
TORCH_SOURCES = "module program export drawn-module drawn-program drawn-network".split()
FOREIGN = ("real", "light", "silero")  # their files belong to other packages


def models() -> dict[str, Build]:
    """Every model by name."""
    found = dict(_files())
    found |= dict(_small())
    found |= dict(_drawn())
    if TORCH:
        found |= dict(_modules())
        found |= dict(_drawn_modules())
    return found


def source(name: str) -> str:
    """The source of a model, which its name begins with."""
    return name.partition("/")[0]


# --- ONNX --------------------------------------------------------------------------------------


def _files() -> Iterator[tuple[str, Build]]:
    for name in ("digits", *zoo.OCR, *zoo.LIGHT, *zoo.SILERO):
        kind, _, rest = name.partition("-")
        label = f"{kind}/{rest}" if rest else f"real/{name}"
        yield label, lambda name=name: Given(zoo.path(name))


def _small() -> Iterator[tuple[str, Build]]:
    from ..cli import examples
    from ..verify import folds

    for name in ("foldable", "settled", "strange", "slow", "crossing", "hiding", "endless"):
        yield f"command/{name}", _reseeded(getattr(examples, name))
    for name, case in folds.CASES.items():
        for kind, elem in folds.TYPES.items():
            yield f"folds/{name}/{kind}", _reseeded(partial(case, elem=elem))


def _reseeded(make: Callable[[], Any]) -> Build:
    def build() -> Given:
        graphs.reseed()
        return Given(make())

    return build


def _drawn() -> Iterator[tuple[str, Build]]:
    from ..carry.drawing import drawn

    for seed in range(CARRIED):
        yield f"carried/{seed}", lambda seed=seed: Given(drawn(random.Random(seed), 2, 20)[0])
    for seed in range(LONG):
        yield f"carried-long/{seed}", lambda seed=seed: Given(drawn(random.Random(seed), 10, 40)[0])
    for kind, module, count in (
        ("convolutions", "merge.drawing", SUMS),
        ("products", "merge.drawing", PRODUCTS),
        ("drawn_models", "test_random_graphs", GRAPHS),
        ("drawn_chains", "test_random_graphs", CHAINS),
    ):
        for seed in range(count):
            yield f"{kind}/{seed}", partial(_drawn_model, module, kind, seed)


def _drawn_model(module: str, kind: str, seed: int) -> Given:
    return Given(draw(getattr(seeded(module), kind)(), seed)[0])


# --- PyTorch -----------------------------------------------------------------------------------


def _modules() -> Iterator[tuple[str, Build]]:
    for name in _networks().ARCHITECTURES:
        yield f"module/{name}", partial(_as_module, name, _architecture)
        yield f"program/{name}", partial(_as_program, name, _architecture)
        yield f"export/{name}", partial(_as_file, name, _architecture)
    for name in _reparameterized().NETWORKS:
        yield f"module/{name}", partial(_as_module, name, _branched)
        yield f"program/{name}", partial(_as_program, name, _branched)
        yield f"export/{name}", partial(_as_file, name, _branched)


def _drawn_modules() -> Iterator[tuple[str, Build]]:
    for seed in range(MODULES):
        yield f"drawn-module/{seed}", partial(_drawn_module, seed, False)
        yield f"drawn-program/{seed}", partial(_drawn_module, seed, True)
    for seed in range(NETWORKS):
        yield f"drawn-network/{seed}", partial(_drawn_network, seed)


def _drawn_module(seed: int, program: bool) -> Given:
    """The first module of a seed and its followers that PyTorch exports."""
    from ..torch.folding import rand

    drawing = seeded("torch.test_random_modules")
    for attempt in range(seed, seed + 100_000, 1000):
        module, rank = draw(drawing.modules(), attempt)
        x = rand(*[drawing.N] * rank)
        if drawing.exports(module, x):
            break
    return Given(_exported(module, x)) if program else Given(module, (x,))


def _drawn_network(seed: int) -> Given:
    drawing = seeded("torch.test_merge_drawn")
    for attempt in range(seed, seed + 100_000, 1000):
        program = drawing.program_of(draw(drawing.networks(), attempt))
        if program is not None:
            break
    return Given(program)


def _architecture(name: str) -> tuple[Any, Any]:
    import torch

    from ..torch.folding import rand, ready

    architecture = _networks().ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = architecture.build()
    return ready(module, torch.float32), rand(2, *architecture.shape, dtype=torch.float32)


def _branched(name: str) -> tuple[Any, Any]:
    import torch

    from ..torch.folding import rand, ready

    with torch.random.fork_rng(devices=[]):
        module = _reparameterized().built(name)
    return ready(module, torch.float32), rand(2, 3, 24, 24, dtype=torch.float32)


def _as_module(name: str, make: Callable[[str], tuple[Any, Any]]) -> Given:
    module, x = make(name)
    return Given(module, (x,))


def _as_program(name: str, make: Callable[[str], tuple[Any, Any]]) -> Given:
    return Given(_exported(*make(name)))


def _as_file(name: str, make: Callable[[str], tuple[Any, Any]]) -> Given:
    return Given(_networks().exported(*make(name)))


def _exported(module: Any, x: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.export.export(module, (x.clone(),), strict=False)


@cache
def _networks() -> ModuleType:
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
