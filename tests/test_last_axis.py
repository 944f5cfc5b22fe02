"""Behind a MatMul or a norm of unknown rank the last axis is known: that of the weight, or of γ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

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


MICROSOFT = {"com.microsoft": 1}


def norm(kind: str, y: str = "n", n: int = 4) -> Any:
    """A norm of data whose rank is not known, with γ and maybe β of ``n`` numbers."""
    inputs, domain = (
        {"LayerNormalization": "x g b", "SkipLayerNormalization": "x x g b"}.get(kind, "x g"),
        "com.microsoft" if kind.startswith("Skip") else "",
    )
    stored = {"g": rand(n), "b": rand(n)}
    held = {name: value for name, value in stored.items() if name in inputs.split()}
    return op(kind, inputs, y, name="norm", domain=domain), held


NORMS = ["LayerNormalization", "RMSNormalization", "SkipLayerNormalization"]


def normed(kind: str, *pieces: Any, **options: Any) -> ModelProto:
    opset = 23 if kind.startswith("RMS") else 17
    return unknown(norm(kind), *pieces, opset=opset, domains=MICROSOFT, **options)


@pytest.mark.parametrize("kind", NORMS[:2])
def test_gamma_of_a_norm_lies_along_the_last_axis_whatever_the_rank(kind):
    scale, shift = const("Mul", "n", "s", rand(4)), const("Add", "s", "y", rand(4))
    goes(normed(kind, scale, op("Identity", "s", "y")), **{kind: 1, "Identity": 1})
    once = holds(normed(kind, scale, shift))
    assert counts(once.folded).get("Mul", 0) == 0
    assert counts(once.folded).get("Add", 0) == (kind == "RMSNormalization")


def test_gamma_of_a_norm_of_onnxruntime_does_so_too():
    made = normed("SkipLayerNormalization", const("Mul", "n", "s", rand(4)),
                  const("Add", "s", "y", rand(4)))  # fmt: skip
    once = graphs.done(made)
    graphs.certified(made, once)
    assert counts(once.folded) == {"SkipLayerNormalization": 1}
    for shape in ((3, 4), (4, 4, 4)):
        data = {"x": rand(*shape)}
        found = graphs.run(once.folded, data)
        np.testing.assert_allclose(found[0], graphs.run(made, data)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NORMS)
def test_behind_such_a_norm_other_axes_are_not_known(kind):
    """Of a matrix, [4, 1] is along axis 0; a norm's channels are along axis 1."""
    once = graphs.done(normed(kind, const("Mul", "n", "y", rand(4, 1), name="map")))
    assert [k.code for k in once.plan.kept] == ["unknown-shape"]
    made = normed(kind, bn("map", "n", "y", 4))
    once = graphs.done(made)
    assert [k.node for k in once.plan.kept] == ["map"]
    assert counts(once.folded) == counts(made)


def test_one_gamma_may_be_for_several_places():
    """γ of one number does not say that the last axis has one place."""
    gamma = {"g": rand(1)}
    for k in (rand(4), rand(1, 4)):
        made = unknown(
            op("RMSNormalization", "x g", "n", name="norm"), const("Mul", "n", "y", k, name="map"),
            weights=gamma, opset=23,
        )  # fmt: skip
        once = graphs.done(made)
        assert {k.node: k.code for k in once.plan.kept} == {"map": "unknown-shape"}


def test_a_gamma_of_two_axes_tells_none_of_them():
    weights = {"g": rand(4, 4), "b": rand(4, 4)}
    for k in (rand(4), rand(4, 1)):
        made = unknown(
            op("LayerNormalization", "x g b", "n", axis=-2), const("Mul", "n", "y", k, name="map"),
            weights=weights,
        )  # fmt: skip
        once = graphs.done(made)
        assert {k.node: k.code for k in once.plan.kept} == {"map": "unknown-shape"}


