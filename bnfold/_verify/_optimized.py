"""What onnxruntime makes of a folded model once it optimizes it, as it does by default.

Two models that agree without optimizations may differ with them: a fold can bring together what
onnxruntime then merges wrongly. That is no wrong fold, but a wrong result for whoever runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold._verify._difference import distance, is_float, mismatch
from bnfold._verify._inputs import InputSet
from bnfold._verify._session import EngineError, OnnxRuntime
from bnfold._verify._source import Source

FACTOR = 10.0
"""How many times the tolerance the optimizations may move an output, since fused kernels sum in
other orders. On 39 real and built models they moved it by at most half of the tolerance."""


@dataclass(frozen=True)
class Expected:
    """One input set, what the original makes of it without optimizations, and how far each output
    may be off; None for one that rounding alone changes.
    """

    inputs: InputSet
    outputs: Sequence[Any]
    tolerances: Sequence[float | None]


@dataclass(frozen=True, order=True)
class _Excess:
    """The largest difference in units of what is allowed, and where it is."""

    excess: float
    said: str


def compare_optimized(
    original: Source, folded: Source, expected: Sequence[Expected], outputs: Sequence[str]
) -> tuple[bool, str]:
    """Whether a folded model still gives what it should once onnxruntime optimizes it, and what is
    to be said.

    It does not where it is off and the original, optimized too, is not: a bug of onnxruntime that
    only the fold meets. A model that no longer loads or runs is off. Where both are off alike that
    is the runtime's own doing.
    """
    worst = _excess(folded, expected, outputs)
    if worst.excess <= 1.0:
        return True, ""
    usual = _excess(original, expected, outputs)
    what = f"{OnnxRuntime.runtime} with its optimizations on gives something else for"
    if worst.excess <= FACTOR * usual.excess:
        return True, f"{what} both models ({usual.said}): that is its own doing"
    return False, (
        f"{what} the folded model ({worst.said}) and not for the original; with them off both "
        "agree: a bug of onnxruntime that the original does not meet. Deploy with optimizations "
        "off or on another runtime, or keep the original"
    )


def _excess(source: Source, expected: Iterable[Expected], outputs: Sequence[str]) -> _Excess:
    """How far a model is off. Integers, and shapes that depend on values, may turn on the last
    digit of something: they are passed over.
    """
    worst = _Excess(0.0, "nothing")
    try:
        engine = OnnxRuntime(source.content(), source.folder, optimized=True)
        for each in expected:
            found = engine.run(each.inputs.feeds)
            rows = zip(outputs, each.outputs, found, each.tolerances, strict=True)
            for name, left, right, tolerance in rows:
                if tolerance is None or mismatch(left, right) or not is_float(left):
                    continue
                gap, allowed = distance(left, right), FACTOR * tolerance
                excess = gap / allowed if allowed else (np.inf if gap else 0.0)
                said = f"{name} on {each.inputs.label} inputs: difference {gap:.2e}"
                worst = max(worst, _Excess(float(excess), said))
    except EngineError as error:
        return _Excess(float("inf"), str(error))
    return worst
