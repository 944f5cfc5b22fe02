"""The count of the benchmarks takes for a whole GELU what onnxruntime runs as one operator.

Its result is the same for every tool, so a form that it misjudged would favour one of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from ..graphs import const, model, op, optimized, rand
from ..scripts import load

counting = load("benchmarks", "counting")
ROOT = np.float32(np.sqrt(2))
ROWS = (2, 5)


def gelu(
    root=None, one=None, half=None, ahead=False, turned=False, also="", source="Add"
) -> ModelProto:
    """``x/2·(1 + erf(x/√2))``, the half ahead of the product or behind it; ``also`` is read too."""
    last = half or const("Mul", "p", "g", np.float32(0.5), left=turned)
    first = const("Mul", "x", "h", np.float32(0.5))
    gate = "h" if ahead else "x"
    return model(
        const(source, "in", "x", rand(5)),
        root or const("Div", "x", "d", ROOT),
        op("Erf", "d", "e"),
        one or const("Add", "e", "a", np.float32(1), left=turned),
        *([first] if ahead else []),
        op("Mul", f"a {gate}" if turned else f"{gate} a", "g" if ahead else "p"),
        *([] if ahead else [last]),
        op("Sigmoid", "g", "y"),
        *([op("Relu", also, "z")] if also else []),
        x={"in": ROWS},
        y="y z" if also else "y",
    )


def with_output(made: ModelProto, name: str) -> ModelProto:
    made.graph.output.add().CopyFrom(made.graph.output[0])
    made.graph.output[-1].name = name
    return made


CASES = {
    "half behind": gelu(),
    "half ahead": gelu(ahead=True),
    "turned": gelu(turned=True),
    "half behind, of a product": gelu(source="Mul"),
    "half ahead, of a product": gelu(ahead=True, source="Mul"),
    "ahead, turned": gelu(ahead=True, turned=True),
    "rounded root": gelu(root=const("Div", "x", "d", np.float32(1.4142))),
    "merged half": gelu(half=const("Mul", "p", "g", np.float32(0.4))),
    "halves by channel": gelu(half=const("Mul", "p", "g", np.float32([0.5, 0.5, 0.5, 0.5, 0.4]))),
    "no half": gelu(half=op("Relu", "p", "g")),
    "other root": gelu(root=const("Div", "x", "d", np.float32(1.5))),
    "merged root": gelu(root=op("Identity", "x", "d")),
    "other one": gelu(one=const("Add", "e", "a", np.float32(2))),
    "difference": gelu(one=const("Sub", "e", "a", np.float32(1))),
    "erf read twice": gelu(also="e"),
    "product read twice": gelu(also="p"),
    "root read twice": gelu(also="d"),
    "half read twice": gelu(ahead=True, also="h"),
    "sum is an output": with_output(gelu(), "a"),
    "gate of another": gelu(root=const("Div", "in", "d", ROOT)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gelu_is_whole_where_onnxruntime_fuses_it(case: str, tmp_path: Path) -> None:
    made = CASES[case]
    fused = counting.count(optimized(made, tmp_path / "fused.onnx", "ENABLE_EXTENDED"))
    written = counting.count(made)
    assert written.gelus == fused.fused_gelus
    assert (fused.gelus, written.fused_gelus) == (0, 0)


def test_biases_count_whoever_holds_them() -> None:
    made = model(
        (op("MatMul", "x w", "m"), {"w": rand(5, 4)}),
        op("Identity", "m", "i"),
        const("Add", "i", "b", rand(4)),
        const("Add", "b", "c", np.float32(2)),
        const("Mul", "c", "y", np.float32(2)),
        x=(2, 3, 5),
    )
    found = counting.count(made)
    assert (found.total, found.biases) == (3, 1)
