"""Small networks with one map on one side of an operator and one linear operator on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from ..graphs import Piece, affine_nodes, bn, const, conv, counts, model, op, rand
from .holding import holds, holds_told

Array = Any
REASONS = ("axis-mismatch", "no-linear-operator", "not-carried", "shared-output", "zero-padding")
# Node and weights of an operator, given what it reads and writes.
Middle = Callable[[str, str], Sequence[Piece]]


def _along(values: Any) -> Array:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def _line(x: str, y: str, c: int) -> Piece:
    """A norm of ``1.6·x − 0.5`` in every channel."""
    names = ("scale", "shift", "mean", "var")
    values = {f"map.{n}": np.full(c, v, np.float32) for n, v in zip(names, (2, 0.5, 0.625, 1.5525))}
    inputs = " ".join([x, *values])
    return op("BatchNormalization", inputs, y, name="map", epsilon=0.01), values


# Maps by what laws ask of them; each has one number per channel, or one for all.
MAPS: dict[str, Callable[[str, str, int], Piece]] = {
    "positive": lambda x, y, c: const("Mul", x, y, _along(np.linspace(0.5, 2, c)), name="map"),
    "mixed": lambda x, y, c: const("Mul", x, y, _along(np.linspace(-1.5, 2, c)), name="map"),
    "zero": lambda x, y, c: const("Mul", x, y, _along(np.arange(c) / 2), name="map"),
    "shift": lambda x, y, c: const("Add", x, y, _along(np.linspace(-1, 2, c)), name="map"),
    "number": lambda x, y, c: const("Mul", x, y, np.float32(1.5), name="map"),
    "minus": lambda x, y, c: const("Mul", x, y, np.float32(-1.5), name="map"),
    "constant": lambda x, y, c: const("Add", x, y, np.float32(0.7), name="map"),
    "line": lambda x, y, c: _line(x, y, c),
    "norm": lambda x, y, c: bn("map", x, y, c),
}
EVERY = frozenset(MAPS)
SCALES = frozenset({"positive", "mixed", "zero", "number", "minus"})
POSITIVE = frozenset({"positive", "number"})
MONOTONE = frozenset({"positive", "zero", "shift", "number", "constant", "line"})
UNIFORM = frozenset({"number", "constant", "line"})


def behind(
    middle: Middle, kind: str, x: Sequence[Any] = (2, 4, 4, 4), *, c: int = 4, **options: Any
) -> ModelProto:
    """Conv, operator, map: the map goes backward into the Conv."""
    weight = (c, c, *(1,) * (len(x) - 2))
    return model(
        conv("conv", "x", "a", weight),
        *middle("a", "b"),
        MAPS[kind]("b", "y", c),
        x=x,
        **options,
    )


def ahead(
    middle: Middle,
    kind: str,
    x: Sequence[Any] = (2, 4, 4, 4),
    *,
    c: int = 4,
    reads: int = 4,
    **options: Any,
) -> ModelProto:
    """Map, operator, Conv: the map goes forward into the Conv."""
    weight = (c, reads, *(1,) * (len(x) - 2))
    return model(
        MAPS[kind]("x", "a", c),
        *middle("a", "b"),
        conv("conv", "b", "y", weight),
        x=x,
        **options,
    )


def affine(made: ModelProto) -> int:
    """How many affine operators there are: norms, Neg, and arithmetic with a constant."""
    return len(affine_nodes(made)) + counts(made).get("Neg", 0)


def goes(made: ModelProto, data: Any = None, *, left: int = 0) -> ModelProto:
    """The maps fold, all but so many operators."""
    folded = holds(made, data)
    assert affine(folded) == left, counts(folded)
    return folded


def stays(
    made: ModelProto, *expected: str, node: str = "map", says: str = "", data: Any = None
) -> None:
    """As many affine operators are left as there were, and one is kept for one of the reasons,
    or with words that say more.
    """
    once = holds_told(made, data)
    assert affine(once.folded) == affine(made), counts(once.folded)
    kept = next((k for k in once.plan.kept if k.node == node), None)
    assert kept is not None, "no reason given"
    assert kept.code in (expected or REASONS), kept
    assert says in kept.message, kept


def weights(*shape: int) -> Array:
    return rand(*shape) / np.float32(np.sqrt(max(shape[-1], 1)))
