"""What must hold whenever maps are carried: the same function, certificates, an account of maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from .. import graphs
from . import exact

# Of the largest number on the way: what rounding weights to float32 may cost in exact arithmetic,
# and what float32 arithmetic may cost.
WEIGHTS, ARITHMETIC = 3e-5, 3e-4


class Unrunnable(Exception):
    """onnxruntime does not run the original."""


def same(made: ModelProto, folded: ModelProto, data: Mapping[str, Any]) -> None:
    """Both compute the same: in float64, and in onnxruntime with its optimizations off."""
    wanted, peak = exact.run(made, data)
    found, other = exact.run(folded, data)
    peak = max(peak, other)
    try:
        ran = graphs.run(made, data)
    except Exception as error:  # What it raises has no common base of its own.
        raise Unrunnable from error
    again = graphs.run(folded, data)
    for info, w, f, r, a in zip(made.graph.output, wanted, found, ran, again):
        apart = exact.close(w, r, peak, ARITHMETIC)
        assert apart <= 1, f"{info.name}: onnxruntime is {apart:.3g} from the definition"
        apart = exact.close(w, f, peak, WEIGHTS)
        assert apart <= 1, f"{info.name}: {apart:.3g} tolerances off in float64"
        apart = exact.close(r, a, peak, ARITHMETIC)
        assert apart <= 1, f"{info.name}: {apart:.3g} tolerances off in onnxruntime"


def holds(made: ModelProto, data: Mapping[str, Any] | None = None) -> ModelProto:
    """Fold, and hold the result to everything that must be true of it."""
    return holds_told(made, data).folded


def holds_told(made: ModelProto, data: Mapping[str, Any] | None = None) -> graphs.Done:
    """The same, with the plan."""
    before = made.SerializeToString()
    once = graphs.done(made)
    assert made.SerializeToString() == before, "the input model was changed"
    same(made, once.folded, graphs.feeds(made) if data is None else data)
    graphs.check(made, once.folded, once.plan)
    graphs.certified(made, once)
    assert not graphs.orphans(made, once.folded)
    return once