def product(kind: str, x: str, y: str = "y", **attrs: Any) -> Any:
    """All sizes agree: only where the axes lie tells which is summed over."""
    domain = "com.microsoft" if kind == "FusedMatMul" else ""
    weight = {"W": rand(4, 4)}
    inputs = f"W {x}" if attrs.pop("left", False) else f"{x} W"
    return op(kind, inputs, y, domain=domain, name="product", **attrs), weight


PRODUCTS: list[tuple[str, dict[str, Any], bool]] = [
    ("MatMul", {}, True),
    ("MatMul", {"left": True}, False),
    ("Gemm", {}, True),
    ("Gemm", {"transB": 1}, True),
    ("Gemm", {"transA": 1}, False),
    ("Gemm", {"left": True}, False),
    ("Gemm", {"left": True, "transB": 1}, True),
    ("FusedMatMul", {"transB": 1}, True),
    ("FusedMatMul", {"transA": 1}, False),
]


@pytest.mark.parametrize("between", ["", "Identity"])
@pytest.mark.parametrize("kind, attrs, taken", PRODUCTS, ids=str)
def test_a_product_takes_in_what_lies_along_the_axis_that_it_sums_over(kind, attrs, taken, between):
    """A scale and, where there is a bias, a shift. Somebody else sees what the norm puts out."""
    x, pieces = "s", [const("Mul", "n", "s", rand(4), name="map")]
    if kind == "Gemm":
        x, pieces = "t", [*pieces, const("Add", "s", "t", rand(4), name="shift")]
    if between:
        pieces, x = [*pieces, op(between, x, "i")], "i"
    made = normed("LayerNormalization", *pieces, product(kind, x, **attrs), y="y n")
    once = graphs.done(made)
    graphs.certified(made, once)
    left = counts(once.folded).get("Mul", 0) + counts(once.folded).get("Add", 0)
    assert left == (0 if taken else len(pieces) - bool(between)), once.plan.kept
    ran = 0
    for shape in RANKS:
        data = {"x": rand(*shape)}
        try:
            wanted = graphs.run(made, data)
        except Exception:  # onnxruntime runs no Gemm of anything but matrices.
            continue
        found = graphs.run(once.folded, data)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        ran += 1
    assert ran


@pytest.mark.parametrize(
    "middle",
    [
        lambda a, b: op("Transpose", a, b, perm=[1, 0]),
        lambda a, b: op("Relu", a, b),
        lambda a, b: op("Flatten", a, b, axis=1),
        lambda a, b: op("Add", f"{a} {a}", b),
    ],
    ids=["Transpose", "Relu", "Flatten", "Add"],
)
def test_what_stands_between_the_norm_and_the_product_is_not_crossed(middle):
    made = normed(
        "RMSNormalization", const("Add", "n", "t", rand(4), name="map"),
        middle("t", "m"), product("MatMul", "m"),
    )  # fmt: skip
    once = graphs.done(made)
    assert [k.node for k in once.plan.kept] == ["map"]
    assert once.folded.SerializeToString() == made.SerializeToString()


@pytest.mark.parametrize("pinned", [False, True])
def test_a_wrong_number_behind_an_unknown_rank_shows(pinned):
    """Of γ and β, or of the weight and the Add behind the product."""
    made = normed(
        "LayerNormalization", const("Mul", "n", "s", rand(4)), const("Add", "s", "t", rand(4)),
        product("MatMul", "t", y="h"), const("Add", "h", "y", rand(4)),
        y="y n" if pinned else "y",
    )  # fmt: skip
    once = holds(made)
    before = {t.name: t.SerializeToString() for t in made.graph.initializer}
    changed = [
        t.name for t in once.folded.graph.initializer if t.SerializeToString() != before.get(t.name)
    ]
    assert len(changed) == 2
    for name in changed:
        wrong = ModelProto()
        wrong.CopyFrom(once.folded)
        (stored,) = (t for t in wrong.graph.initializer if t.name == name)
        values = numpy_helper.to_array(stored).copy()
        values.reshape(-1)[1] *= np.float32(1.001)
        stored.CopyFrom(numpy_helper.from_array(values, name))
        assert not all(one.holds for one in graphs.certify(made, wrong, once.applied)), name
