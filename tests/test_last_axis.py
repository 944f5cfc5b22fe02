"""Behind a MatMul of unknown rank the last axis is known: it is that of the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from . import graphs
from .graphs import bn, const, conv, counts, model, op, rand

Array = Any
RANKS = [(4,), (3, 4), (4, 4), (2, 3, 4), (4, 4, 4), (2, 1, 3, 4)]


def matmul(x: str, y: str, w: Array, name: str = "matmul") -> Any:
    return op("MatMul", f"{x} {name}.w", y, name=name), {f"{name}.w": w}


def holds(made: ModelProto) -> graphs.Done:
    """Whatever rank the data have; certificates hold, too."""
    once = graphs.done(made)
    graphs.check(made, once.folded, once.plan)
    graphs.certified(made, once)
    for shape in RANKS:
        data = {"x": rand(*shape)}
        for was, now in zip(graphs.run(made, data), graphs.run(once.folded, data), strict=True):
            assert was.shape == now.shape
            assert np.allclose(was, now, rtol=1e-4, atol=1e-4 * np.abs(was).max(initial=1.0))
    return once


def goes(made: ModelProto, **left: int) -> None:
    assert counts(holds(made).folded) == left


def stays(made: ModelProto, code: str, node: str = "map") -> None:
    once = holds(made)
    assert {k.node: k.code for k in once.plan.kept}[node] == code, once.plan.kept
    assert counts(once.folded) == counts(made)


def unknown(*pieces: Any, **options: Any) -> ModelProto:
    return model(*pieces, x={"x": None}, **options)


@pytest.mark.parametrize("n", [4, 3])
def test_vectors_behind_go_into_the_weight_and_the_bias(n):
    """K = N by accident, and not."""
    made = unknown(
        matmul("x", "h", rand(4, n)), const("Add", "h", "b", rand(n)),
        const("Mul", "b", "s", rand(n)), op("Identity", "s", "i"),
        const("Sub", "i", "t", rand(n), left=True), const("Div", "t", "y", rand(n)),
    )  # fmt: skip
    goes(made, MatMul=1, Add=1, Identity=1)


def test_one_number_for_all_and_vectors():
    made = unknown(
        matmul("x", "h", rand(4, 3)), const("Mul", "h", "s", np.float32(3)),
        const("Add", "s", "t", rand(3)), const("Mul", "t", "y", rand(1)),
    )  # fmt: skip
    goes(made, MatMul=1, Add=1)


def test_a_shift_ahead_comes_out_along_the_last_axis():
    made = unknown(
        op("Tanh", "x", "a"), const("Mul", "a", "s", np.float32(3)),
        const("Sub", "s", "t", np.float32(2)), matmul("t", "h", rand(4, 3)),
        const("Add", "h", "y", rand(3)),
    )  # fmt: skip
    goes(made, Tanh=1, MatMul=1, Add=1)


def test_what_might_be_another_axis_stays():
    """[1, N] makes a row a matrix; of a weight on the left, or with batches, it is another axis."""
    made = unknown(matmul("x", "h", rand(4, 4)), const("Mul", "h", "y", rand(1, 4), name="map"))
    stays(made, "unknown-shape")
    made = unknown(matmul("x", "h", rand(2, 4, 4)), const("Mul", "h", "y", rand(4), name="map"))
    once = graphs.done(made)
    assert {k.node: k.code for k in once.plan.kept} == {"map": "unknown-shape"}
    left = op("MatMul", "W x", "h", name="matmul")
    made = unknown(left, const("Mul", "h", "y", rand(4), name="map"), weights={"W": rand(4, 4)})
    once = graphs.done(made)
    assert {k.node: k.code for k in once.plan.kept} == {"map": "unknown-shape"}


def test_a_norm_has_its_channels_elsewhere():
    """Of a matrix axis 1 is the last, of a tensor of three axes it is not."""
    made = unknown(matmul("x", "h", rand(4, 4)), bn("map", "h", "y", 4))
    once = graphs.done(made)
    assert [k.node for k in once.plan.kept] == ["map"]
    assert counts(once.folded) == counts(made)


@pytest.mark.parametrize(
    "middle",
    [
        lambda a, b: [op("Relu", a, b)],
        lambda a, b: [op("Concat", f"{a} {a}", b, axis=-1)],
        lambda a, b: [op("ReduceMean", a, b, axes=[0], keepdims=1)],
        lambda a, b: [op("Add", f"{a} {a}", b)],
    ],
    ids=["Relu", "Concat", "ReduceMean", "Add"],
)
def test_such_a_map_goes_nowhere(middle):
    """Concat along axis 1 of a matrix would join what the map tells apart."""
    made = unknown(
        matmul("x", "h", rand(4, 4)), op("Tanh", "h", "a"), const("Mul", "h", "g", rand(4)),
        *middle("g", "m"), op("Tanh", "m", "y"), y="y a",
    )  # fmt: skip
    once = holds(made)
    assert counts(once.folded) == counts(made)
    (kept,) = (k for k in once.plan.kept if k.node == "g_mul")
    assert kept.code == "shared-output"
    assert "forward, the rank of what g_mul reads is not known" in kept.message
    made = unknown(matmul("x", "h", rand(4, 4)), *middle("h", "m"), const("Mul", "m", "y", rand(4)))
    once = holds_where_it_runs(made)
    assert [k.code for k in once.plan.kept] == ["unknown-shape"]


def holds_where_it_runs(made: ModelProto) -> graphs.Done:
    """The second size of what is joined does not fit a vector of four."""
    once = graphs.done(made)
    assert once.folded.SerializeToString() == made.SerializeToString()
    return once


def test_two_maps_of_which_one_has_no_place():
    """The Mul goes into the weight; ahead of the second product nothing is known of the axis."""
    made = unknown(
        matmul("x", "h", rand(4, 4), "m1"), op("Tanh", "h", "a"),
        matmul("a", "k", rand(4, 4), "m2"), const("Add", "k", "b", rand(4)),
        const("Mul", "b", "g", rand(4)), matmul("g", "y", rand(4, 3), "m3"),
    )  # fmt: skip
    goes(made, MatMul=3, Tanh=1, Add=1)


def test_known_ranks_are_as_they_were():
    made = model(matmul("x", "h", rand(4, 4)), const("Mul", "h", "y", rand(4, 1)), x=(2, 4, 4))
    once = graphs.done(made)
    assert {k.code for k in once.plan.kept} == {"axis-mismatch"}
    made = model(conv("c", "x", "h", (4, 4, 1, 1)), const("Mul", "h", "y", rand(4)), x={"x": None})
    assert {k.code for k in graphs.done(made).plan.kept} == {"unknown-shape"}


@pytest.mark.parametrize("size", [4, 1])
def test_what_a_norm_hands_on_meets_no_map_along_the_last_axis(size):
    """The norm's scale may pass the Relu. What stands there has no axis 1 to write it along."""
    scale = np.array([0.5, 2, 3, 4], np.float32)
    made = unknown(
        matmul("x", "h", rand(4, 4)), const("Mul", "h", "t", rand(size)),
        const("Add", "t", "a", rand(size)), op("Relu", "a", "r"), bn("map", "r", "y", 4),
        weights={"map.scale": scale, "map.bias": 0 * scale, "map.mean": 0 * scale},
    )  # fmt: skip
    once = graphs.done(made)
    (kept,) = (k for k in once.plan.kept if k.node == "map")
    assert kept.code == "unknown-shape"
    assert "the rank of what" in kept.message
