"""The models, by name. A name begins with its source; what is built depends on nothing but a seed.

Left out are the models of ``zoo`` with drawn statistics, for these come from a run of onnxruntime,
whose last bits depend on the processor; they fold as the same architectures of ``light`` do. For
the same reason the benchmarks' networks get drawn statistics here instead of measured ones.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from .. import graphs, zoo
from .drawing import draw, seeded
from .outcome import Given

Build = Callable[[], Given]
STORED = Path(__file__).with_name("stored.tar.xz")
TORCH = find_spec("torch") is not None
# How many are drawn of each kind.
CARRIED, LONG, SUMS, PRODUCTS, GRAPHS, CHAINS = 160, 60, 80, 40, 80, 40
TORCH_SOURCES = (
    "module program export behind ahead branches numbers pairs norms states "
    "drawn-module drawn-program drawn-network"
).split()
SOURCES = (
    "real light silero command own outside folds stored carried carried-long convolutions products "
    "drawn_models drawn_chains"
).split() + TORCH_SOURCES
# Of these, one model in three or eight is part of the test that runs always: of each another one.
THIRDS = (
    "folds stored carried carried-long convolutions products drawn_models drawn_chains"
).split()
EIGHTHS = (
    "light module program export behind ahead branches numbers pairs norms "
    "drawn-module drawn-program drawn-network"
).split()
FOREIGN = ("real", "light", "silero")  # their files belong to other packages


def models() -> dict[str, Build]:
    """Every model by name."""
    found = dict(_files())
    found |= dict(_small())
    found |= dict(_stored())
    found |= dict(_drawn())
    if TORCH:
        from . import modules

        found |= dict(modules.models())
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

    for name, case in _own().items():
        yield f"own/{name}", _reseeded(case)
    for name in ("foldable", "crossing", "hiding"):
        yield f"outside/{name}", _outside(getattr(examples, name))


def _own() -> dict[str, Callable[[], ModelProto]]:
    """What no other model says: types that cannot be folded, the rules before opset 7, a function
    that cannot be inlined, for BatchNormalization means something else in its opset, and
    onnxruntime's blocked layout.
    """
    shape = (4, 3, 1, 1)
    ones = np.ones(shape, np.int32)

    def old(x: Any, **attributes: int) -> ModelProto:
        map_ = graphs.const("Mul", "c", "y", graphs.rand(4), **attributes)
        return graphs.model(graphs.conv("conv", "x", "c", shape), map_, opset=6, x=x)

    def integers(weights: dict[str, Any]) -> ModelProto:
        pieces = graphs.op("Conv", "x w", "c", name="conv"), graphs.bn("bn", "c", "y", 4)
        return graphs.model(*pieces, weights={"w": graphs.rand(*shape)} | weights)

    def product(*pieces: Any, weights: dict[str, Any]) -> ModelProto:
        first = graphs.op("MatMul", "x w", "c", name="product")
        weights = {"w": graphs.rand(3, 4)} | weights
        return graphs.model(first, *pieces, weights=weights, x=(2, 3), opset=6)

    def called() -> ModelProto:
        imports = [helper.make_opsetid("", 13)]
        norm = graphs.op("BatchNormalization", "c s t m v", "y", name="bn")
        body = [graphs.op("Conv", "x w", "c", name="conv"), norm]
        function = helper.make_function("my", "Block", [*"xwstmv"], ["y"], body, imports)
        call = graphs.op("Block", "x w s t m v", "y", domain="my", name="call")
        weights = dict.fromkeys("stmv", graphs.positive(4)) | {"w": graphs.rand(*shape)}
        return graphs.model(call, functions=[function], domains={"my": 1}, weights=weights)

    def blocked() -> ModelProto:
        domain = "com.microsoft.nchwc"
        inside = [
            graphs.op("ReorderInput", "a", "b", domain=domain),
            graphs.op("Conv", "b w", "c", domain=domain),
            graphs.op("ReorderOutput", "c", "d", domain=domain, channels=8),
        ]
        pieces = graphs.bn("bn", "x", "a", 8), *inside, graphs.bn("last", "d", "y", 8)
        weights = {"w": graphs.rand(8, 8, 1, 1)}
        return graphs.model(*pieces, weights=weights, domains={domain: 1}, x=(2, 8, 4, 4))

    return {
        "blocked-layout": blocked,
        "function-of-another-opset": called,
        "old-broadcast": lambda: old((2, 3, 4, 4), broadcast=1, axis=1),
        "old-broadcast-without-axis": lambda: old(None, broadcast=1),
        "old-without-broadcast": lambda: old((2, 3, 4, 4)),
        "integer-weight": lambda: integers({"w": ones}),
        "integer-scale": lambda: integers({"bn.scale": np.ones(4, np.int32)}),
        "old-product": lambda: product(
            graphs.op("Add", "c k", "d", name="add", broadcast=1),
            graphs.op("Mul", "d k", "y", name="mul", broadcast=1),
            weights={"k": graphs.rand(4)},
        ),
    }


def _outside(make: Callable[[], ModelProto]) -> Build:
    def build() -> Given:
        graphs.reseed()
        return Given(make(), outside=True)

    return build


def _reseeded(make: Callable[[], Any]) -> Build:
    def build() -> Given:
        graphs.reseed()
        return Given(make())

    return build


def _stored() -> Iterator[tuple[str, Build]]:
    """Models that tests of one law each build in place, as they were in November 2026; of those
    that say the same in the same words about the same operators, one. They are stored, so that the
    tests may change.
    """
    for name, raw in _unpacked().items():
        yield f"stored/{name}", partial(_parsed, raw)


def _parsed(raw: bytes) -> Given:
    return Given(ModelProto.FromString(raw))


@cache
def _unpacked() -> dict[str, bytes]:
    with tarfile.open(STORED) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        return {k.removesuffix(".onnx"): file.read() for k, file in members.items() if file}


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
